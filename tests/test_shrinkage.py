"""Shrinkage of eigenvalues against the formula recomputed, and what it is worth on rows that a fit has not seen."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import oas

from precfm.core.errors import PrecfmError
from precfm.geometry.shrinkage import fresh_variances
from precfm.preconditioners.class_whitening import ClassWhitening
from precfm.preconditioners.whitening import Whitening
from tests.preconditioner_cases import ill_conditioned

DIM = 64
BASIS = np.linalg.qr(np.random.default_rng(0).standard_normal((DIM, DIM)))[0]
STDS = np.logspace(0, -2, DIM)
TRUTH = (BASIS * STDS**2) @ BASIS.T


def sample(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, DIM)) * STDS @ BASIS.T


def fresh_kappa(matrix: np.ndarray) -> float:
    """Condition number of rows behind a linear map, of which there are infinitely many."""
    return float(np.linalg.cond(matrix @ TRUTH @ matrix.T))


def whitening(variances: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.sqrt(variances)) @ vectors.T


@pytest.mark.parametrize(("features", "rows"), [(30, 15), (30, 90), (7, 4000)])
def test_the_formula_of_ledoit_and_wolf(features: int, rows: int) -> None:
    x = np.random.default_rng(1).standard_normal((rows, features)) * np.arange(1.0, features + 1)
    eigenvalues = np.linalg.eigvalsh(np.cov(x.T)).clip(0)
    freedom = rows - 1
    c = features / freedom
    h = min(c**2, c**-2) ** 0.35 / features**0.35
    inverse = 1 / eigenvalues[max(0, features - freedom) :]
    stieltjes = np.array([np.mean(inverse / (inverse - each - 1j * h * inverse)) for each in inverse])
    if c <= 1:
        inverted = (1 - c) ** 2 * inverse + 2 * c * (1 - c) * inverse * stieltjes.real
        expected = 1 / (inverted + c**2 * inverse * abs(stieltjes) ** 2)
    else:
        null = np.full(features - freedom, 1 / ((c - 1) * inverse.mean()))
        expected = np.concatenate([null, 1 / (inverse * abs(stieltjes) ** 2)])
    expected *= eigenvalues.sum() / expected.sum()
    assert np.allclose(fresh_variances(torch.from_numpy(eigenvalues), rows).numpy(), expected, rtol=1e-9)


@settings(max_examples=30, deadline=None)
@given(
    features=st.integers(1, 20), rows=st.integers(2, 60), scale=st.floats(1e-6, 1e6), seed=st.integers(0, 99)
)
def test_variances_are_positive_keep_their_sum_and_follow_the_scale(
    features: int, rows: int, scale: float, seed: int
) -> None:
    x = np.random.default_rng(seed).standard_normal((rows, features))
    eigenvalues = torch.from_numpy(np.linalg.eigvalsh(np.atleast_2d(np.cov(x.T))).clip(0))
    found = fresh_variances(eigenvalues, rows)
    assert float(found.min()) > 0
    assert float(found.sum()) == pytest.approx(float(eigenvalues.sum()), rel=1e-9)
    assert torch.allclose(fresh_variances(scale * eigenvalues, rows), scale * found, rtol=1e-6)


@pytest.mark.parametrize("rows", [40, 63, 64, 65, 66, 68, 72, 128, 640])
def test_rows_that_the_fit_has_not_seen_are_nearly_as_white_as_they_can_be(rows: int) -> None:
    ratios = []
    for seed in range(3):
        x = sample(rows, seed)
        eigenvalues, vectors = np.linalg.eigh(np.cov(x.T))
        best = fresh_kappa(whitening(((TRUTH @ vectors) * vectors).sum(axis=0), vectors))
        found = fresh_kappa(Whitening().fit(torch.from_numpy(x)).matrix.numpy())
        ratios.append(found / best)
        assert found < fresh_kappa(whitening(*np.linalg.eigh(oas(x)[0])))
        if rows > DIM:
            assert found < 1.02 * fresh_kappa(whitening(eigenvalues, vectors))
    assert np.median(ratios) < 1.5


def test_without_shrinkage_the_notes_say_what_is_left_on_fresh_rows() -> None:
    few = Whitening(shrinkage=0).fit(torch.from_numpy(sample(256, 0)))
    (note,) = few.notes
    assert note == "x has 4.0 rows per feature: on fresh rows a condition number near 9 is left"
    assert 6 < fresh_kappa(few.matrix.numpy()) < 12
    assert Whitening(shrinkage=0).fit(torch.from_numpy(sample(640, 0))).notes == []
    (shrunk,) = Whitening().fit(torch.from_numpy(sample(256, 0))).notes
    assert shrunk.endswith("near 9, without the shrinkage; less with it")
    (equal,) = Whitening().fit(torch.from_numpy(sample(64, 0))).notes
    assert "near infinity, without" in equal


def test_fewer_rows_than_features_are_whitened_with_shrinkage_and_refused_at_once_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.from_numpy(sample(40, 0))
    for shrinkage in ("auto", 0.1):
        fitted = Whitening(shrinkage=shrinkage).fit(x)  # type: ignore[arg-type]
        assert torch.allclose(fitted.inverse(fitted.forward(x)), x, atol=1e-12)
        assert "fewer rows (40) than features (64)" in fitted.notes[0]
    monkeypatch.delattr(torch.linalg, "eigh")
    with pytest.raises(
        PrecfmError, match=r"^x: has fewer rows \(40\) than features \(64\).*shrinkage 'auto'"
    ):
        Whitening(shrinkage=0).fit(x)


def test_what_never_varies_is_no_lack_of_rows() -> None:
    x = ill_conditioned(450, seed=0)[0].flatten(1).clone()
    x[:, 4] = 0.1
    for rows in (450, 5):
        with pytest.raises(PrecfmError, match=r"constant in feature 4.*shrinkage to a number"):
            Whitening().fit(x[:rows])
    Whitening().fit(x[:5, :4])


@pytest.mark.parametrize("exponent", [0.25, 0.5, -0.25])
def test_the_mean_variance_of_fresh_rows_is_one(exponent: float) -> None:
    matrix = Whitening(exponent).fit(torch.from_numpy(sample(128, 0))).matrix.numpy()
    assert np.trace(matrix @ TRUTH @ matrix.T) / DIM == pytest.approx(1, rel=0.15)


def test_small_classes_are_whitened_as_far_as_their_rows_reach() -> None:
    x = torch.from_numpy(np.concatenate([sample(20, 0), 5 + sample(300, 1)]))
    labels = torch.tensor([0] * 20 + [1] * 300)
    fitted = ClassWhitening().fit(x, labels)
    assert fresh_kappa(fitted.matrices[0].numpy()) < fresh_kappa(
        ClassWhitening(shrinkage=0).fit(x, labels).matrices[0].numpy()
    )
    assert any("rows per feature" in note for note in fitted.notes)
    alone = ClassWhitening(rows_per_feature=0.0).fit(x, labels)
    assert any("class 0 of x has fewer rows (20) than features (64)" in note for note in alone.notes)


@pytest.mark.parametrize("wrong", [-0.1, 1.5, "some", None, True, [0.1]])
def test_shrinkage_is_a_share_or_auto(wrong: object) -> None:
    with pytest.raises(PrecfmError, match=r"^shrinkage: got .*from 0 to 1, or 'auto'"):
        Whitening(shrinkage=wrong)  # type: ignore[arg-type]
