"""The tangent kernel against explicit Jacobians, its predictions against gradient descent that was really run."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from precfm.core.errors import PrecfmError
from precfm.flows.models.mlp import MLPVelocity
from precfm.flows.paths import LinearPath, VariancePreservingPath
from precfm.flows.smoothed_velocity import learnable_velocity, smoothed_velocity
from precfm.flows.tangent_kernel import kernel_condition, kernel_report, predicted_steps, tangent_kernel


class Linear(nn.Module):
    """v = W (x, t): linear in its weights, so that the linearised model is the model."""

    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim, dim + 1, dtype=torch.float64))

    def forward(self, x_t, t, labels=None):
        return torch.cat([x_t, t[:, None]], dim=1) @ self.weight.T


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("block", [1, 3, 50])
def test_the_kernel_is_the_product_of_explicit_jacobians(block):
    torch.manual_seed(0)
    model = MLPVelocity(3, 4, width=8, depth=2, time_features=4).double().requires_grad_(False)
    x_t, t, labels = draw(1, 7, 3), torch.rand(7, dtype=torch.float64), torch.arange(7) % 4
    kernel = tangent_kernel(model, x_t, t, labels, block=block)
    model.requires_grad_(True)
    rows = []
    for output in model(x_t, t, labels).flatten():
        gradients = torch.autograd.grad(output, list(model.parameters()), retain_graph=True)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    jacobian = torch.stack(rows)
    torch.testing.assert_close(kernel, jacobian @ jacobian.T)
    single = tangent_kernel(model.float(), x_t.float(), t.float(), labels, block=block)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, kernel.float(), rtol=1e-4, atol=1e-3)


def descend(x_t, t, target, learning_rate, threshold, to_data, most=200_000):
    """Steps of full-batch gradient descent on the mean of squares until the residual, seen in the data, is small."""
    model = Linear(x_t.shape[1])
    inputs = torch.cat([x_t, t[:, None]], dim=1)
    with torch.no_grad():
        for step in range(most):
            residual = model(x_t, t) - target
            if (to_data @ residual[:, :, None]).square().mean() <= threshold:
                return step
            model.weight -= learning_rate * 2 / residual.numel() * residual.T @ inputs
    return math.inf


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 0.3), st.booleans())
def test_predicted_steps_are_those_of_gradient_descent(seed, share, maps):
    dim, points, rate = 3, 12, 0.02
    x_t, t = draw(seed, points, dim) * torch.tensor([1.0, 0.6, 0.3]), torch.linspace(0, 1, points).double()
    target = torch.cat([x_t, t[:, None]], dim=1) @ draw(seed + 1, dim, dim + 1).T
    to_data = draw(seed + 2, points, dim, dim) if maps else torch.eye(dim).double().expand(points, dim, dim)
    threshold = share * float((to_data @ target[:, :, None]).square().mean())
    kernel = tangent_kernel(Linear(dim), x_t, t, None)
    steps = predicted_steps(kernel, -target.flatten(), rate, threshold, to_data=to_data if maps else None)
    counted = descend(x_t, t, target, rate, threshold, to_data)
    assert steps == pytest.approx(counted, rel=0.02, abs=1.5)


def test_what_no_weights_can_reach_takes_for_ever():
    x_t, t = draw(0, 9, 2), torch.linspace(0, 1, 9).double()
    kernel = tangent_kernel(Linear(2), x_t, t, None)  # 18 outputs, 6 weights
    residual = draw(1, 18)
    modes = torch.linalg.eigh(kernel)[1]
    unreachable = float((modes[:, :12].T @ residual).square().sum() / 18)
    assert predicted_steps(kernel, residual, 0.1, 0.99 * unreachable) == math.inf
    assert predicted_steps(kernel, residual, 0.1, 1.01 * unreachable) < math.inf
    assert predicted_steps(kernel, residual, 0.1, 1.01 * float(residual.square().mean())) == 0
    assert predicted_steps(0 * kernel, residual, 0.1, 1e-3) == math.inf


def test_half_the_rate_takes_twice_the_steps_and_a_stricter_threshold_more():
    kernel = torch.diag(torch.tensor([3.0, 1.0, 0.1], dtype=torch.float64))
    residual = torch.ones(3, dtype=torch.float64)
    steps = predicted_steps(kernel, residual, 0.1, 0.01)
    assert predicted_steps(kernel, residual, 0.05, 0.01) == pytest.approx(2 * steps)
    assert predicted_steps(kernel, residual, 0.1, 0.001) > steps
    single = predicted_steps(kernel[:1, :1], residual[:1], 0.1, 0.01)
    assert single == pytest.approx(math.log(100) / (4 * 0.1 * 3))


def test_the_effective_condition_is_what_the_residual_meets():
    kernel = torch.diag(torch.tensor([1.0, 10.0, 1000.0], dtype=torch.float64))
    assert kernel_condition(kernel) == pytest.approx(1000)
    assert kernel_condition(kernel, torch.tensor([0.0, 0.0, 3.0])) == pytest.approx(1)
    assert kernel_condition(kernel, torch.tensor([2.0, 0.0, 0.0])) == pytest.approx(1000)
    mixed = kernel_condition(kernel, torch.tensor([1.0, 1.0, 1.0]))
    assert mixed == pytest.approx((1000 * 100 * 1) ** (1 / 3))
    assert math.isnan(kernel_condition(kernel, torch.zeros(3)))


@pytest.mark.parametrize("path", [LinearPath(), VariancePreservingPath()])
@pytest.mark.parametrize("time", [0.1, 0.5, 0.9])
def test_the_smoothed_velocity_is_the_conditional_mean_by_integration(path, time):
    centres = torch.tensor([[-2.0], [-1.7], [0.4], [1.9]], dtype=torch.float64)
    points = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    t = torch.full((5,), time, dtype=torch.float64)
    found = smoothed_velocity(path, points, t, centres)

    mean, deviation = centres.mean().item(), centres.std().item()
    width = (4 / (4 * 3)) ** (1 / 5)
    shrink = 1 / math.sqrt(1 + width**2)
    grid = np.linspace(-15, 15, 40_001)
    kernels = [mean + shrink * (c - mean) for c in centres[:, 0].tolist()]
    scale = shrink * width * deviation
    density = sum(np.exp(-(((grid - c) / scale) ** 2) / 2) for c in kernels)
    density /= density.sum()
    assert (density * grid).sum() == pytest.approx(mean)
    # The spread of the centres that is shrunk has divisor n; that of the kernels n - 1.
    variance = shrink**2 * deviation**2 * (3 / 4 + width**2)
    assert (density * (grid - mean) ** 2).sum() == pytest.approx(variance)
    alpha, sigma, d_alpha, d_sigma = (
        float(f(torch.tensor(time, dtype=torch.float64)))
        for f in (path.alpha, path.sigma, path.d_alpha, path.d_sigma)
    )
    for point, velocity in zip(points[:, 0].tolist(), found[:, 0].tolist(), strict=True):
        noise = (point - alpha * grid) / sigma
        posterior = density * np.exp(-(noise**2) / 2)
        expected = (posterior * (d_alpha * grid + d_sigma * noise)).sum() / posterior.sum()
        assert velocity == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_the_smoothed_velocity_turns_with_the_data():
    centres, points, t = draw(0, 40, 3), draw(1, 6, 3), torch.linspace(0.1, 0.9, 6).double()
    turn = torch.linalg.qr(draw(2, 3, 3))[0]
    straight = smoothed_velocity(LinearPath(), points, t, centres)
    turned = smoothed_velocity(LinearPath(), points @ turn, t, centres @ turn)
    torch.testing.assert_close(turned, straight @ turn)


OPTIONS = {"points": 10, "threshold": 0.05, "learning_rate": 1e-2, "seed": 3}


def report(z1, labels, inverse=None, classes=0, **changes):
    torch.manual_seed(0)
    model = MLPVelocity(z1.shape[1], classes, width=16, depth=2, time_features=4)
    return kernel_report(model, LinearPath(), z1, labels, **{**OPTIONS, **changes}, inverse=inverse)


def test_a_report_is_measured_in_the_units_of_the_data():
    z1, labels = draw(5, 200, 3).float(), torch.arange(200) % 2
    plain = report(z1, labels, classes=2)
    assert set(plain) == {
        "kernel_condition_number",
        "kernel_effective_condition",
        "initial_residual",
        "predicted_steps",
        "threshold",
    }
    assert plain == report(z1, labels, classes=2)
    assert plain != report(z1, labels, classes=2, seed=4)
    same = report(z1, labels, lambda z, y: z + 1, classes=2)
    assert same == pytest.approx(plain, rel=1e-3)
    wide = report(z1, labels, lambda z, y: 3 * z, classes=2, threshold=0.45)
    assert wide["initial_residual"] == pytest.approx(9 * plain["initial_residual"], rel=1e-3)
    assert wide["predicted_steps"] == pytest.approx(plain["predicted_steps"], rel=1e-2)
    assert wide["kernel_condition_number"] == plain["kernel_condition_number"]


def test_a_curved_inverse_weighs_each_point_by_its_own_derivative():
    z1 = draw(6, 200, 2)
    plain, curved = report(z1, None), report(z1, None, lambda z, y: torch.sinh(2 * z))
    assert curved["initial_residual"] > 4 * plain["initial_residual"]


def test_each_class_has_its_own_velocity_unless_it_has_few_rows():
    data, labels = draw(7, 60, 4), torch.arange(60) % 2
    points, t, asked = draw(8, 6, 4), torch.linspace(0.1, 0.9, 6).double(), torch.arange(6) % 2
    found = learnable_velocity(LinearPath(), points, t, asked, data, labels)
    for label in (0, 1):
        own = smoothed_velocity(
            LinearPath(), points[asked == label], t[asked == label], data[labels == label]
        )
        torch.testing.assert_close(found[asked == label], own)
    labels[:] = 0
    labels[:4] = 1  # no more rows than dimensions
    all_data = smoothed_velocity(LinearPath(), points, t, data)
    few = learnable_velocity(LinearPath(), points, t, asked, data, labels)
    torch.testing.assert_close(few[asked == 1], all_data[asked == 1])
    assert not torch.allclose(few[asked == 0], all_data[asked == 0])
    torch.testing.assert_close(learnable_velocity(LinearPath(), points, t, None, data, None), all_data)
    assert math.isfinite(report(data, None)["initial_residual"])


def test_mistakes_are_named():
    z1 = draw(8, 12, 2)
    for field, value in {"points": 11, "learning_rate": 0, "threshold": math.nan, "seed": "1"}.items():
        with pytest.raises(PrecfmError, match=f"^{field}: got "):
            report(z1, None, **{field: value})
    with pytest.raises(PrecfmError, match=r"^kernel: got shape"):
        predicted_steps(torch.eye(3), torch.ones(4), 0.1, 0.1)
