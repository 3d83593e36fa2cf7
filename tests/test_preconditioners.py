"""One contract for every registered preconditioner, then what each of them promises on top."""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.options import Neutral, class_constant, options_of
from precfm.core.registry import REGISTRY
from precfm.core.registry import load as registered
from precfm.geometry.recovery import smallest_std
from precfm.geometry.spectra import condition_number, covariance
from precfm.preconditioners.base import JSON_FILE, TENSORS_FILE, Preconditioner, load, save
from precfm.preconditioners.class_whitening import ClassWhitening
from precfm.preconditioners.composition import Composition
from precfm.preconditioners.decoder_metric import DecoderMetric
from precfm.preconditioners.identity import Identity
from precfm.preconditioners.low_capacity_flow import LowCapacityFlow
from precfm.preconditioners.normalizing_flow import NormalizingFlow
from precfm.preconditioners.per_channel import PerChannel
from precfm.preconditioners.projection import Projection
from precfm.preconditioners.round_trip import round_trip_error, tail_round_trip_error
from precfm.preconditioners.scalar import Scalar
from precfm.preconditioners.whitening import Whitening

SHAPE = (2, 3)
FEATURES = 6
CLASSES = (2, 5, 7)
TINY_FLOW: dict[str, Any] = {"steps": 60, "width": 16, "validate_every": 20, "batch_size": 64}

FEW_SOLVER_STEPS = {**TINY_FLOW, "max_solver_steps": 25}  # a refusal comes soon
FLOW_LAST = ("composition", {"stages": ({"name": "per_channel"}, {"name": "normalizing_flow", **TINY_FLOW})})
# Every registered name appears; each line is one case of the contract.
CASES: list[tuple[str, dict[str, Any]]] = [
    ("none", {}),
    ("scalar", {}),
    ("per_channel", {}),
    ("whitening", {}),
    ("whitening", {"exponent": 0.25}),
    ("whitening", {"shrinkage": 0.1}),
    ("whitening", {"rows": 60}),
    ("class_whitening", {}),
    ("class_whitening", {"exponent": 0.25, "shrinkage": 0.1}),
    ("normalizing_flow", TINY_FLOW),
    ("normalizing_flow", {**TINY_FLOW, "kind": "autoregressive"}),
    ("normalizing_flow", {**TINY_FLOW, "kind": "spline", "steps": 20}),
    ("normalizing_flow", {**TINY_FLOW, "conditional": False}),
    ("low_capacity_flow", TINY_FLOW),
    ("low_capacity_flow", {**TINY_FLOW, "conditional": False, "tolerance": 1e-3}),
    ("projection", {}),
    ("projection", {"rank": 2}),
    ("decoder_metric", {}),
    ("decoder_metric", {"floor": 1.0}),
    ("composition", {"stages": ({"name": "class_whitening"}, {"name": "scalar"})}),
    FLOW_LAST,
    ("auto", {"candidates": ({"name": "scalar"}, {"name": "whitening"})}),
    ("auto", {"candidates": ({"name": "class_whitening", "exponent": 0.4}, {"name": "class_whitening"})}),
]


def case_id(case: tuple[str, dict[str, Any]]) -> str:
    name, options = case
    shown = [f"{key}={value}" for key, value in options.items() if key not in TINY_FLOW]
    return "-".join([name, *shown])


def make(case: tuple[str, dict[str, Any]]) -> Preconditioner:
    name, options = case
    preconditioner: Preconditioner = registered("preconditioners", name)(**options)
    return with_metric(preconditioner)


def with_metric(preconditioner: Preconditioner) -> Preconditioner:
    """Maps that need a metric get a rank-deficient one, rotated against the data."""
    if isinstance(preconditioner, DecoderMetric):
        root = torch.randn(3, FEATURES, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        preconditioner.with_metric(root.T @ root)
    return preconditioner


def ill_conditioned(rows: int, seed: int, kappa: float = 1e4) -> tuple[Tensor, Tensor]:
    """A curved mixture of three classes with a rotated spectrum and a mean; shape (rows, 2, 3), float64."""
    source = torch.Generator().manual_seed(seed)
    fixed = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(FEATURES, FEATURES, generator=fixed, dtype=torch.float64))[0]
    centres = torch.randn(len(CLASSES), FEATURES, generator=fixed, dtype=torch.float64)
    stds = torch.logspace(0, -0.5 * math.log10(kappa), FEATURES, dtype=torch.float64)
    positions = torch.arange(rows) % len(CLASSES)
    noise = torch.randn(rows, FEATURES, generator=source, dtype=torch.float64)
    noise[:, 1] += 0.5 * (noise[:, 0].square() - 1)
    x = ((noise + centres[positions]) * stds) @ basis.T + 0.5
    return x.reshape(rows, *SHAPE), torch.tensor(CLASSES)[positions]


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    return ill_conditioned(450, seed=0)


@pytest.fixture(scope="module", params=CASES, ids=case_id)
def fitted(request: pytest.FixtureRequest, data: tuple[Tensor, Tensor]) -> Preconditioner:
    return make(request.param).fit(*data, seed=3)


