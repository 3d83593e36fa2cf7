"""Closed forms from rows that come over time, from moments, and from more rows than fit into a block."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import precfm.geometry.moments
from precfm.core.errors import PrecfmError
from precfm.geometry.moments import Moments
from precfm.geometry.spectra import covariance
from precfm.preconditioners.closed_form import ClosedForm
from precfm.preconditioners.projection import Projection
from precfm.preconditioners.saving import load, save
from precfm.preconditioners.scalar import Scalar
from precfm.preconditioners.whitening import Whitening
from tests.preconditioner_cases import CASES, FEATURES, SHAPE, Case, case_id, ill_conditioned, make

X, LABELS = ill_conditioned(450, seed=0)
CLOSED = [case for case in CASES if isinstance(make(case), ClosedForm) and "rows" not in case[1]]


def grown(case: Case, *ends: int) -> Any:
    made: Any = make(case)
    for start, stop in zip((0, *ends), ends, strict=False):
        made.partial_fit(X[start:stop], LABELS[start:stop])
    return made


@pytest.mark.parametrize("case", CLOSED, ids=case_id)
def test_rows_that_come_over_time_give_the_map_of_all(case: Case) -> None:
    whole, parts = make(case).fit(X, LABELS), grown(case, 1, 40, 450)
    z = whole.forward(X, LABELS)
    assert torch.allclose(parts.forward(X, LABELS), z, rtol=1e-9, atol=1e-9)
    for name in ("notes", "classes", "event_shape", "num_parameters", "flops_per_fit"):
        assert getattr(parts, name) == getattr(whole, name)
    half = grown(case, 90, 225)
    half.forward(X, LABELS)  # use in between changes nothing
    again = half.partial_fit([(X[225:300], LABELS[225:300]), (X[300:], LABELS[300:])])
    assert torch.allclose(again.forward(X, LABELS), z, rtol=1e-9, atol=1e-9)
    assert not any(buffer.requires_grad for buffer in again.buffers())


@pytest.mark.parametrize("name", ["whitening", "kronecker", "low_rank"])
def test_any_use_solves_the_map(name: str, tmp_path: Path) -> None:
    expected = make((name, {})).fit(X).state_dict()
    save(grown((name, {}), 200, 450), tmp_path)
    for made in (
        load(tmp_path),
        grown((name, {}), 200, 450),
        copy.deepcopy(grown((name, {}), 200, 450)),
        pickle.loads(pickle.dumps(grown((name, {}), 200, 450))),
    ):
        found = made.state_dict()
        assert found.keys() == expected.keys()
        assert torch.allclose(found["mean"], expected["mean"])
        assert made.fitted


def test_too_few_rows_are_refused_where_the_map_is_used() -> None:
    made = Whitening(shrinkage=0).partial_fit(X[:4])
    with pytest.raises(PrecfmError, match=r"fewer rows \(4\)"):
        made.forward(X)
    made.partial_fit(X[4:])
    assert made.forward(X).shape == X.shape
    with pytest.raises(PrecfmError, match="2 rows"):
        _ = Scalar().partial_fit(X[:1]).fitted


def test_wrong_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precfm.geometry.moments, "BLOCK", 5 * FEATURES)
    made, expected = grown(("whitening", {}), 450), Whitening().fit(X)
    bad = X.clone()
    bad[17, 1, 2] = torch.nan
    for wrong, message in ((bad, "nan in row 17, feature 5"), (X[:, :1], "shape"), (X.long(), "int64")):
        with pytest.raises(PrecfmError, match=f"^x: .*{message}"):
            made.partial_fit(wrong)
    assert made.fitted
    assert torch.allclose(made.matrix, expected.matrix)


def test_what_keeps_no_moments_is_not_extended(tmp_path: Path) -> None:
    fitted = Whitening().fit(X)
    save(fitted, tmp_path)
    for each in (fitted, load(tmp_path)):
        with pytest.raises(PrecfmError, match="keep no moments"):
            each.partial_fit(X)  # type: ignore[union-attr]
    fitted.fit(X[:100])
    grown_anew = Whitening().partial_fit(X[:50]).fit(X)  # a fit forgets what came before
    assert torch.equal(grown_anew.matrix, Whitening().fit(X).matrix)


@pytest.mark.parametrize("cls", [Whitening, Projection])
def test_moments_are_all_that_a_map_needs(cls: type[Whitening] | type[Projection]) -> None:
    made = cls.from_moments(X.mean(dim=0), covariance(X), n=len(X))
    fitted = cls().fit(X)
    assert made.event_shape == SHAPE
    assert torch.allclose(made.forward(X), fitted.forward(X))
    assert (made.notes, made.flops_per_fit) == (fitted.notes, fitted.flops_per_fit)
    more = made.partial_fit(ill_conditioned(50, seed=1)[0])
    both = cls().fit(torch.cat([X, ill_conditioned(50, seed=1)[0]]))
    assert torch.allclose(more.forward(X), both.forward(X))


MEAN, COV = torch.zeros(2), torch.eye(2)
WRONG_MOMENTS: list[tuple[dict[str, Any], str]] = [
    ({"mean": [0.0, 0.0]}, "mean: got a list"),
    ({"mean": torch.zeros(2).long()}, "mean: has dtype"),
    ({"mean": MEAN / 0}, "mean: holds a number"),
    ({"covariance": torch.eye(3)}, r"covariance: has shape \(3, 3\).*\(2, 2\)"),
    ({"covariance": torch.tensor([[1.0, 0.5], [0.0, 1.0]])}, "covariance: is not symmetric"),
    ({"covariance": torch.diag(torch.tensor([1.0, 0.0]))}, "constant in feature 1"),
    ({"n": 1}, "n: got 1"),
    ({"n": 2.5}, "n: got 2.5"),
    ({"exponent": 7.0}, "exponent: got 7.0"),
    ({"rows": 5}, "rows: got 5"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG_MOMENTS)
def test_wrong_moments_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(PrecfmError, match=message):
        Whitening.from_moments(**{"mean": MEAN, "covariance": COV, "n": 100, **wrong})


def test_first_rows_are_for_fit_alone() -> None:
    with pytest.raises(PrecfmError, match=r"rows: got 20; only fit"):
        Whitening(rows=20).partial_fit(X).forward(X)


@pytest.mark.parametrize("case", CLOSED, ids=case_id)
def test_a_large_batch_is_read_in_blocks(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = make(case).fit(X, LABELS).forward(X, LABELS)
    monkeypatch.setattr(precfm.geometry.moments, "BLOCK", 5 * FEATURES)
    read = []
    update = Moments.update

    def watched(moments: Moments, rows: Tensor) -> Moments:
        read.append(rows.numel())
        return update(moments, rows)

    monkeypatch.setattr(Moments, "update", watched)
    assert torch.allclose(make(case).fit(X, LABELS).forward(X, LABELS), expected, rtol=1e-9, atol=1e-9)
    assert max(read) <= 5 * FEATURES
    assert sum(read) == X.numel()


def test_moments_of_the_caller_are_copied() -> None:
    rows = X.flatten(1).double()
    mean, expected = rows.mean(0), rows.mean(0)
    whitening = Whitening.from_moments(mean, rows.T.cov(), n=len(rows))
    mean += 100
    assert whitening.fitted
    assert torch.allclose(whitening.mean, expected)
    whitening.partial_fit(rows)
    assert whitening.fitted
    assert torch.allclose(whitening.mean, expected)


def test_a_cast_after_the_last_rows_stays() -> None:
    whitening = Whitening().partial_fit(X).float()
    assert whitening.forward(X.float()).dtype == torch.float32
    assert whitening.matrix.dtype == torch.float32
    assert "not fitted" in repr(Whitening().partial_fit(X[:1]))
