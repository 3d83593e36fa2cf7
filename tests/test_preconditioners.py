"""One contract for every registered preconditioner; what each promises on top stands in test_preconditioner_kinds."""

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from precfm.core.errors import PrecfmError
from precfm.core.options import options_of
from precfm.core.registry import REGISTRY
from precfm.core.registry import load as registered
from precfm.geometry.recovery import smallest_std
from precfm.preconditioners.base import Preconditioner
from precfm.preconditioners.class_whitening import ClassWhitening
from precfm.preconditioners.round_trip import round_trip_error, tail_round_trip_error
from precfm.preconditioners.saving import load, save
from precfm.preconditioners.whitening import Whitening
from tests.preconditioner_cases import CASES, CLASSES, FEATURES, METRIC, SHAPE, case_id, ill_conditioned, make

LEARNED = ("normalizing_flow", "low_capacity_flow", "conv_normalizing_flow", "conv_low_capacity_flow")
NOT_WHITE = (
    "Identity",
    "Scalar",
    "PerChannel",
    "ChannelWhitening",
    "PerFrequency",
    "Kronecker",
    "LowRank",
    "ConvNormalizingFlow",
    "ConvLowCapacityFlow",
    "PerClass",
    "Projection",
    "DecoderMetric",
)
Labelled = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def data() -> Labelled:
    return ill_conditioned(450, seed=0)


@pytest.fixture(scope="module", params=CASES, ids=case_id)
def fitted(request: pytest.FixtureRequest, data: Labelled) -> Preconditioner:
    return make(request.param).fit(*data, metric=METRIC, seed=3)


def unfitted(fitted: Preconditioner) -> Preconditioner:
    return type(fitted)(**fitted.options)


def test_every_registered_preconditioner_is_a_case() -> None:
    assert {name for name, _ in CASES} == set(REGISTRY["preconditioners"])


def test_the_smallest_std_of_the_test_data_is_small(data: Labelled) -> None:
    # The tolerance of the round trip is relative to this number, so the data must be ill-conditioned.
    assert smallest_std(data[0]) < 0.02


@pytest.mark.parametrize("name", REGISTRY["preconditioners"])
def test_options_are_what_the_schema_says(name: str) -> None:
    schema = options_of(registered("preconditioners", name))
    assert make((name, {})).options == schema().model_dump()


def test_a_subclass_inherits_options_and_may_change_a_default() -> None:
    flow = make(("low_capacity_flow", {"steps": 7, "shrinkage": 0.5}))
    assert {"steps": 7, "shrinkage": 0.5, "learning_rate": 2e-3}.items() <= flow.options.items()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip_on_new_data_and_in_the_tails(fitted: Preconditioner, dtype: torch.dtype) -> None:
    x, labels = ill_conditioned(300, seed=1)
    x = x.to(dtype)
    z = fitted.forward(x, labels)
    assert z.dtype == fitted.inverse(z, labels).dtype == dtype
    assert z.shape == x.shape
    assert round_trip_error(fitted, x, labels) <= fitted.round_trip_tolerance
    assert tail_round_trip_error(fitted, x, labels) <= max(fitted.round_trip_tolerance, 1e-15)


def test_tails_of_maps_to_white_data_stay_near_the_data(fitted: Preconditioner, data: Labelled) -> None:
    options = fitted.options
    whitens = options.get("exponent", 0.5) == 0.5 and options.get("shrinkage", 0.0) in (0, "auto")
    if not whitens or type(fitted).__name__ in NOT_WHITE:
        pytest.skip("this map does not make the data white")
    x, labels = data
    white = Whitening().fit(x)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    tail = white.forward(fitted.inverse(1.5 * noise, labels))
    assert float(tail.abs().max()) <= 3 * float(white.forward(x).abs().max())


def test_any_batch_size_row_by_row(fitted: Preconditioner, data: Labelled) -> None:
    x, labels = data
    whole = fitted.forward(x, labels)
    for rows in (0, 1, 7):
        part = fitted.forward(x[:rows], labels[:rows])
        assert part.shape == fitted.inverse(part, labels[:rows]).shape == (rows, *SHAPE)
        assert torch.allclose(part, whole[:rows], rtol=1e-9, atol=1e-9)
        if fitted.has_log_det:
            assert fitted.log_abs_det_jacobian(x[:rows], labels[:rows]).shape == (rows,)


