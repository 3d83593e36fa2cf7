"""Laws of the training time t: where along the path the regression looks.

`uniform` is the plain recipe; `logit_normal` favours the middle; `kappa_directed` favours the times where the
covariance of x_t is ill-conditioned, which is near the data. `mixed` is logit-normal for three draws of four and
uniform for the fourth, so that no time is rare; `early` and `late` are the same with the mean of the logit at -1
(towards the noise) and at 1 (towards the data). The loss is not corrected for it: like any other law of the time, this
one re-weights the regression.
"""

from collections.abc import Callable
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.flows.paths import ProbabilityPath
from precfm.geometry.spectra import covariance, floored_spectrum, path_condition_numbers

TimeLaw: TypeAlias = Callable[[int, torch.Generator], Tensor]
"""`law(n, generator)` draws n times in [0, 1] on the CPU, shape (n,), float32."""

TimeName: TypeAlias = Literal["uniform", "logit_normal", "kappa_directed", "mixed", "early", "late"]
MIXED_MEANS = {"mixed": 0.0, "early": -1.0, "late": 1.0}  # of the logit
UNIFORM_SHARE = 0.25  # of the draws of a mixed law
TIME_GRID = 4097  # points at which the law of a time is tabulated


def uniform_time(n: int, generator: torch.Generator) -> Tensor:
    """Draw times uniformly from [0, 1), shape (n,): the plain recipe."""
    return torch.rand(n, generator=generator)


def logit_normal_time(mean: float = 0.0, std: float = 1.0) -> TimeLaw:
    """Times whose logit is normal: most draws fall around sigmoid(mean), few near the ends.

    Args:
        mean: mean of logit(t); above 0 prefers the data end (t = 1), below 0 the noise end.
        std: standard deviation of logit(t), positive.

    Returns:
        A law of the time.

    Raises:
        PrecfmError: `std` is not positive.

    References:
        Scaling Rectified Flow Transformers (Esser et al., 2024), section 3.1, https://arxiv.org/abs/2403.03206;
        there t = 1 is noise, so that its mean has the opposite sign.
    """
    if not std > 0:
        raise PrecfmError(f"std: got {std}; a positive number is needed")

    def draw_times(n: int, generator: torch.Generator) -> Tensor:
        return torch.sigmoid(mean + std * torch.randn(n, generator=generator))

    return draw_times


def mixed_time(mean: float) -> TimeLaw:
    """Times that are uniform with probability `UNIFORM_SHARE`, else of a logit-normal law of standard deviation 1.

    Args:
        mean: mean of logit(t) of the logit-normal draws.

    Returns:
        A law of the time.
    """
    concentrated = logit_normal_time(mean)

    def draw_times(n: int, generator: torch.Generator) -> Tensor:
        spread = torch.rand(n, generator=generator) < UNIFORM_SHARE
        return torch.where(spread, uniform_time(n, generator), concentrated(n, generator))

    return draw_times


def kappa_directed_time(path: ProbabilityPath, cov_data: Tensor) -> TimeLaw:
    """Times drawn more often where x_t is ill-conditioned: density proportional to 1 + ln kappa(Sigma_t).

    The logarithm counts orders of magnitude: a density proportional to kappa itself would spend nearly all draws
    next to t = 1. It is bounded, since kappa is that of a spectrum floored at 1e-6 of its largest eigenvalue,
    and it is uniform for white data. The density is tabulated on a grid and constant between its points.

    Args:
        path: the probability path.
        cov_data: Sigma_1, covariance of the data in the space of the flow, shape (dim, dim).

    Returns:
        A law of the time; it draws one uniform number per time.

    Raises:
        PrecfmError: the data have no variance.

    Example:
        >>> from precfm.flows.paths import LinearPath
        >>> draw_times = kappa_directed_time(LinearPath(), torch.diag(torch.tensor([1.0, 1e-4])))
        >>> bool(draw_times(1000, torch.Generator().manual_seed(0)).mean() > 0.6)
        True
    """
    grid = torch.linspace(0, 1, TIME_GRID, dtype=torch.float64)
    floored = torch.diag(floored_spectrum(cov_data).eigenvalues.cpu())
    density = 1 + path_condition_numbers(floored, path, grid).log()
    below = torch.cat([density.new_zeros(1), torch.cumulative_trapezoid(density, grid)])
    quantiles = torch.from_numpy(np.interp(grid.numpy(), (below / below[-1]).numpy(), grid.numpy()))
    quantiles = quantiles.to(torch.float32)

    def draw_times(n: int, generator: torch.Generator) -> Tensor:
        place = torch.rand(n, generator=generator) * (TIME_GRID - 1)
        left = place.long().clamp(max=TIME_GRID - 2)
        return torch.lerp(quantiles[left], quantiles[left + 1], place - left)

    return draw_times


def time_law(name: TimeName, mean: float, std: float, path: ProbabilityPath, z1: Tensor) -> TimeLaw:
    """The law of a name, for given data.

    Args:
        name: one of `TimeName`.
        mean: of the logit, for `logit_normal`.
        std: of the logit, for `logit_normal`.
        path: the probability path.
        z1: the data in the flow's space, shape (n, *dim).
    """
    if name == "uniform":
        return uniform_time
    if name == "logit_normal":
        return logit_normal_time(mean, std)
    if name in MIXED_MEANS:
        return mixed_time(MIXED_MEANS[name])
    return kappa_directed_time(path, covariance(z1))
