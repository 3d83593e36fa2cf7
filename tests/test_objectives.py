import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import kstest
from torch import Tensor

from precfm.errors import PrecfmError
from precfm.objectives import (
    denoising_score_loss,
    flow_matching_loss,
    logit_normal_time,
    score_from_noise,
    uniform_time,
    velocity_from_noise,
)
from precfm.paths import LinearPath, ProbabilityPath, VariancePreservingPath

every_path = pytest.mark.parametrize("path", [LinearPath(), VariancePreservingPath()])
CPU = torch.device("cpu")
MANY = 200_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def silent(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    return torch.zeros_like(x_t)


def gaussian(variance: float, n: int = MANY) -> Tensor:
    return variance**0.5 * torch.randn(n, 1, generator=generator(99), dtype=torch.float64)


def numbers(path: ProbabilityPath, t: float) -> tuple[float, float, float, float]:
    time = torch.tensor(t, dtype=torch.float64)
    schedules = (path.alpha, path.sigma, path.d_alpha, path.d_sigma)
    return tuple(float(schedule(time)) for schedule in schedules)


def test_silent_model_pays_the_second_moment_of_the_velocity() -> None:
    x1 = torch.full((MANY, 2), 3.0)
    linear = flow_matching_loss(silent, LinearPath(), x1, None, generator())
    assert float(linear) == pytest.approx(3.0**2 + 1, rel=0.01)
    curved = flow_matching_loss(silent, VariancePreservingPath(), x1, None, generator())
    assert float(curved) == pytest.approx((math.pi / 2) ** 2 * (3.0**2 + 1) / 2, rel=0.01)
    noise = denoising_score_loss(silent, LinearPath(), x1, None, generator())
    assert float(noise) == pytest.approx(1.0, rel=0.01)


@every_path
@pytest.mark.parametrize("variance", [0.01, 4.0])
def test_exact_gaussian_fields_reach_the_least_possible_risk(path: ProbabilityPath, variance: float) -> None:
    """For x1 ~ N(0, l) the optimal field is linear in x_t, and the risk left is the conditional variance."""

    def total(t: float) -> float:
        alpha, sigma, _, _ = numbers(path, t)
        return alpha**2 * variance + sigma**2

    def left_velocity(t: float) -> float:
        alpha, sigma, d_alpha, d_sigma = numbers(path, t)
        return (
            d_alpha**2 * variance
            + d_sigma**2
            - (alpha * d_alpha * variance + sigma * d_sigma) ** 2 / total(t)
        )

    def left_noise(t: float) -> float:
        return 1 - numbers(path, t)[1] ** 2 / total(t)

    def velocity(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        alpha, sigma, d_alpha, d_sigma = path.alpha(t), path.sigma(t), path.d_alpha(t), path.d_sigma(t)
        gain = (alpha * d_alpha * variance + sigma * d_sigma) / (alpha**2 * variance + sigma**2)
        return gain[:, None] * x_t

    def noise(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        return (path.sigma(t) / (path.alpha(t) ** 2 * variance + path.sigma(t) ** 2))[:, None] * x_t

    x1 = gaussian(variance)
    for loss, field, left in [
        (flow_matching_loss, velocity, left_velocity),
        (denoising_score_loss, noise, left_noise),
    ]:
        best = float(loss(field, path, x1, None, generator(1)))
        assert best == pytest.approx(quad(left, 0, 1)[0], rel=0.02)
        worse = float(loss(lambda x, t, y, f=field: 1.1 * f(x, t, y), path, x1, None, generator(1)))
        assert worse > best


@every_path
def test_noise_loss_is_the_score_loss_weighted_by_the_variance(path: ProbabilityPath) -> None:
    x1 = gaussian(2.0, n=64)
    seen: dict[str, Tensor] = {}

    def model(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        seen.update(x_t=x_t, t=t)
        return torch.sin(x_t) + t[:, None]

    def middle(n: int, generator: torch.Generator, device: torch.device) -> Tensor:
        return 0.05 + 0.9 * torch.rand(n, generator=generator, device=device)

    loss = denoising_score_loss(model, path, x1, None, generator(), middle)
    x_t, t = seen["x_t"], seen["t"]
    sigma = path.sigma(t)[:, None]
    target = -(x_t - path.alpha(t)[:, None] * x1) / sigma**2  # the score of N(alpha x1, sigma^2)
    score = score_from_noise(path, model(x_t, t, None), t)
    torch.testing.assert_close(loss, (sigma**2 * (score - target) ** 2).mean())


@every_path
@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), t=st.floats(0.05, 0.95))
def test_true_noise_gives_the_true_velocity(path: ProbabilityPath, seed: int, t: float) -> None:
    source = generator(seed)
    x0, x1 = (torch.randn(4, 3, generator=source, dtype=torch.float64) for _ in range(2))
    times = torch.full((4,), t, dtype=torch.float64)
    x_t, velocity = path.sample(x0, x1, times)
    torch.testing.assert_close(velocity_from_noise(path, x0, x_t, times), velocity, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("loss", [flow_matching_loss, denoising_score_loss])
def test_loss_is_a_function_of_its_generator_alone(loss) -> None:  # type: ignore[no-untyped-def]
    x1, labels = torch.randn(32, 3, 4, generator=generator(5)), torch.arange(32)
    handed: list[Tensor | None] = []

    def model(x_t: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        assert t.shape == (32,)
        handed.append(y)
        return x_t * t[:, None, None]

    before = torch.get_rng_state()
    values = [float(loss(model, LinearPath(), x1, labels, generator(seed))) for seed in (7, 7, 8)]
    assert torch.equal(torch.get_rng_state(), before)
    assert values[0] == values[1] != values[2]
    assert all(y is labels for y in handed)


def test_loss_has_the_gradient_of_a_mean_over_batch_and_dimensions() -> None:
    scale = torch.zeros((), requires_grad=True)
    loss = flow_matching_loss(lambda x, t, y: x + scale, LinearPath(), torch.randn(8, 5), None, generator())
    loss.backward()
    assert loss.shape == ()
    again = flow_matching_loss(lambda x, t, y: x + 1e-3, LinearPath(), torch.zeros(8, 5), None, generator())
    none = flow_matching_loss(lambda x, t, y: x, LinearPath(), torch.zeros(8, 5), None, generator())
    assert scale.grad is not None
    assert float(again - none) != 0


def test_times_follow_their_laws() -> None:
    uniform = uniform_time(20_000, generator(), CPU)
    assert kstest(uniform.numpy(), "uniform").pvalue > 0.01
    times = logit_normal_time(0.5, 1.5)(20_000, generator(), CPU).double()
    assert 0 < float(times.min()) < float(times.max()) < 1
    assert kstest(torch.logit(times).numpy(), "norm", args=(0.5, 1.5)).pvalue > 0.01


def test_time_sampler_is_used() -> None:
    def always_the_end(n: int, generator: torch.Generator, device: torch.device) -> Tensor:
        return torch.ones(n, device=device)

    x1 = torch.randn(16, 2)

    def model(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        assert torch.equal(x_t, x1)
        return x_t

    flow_matching_loss(model, LinearPath(), x1, None, generator(), always_the_end)


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan])
def test_a_spread_that_is_not_positive_is_refused(std: float) -> None:
    with pytest.raises(PrecfmError, match=r"std is .*positive"):
        logit_normal_time(0.0, std)
