"""Rank correlations over few methods: Spearman, partial Spearman, and intervals from resampled methods."""

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from precfm.report.statistics import CONFIDENCE, Estimate

Columns: TypeAlias = tuple[NDArray[np.float64], ...]

RESAMPLES = 2000
SEED = 20260302


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rank correlation, ties with mean ranks; NaN if either variable is constant.

    Example:
        >>> spearman([1, 2, 3, math.inf], [1.0, 4.0, 9.0, 10.0])
        1.0
    """
    first, second = stats.rankdata(np.asarray(x)), stats.rankdata(np.asarray(y))
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return max(-1.0, min(1.0, float(np.corrcoef(first, second)[0, 1])))


def partial_spearman(x: ArrayLike, y: ArrayLike, control: ArrayLike) -> float:
    """Rank correlation of x and y with the linear part of the ranks of `control` taken out of both.

    (r_xy - r_xc r_yc) / sqrt((1 - r_xc^2) (1 - r_yc^2)); NaN where the control ranks like x or y exactly, so that
    nothing is left, or anything is constant.

    References:
        Kendall, Rank Correlation Methods (1948), chapter 8.
    """
    xy, xc, yc = spearman(x, y), spearman(x, control), spearman(y, control)
    left = (1 - xc**2) * (1 - yc**2)
    if not left > 1e-12:
        return math.nan
    return max(-1.0, min(1.0, (xy - xc * yc) / math.sqrt(left)))


def resampled(
    statistic: Callable[..., float], *columns: ArrayLike, confidence: float = CONFIDENCE
) -> Estimate:
    """A statistic over cases with the percentile interval of the bootstrap: cases are drawn with replacement.

    Resamples in which the statistic does not exist are left out. With eight cases the interval is rough: read it as
    how much the statistic hangs on single cases.

    Args:
        statistic: of columns of equal length.
        columns: one number per case.
        confidence: coverage of the interval.

    Returns:
        The statistic, its interval and the number of cases; no interval where it does not exist, or in fewer than
        half of the resamples. The draws are the same every time.

    References:
        Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    cases: Columns = tuple(np.asarray(column, dtype=np.float64) for column in columns)
    n = cases[0].size
    value = statistic(*cases)
    generator = np.random.default_rng(SEED)
    draws = generator.integers(0, n, (RESAMPLES, n)) if n else np.empty((0, 0), dtype=np.int64)
    values = np.array([statistic(*(column[draw] for column in cases)) for draw in draws])
    known = values[~np.isnan(values)]
    if math.isnan(value) or 2 * known.size < RESAMPLES:
        return Estimate(value, math.nan, math.nan, n)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(known, [tail, 100 - tail])
    return Estimate(value, float(low), float(high), n)
