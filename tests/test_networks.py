"""What every registered velocity network must do, whatever it is made of."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.registry import REGISTRY, build
from precfm.core.seeds import seeded_module
from precfm.flows.compute import num_parameters
from precfm.flows.models.base import VelocityNetwork
from precfm.preconditioned_flow import PreconditionedFlow
from precfm.preconditioners.identity import Identity
from precfm.training.options import TrainingOptions

MAP = (3, 4, 8)
CASES: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    ({"name": "mlp", "width": 16, "depth": 2}, (5,)),
    ({"name": "mlp", "width": 16, "depth": 2}, MAP),
    ({"name": "unet", "width": 8}, MAP),
    ({"name": "dit", "width": 16, "depth": 2, "heads": 2}, MAP),
]
IDS = [f"{spec['name']}-{'map' if len(shape) > 1 else 'vector'}" for spec, shape in CASES]
CLASSES, ROWS = 3, 6

of_every_network = pytest.mark.parametrize(("spec", "shape"), CASES, ids=IDS)


def made(spec: dict[str, Any], shape: tuple[int, ...], **options: Any) -> VelocityNetwork:
    """A network none of whose weights is zero, as after a training."""

    def network() -> VelocityNetwork:
        found: VelocityNetwork = build("models", {**spec, **options}, shape=shape, num_classes=CLASSES)
        for weight in found.parameters():
            torch.nn.init.normal_(weight, std=0.2)
        return found

    return seeded_module(network, 0).eval()


def prepared(
    model: dict[str, Any], data: Tensor, labels: Tensor | None, **options: Any
) -> PreconditionedFlow:
    return PreconditionedFlow(Identity().fit(data), model=model, **options).prepare(data, labels)


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(ROWS, *shape, generator=generator).to(dtype)
    return x_t, torch.rand(ROWS, generator=generator).to(dtype), torch.arange(ROWS) % CLASSES


def test_every_registered_network_is_tried() -> None:
    assert {spec["name"] for spec, _ in CASES} == REGISTRY["models"].keys()


@of_every_network
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_type_and_gradient(spec: dict[str, Any], shape: tuple[int, ...], dtype: torch.dtype) -> None:
    model = made(spec, shape).to(dtype)
    velocity = model(*inputs(shape, dtype))
    assert (velocity.shape, velocity.dtype) == ((ROWS, *shape), dtype)
    assert torch.equal(velocity, model(*inputs(shape, dtype)))
    velocity.square().sum().backward()
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in model.parameters())


@of_every_network
def test_a_row_depends_on_its_own_point_time_and_label_only(
    spec: dict[str, Any], shape: tuple[int, ...]
) -> None:
    model = made(spec, shape).double()
    x_t, t, labels = inputs(shape, torch.float64)
    whole = model(x_t, t, labels)
    torch.testing.assert_close(model(x_t[2:3], t[2:3], labels[2:3]), whole[2:3])
    for changed in [(x_t + 0.1, t, labels), (x_t, 1 - t, labels), (x_t, t, (labels + 1) % CLASSES)]:
        assert bool((model(*changed) - whole).flatten(1).abs().amax(1).gt(1e-6).all())


@of_every_network
def test_wrong_points_and_labels_are_refused(spec: dict[str, Any], shape: tuple[int, ...]) -> None:
    model, (x_t, t, labels) = made(spec, shape), inputs(shape)
    for wrong, field in [
        ((x_t[:, 1:], t, labels), "x_t: got shape"),
        ((x_t, t, None), "labels: missing"),
        ((x_t, t, torch.full_like(labels, CLASSES)), f"labels: got {CLASSES}"),
    ]:
        with pytest.raises(PrecfmError, match=f"^{field}"):
            model(*wrong)


@of_every_network
def test_options_make_it_again_wider_and_silent(spec: dict[str, Any], shape: tuple[int, ...]) -> None:
    model = made(spec, shape, label_dropout=0.2)
    again = build("models", {"name": spec["name"], **model.options}, shape=shape, num_classes=CLASSES)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(*inputs(shape)), model(*inputs(shape)))
    wider = {**model.options, "width": model.options["width"] + model.width_multiple}
    assert num_parameters(made({"name": spec["name"]}, shape, **wider)) > num_parameters(model)
    model.zero_output()
    assert not model(*inputs(shape)).any()


@of_every_network
def test_a_flow_by_it_is_trained_guided_and_read_again(
    spec: dict[str, Any], shape: tuple[int, ...], tmp_path: Path
) -> None:
    data = torch.randn(40, *shape, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(40) % CLASSES
    training = TrainingOptions(steps=3, batch_size=8, learning_rate=0.05, ema_decay=None)

    def fitted(share: float) -> PreconditionedFlow:
        flow = PreconditionedFlow("scalar", model={**spec, "label_dropout": share}, training=training)
        return flow.fit(data, labels)

    flow, how = fitted(0.5), {"steps": 3, "seed": 4}
    plain, guided = flow.sample(4, **how), flow.sample(4, guidance=2.0, **how)
    assert plain.shape == (4, *shape)
    assert torch.equal(plain, flow.sample(4, guidance=1.0, **how))
    assert not torch.allclose(plain, guided)
    flow.save(tmp_path / "flow")
    assert torch.equal(PreconditionedFlow.load(tmp_path / "flow").sample(4, guidance=2.0, **how), guided)
    without = fitted(0.0)
    with pytest.raises(PrecfmError, match=r"^guidance: got 2"):
        without.sample(4, guidance=2.0)
    found = flow.log_prob_with_error(data[:2], labels[:2], steps=2)
    assert bool(found.values.isfinite().all())
    assert bool(found.trace_error.any()) == (data[0].numel() > 64)  # estimated, or exact


def test_guidance_moves_between_the_velocity_of_no_class_and_beyond_that_of_the_class() -> None:
    model = {"name": "mlp", "width": 8, "label_dropout": 0.5}
    flow = prepared(model, torch.randn(30, 2), torch.arange(30) % CLASSES)
    noise, labels = torch.randn(5, 2), torch.tensor([0, 1, 2, 0, 1])
    one_step = {"solver": "euler", "steps": 1}
    ends = [flow.transport(noise, labels, guidance=weight, **one_step) for weight in (0.0, 1.0, 3.0)]
    nobody = flow.transport(noise, torch.full_like(labels, CLASSES), **one_step)
    torch.testing.assert_close(ends[0], nobody)
    torch.testing.assert_close(ends[2], ends[0] + 3 * (ends[1] - ends[0]))


def test_dropped_labels_are_drawn_by_the_objective_and_leave_time_and_noise_as_they_are() -> None:
    data, labels = torch.randn(300, 2), torch.arange(300) % CLASSES

    def draws(share: float) -> tuple[Tensor, ...]:
        flow = prepared({"name": "mlp", "width": 8, "label_dropout": share}, data, labels)
        return flow.objective.draw(200, torch.Generator().manual_seed(3))

    plain, dropping = draws(0.0), draws(0.25)
    assert len(plain) == 2
    assert all(torch.equal(*pair) for pair in zip(plain, dropping[:2], strict=True))
    assert 30 < int(dropping[2].sum()) < 70

    class Told(torch.nn.Module):
        def forward(self, x_t: Tensor, t: Tensor, told: Tensor) -> Tensor:
            assert torch.equal(told == CLASSES, dropping[2])
            assert torch.equal(told[~dropping[2]], labels[:200][~dropping[2]])
            return x_t

    for name in ("flow_matching", "x_prediction", "denoising_score"):
        flow = prepared({"name": "mlp", "width": 8, "label_dropout": 0.25}, data, labels, objective=name)
        flow.objective.loss(Told(), (data[:200], labels[:200]), dropping)


def test_label_dropout_needs_labels() -> None:
    with pytest.raises(PrecfmError, match=r"^label_dropout: got 0.25"):
        prepared({"name": "mlp", "width": 8, "label_dropout": 0.25}, torch.randn(30, 2), None)


@pytest.mark.parametrize(
    ("spec", "shape", "field"),
    [
        ({"name": "unet", "width": 12}, MAP, "width"),
        ({"name": "unet", "multipliers": (1, 2, 2, 2)}, MAP, "multipliers"),
        ({"name": "unet", "attention": (2,)}, MAP, "attention"),
        ({"name": "unet"}, (5,), "shape"),
        ({"name": "dit", "patch": 3}, MAP, "patch"),
        ({"name": "dit", "width": 18, "heads": 2}, MAP, "width"),
        ({"name": "dit"}, (5,), "shape"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(spec: dict[str, Any], shape: tuple[int, ...], field: str) -> None:
    with pytest.raises(PrecfmError, match=f"^{field}"):
        build("models", spec, shape=shape, num_classes=CLASSES)


def test_a_wider_network_matches_parameters_in_widths_that_it_can_have() -> None:
    labels = torch.zeros(4, dtype=torch.int64)
    flow = prepared({"name": "unet", "width": 8}, torch.randn(4, *MAP), labels)
    width = flow.matched_width(1000)
    assert width % 8 == 0
    assert num_parameters(flow.network_of_width(width)) >= flow.num_parameters + 1000


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_checkpointing_changes_no_gradient(name: str) -> None:
    spec = next(spec for spec, _ in CASES if spec["name"] == name)
    gradients = []
    for checkpointing in (False, True):
        model = made(spec, MAP).train()
        if checkpointing:
            getattr(model, "unet", model).enable_gradient_checkpointing()  # type: ignore[operator]
        model(*inputs(MAP)).square().sum().backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]))
    torch.testing.assert_close(*gradients)
