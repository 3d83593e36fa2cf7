import pytest
import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.registry import load
from precfm.core.seeds import seeded_module
from precfm.flows.models.mlp import MLPVelocity


def inputs(
    n: int, dim: int, classes: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(n, dim, generator=generator, dtype=dtype)
    t = torch.rand(n, generator=generator, dtype=dtype)
    return x_t, t, torch.randint(max(classes, 1), (n,), generator=generator)


def test_registered_name_is_this_class() -> None:
    assert load("models", "mlp") is MLPVelocity


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


def test_unconditional_network_ignores_labels() -> None:
    model = MLPVelocity(4)
    x_t, t, labels = inputs(6, 4, 3)
    assert torch.equal(model(x_t, t, labels), model(x_t, t))


def test_weights_round_trip_through_the_state() -> None:
    first, second = (seeded_module(lambda: MLPVelocity(4, 3), seed) for seed in (0, 1))
    arguments = inputs(6, 4, 3)
    assert not torch.equal(first(*arguments), second(*arguments))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(*arguments), second(*arguments))


def test_seeded_module_is_a_function_of_its_seed_and_leaves_the_global_state() -> None:
    before = torch.get_rng_state()
    first, again, other = (seeded_module(lambda: MLPVelocity(3), seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    for weights in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(*weights)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_wrong_labels_are_told() -> None:
    model = MLPVelocity(4, 3)
    x_t, t, labels = inputs(6, 4, 3)
    with pytest.raises(PrecfmError, match="labels are missing; a network of 3 classes"):
        model(x_t, t)
    for wrong in (3, -1):
        with pytest.raises(PrecfmError, match=rf"label {wrong} is out of range; it must be in 0\.\.2"):
            model(x_t, t, torch.where(labels == labels[0], wrong, labels))
    with pytest.raises(PrecfmError, match=r"labels have shape \(5,\)"):
        model(x_t, t, labels[:5])


@pytest.mark.parametrize("shape", [(6, 5), (6,), (6, 4, 1)])
def test_samples_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(PrecfmError, match=r"must be \(batch, 4\)"):
        MLPVelocity(4)(torch.zeros(shape), torch.zeros(6))


@pytest.mark.parametrize(
    ("field", "value"),
    [("dim", 0), ("num_classes", -1), ("width", 0), ("depth", 0), ("time_features", 3), ("time_features", 0)],
)
def test_sizes_out_of_range_are_refused(field: str, value: int) -> None:
    with pytest.raises(PrecfmError, match=f"{field}: got {value}, but "):
        MLPVelocity(**{"dim": 4, field: value})
