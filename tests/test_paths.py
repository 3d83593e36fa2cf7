import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from precfm.flows.paths import LinearPath, ProbabilityPath, VariancePreservingPath

PATHS = [LinearPath(), VariancePreservingPath()]
every_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
times = st.floats(0.0, 1.0)
seeds = st.integers(0, 2**32 - 1)


def pair(seed: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))


@every_path
@settings(deadline=None)
@given(seed=seeds, t=st.floats(0.001, 0.999))
def test_velocity_is_the_time_derivative_of_the_point(path: ProbabilityPath, seed: int, t: float) -> None:
    x0, x1 = pair(seed, (3, 2, 4))
    step = 1e-6

    def point(time: float) -> Tensor:
        return path.sample(x0, x1, torch.full((3,), time, dtype=torch.float64))[0]

    velocity = path.sample(x0, x1, torch.full((3,), t, dtype=torch.float64))[1]
    torch.testing.assert_close(velocity, (point(t + step) - point(t - step)) / (2 * step), rtol=0, atol=1e-7)


@every_path
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_path_starts_at_the_noise_and_ends_at_the_data(path: ProbabilityPath, dtype: torch.dtype) -> None:
    x0, x1 = (x.to(dtype) for x in pair(0, (5, 3)))
    start, _ = path.sample(x0, x1, torch.zeros(5, dtype=dtype))
    end, _ = path.sample(x0, x1, torch.ones(5, dtype=dtype))
    assert torch.equal(start, x0)
    assert torch.equal(end, x1)


@every_path
def test_each_sample_has_its_own_time(path: ProbabilityPath) -> None:
    x0, x1 = pair(1, (4, 2, 3, 3))
    t = torch.tensor([0.0, 0.3, 0.7, 1.0], dtype=torch.float64)
    together = path.sample(x0, x1, t)
    for row in range(4):
        alone = path.sample(x0[row : row + 1], x1[row : row + 1], t[row : row + 1])
        for whole, part in zip(together, alone, strict=True):
            assert torch.equal(whole[row : row + 1], part)


@every_path
def test_samples_keep_their_precision(path: ProbabilityPath) -> None:
    x0, x1 = (x.float() for x in pair(2, (4, 3)))
    assert {x.dtype for x in path.sample(x0, x1, torch.rand(4, dtype=torch.float64))} == {torch.float32}


def test_linear_path_is_the_papers() -> None:
    x0, x1 = pair(3, (6, 2))
    t = torch.linspace(0, 1, 6, dtype=torch.float64)
    x_t, velocity = LinearPath().sample(x0, x1, t)
    torch.testing.assert_close(x_t, (1 - t)[:, None] * x0 + t[:, None] * x1)
    assert torch.equal(velocity, x1 - x0)


@settings(deadline=None)
@given(t=times)
def test_variance_preserving_path_keeps_unit_variance(t: float) -> None:
    time = torch.tensor(t, dtype=torch.float64)
    path = VariancePreservingPath()
    assert float(path.alpha(time) ** 2 + path.sigma(time) ** 2) == pytest.approx(1.0, abs=1e-14)
    assert float(path.alpha(time)) == pytest.approx(math.sin(math.pi * t / 2), abs=1e-15)
    assert float(path.sigma(time)) == pytest.approx(math.cos(math.pi * t / 2), abs=1e-15)
    torch.testing.assert_close(path.cov_t(torch.eye(3), t), torch.eye(3, dtype=torch.float64))


@every_path
def test_covariance_is_that_of_sampled_points(path: ProbabilityPath) -> None:
    n, factor = 200_000, torch.tensor([[2.0, 0.0], [0.6, 0.1]], dtype=torch.float64)
    x0, standard = pair(4, (n, 2))
    x1 = standard @ factor.T
    for t in (0.2, 0.5, 0.9):
        x_t, _ = path.sample(x0, x1, torch.full((n,), t, dtype=torch.float64))
        expected = path.cov_t(factor @ factor.T, t)
        spread = (expected.diag()[:, None] * expected.diag() + expected**2).sqrt() / n**0.5
        assert bool(((x_t.T.cov() - expected).abs() < 4 * spread).all())


@every_path
def test_covariance_for_many_times_is_in_float64(path: ProbabilityPath) -> None:
    cov_data = torch.diag(torch.tensor([4.0, 0.25]))  # float32
    t = torch.tensor([[0.0, 0.4], [0.8, 1.0]])
    cov_t = path.cov_t(cov_data, t)
    assert cov_t.shape == (2, 2, 2, 2)
    assert cov_t.dtype == torch.float64
    for index in np.ndindex(2, 2):
        assert torch.equal(cov_t[index], path.cov_t(cov_data, t[index]))
    assert torch.equal(cov_t[0, 0], torch.eye(2, dtype=torch.float64))
    assert torch.equal(cov_t[1, 1], cov_data.double())
