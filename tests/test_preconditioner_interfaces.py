"""What users of torch, numpy and scikit-learn expect of a preconditioner, beyond the contract of its maps."""

import copy
import inspect
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from torch import Tensor, nn

import precfm
from precfm.core.errors import PrecfmError
from precfm.preconditioners import base
from precfm.preconditioners.base import Preconditioner
from precfm.preconditioners.class_whitening import ClassWhitening
from precfm.preconditioners.composition import Composition
from precfm.preconditioners.low_capacity_flow import LowCapacityFlow
from precfm.preconditioners.mixture_flow import MixtureFlow
from precfm.preconditioners.normalizing_flow import NormalizingFlow
from precfm.preconditioners.per_channel import PerChannel
from precfm.preconditioners.scalar import Scalar
from precfm.preconditioners.whitening import Whitening
from tests.preconditioner_cases import CASES, FEATURES, METRIC, TINY_FLOW, case_id, ill_conditioned, make

X, LABELS = ill_conditioned(300, seed=0)


@pytest.fixture(scope="module", params=CASES, ids=case_id)
def fitted(request: pytest.FixtureRequest) -> Preconditioner:
    return make(request.param).fit(X, LABELS, metric=METRIC, seed=3)


def solves_an_ode(fitted: Preconditioner) -> bool:
    return isinstance(fitted, MixtureFlow | LowCapacityFlow)


def test_arrays_are_taken_and_answered_with_arrays(fitted: Preconditioner) -> None:
    x, labels = X.numpy(), LABELS.numpy()
    z = fitted.transform(x, labels)
    assert isinstance(z, np.ndarray)
    assert np.array_equal(z, fitted.forward(X, LABELS).numpy())
    assert np.array_equal(
        fitted.inverse_transform(z, labels), fitted.inverse(torch.as_tensor(z), LABELS).numpy()
    )


def test_a_fit_takes_arrays_and_batches_of_arrays() -> None:
    x, labels = X.float().numpy(), LABELS.numpy()
    x.flags.writeable = False  # as of a file that is mapped into memory
    expected = ClassWhitening().fit(X.float(), LABELS).forward(X, LABELS)
    whole = ClassWhitening().fit(x, labels)
    assert torch.equal(whole.forward(X, LABELS), expected)
    parts = ClassWhitening().fit([(x[:100], labels[:100]), (x[100:], labels[100:])])
    assert torch.allclose(parts.forward(X, LABELS), expected)
    assert np.array_equal(ClassWhitening().fit_transform(x, labels), whole.transform(x, labels))


def test_it_is_a_step_of_a_pipeline_of_scikit_learn() -> None:
    x = X.flatten(1).numpy()
    pipeline = make_pipeline(Whitening(shrinkage=0), Scalar())
    z = pipeline.fit_transform(x)
    assert np.allclose(np.cov(z.T), np.eye(FEATURES))
    assert np.allclose(pipeline.inverse_transform(z), x)
    search = GridSearchCV(
        make_pipeline(Whitening(), LinearRegression()), {"whitening__exponent": [0.0, 0.25]}, cv=2
    ).fit(x, x[:, 0])
    assert search.best_estimator_[0].exponent in (0.0, 0.25)


def test_a_state_dict_makes_a_fresh_map_fitted(fitted: Preconditioner) -> None:
    fresh = type(fitted)(**fitted.options)
    fresh.load_state_dict(fitted.state_dict())
    assert torch.equal(fresh.forward(X, LABELS), fitted.forward(X, LABELS))
    assert (fresh.notes, fresh.record, fresh.num_parameters) == (
        fitted.notes,
        fitted.record,
        fitted.num_parameters,
    )
    assert not any(parameter.requires_grad for parameter in fresh.parameters())


def test_a_state_dict_goes_through_the_users_module_and_file(tmp_path: Path) -> None:
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whitening, self.head = Whitening(), nn.Linear(FEATURES, 1)

    mine, other = Mine(), Mine()
    mine.whitening.fit(X)
    torch.save(mine.state_dict(), tmp_path / "mine.pt")
    other.load_state_dict(torch.load(tmp_path / "mine.pt", weights_only=True))
    assert torch.equal(other.whitening.inverse(X), mine.whitening.inverse(X))
    assert torch.equal(other.head.weight, mine.head.weight)
    unfitted = Mine()
    other.load_state_dict(unfitted.state_dict(), strict=False)
    assert not other.whitening.fitted