def test_log_det_is_that_of_the_jacobian(fitted: Preconditioner, data: Labelled) -> None:
    x, labels = data[0][:4], data[1][:4]
    claimed = fitted.log_abs_det_jacobian(x, labels)
    for row in range(len(x)):
        one, label = x[row : row + 1], labels[row : row + 1]
        jacobian, digits = (
            torch.autograd.functional.jacobian(lambda v, y=label: fitted.forward(v, y), one),
            1e-8,
        )
        if not jacobian.any():  # a solution of an ODE has no graph
            steps = 1e-5 * torch.eye(FEATURES, dtype=one.dtype).reshape(FEATURES, *one.shape[1:])
            beside = [fitted.forward(one + sign * steps, label.expand(FEATURES)) for sign in (1, -1)]
            jacobian, digits = (beside[0] - beside[1]) / 2e-5, 1e-6
        expected = torch.linalg.slogdet(jacobian.reshape(FEATURES, FEATURES)).logabsdet
        assert torch.allclose(claimed[row], expected, rtol=digits, atol=digits)


def calls_of(fitted: Preconditioner) -> list[Callable[..., Any]]:
    """All that takes data and labels: the maps, and the fit of an equal one."""

    def fit(x: Any, labels: Any = None) -> Preconditioner:
        return unfitted(fitted).fit(x, labels, metric=METRIC)

    maps = [fitted.forward, fitted.inverse]
    return [*maps, *([fitted.log_abs_det_jacobian] if fitted.has_log_det else []), fit]


def does_without_labels(fitted: Preconditioner) -> bool:
    fresh = unfitted(fitted)
    fresh._expect_labels(False)
    return not fresh.needs_labels


def changed(x: Tensor, value: float) -> Tensor:
    x = x.clone()
    x[17, 1, 2] = value
    return x


WRONG_DATA: list[tuple[Callable[[Tensor], Any], str]] = [
    (lambda x: x.flatten(1), "shape"),
    (lambda x: x[:, :, :2], "shape"),
    (lambda x: x.long(), "int64"),
    (lambda x: x.numpy().astype(int), "int64"),
    (lambda x: x.tolist(), "list"),
    (lambda x: "latents.npy", "str"),
    (lambda x: None, "nothing"),
    *((lambda x, bad=bad: changed(x, bad), f"{bad} in row 17") for bad in (math.nan, math.inf, -math.inf)),
]  # fmt: skip


def test_wrong_data_are_refused(fitted: Preconditioner, data: Labelled) -> None:
    x, labels = data
    *maps, fit = calls_of(fitted)
    for wrong, found in WRONG_DATA:
        calls = maps if found == "shape" else [*maps, fit]  # a fit takes any shape
        for call in calls:
            with pytest.raises(PrecfmError, match=f"^[xz]: .*{found}"):
                call(wrong(x), labels)
        with pytest.raises(PrecfmError, match=f"^validation: .*{found}"):
            unfitted(fitted).fit(x, labels, validation=(wrong(x), labels), metric=METRIC)


WRONG_LABELS: list[tuple[Callable[[Tensor], Any], str]] = [
    (lambda labels: labels[:-1], "449"),
    (lambda labels: labels.float(), "float32"),
    (lambda labels: labels.numpy().astype(float), "float64"),
    (lambda labels: labels.tolist(), "list"),
    (lambda labels: None, "missing"),
    *((lambda labels, new=new: labels.index_fill(0, torch.tensor([4]), new), f"{new} in row 4.*2, 5, 7")
      for new in (0, 3, 99)),
]  # fmt: skip


def test_labels_are_checked_where_they_are_needed(fitted: Preconditioner, data: Labelled) -> None:
    x, labels = data
    *maps, fit = calls_of(fitted)
    for wrong, found in WRONG_LABELS:
        if not fitted.needs_labels:
            assert torch.equal(fitted.forward(x, wrong(labels)), fitted.forward(x))
            assert torch.equal(fitted.inverse(x, wrong(labels)), fitted.inverse(x))
            continue
        calls = list(maps)
        if "row 4" not in found and not (found == "missing" and does_without_labels(fitted)):
            calls.append(fit)  # a fit takes any classes
        for call in calls:
            with pytest.raises(PrecfmError, match=f"labels.*{found}"):
                call(x, wrong(labels))


