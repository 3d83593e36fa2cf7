import re

import pytest
import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.seeds import seeded_module
from precfm.flows.models.mlp import MLPVelocity


def inputs(
    n: int, dim: int, classes: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(n, dim, generator=generator, dtype=dtype)
    t = torch.rand(n, generator=generator, dtype=dtype)
    return x_t, t, torch.randint(max(classes, 1), (n,), generator=generator)


@pytest.mark.parametrize("classes", [0, 1, 10])
@pytest.mark.parametrize("depth", [1, 3])
def test_shape_gradient_and_size(classes: int, depth: int) -> None:
    dim, width, features = 5, 16, 8
    model = MLPVelocity(dim, classes, width=width, depth=depth, time_features=features)
    velocity = model(*inputs(7, dim, classes))
    assert velocity.shape == (7, dim)
    velocity.square().sum().backward()
    assert all(bool((weight.grad != 0).any()) for weight in model.parameters() if weight.grad is not None)
    assert all(weight.grad is not None for weight in model.parameters())
    first = dim * width + width + features * width + classes * width
    assert sum(weight.numel() for weight in model.parameters()) == (
        first + (depth - 1) * (width * width + width) + width * dim + dim
    )


def test_field_depends_on_point_time_and_label_of_its_own_row_only() -> None:
    model = seeded_module(lambda: MLPVelocity(4, 3, width=32).double(), 0)
    x_t, t, labels = inputs(6, 4, 3, torch.float64)
    whole = model(x_t, t, labels)
    for row in range(6):
        alone = model(x_t[row : row + 1], t[row : row + 1], labels[row : row + 1])
        torch.testing.assert_close(alone, whole[row : row + 1])
    for changed in [(x_t + 0.1, t, labels), (x_t, 1 - t, labels), (x_t, t, (labels + 1) % 3)]:
        assert bool((model(*changed) - whole).abs().amax(1).gt(1e-6).all())


def test_a_sample_of_any_shape_is_seen_as_a_vector() -> None:
    flat, shaped = (seeded_module(lambda shape=shape: MLPVelocity(shape, 3), 0) for shape in (12, (3, 2, 2)))
    x_t, t, labels = inputs(6, 12, 3)
    velocity = shaped(x_t.reshape(6, 3, 2, 2), t, labels)
    assert torch.equal(velocity, flat(x_t, t, labels).reshape(6, 3, 2, 2))
    with pytest.raises(PrecfmError, match=r"^x_t: "):
        shaped(x_t, t, labels)


def test_unconditional_network_ignores_labels() -> None:
    model = MLPVelocity(4)
    x_t, t, labels = inputs(6, 4, 3)
    assert torch.equal(model(x_t, t, labels), model(x_t, t))


def test_seeded_module_is_a_function_of_its_seed_and_leaves_the_global_state() -> None:
    before = torch.get_rng_state()
    first, again, other = (seeded_module(lambda: MLPVelocity(3), seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    for weights in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(*weights)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_what_a_wrapper_and_a_file_ask_of_a_network() -> None:
    model = MLPVelocity(4, 3, width=8, depth=1)
    assert model.options == {"width": 8, "depth": 1, "time_features": 32, "label_dropout": 0.0}
    model.zero_output()
    assert not model(*inputs(6, 4, 3)).any()


def test_wrong_points_and_labels_are_refused() -> None:
    model = MLPVelocity(4, 3)
    x_t, t, labels = inputs(6, 4, 3)
    for wrong, field in [
        ((x_t, t), "labels: missing"),
        ((x_t, t, torch.where(labels == labels[0], 3, labels)), "labels: got 3"),
        ((x_t, t, torch.where(labels == labels[0], -1, labels)), "labels: got -1"),
        ((x_t, t, labels[:5]), r"labels: got shape \(5,\)"),
        ((x_t, t, labels.float()), "labels: .*float32"),
        ((x_t, t, labels.tolist()), "labels: got a list"),
        ((x_t[:, :3], t, labels), "x_t: got shape"),
        ((x_t[0], t, labels), "x_t: got shape"),
        ((x_t[:, :, None], t, labels), "x_t: got shape"),
        ((x_t.double(), t, labels), "x_t: got dtype torch.float64"),
        ((x_t.numpy(), t, labels), "x_t: got a ndarray"),
    ]:
        with pytest.raises(PrecfmError, match=f"^{field}"):
            model(*wrong)


def test_a_network_under_autocast_takes_other_precisions() -> None:
    x_t, t, _ = inputs(6, 4, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert MLPVelocity(4)(x_t.bfloat16(), t).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("field", "value"), [("shape", 0), ("shape", ()), ("shape", (2, 0)), ("num_classes", -1)]
)
def test_sizes_out_of_range_are_refused(field: str, value: object) -> None:
    with pytest.raises(PrecfmError, match=f"^{field}: got {re.escape(str(value))}; "):
        MLPVelocity(**{"shape": 4, field: value})  # type: ignore[arg-type]
