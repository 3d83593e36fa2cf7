"""Training objectives: flow matching and denoising score matching on a probability path."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from precfm.errors import PrecfmError
from precfm.paths import ProbabilityPath, per_sample

Network: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""`network(x_t, t, labels)`: shapes (batch, *dim), (batch,), (batch,) or None; returns (batch, *dim)."""

SampleTime: TypeAlias = Callable[[int, torch.Generator, torch.device], Tensor]
"""`sample_time(n, generator, device)` draws n times in [0, 1], shape (n,)."""


def uniform_time(n: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Draw times uniformly from [0, 1), shape (n,): the plain recipe."""
    return torch.rand(n, generator=generator, device=device)


def logit_normal_time(mean: float = 0.0, std: float = 1.0) -> SampleTime:
    """Times whose logit is normal: most draws fall around sigmoid(mean), few near the ends.

    Args:
        mean: mean of logit(t); above 0 prefers the data end (t = 1), below 0 the noise end.
        std: standard deviation of logit(t), positive.

    Returns:
        A time sampler for `flow_matching_loss` and `denoising_score_loss`.

    Raises:
        PrecfmError: `std` is not positive.

    References:
        Scaling Rectified Flow Transformers (Esser et al., 2024), section 3.1, https://arxiv.org/abs/2403.03206;
        there t = 1 is noise, so that its mean has the opposite sign.
    """
    if not std > 0:
        raise PrecfmError(f"logit_normal_time: std is {std}; it must be positive")

    def sample_time(n: int, generator: torch.Generator, device: torch.device) -> Tensor:
        return torch.sigmoid(mean + std * torch.randn(n, generator=generator, device=device))

    return sample_time


def flow_matching_loss(
    model: Network,
    path: ProbabilityPath,
    x1: Tensor,
    labels: Tensor | None,
    generator: torch.Generator,
    sample_time: SampleTime | None = None,
) -> Tensor:
    """Regress the path's velocity: E || v(x_t, t, y) - (alpha_t' x1 + sigma_t' x0) ||^2 / dim.

    Args:
        model: velocity network.
        path: the probability path.
        x1: data, shape (batch, *dim).
        labels: class of each sample, int64, shape (batch,), or None.
        generator: where times and noise come from, on the device of `x1`.
        sample_time: distribution of t; uniform when None.

    Returns:
        Mean squared error over batch and dimensions, a scalar with gradient.

    References:
        Flow Matching for Generative Modeling (Lipman et al., 2022), eq. 9, https://arxiv.org/abs/2210.02747
    """
    x0, t = _draw(x1, generator, sample_time)
    x_t, velocity = path.sample(x0, x1, t)
    return (model(x_t, t, labels) - velocity).square().mean()


def denoising_score_loss(
    model: Network,
    path: ProbabilityPath,
    x1: Tensor,
    labels: Tensor | None,
    generator: torch.Generator,
    sample_time: SampleTime | None = None,
) -> Tensor:
    """Denoising score matching, weighted by sigma_t^2: E || eps(x_t, t, y) - x0 ||^2 / dim.

    Given x1, the score of x_t is -x0 / sigma_t. With the model of the score written as s = -eps / sigma_t,
    the weighted loss sigma_t^2 || s + x0 / sigma_t ||^2 is || eps - x0 ||^2: the network predicts the noise,
    a target that stays bounded where sigma_t vanishes. `score_from_noise` turns a prediction into a score.

    Args:
        model: network eps that predicts the noise.
        path: the probability path.
        x1: data, shape (batch, *dim).
        labels: class of each sample, int64, shape (batch,), or None.
        generator: where times and noise come from, on the device of `x1`.
        sample_time: distribution of t; uniform when None.

    Returns:
        Mean squared error over batch and dimensions, a scalar with gradient.

    References:
        Score-Based Generative Modeling through SDEs (Song et al., 2020), eq. 7 with lambda(t) = sigma_t^2,
        https://arxiv.org/abs/2011.13456; the noise form is eq. 14 of https://arxiv.org/abs/2006.11239
    """
    x0, t = _draw(x1, generator, sample_time)
    x_t, _ = path.sample(x0, x1, t)
    return (model(x_t, t, labels) - x0).square().mean()


def score_from_noise(path: ProbabilityPath, noise: Tensor, t: Tensor) -> Tensor:
    """The score grad log p(x_t) that a noise prediction stands for, -noise / sigma_t.

    Args:
        path: the probability path.
        noise: predicted noise, shape (batch, *dim).
        t: times in [0, 1), shape (batch,); at t = 1 sigma_t is zero and the score infinite.

    Returns:
        The score, shape (batch, *dim).
    """
    return -noise / path.sigma(per_sample(t, noise))


def velocity_from_noise(path: ProbabilityPath, noise: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """The velocity that a noise prediction stands for, so that a score model can be sampled by the same ODE.

    Solving x_t = alpha_t x1 + sigma_t x0 for x1 gives alpha_t' (x_t - sigma_t x0) / alpha_t + sigma_t' x0.

    Args:
        path: the probability path.
        noise: predicted noise, shape (batch, *dim).
        x_t: point on the path, shape (batch, *dim).
        t: times in (0, 1], shape (batch,); at t = 0 alpha_t is zero and the velocity undetermined.

    Returns:
        The velocity, shape (batch, *dim).
    """
    t = per_sample(t, x_t)
    x1 = (x_t - path.sigma(t) * noise) / path.alpha(t)
    return path.d_alpha(t) * x1 + path.d_sigma(t) * noise


def _draw(x1: Tensor, generator: torch.Generator, sample_time: SampleTime | None) -> tuple[Tensor, Tensor]:
    """Noise shaped like the data, and one time for each sample."""
    t = (sample_time or uniform_time)(len(x1), generator, x1.device).to(x1.dtype)
    x0 = torch.randn(x1.shape, generator=generator, device=x1.device, dtype=x1.dtype)
    return x0, t