def test_labels_matter_where_they_are_needed(fitted: Preconditioner, data: Labelled) -> None:
    x, labels = data
    shifted = torch.tensor(CLASSES)[(torch.arange(len(x)) + 1) % len(CLASSES)]
    same = torch.allclose(fitted.forward(x, labels), fitted.forward(x, shifted))
    assert same is not fitted.needs_labels


def test_fits_to_too_little_are_refused(fitted: Preconditioner, data: Labelled) -> None:
    x, labels = data
    fit = calls_of(fitted)[-1]
    with pytest.raises(PrecfmError, match="2 rows"):
        fit(x[:1], labels[:1])
    with pytest.raises(PrecfmError, match="no batches"):
        fit([])
    with pytest.raises(PrecfmError, match=r"labels: .*beside batches"):
        fit([x], labels)
    with pytest.raises(PrecfmError, match="feature"):
        fit(x[:, :0], labels)
    with pytest.raises(PrecfmError, match=r"validation: .*a pair"):
        unfitted(fitted).fit(x, labels, validation=x, metric=METRIC)  # type: ignore[arg-type]


def batches(x: Tensor, labels: Tensor, *, labelled: bool) -> Iterator[Any]:
    """Uneven batches, one of them empty, in a generator that is read once."""
    for start, stop in itertools.pairwise((0, 1, 3, 3, 250, 251, len(x))):
        yield (x[start:stop], labels[start:stop]) if labelled else x[start:stop]


def test_a_fit_to_batches_is_the_fit_to_all_rows(fitted: Preconditioner, data: Labelled) -> None:
    x, labels = data
    given = batches(x, labels, labelled=fitted.needs_labels)
    again = unfitted(fitted).fit(given, metric=METRIC, seed=3)
    for name in ("event_shape", "classes", "flops_per_fit", "num_parameters", "notes"):
        assert getattr(again, name) == getattr(fitted, name)
    z, expected = again.forward(x, labels), fitted.forward(x, labels)
    if fitted.uses_seed:
        assert torch.equal(z, expected)
    assert torch.allclose(z, expected, rtol=1e-10, atol=1e-10)
    assert torch.allclose(again.inverse(x, labels), fitted.inverse(x, labels), rtol=1e-10, atol=1e-10)


def test_a_data_loader_makes_batches(data: Labelled) -> None:
    x, labels = data
    alone, pairs = (DataLoader(TensorDataset(*given), batch_size=50) for given in ((x,), (x, labels)))
    torch.testing.assert_close(Whitening().fit(alone).forward(x), Whitening().fit(x).forward(x))
    expected = ClassWhitening().fit(x, labels).forward(x, labels)
    torch.testing.assert_close(ClassWhitening().fit(pairs).forward(x, labels), expected)


def test_wrong_batches_are_refused(fitted: Preconditioner, data: Labelled) -> None:
    x, labels = data
    fit = calls_of(fitted)[-1]
    for wrong in (x[:5].flatten(1), x[:5].long(), changed(x, math.nan), x[:5].tolist()):
        with pytest.raises(PrecfmError, match=r"^x: "):
            fit(iter([(x, labels), (wrong, labels[: len(wrong)])]))
    if fitted.needs_labels:
        with pytest.raises(PrecfmError, match=r"^labels: "):
            fit([(x, labels), x[:5]])
        with pytest.raises(PrecfmError, match=r"^labels: "):
            fit([(x, labels[:-1])])


def test_use_before_fit_is_refused(fitted: Preconditioner, data: Labelled, tmp_path: Path) -> None:
    fresh = unfitted(fitted)
    for call in (fresh.forward, fresh.inverse):
        with pytest.raises(PrecfmError, match="before fit"):
            call(*data)
    with pytest.raises(PrecfmError, match=r"before fit|has_log_det"):
        fresh.log_abs_det_jacobian(*data)
    with pytest.raises(PrecfmError, match="not fitted"):
        save(fresh, tmp_path)