def test_every_registered_preconditioner_is_a_case() -> None:
    assert {name for name, _ in CASES} == set(REGISTRY["preconditioners"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip_on_new_data(fitted: Preconditioner, dtype: torch.dtype) -> None:
    x, labels = ill_conditioned(300, seed=1)
    assert round_trip_error(fitted, x.to(dtype), labels) <= fitted.round_trip_tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip_in_the_tails(fitted: Preconditioner, dtype: torch.dtype) -> None:
    x, labels = ill_conditioned(300, seed=1)
    assert tail_round_trip_error(fitted, x.to(dtype), labels) <= max(fitted.round_trip_tolerance, 1e-15)


def test_tails_of_maps_to_white_data_stay_near_the_data(
    fitted: Preconditioner, data: tuple[Tensor, Tensor]
) -> None:
    options = fitted.options
    whitens = options.get("exponent", 0.5) == 0.5 and options.get("shrinkage", 0.0) == 0
    if not whitens or isinstance(fitted, (Identity, Scalar, PerChannel, Projection, DecoderMetric)):
        pytest.skip("this map does not make the data white")
    x, labels = data
    white = Whitening().fit(x)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    tail = white.forward(fitted.inverse(1.5 * noise, labels))
    assert float(tail.abs().max()) <= 3 * float(white.forward(x).abs().max())


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_any_batch_size_row_by_row(fitted: Preconditioner, data: tuple[Tensor, Tensor], rows: int) -> None:
    x, labels = data
    z = fitted.forward(x, labels)
    part = fitted.forward(x[:rows], labels[:rows])
    back = fitted.inverse(part, labels[:rows])
    assert part.shape == back.shape == (rows, *SHAPE)
    assert torch.allclose(part, z[:rows], rtol=1e-9, atol=1e-9)
    if fitted.has_log_det:
        assert fitted.log_abs_det_jacobian(x[:rows], labels[:rows]).shape == (rows,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_shape_are_those_of_the_input(
    fitted: Preconditioner, data: tuple[Tensor, Tensor], dtype: torch.dtype
) -> None:
    x, labels = data[0].to(dtype), data[1]
    z = fitted.forward(x, labels)
    assert z.dtype == fitted.inverse(z, labels).dtype == dtype
    assert z.shape == x.shape


def test_log_det_is_that_of_the_jacobian(fitted: Preconditioner, data: tuple[Tensor, Tensor]) -> None:
    x, labels = data[0][:4], data[1][:4]
    if not fitted.has_log_det:
        with pytest.raises(PrecfmError, match="has_log_det"):
            fitted.log_abs_det_jacobian(x, labels)
        return
    claimed = fitted.log_abs_det_jacobian(x, labels)
    for row in range(len(x)):
        one, label = x[row : row + 1], labels[row : row + 1]
        jacobian = torch.autograd.functional.jacobian(lambda v, y=label: fitted.forward(v, y), one)
        expected = torch.linalg.slogdet(jacobian.reshape(FEATURES, FEATURES)).logabsdet
        assert torch.allclose(claimed[row], expected, rtol=1e-8, atol=1e-8)


def test_labels_are_checked_where_they_are_needed(
    fitted: Preconditioner, data: tuple[Tensor, Tensor]
) -> None:
    x, labels = data
    if not fitted.needs_labels:
        assert torch.equal(fitted.forward(x), fitted.forward(x, labels))
        assert torch.equal(fitted.inverse(x), fitted.inverse(x, labels))
        return
    shifted = torch.tensor(CLASSES)[(torch.arange(len(x)) + 1) % len(CLASSES)]
    assert not torch.allclose(fitted.forward(x, labels), fitted.forward(x, shifted))
    for call in (fitted.forward, fitted.inverse):
        with pytest.raises(PrecfmError, match="labels are missing"):
            call(x)
        for new in (0, 3, 99):
            with pytest.raises(PrecfmError, match=rf"{new} in row 4.*known are 2, 5, 7"):
                call(x, labels.clone().index_fill_(0, torch.tensor([4]), new))
        with pytest.raises(PrecfmError, match="one per row"):
            call(x, labels[:-1])
        with pytest.raises(PrecfmError, match=r"float32"):
            call(x, labels.float())
    with pytest.raises(PrecfmError, match="labels are missing"):
        make_again(fitted).fit(x)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_input_is_refused_with_its_row(
    fitted: Preconditioner, data: tuple[Tensor, Tensor], bad: float
) -> None:
    x, labels = data[0].clone(), data[1]
    x[17, 1, 2] = bad
    for call in (fitted.forward, fitted.inverse, make_again(fitted).fit):
        with pytest.raises(PrecfmError, match="row 17, feature 5"):
            call(x, labels)


def test_wrong_input_is_refused(fitted: Preconditioner, data: tuple[Tensor, Tensor]) -> None:
    x, labels = data
    for wrong in (x.flatten(1), x[:, :, :2], x[..., None]):
        with pytest.raises(PrecfmError, match="shape"):
            fitted.forward(wrong, labels)
    with pytest.raises(PrecfmError, match="dtype"):
        fitted.forward(x.long(), labels)
    with pytest.raises(PrecfmError, match="at least 2 rows"):
        make_again(fitted).fit(x[:1], labels[:1])


NO_TENSORS = [
    pytest.param(lambda tensor: tensor.numpy(), "got a ndarray", id="array"),
    pytest.param(lambda tensor: tensor.tolist(), "got a list", id="list"),
    pytest.param(lambda tensor: "latents.npy", "got a str", id="text"),
]


@pytest.mark.parametrize(("convert", "words"), NO_TENSORS)
def test_what_is_no_tensor_is_refused(
    fitted: Preconditioner, data: tuple[Tensor, Tensor], convert: Callable[[Tensor], Any], words: str
) -> None:
    x, labels = data
    wanted = f"{words}, but a torch tensor is needed; torch.as_tensor makes one"
    calls = [fitted.forward, fitted.inverse, make_again(fitted).fit]
    for call in [*calls, *([fitted.log_abs_det_jacobian] if fitted.has_log_det else [])]:
        with pytest.raises(PrecfmError, match=f"[xz]: {wanted}"):
            call(convert(x), labels)
        if fitted.needs_labels:
            with pytest.raises(PrecfmError, match=f"labels: {wanted}"):
                call(x, convert(labels))
    with pytest.raises(PrecfmError, match=f"the validation data: {wanted}"):
        make_again(fitted).fit(x, labels, validation=(convert(x), labels))
    with pytest.raises(PrecfmError, match=r"validation is of type .* but a pair is needed"):
        make_again(fitted).fit(x, labels, validation=convert(x))


def test_nothing_and_integers_are_refused(fitted: Preconditioner, data: tuple[Tensor, Tensor]) -> None:
    x, labels = data
    for call in (fitted.forward, fitted.inverse, make_again(fitted).fit):
        with pytest.raises(PrecfmError, match="got nothing, but a torch tensor is needed"):
            call(None, labels)
        with pytest.raises(
            PrecfmError, match=r"has dtype torch.int64, but floating point numbers are needed"
        ):
            call(x.long(), labels)


def test_a_path_may_be_text(fitted: Preconditioner, data: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    save(fitted, str(tmp_path / "as" / "text"))
    assert torch.equal(load(str(tmp_path / "as" / "text")).forward(*data), fitted.forward(*data))
    again = make_again(fitted).fit(*data, seed=3, scratch=str(tmp_path / "scratch"))
    assert torch.equal(again.forward(*data), fitted.forward(*data))
    (tmp_path / "file").write_text("")
    with pytest.raises(PrecfmError, match="is a file, but a folder is needed"):
        save(fitted, tmp_path / "file")
    with pytest.raises(PrecfmError, match="a saved preconditioner is needed"):
        load(tmp_path / "file")


def test_use_before_fit_is_refused(
    fitted: Preconditioner, data: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    fresh = make_again(fitted)
    for call in (fresh.forward, fresh.inverse, fresh.log_abs_det_jacobian):
        if fresh.has_log_det or call != fresh.log_abs_det_jacobian:
            with pytest.raises(PrecfmError, match="before fit"):
                call(*data)
    with pytest.raises(PrecfmError, match="fitted"):
        save(fresh, tmp_path)


def test_a_fit_that_failed_leaves_nothing_usable(
    fitted: Preconditioner, data: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    save(fitted, tmp_path)
    again = load(tmp_path)
    with pytest.raises(PrecfmError):
        again.fit(torch.full_like(data[0], math.nan), data[1])
    with pytest.raises(PrecfmError, match="before fit"):
        again.forward(*data)


def test_saved_and_loaded_maps_are_bit_equal(
    fitted: Preconditioner, data: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    save(fitted, tmp_path)
    again = load(tmp_path)
    assert type(again) is type(fitted)
    assert torch.equal(again.forward(*data), fitted.forward(*data))
    assert torch.equal(again.inverse(*data), fitted.inverse(*data))
    for attribute in (
        "options",
        "event_shape",
        "classes",
        "needs_labels",
        "num_parameters",
        "flops_per_fit",
        "notes",
    ):
        assert getattr(again, attribute) == getattr(fitted, attribute)
    if fitted.has_log_det:
        assert torch.equal(again.log_abs_det_jacobian(*data), fitted.log_abs_det_jacobian(*data))
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    save(again, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_fits_are_a_function_of_data_and_seed(fitted: Preconditioner, data: tuple[Tensor, Tensor]) -> None:
    before = torch.get_rng_state()
    again = make_again(fitted).fit(*ill_conditioned(60, seed=9), seed=0).fit(*data, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert again.notes == fitted.notes
    assert again.flops_per_fit == fitted.flops_per_fit
    assert torch.equal(again.forward(*data), fitted.forward(*data))


@pytest.mark.parametrize("name", REGISTRY["preconditioners"])
def test_the_plan_reads_from_the_source_whether_the_seed_matters(name: str) -> None:
    said = class_constant(REGISTRY["preconditioners"][name], "uses_seed", False)
    assert said is registered("preconditioners", name).uses_seed


def test_fits_that_do_not_use_the_seed_say_so(fitted: Preconditioner, data: tuple[Tensor, Tensor]) -> None:
    other_seed = make_again(fitted).fit(*data, seed=4)
    assert torch.equal(other_seed.forward(*data), fitted.forward(*data)) is not fitted.uses_seed


def test_counts_and_frozen_weights(fitted: Preconditioner) -> None:
    assert isinstance(fitted.num_parameters, int)
    assert isinstance(fitted.flops_per_fit, int)
    assert (fitted.flops_per_fit > 0) == (fitted.num_parameters > 0)
    assert not fitted.training
    assert not any(parameter.requires_grad for parameter in fitted.parameters())
    assert make_again(fitted).options == fitted.options


def test_less_precise_maps_on_request(
    fitted: Preconditioner, data: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    x, labels = data
    save(fitted, tmp_path)
    fast = load(tmp_path).to(torch.float32)
    assert torch.allclose(fast.forward(x, labels), fitted.forward(x, labels), rtol=1e-2, atol=1e-2)
    save(fast, tmp_path)
    assert torch.equal(load(tmp_path).forward(x, labels), fast.forward(x, labels))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_same_map_on_a_gpu(fitted: Preconditioner, data: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    x, labels = data
    save(fitted, tmp_path)
    moved = load(tmp_path).to("cuda")
    z = moved.forward(x.cuda(), labels.cuda())
    assert torch.allclose(z.cpu(), fitted.forward(x, labels), rtol=1e-8, atol=1e-8)
    assert round_trip_error(moved, x.cuda(), labels.cuda()) <= fitted.round_trip_tolerance
    with pytest.raises(PrecfmError, match=r"use to\(device\)"):
        moved.forward(x, labels)
    there = make_again(fitted).fit(x.cuda(), labels.cuda(), seed=3)
    assert tail_round_trip_error(there, x.cuda(), labels.cuda()) <= max(fitted.round_trip_tolerance, 1e-15)


def make_again(fitted: Preconditioner) -> Preconditioner:
    return with_metric(type(fitted)(**fitted.options))


def test_broken_folders_are_refused(data: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    with pytest.raises(PrecfmError, match="no such file"):
        load(tmp_path)
    save(Whitening().fit(data[0]), tmp_path)
    good = json.loads((tmp_path / JSON_FILE).read_text())
    for change, message in [
        ({"name": "bleaching"}, "'bleaching' is not registered"),
        ({"name": "scalar"}, "no saved preconditioner"),
        ({"format": 99}, "format is 99"),
        ({"event_shape": [5]}, "no saved preconditioner"),
        ({"options": {"exponent": 7.0}}, "exponent"),
    ]:
        (tmp_path / JSON_FILE).write_text(json.dumps({**good, **change}))
        with pytest.raises(PrecfmError, match=message):
            load(tmp_path)
    (tmp_path / JSON_FILE).write_text("{")
    with pytest.raises(PrecfmError, match="not JSON"):
        load(tmp_path)
    (tmp_path / JSON_FILE).write_text("[]")
    with pytest.raises(PrecfmError, match="format is None"):
        load(tmp_path)
    (tmp_path / JSON_FILE).write_bytes(b"\xff")
    with pytest.raises(PrecfmError, match="not JSON"):
        load(tmp_path)
    (tmp_path / JSON_FILE).write_text(json.dumps(good))
    (tmp_path / TENSORS_FILE).write_bytes(b"no tensors")
    with pytest.raises(PrecfmError, match="damaged"):
        load(tmp_path)


def test_a_class_that_is_not_registered_cannot_be_saved(data: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    class Mine(Scalar):
        pass

    with pytest.raises(PrecfmError, match="not registered"):
        save(Mine().fit(data[0]), tmp_path)


@settings(max_examples=25, deadline=None)
@given(
    exponent=st.floats(0.0, 0.5),
    shrinkage=st.floats(0.0, 1.0),
    log_kappa=st.floats(0.0, 6.0),
    seed=st.integers(0, 1000),
)
def test_whitening_is_the_matrix_power(
    exponent: float, shrinkage: float, log_kappa: float, seed: int
) -> None:
    x = ill_conditioned(60, seed, kappa=10**log_kappa)[0].flatten(1)
    cov = np.cov(x.numpy(), rowvar=False)
    shrunk = (1 - shrinkage) * cov + shrinkage * np.trace(cov) / FEATURES * np.eye(FEATURES)
    matrix = scipy.linalg.fractional_matrix_power(shrunk, -exponent)
    matrix = matrix / np.sqrt(np.trace(matrix @ cov @ matrix.T) / FEATURES)
    expected = (x.numpy() - x.numpy().mean(axis=0)) @ matrix
    z = Whitening(exponent, shrinkage).fit(x).forward(x)
    assert np.allclose(z.numpy(), expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(exponent=st.floats(0.0, 0.5), log_kappa=st.floats(0.0, 6.0))
def test_tempering_takes_a_power_of_the_condition_number(exponent: float, log_kappa: float) -> None:
    x = ill_conditioned(200, seed=0, kappa=10**log_kappa)[0]
    cov = covariance(Whitening(exponent).fit(x).forward(x))
    expected = condition_number(covariance(x)) ** (1 - 2 * exponent)
    assert condition_number(cov) == pytest.approx(expected, rel=1e-5)
    assert float(cov.diagonal().mean()) == pytest.approx(1, rel=1e-9)


def test_full_whitening_needs_no_rescaling(data: tuple[Tensor, Tensor]) -> None:
    x = data[0]
    power = scipy.linalg.fractional_matrix_power(covariance(x).numpy(), -0.5)
    assert np.allclose(Whitening().fit(x).matrix.numpy(), power, rtol=1e-6)
    assert torch.allclose(covariance(Whitening().fit(x).forward(x)), torch.eye(FEATURES).double(), atol=1e-9)


def test_shrinkage_accepts_what_whitening_refuses(data: tuple[Tensor, Tensor]) -> None:
    x = data[0].flatten(1).clone()
    x[:, 4] = 0.1
    with pytest.raises(PrecfmError, match="constant in feature 4"):
        Whitening().fit(x)
    shrunk = Whitening(shrinkage=1e-3).fit(x)
    assert torch.allclose(shrunk.inverse(shrunk.forward(x)), x, atol=1e-12)
    assert any("shrunk by 0.001" in note for note in shrunk.notes)
    assert any("constant in feature 4" in note for note in shrunk.notes)
    assert not any("constant" in note for note in Whitening(shrinkage=1e-3).fit(data[0]).notes)


def test_a_channel_that_is_constant_within_one_class_is_refused_or_noted(data: tuple[Tensor, Tensor]) -> None:
    x, labels = data[0].flatten(1).clone(), data[1]
    x[labels == 5, 4] = 0.1
    with pytest.raises(PrecfmError, match="class 5 of x is constant in feature 4"):
        ClassWhitening().fit(x, labels)
    shrunk = ClassWhitening(shrinkage=0.01).fit(x, labels)
    assert torch.allclose(shrunk.inverse(shrunk.forward(x, labels), labels), x, atol=1e-12)
    assert [note for note in shrunk.notes if "constant" in note] == [
        "class 5 of x is constant in feature 4 (variance 0); only the shrinkage makes its map invertible"
    ]


@pytest.mark.parametrize("case", [("normalizing_flow", TINY_FLOW), ("low_capacity_flow", TINY_FLOW)])
def test_learned_maps_refuse_a_constant_channel_unless_shrunk(
    data: tuple[Tensor, Tensor], case: tuple[str, dict[str, Any]]
) -> None:
    x = data[0].clone()
    x[:, 1, 0] = -3.0
    with pytest.raises(PrecfmError, match=r"constant in feature 3 .*shrinkage above 0"):
        make(case).fit(x, data[1])
    shrunk = make((case[0], {**case[1], "shrinkage": 0.01})).fit(x, data[1])
    assert any("constant in feature 3" in note for note in shrunk.notes)
    assert torch.allclose(shrunk.inverse(shrunk.forward(x, data[1]), data[1]), x, atol=1e-3)


@pytest.mark.parametrize("rows", [7, 100, 450])
def test_whitening_from_the_first_rows_only(data: tuple[Tensor, Tensor], rows: int) -> None:
    x = data[0]
    few, cut = Whitening(rows=rows).fit(x), Whitening().fit(x[:rows])
    assert torch.equal(few.forward(x), cut.forward(x))
    assert few.flops_per_fit == cut.flops_per_fit
    assert few.notes == [f"fitted on the first {rows} of 450 rows"]


def test_whitening_from_too_few_rows_is_refused(data: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(PrecfmError, match="rows: got 451, but x has only 450"):
        Whitening(rows=451).fit(data[0])
    with pytest.raises(PrecfmError, match="rank-deficient in 3 of 6"):
        Whitening(rows=4).fit(data[0])
    assert any("rank-deficient" in note for note in Whitening(shrinkage=0.1, rows=4).fit(data[0]).notes)


def test_the_rows_of_whitening_are_left_out_of_keys_at_their_neutral_value() -> None:
    field = options_of(REGISTRY["preconditioners"]["whitening"]).model_fields["rows"]
    assert field.default is None
    assert Neutral(None) in field.metadata


def test_a_class_with_fewer_rows_than_features_is_shrunk_or_refused(data: tuple[Tensor, Tensor]) -> None:
    keep = torch.cat([(data[1] == 2).nonzero()[:4, 0], (data[1] != 2).nonzero()[:, 0]])
    x, labels = data[0][keep], data[1][keep]
    assert "class 2 has 4 rows of 6 features: covariance 0.87 of the pooled one and 0.13 of its own" in (
        ClassWhitening().fit(x, labels).notes
    )
    with pytest.raises(PrecfmError, match="class 2 of x is rank-deficient in 3 of 6"):
        ClassWhitening(rows_per_feature=0.0).fit(x, labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dependent_features_are_refused_with_their_direction(
    data: tuple[Tensor, Tensor], dtype: torch.dtype
) -> None:
    x = data[0].flatten(1).to(dtype, copy=True)
    x[:, 3] = x[:, 0] - x[:, 5]
    with pytest.raises(PrecfmError, match=r"rank-deficient in 1 of 6 .*feature 0 .*feature 3 .*feature 5"):
        Whitening().fit(x)
    with pytest.raises(PrecfmError, match="class 2 of x is rank-deficient"):
        ClassWhitening().fit(x, data[1])
    with pytest.raises(PrecfmError, match="rank-deficient in 3 of 6"):
        Whitening().fit(data[0][:4])


@pytest.mark.parametrize("cls", [Scalar, PerChannel, Whitening])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e9])
def test_data_without_variance_is_refused(cls: type[Preconditioner], value: float) -> None:
    with pytest.raises(PrecfmError, match=r"variance 0|constant"):
        cls().fit(torch.full((10, 3), value))


def test_a_scalar_keeps_the_condition_number(data: tuple[Tensor, Tensor]) -> None:
    x = data[0]
    cov = covariance(Scalar().fit(x).forward(x))
    assert condition_number(cov) == pytest.approx(condition_number(covariance(x)), rel=1e-9)
    assert float(cov.diagonal().mean()) == pytest.approx(1, rel=1e-12)


def test_channels_of_maps_are_their_first_axis() -> None:
    source = torch.Generator().manual_seed(0)
    scales = torch.tensor([1.0, 10.0, 100.0])[:, None, None]
    x = torch.randn(50, 3, 4, 5, generator=source) * scales + scales
    z = PerChannel().fit(x).forward(x)
    by_channel = z.transpose(0, 1).flatten(1)
    assert torch.allclose(by_channel.mean(dim=1), torch.zeros(3), atol=1e-5)
    assert torch.allclose(by_channel.std(dim=1), torch.ones(3), atol=1e-3)
    assert PerChannel().fit(x).num_parameters == 6
    x[:, 1] = 3.0
    with pytest.raises(PrecfmError, match="channel 1 of x is constant"):
        PerChannel().fit(x)


def test_data_of_one_number_per_row() -> None:
    x = torch.tensor([1.0, 2.0, 4.0])
    for cls in (Scalar, PerChannel, Whitening):
        z = cls().fit(x).forward(x)
        assert z.shape == (3,)
        assert float(z.var()) == pytest.approx(1, rel=1e-5)


def test_each_class_is_whitened_by_itself(data: tuple[Tensor, Tensor]) -> None:
    x, labels = data
    z = ClassWhitening().fit(x, labels).forward(x, labels)
    for label in CLASSES:
        rows = z[labels == label]
        assert torch.allclose(rows.mean(dim=0), torch.zeros(SHAPE).double(), atol=1e-9)
        assert torch.allclose(covariance(rows), torch.eye(FEATURES).double(), atol=1e-8)


@pytest.mark.parametrize("rows", [1, 2, 12, 29, 30])
def test_small_classes_lean_on_the_pooled_covariance(data: tuple[Tensor, Tensor], rows: int) -> None:
    keep = torch.cat([(data[1] == CLASSES[0]).nonzero()[:rows, 0], (data[1] != CLASSES[0]).nonzero()[:, 0]])
    x, labels = data[0][keep].flatten(1), data[1][keep]
    fitted = ClassWhitening().fit(x, labels)
    own = {label: np.atleast_2d(x[labels == label].numpy()) for label in CLASSES}
    scatter = {label: (part - part.mean(0)).T @ (part - part.mean(0)) for label, part in own.items()}
    pooled = sum(scatter.values()) / (len(x) - len(CLASSES))
    weight = max(0.0, 1 - rows / (5 * FEATURES))
    mixed = weight * pooled + (1 - weight) * scatter[CLASSES[0]] / max(rows - 1, 1)
    assert np.allclose(
        fitted.matrices[0].numpy(), scipy.linalg.fractional_matrix_power(mixed, -0.5), rtol=1e-5
    )
    assert [note.startswith(f"class 2 has {rows} rows") for note in fitted.notes] == (
        [True] if weight else []
    )


def test_counts_of_the_linear_maps(data: tuple[Tensor, Tensor]) -> None:
    x, labels = data
    assert Scalar().fit(x).num_parameters == FEATURES + 1
    assert Whitening().fit(x).num_parameters == FEATURES + 21
    assert ClassWhitening().fit(x, labels).num_parameters == 3 * (FEATURES + 21)
    more_rows, more_features = x.repeat(4, 1, 1), torch.cat([x, x.square(), x.sin(), x.exp()], dim=1)
    assert Whitening().fit(more_rows).flops_per_fit < 4 * Whitening().fit(x).flops_per_fit
    assert Whitening().fit(more_features).flops_per_fit > 12 * Whitening().fit(x).flops_per_fit


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (Whitening, {"exponent": -0.1}),
        (Whitening, {"shrinkage": 1.5}),
        (Whitening, {"exponent": math.nan}),
        (Whitening, {"rows": 1}),
        (ClassWhitening, {"rows_per_feature": -1.0}),
        (NormalizingFlow, {"kind": "planar"}),
        (NormalizingFlow, {"width": 0}),
        (NormalizingFlow, {"max_log_scale": 0.0}),
        (NormalizingFlow, {"validation_share": 1.0}),
        (NormalizingFlow, {"steps": 0}),
        (LowCapacityFlow, {"tolerance": 0.0}),
        (LowCapacityFlow, {"max_solver_steps": 20}),
        (LowCapacityFlow, {"width": 0}),
        (DecoderMetric, {"floor": 0.0}),
        (DecoderMetric, {"floor": 1.5}),
        (Projection, {"rank": 0}),
        (Projection, {"explained": 0.0}),
        (Composition, {"stages": ()}),
        (Composition, {"stages": ({"exponent": 0.5},)}),
        (Composition, {"stages": ({"name": "bleaching"},)}),
        (Composition, {"stages": ({"name": "auto"},)}),
        (Composition, {"stages": ({"name": "whitening", "width": 3},)}),
        (Composition, {"stages": ({"name": "whitening", "exponent": 3.0},)}),
    ],
)
def test_options_out_of_range_are_refused(cls: type[Preconditioner], options: dict[str, Any]) -> None:
    field = "stages|bleaching|exponent" if cls is Composition else next(iter(options))
    with pytest.raises(PrecfmError, match=field):
        cls(**options)


def test_the_flow_beats_whitening_on_curved_data() -> None:
    x, labels = ill_conditioned(1500, seed=0)
    new, new_labels = ill_conditioned(1500, seed=1)
    flow = NormalizingFlow(width=32, steps=300).fit(x, labels)
    assert mean_log_likelihood(flow, new, new_labels) > mean_log_likelihood(Whitening().fit(x), new) + 0.5
    assert not any("does not beat" in note for note in flow.notes)


def mean_log_likelihood(preconditioner: Preconditioner, x: Tensor, labels: Tensor | None = None) -> float:
    z = preconditioner.forward(x, labels).flatten(1)
    base = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(dim=1)
    return float((base + preconditioner.log_abs_det_jacobian(x, labels)).mean())


def test_the_flow_does_not_depend_on_given_validation_labels_when_unconditional(
    data: tuple[Tensor, Tensor],
) -> None:
    x, labels = data
    flow = NormalizingFlow(conditional=False, **TINY_FLOW)
    given_labels = flow.fit(x, labels, validation=(x[:50], labels[:50])).forward(x)
    assert torch.equal(flow.fit(x, validation=(x[:50], None)).forward(x), given_labels)


@pytest.mark.parametrize("kind", ["coupling", "autoregressive", "spline"])
def test_bounds_hold_for_any_weights(kind: Any, data: tuple[Tensor, Tensor]) -> None:
    # Weights far larger than training gives: the bounds come from the parametrisation, not from luck.
    x, labels = data
    flow = NormalizingFlow(kind=kind, max_log_scale=0.5, transforms=2, **{**TINY_FLOW, "steps": 1}).fit(
        x, labels
    )
    source = torch.Generator().manual_seed(0)
    for parameter in flow.network.parameters():
        parameter.copy_(10 * torch.randn(parameter.shape, generator=source))
    z = 1.5 * torch.randn(x.shape, generator=source, dtype=torch.float64)
    white = flow.whitening.forward(flow.inverse(z, labels).flatten(1))
    if kind == "spline":
        assert float(white.abs().max()) <= max(5.0, float(z.abs().max())) + 1e-6
    else:
        once = math.exp(0.5) * (float(z.abs().max()) + 5)
        assert float(white.abs().max()) <= math.exp(0.5) * (once + 5) + 1e-6
    assert torch.allclose(flow.forward(flow.inverse(z, labels), labels), z, atol=1e-6)


def test_a_diverging_flow_is_refused(data: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    honest = NormalizingFlow._negative_log_likelihood
    calls = itertools.count()

    def diverging(self: NormalizingFlow, network: Any, *batch: Tensor) -> Tensor:
        return honest(self, network, *batch) * (math.nan if next(calls) > 5 else 1.0)

    monkeypatch.setattr(NormalizingFlow, "_negative_log_likelihood", diverging)
    flow = NormalizingFlow(**TINY_FLOW)
    with pytest.raises(PrecfmError, match="not finite"):
        flow.fit(*data)
    with pytest.raises(PrecfmError, match="before fit"):
        flow.forward(*data)


@pytest.mark.parametrize("case", [("normalizing_flow", TINY_FLOW), ("low_capacity_flow", FEW_SOLVER_STEPS)])
@pytest.mark.parametrize("learning_rate", [10.0, 100.0])
def test_a_flow_that_diverges_to_finite_weights_is_refused(
    data: tuple[Tensor, Tensor], case: tuple[str, dict[str, Any]], learning_rate: float
) -> None:
    flow = make((case[0], {**case[1], "learning_rate": learning_rate}))
    with pytest.raises(
        PrecfmError, match=r"diverged: the best validation .*lower learning_rate|too few for a reversible"
    ):
        flow.fit(*data)
    with pytest.raises(PrecfmError, match="before fit"):
        flow.forward(*data)


@pytest.mark.parametrize("wrong", [1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    "case",
    [("normalizing_flow", TINY_FLOW), ("low_capacity_flow", FEW_SOLVER_STEPS), FLOW_LAST],
    ids=lambda c: c[0],
)
def test_a_map_that_does_not_close_is_refused(
    data: tuple[Tensor, Tensor],
    case: tuple[str, dict[str, Any]],
    wrong: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cls = type(make(case))
    honest = cls._inverse
    monkeypatch.setattr(cls, "_inverse", lambda self, z, classes: honest(self, z, classes) + wrong)
    with pytest.raises(PrecfmError, match="round-trip error"):
        make(case).fit(*data)


def test_a_map_without_determinant_says_so_inside_too(data: tuple[Tensor, Tensor]) -> None:
    flow = LowCapacityFlow(**TINY_FLOW).fit(*data)
    with pytest.raises(PrecfmError, match="no closed-form Jacobian determinant"):
        flow._log_abs_det(data[0].flatten(1), None)


def test_a_killed_fit_resumes_from_its_scratch_folder(
    data: tuple[Tensor, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = NormalizingFlow._negative_log_likelihood

    def fit(calls_allowed: float, scratch: Path | None) -> tuple[NormalizingFlow, int]:
        flow = NormalizingFlow(**{**TINY_FLOW, "validate_every": 60})
        flow.recipe = dataclasses.replace(flow.recipe, save_every=10)
        calls = itertools.count()

        def counted(self: NormalizingFlow, network: Any, *batch: Tensor) -> Tensor:
            if next(calls) >= calls_allowed:
                raise KeyboardInterrupt
            return honest(self, network, *batch)

        with monkeypatch.context() as patch:
            patch.setattr(NormalizingFlow, "_negative_log_likelihood", counted)
            flow.fit(*data, scratch=scratch)
        return flow, next(calls)

    with pytest.raises(KeyboardInterrupt):
        fit(50, tmp_path)
    whole, calls_whole = fit(math.inf, None)
    resumed, calls_resumed = fit(math.inf, tmp_path)
    assert calls_resumed == calls_whole - 40
    assert torch.equal(resumed.forward(*data), whole.forward(*data))


def test_more_midpoint_steps_where_a_tighter_tolerance_asks_for_them() -> None:
    x, labels = ill_conditioned(450, seed=0)
    options = {**TINY_FLOW, "solver_steps": 4}
    loose = LowCapacityFlow(tolerance=1.0, **options).fit(x, labels)
    tight = LowCapacityFlow(tolerance=1e-3, **options).fit(x, labels)
    assert int(tight.midpoint_steps) > int(loose.midpoint_steps)
    assert tail_round_trip_error(tight, x, labels) <= 1e-3 < tail_round_trip_error(loose, x, labels)
    # What decides is the number of steps, nothing else: the loose map's network is as good.
    loose.midpoint_steps.copy_(tight.midpoint_steps)
    assert tail_round_trip_error(loose, x, labels) <= 1e-3
    with pytest.raises(PrecfmError, match="max_solver_steps: 8 are too few"):
        LowCapacityFlow(tolerance=1e-6, max_solver_steps=8, **options).fit(x, labels)


def test_the_low_capacity_flow_straightens_curved_data() -> None:
    # A parabola with noise: the features are uncorrelated, so whitening leaves the curve as it is.
    def parabola(seed: int) -> Tensor:
        noise = torch.randn(1500, 2, generator=torch.Generator().manual_seed(seed))
        return torch.stack([noise[:, 0], noise[:, 0].square() - 1 + 0.5 * noise[:, 1]], dim=1)

    def curvature(z: Tensor) -> float:
        return abs(float(torch.corrcoef(torch.stack([z[:, 0].square(), z[:, 1]]))[0, 1]))

    flow = LowCapacityFlow(conditional=False, width=32, steps=300).fit(parabola(0))
    assert curvature(Whitening().fit(parabola(0)).forward(parabola(1))) > 0.9
    assert curvature(flow.forward(parabola(1))) < 0.4


def test_projection_is_whitening_of_the_probabilistic_pca_model(data: tuple[Tensor, Tensor]) -> None:
    x = data[0].flatten(1)
    values, vectors = np.linalg.eigh(covariance(x).numpy())
    for rank in range(1, FEATURES + 1):
        lost = FEATURES - rank
        frame = vectors[:, lost:]
        noise = values[:lost].mean() if lost else 0.0
        model = frame @ np.diag(values[lost:] - noise) @ frame.T + noise * np.eye(FEATURES)
        fitted = Projection(rank=rank).fit(x)
        assert np.allclose(
            fitted.matrix.numpy(), scipy.linalg.fractional_matrix_power(model, -0.5), rtol=1e-6
        )
    assert torch.allclose(fitted.matrix, Whitening().fit(x).matrix)
    assert fitted.num_parameters == Whitening().fit(x).num_parameters


@pytest.mark.parametrize(("explained", "rank"), [(0.01, 1), (0.64, 1), (0.65, 2), (0.96, 3), (1.0, 4)])
def test_projection_chooses_the_fewest_directions(explained: float, rank: int) -> None:
    x = Whitening().fit(y := ill_conditioned(100, seed=0)[0].flatten(1)).forward(y)
    x = x * torch.tensor([64.0, 30.0, 5.0, 1.0, 0.0, 0.0]).double().sqrt()
    fitted = Projection(explained=explained).fit(x)
    assert int(fitted.leading) == rank
    assert torch.allclose(fitted.inverse(fitted.forward(x)), x, atol=1e-10)
    assert any("does not vary" in note for note in fitted.notes) is (rank == 4)
    with pytest.raises(PrecfmError, match="varies in only 4"):
        Projection(rank=5).fit(x)
    with pytest.raises(PrecfmError, match="only 6 features"):
        Projection(rank=7).fit(x)


def test_a_composition_is_its_stages_in_order(data: tuple[Tensor, Tensor]) -> None:
    x, labels = data
    stages: Any = (
        {"name": "per_channel"},
        {"name": "class_whitening"},
        {"name": "whitening", "exponent": 0.1},
    )
    whole = Composition(stages).fit(x, labels)
    first = PerChannel().fit(x)
    second = ClassWhitening().fit(first.forward(x), labels)
    z = second.forward(first.forward(x), labels)
    third = Whitening(exponent=0.1).fit(z)
    assert torch.allclose(whole.forward(x, labels), third.forward(z), atol=1e-9)
    assert whole.num_parameters == sum(stage.num_parameters for stage in (first, second, third))
    assert whole.flops_per_fit == sum(stage.flops_per_fit for stage in (first, second, third))
    assert whole.needs_labels


def test_notes_of_a_composition_name_the_stage() -> None:
    x = ill_conditioned(100, seed=0)[0]
    whole = Composition(({"name": "scalar"}, {"name": "whitening", "shrinkage": 0.5})).fit(x)
    assert whole.notes == ["stage 1 (whitening): covariance shrunk by 0.5 towards the isotropic one"]


def test_a_composition_that_is_not_reversible_enough_is_refused(data: tuple[Tensor, Tensor]) -> None:
    # In the space behind the whitening the tolerance means more: its inverse stretches the error.
    flow = {"name": "low_capacity_flow", "solver_steps": 1, "tolerance": 0.5, **TINY_FLOW}
    with pytest.raises(PrecfmError, match="lower its tolerance"):
        Composition(({"name": "whitening"}, flow)).fit(*data)


def test_smallest_std_of_the_test_data_is_small(data: tuple[Tensor, Tensor]) -> None:
    # The tolerance of the contract is relative to this number, so the data must be ill-conditioned.
    assert smallest_std(data[0]) < 0.02