def test_a_state_of_other_options_is_refused() -> None:
    with pytest.raises(PrecfmError, match=r"exponent 0\.25.*0\.5"):
        Whitening(exponent=0.25).load_state_dict(Whitening().fit(X).state_dict())


def test_copies_and_pickles_map_alike(fitted: Preconditioner) -> None:
    for again in (copy.deepcopy(fitted), pickle.loads(pickle.dumps(fitted))):
        assert torch.equal(again.forward(X, LABELS), fitted.forward(X, LABELS))


def test_one_file_is_saved_by_the_map_and_loaded_from_the_top(tmp_path: Path) -> None:
    whitening = Whitening().fit(X)
    whitening.save(tmp_path / "w.safetensors")
    again = precfm.load(tmp_path / "w.safetensors", device="cpu")
    assert torch.equal(again.forward(X), whitening.forward(X))
    content = bytearray((tmp_path / "w.safetensors").read_bytes())
    content[-3] ^= 1
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(PrecfmError, match=r"w.safetensors: .*damaged"):
        precfm.load(tmp_path / "w.safetensors")


def test_maps_compile_as_one_graph(fitted: Preconditioner) -> None:
    if solves_an_ode(fitted):
        pytest.skip("an ODE solver of a library")
    torch._dynamo.reset()  # each map is another graph of the same code
    for method in (fitted.forward, fitted.inverse):
        compiled = torch.compile(method, fullgraph=True, backend="eager")
        assert torch.allclose(compiled(X, LABELS), method(X, LABELS), atol=1e-10)


def test_maps_work_under_vmap(fitted: Preconditioner) -> None:
    def one(x: Tensor, label: Tensor) -> Tensor:
        z: Tensor = fitted.forward(x[None], label[None], validate=False)
        return z[0]

    if solves_an_ode(fitted):
        pytest.skip("an ODE solver of a library")
    assert torch.allclose(torch.vmap(one)(X, LABELS), fitted.forward(X, LABELS), atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_noted_where_it_loses_more_than_a_tenth(dtype: torch.dtype) -> None:
    wide = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    narrow = (wide * torch.tensor([1.0, 0.1, 1e-3])).to(dtype)
    coarse = Whitening().fit(narrow)
    assert [note for note in coarse.notes if "float32" in note]
    assert coarse.forward(narrow).dtype == dtype
    assert not [note for note in Whitening().fit(wide.to(dtype)).notes if "float32" in note]


def test_a_device_without_float64_gets_float32_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "NO_FLOAT64", ("cpu",))
    expected = Whitening().fit(X).forward(X).float()
    whitening = Whitening().fit(X.float(), validation=(X.float(), None))
    assert whitening.matrix.dtype == torch.float32
    assert torch.allclose(whitening.forward(X.float()), expected, atol=1e-2)


def test_repr_and_signatures_are_readable(fitted: Preconditioner) -> None:
    assert all(f"{name}=" in repr(fitted) for name in (*fitted.options, "event_shape"))
    assert "not fitted" in repr(type(fitted)(**fitted.options))
    for shown in (inspect.signature(type(fitted)), inspect.signature(type(fitted).__init__)):
        assert "Annotated" not in str(shown)
    assert set(inspect.signature(type(fitted)).parameters) == set(fitted.options)


@pytest.mark.parametrize(
    "unlabelled",
    [NormalizingFlow(**TINY_FLOW), LowCapacityFlow(**TINY_FLOW), MixtureFlow(components=3, solver_steps=40)],
    ids=lambda each: type(each).__name__,
)
def test_learned_maps_do_without_labels(unlabelled: Preconditioner, tmp_path: Path) -> None:
    unlabelled.fit(X, seed=3)
    assert not unlabelled.needs_labels
    assert any("no labels" in note for note in unlabelled.notes)
    unlabelled.save(tmp_path / "map.safetensors")
    assert torch.equal(precfm.load(tmp_path / "map.safetensors").forward(X), unlabelled.forward(X))
    assert unlabelled.fit(X, LABELS, seed=3).needs_labels