@pytest.mark.parametrize("where", ["folder", "map.safetensors"])
def test_saved_and_loaded_maps_are_bit_equal(
    fitted: Preconditioner, data: Labelled, tmp_path: Path, where: str
) -> None:
    path = tmp_path / "new" / where
    save(fitted, str(path))
    again = load(str(path))
    assert type(again) is type(fitted)
    assert torch.equal(again.forward(*data), fitted.forward(*data))
    assert torch.equal(again.inverse(*data), fitted.inverse(*data))
    for name in ("options", "event_shape", "classes", "needs_labels", "num_parameters", "flops_per_fit"):
        assert getattr(again, name) == getattr(fitted, name)
    assert (again.notes, again.record) == (fitted.notes, fitted.record)
    if fitted.has_log_det:
        assert torch.equal(again.log_abs_det_jacobian(*data), fitted.log_abs_det_jacobian(*data))
    files = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    save(again, path)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == files


def test_a_fit_that_failed_leaves_nothing_usable(
    fitted: Preconditioner, data: Labelled, tmp_path: Path
) -> None:
    save(fitted, tmp_path)
    again = load(tmp_path)
    with pytest.raises(PrecfmError):
        again.fit(torch.full_like(data[0], math.nan), data[1], metric=METRIC)
    with pytest.raises(PrecfmError, match="before fit"):
        again.forward(*data)


def test_a_state_dict_fills_an_equal_map(fitted: Preconditioner, data: Labelled) -> None:
    other = ill_conditioned(450, seed=8)
    again = unfitted(fitted).fit(*other, metric=METRIC, seed=4)
    again.load_state_dict(fitted.state_dict())
    assert torch.equal(again.forward(*data), fitted.forward(*data))


def test_fits_are_a_function_of_data_and_seed(fitted: Preconditioner, data: Labelled, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    again = unfitted(fitted).fit(*ill_conditioned(60, seed=9), metric=METRIC, seed=0)
    again.fit(*data, metric=METRIC, seed=3, scratch=str(tmp_path))
    assert torch.equal(torch.get_rng_state(), before)
    assert (again.notes, again.flops_per_fit) == (fitted.notes, fitted.flops_per_fit)
    assert torch.equal(again.forward(*data), fitted.forward(*data))
    other_seed = unfitted(fitted).fit(*data, metric=METRIC, seed=4)
    assert torch.equal(other_seed.forward(*data), fitted.forward(*data)) is not fitted.uses_seed


@pytest.mark.parametrize("name", REGISTRY["preconditioners"])
def test_the_class_says_whether_the_seed_and_a_metric_matter(name: str) -> None:
    cls = registered("preconditioners", name)
    assert cls.uses_seed is (name in (*LEARNED, "mixture_flow", "composition"))
    assert cls.needs_metric is (name == "decoder_metric")


def test_counts_and_frozen_weights(fitted: Preconditioner) -> None:
    assert isinstance(fitted.num_parameters, int)
    assert isinstance(fitted.flops_per_fit, int)
    assert (fitted.flops_per_fit > 0) == (fitted.num_parameters > 0)
    assert not fitted.training
    assert not any(parameter.requires_grad for parameter in fitted.parameters())
    assert unfitted(fitted).options == fitted.options


def test_less_precise_maps_on_request(fitted: Preconditioner, data: Labelled, tmp_path: Path) -> None:
    x, labels = data
    save(fitted, tmp_path)
    fast = load(tmp_path).to(torch.float32)
    assert torch.allclose(fast.forward(x, labels), fitted.forward(x, labels), rtol=1e-2, atol=1e-2)
    save(fast, tmp_path)
    assert torch.equal(load(tmp_path).forward(x, labels), fast.forward(x, labels))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_same_map_on_a_gpu(fitted: Preconditioner, data: Labelled, tmp_path: Path) -> None:
    x, labels = data
    save(fitted, tmp_path)
    moved = load(tmp_path).to("cuda")
    z = moved.forward(x.cuda(), labels.cuda())
    assert torch.allclose(z.cpu(), fitted.forward(x, labels), rtol=1e-8, atol=1e-8)
    assert round_trip_error(moved, x.cuda(), labels.cuda()) <= fitted.round_trip_tolerance
    with pytest.raises(PrecfmError, match=r"to\(device\)"):
        moved.forward(x, labels)
    there = unfitted(fitted).fit(x.cuda(), labels.cuda(), metric=METRIC, seed=3)
    assert tail_round_trip_error(there, x.cuda(), labels.cuda()) <= max(fitted.round_trip_tolerance, 1e-15)
