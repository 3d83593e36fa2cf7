"""Intervals for a metric's value under resampling of its samples.

Two schemes. "half" evaluates random halves, drawn without replacement: for smooth statistics their spread
equals the sampling error of the whole (the delete-half jackknife). "bootstrap" draws whole sets with
replacement; its repeated rows are neighbours at distance zero, so it is wrong for precision, recall and
pairwise kernels, and right for means and covariances.

References:
    Efron and Tibshirani, An introduction to the bootstrap, 1993.
    Shao and Wu, A general theory for jackknife variance estimation, Annals of Statistics 17 (1989).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from scipy import stats
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.metrics.checks import Features, feature_pair

Scheme = Literal["half", "bootstrap"]
Statistic = Callable[[Tensor, Tensor], float]


@dataclass(frozen=True)
class Interval:
    """A value with an interval that covers it with a stated confidence.

    Args:
        value: the statistic of all samples.
        low: lower end, value - z * standard_error.
        high: upper end.
        standard_error: spread of the replicates.
        shift: mean of the replicates less the value: the part of the bias that grows with fewer samples. The
            interval is not moved by it, since values are compared at equal sizes.
        replicates: number of resamples.
        scheme: how they were drawn.
    """

    value: float
    low: float
    high: float
    standard_error: float
    shift: float
    replicates: int
    scheme: Scheme


def resampled_interval(
    statistic: Statistic,
    generated: Features,
    reference: Features,
    *,
    replicates: int = 100,
    scheme: Scheme = "half",
    confidence: float = 0.95,
    seed: int = 0,
    resample_reference: bool = True,
) -> Interval:
    """Normal interval around a statistic with the standard error of its resamples.

    Args:
        statistic: maps (generated, reference) to a number.
        generated: shape (n, dim).
        reference: shape (m, dim).
        replicates: number of resamples.
        scheme: see the module's docstring.
        confidence: probability of covering.
        seed: of the resamples.
        resample_reference: False keeps the reference as it is: the interval then speaks about new generated
            samples against the same reference, which is what two methods that share it are compared under.

    Raises:
        PrecfmError: unusable features, fewer than 2 replicates, or a confidence outside (0, 1).
    """
    x, y = feature_pair(generated, reference)
    if replicates < 2:
        raise PrecfmError(f"replicates: {replicates}; at least 2 are needed")
    if not 0 < confidence < 1:
        raise PrecfmError(f"confidence: {confidence} is not between 0 and 1")
    if scheme == "half" and min(len(x), len(y)) < 4:
        raise PrecfmError(f"scheme: 'half' of {min(len(x), len(y))} rows; at least 4 rows are needed")
    generator = torch.Generator().manual_seed(seed)
    values = torch.empty(replicates, dtype=torch.float64)
    for index in range(replicates):
        rows_x = _rows(len(x), scheme, generator).to(x.device)
        rows_y = _rows(len(y), scheme, generator).to(y.device) if resample_reference else slice(None)
        values[index] = statistic(x[rows_x], y[rows_y])
    value, error = float(statistic(x, y)), float(values.std())
    half = float(stats.norm.ppf(0.5 + confidence / 2)) * error
    return Interval(
        value, value - half, value + half, error, float(values.mean()) - value, replicates, scheme
    )


def _rows(n: int, scheme: Scheme, generator: torch.Generator) -> Tensor:
    if scheme == "half":
        return torch.randperm(n, generator=generator)[: n // 2]
    return torch.randint(n, (n,), generator=generator)