def test_a_composition_takes_live_and_fitted_maps(tmp_path: Path) -> None:
    whitening = Whitening().fit(X)
    kept = whitening.matrix.clone()
    both = Composition([whitening, PerChannel(), "scalar"]).fit(X + 1)
    assert torch.equal(whitening.matrix, kept)
    z = Scalar().fit_transform(PerChannel().fit_transform(whitening.forward(X + 1)))
    assert torch.allclose(both.forward(X + 1), z)
    both.save(tmp_path)
    assert torch.equal(precfm.load(tmp_path).forward(X), both.forward(X))
    together = Composition([whitening, Scalar().fit(X)])
    assert together.fitted
    assert torch.allclose(together.inverse(together.forward(X)), X)


def test_a_composition_refuses_maps_of_other_data() -> None:
    with pytest.raises(PrecfmError, match=r"stages\.1: .*\(6,\).*\(2, 3\)"):
        Composition([Scalar().fit(X), Scalar().fit(X.flatten(1))])
    with pytest.raises(PrecfmError, match=r"stages\.0: .*\(2, 3\).*\(6,\)"):
        Composition([Scalar().fit(X), Whitening()]).fit(X.flatten(1))
    with pytest.raises(PrecfmError, match=r"stages.*entry 0: got 5"):
        Composition([5])


def test_one_row_without_its_batch_is_told_so() -> None:
    with pytest.raises(PrecfmError, match=r"x: has shape \(2, 3\).*x\[None\]"):
        Whitening().fit(X).forward(X[0])


def test_states_and_arrays_of_another_kind_are_refused() -> None:
    with pytest.raises(PrecfmError, match=r"^Scalar: the state is of a Whitening"):
        Scalar().load_state_dict(Whitening().fit(X).state_dict())
    with pytest.raises(PrecfmError, match=r"^x: got a ndarray"):
        Whitening().fit(np.array([["a", "b"], ["c", "d"]], dtype=object))


def test_a_refused_state_leaves_the_map_as_it_was() -> None:
    whitening = Whitening().fit(X)
    expected = whitening.forward(X)
    state = {name: value for name, value in whitening.state_dict().items() if name != "matrix"}
    with pytest.raises(PrecfmError, match=r"lacks matrix"):
        whitening.load_state_dict(state)
    assert torch.equal(whitening.forward(X), expected)


def test_methods_compile_side_by_side() -> None:
    whitening = Whitening().fit(X)
    torch.compiler.reset()
    for method in (whitening.forward, whitening.inverse, whitening.log_abs_det_jacobian):
        compiled = torch.compile(method, fullgraph=True, backend="aot_eager")
        for rows in (7, 9, 1):
            assert torch.allclose(compiled(X[:rows]), method(X[:rows]))


def test_half_precision_costs_no_decomposition_of_many_features() -> None:
    white = torch.randn(300, 700, generator=torch.Generator().manual_seed(0)).half()
    assert PerChannel().fit(white).notes == []


def test_a_composition_is_cloned_saved_and_of_one_dtype(tmp_path: Path) -> None:
    assert clone(Composition(["per_channel", "whitening"])).fit(X).fitted
    whitening = Whitening().fit(X)
    twice = Composition([whitening, whitening])
    twice.save(tmp_path / "twice.safetensors")
    assert torch.equal(precfm.load(tmp_path / "twice.safetensors").forward(X), twice.forward(X))
    with pytest.raises(PrecfmError, match=r"^stages: are .*float32"):
        Composition([Whitening().fit(X).to(torch.float32), Scalar().fit(X)])


def test_labels_of_any_kind_are_ignored_where_none_are_needed() -> None:
    words = np.array(["a", "b"])[LABELS.numpy() % 2]
    assert (
        make_pipeline(Whitening(), LogisticRegression())
        .fit(X.flatten(1).numpy(), words)
        .score(X.flatten(1).numpy(), words)
    )
