"""Rank correlations over few methods: Spearman, partial Spearman, and intervals from resampled methods."""

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from precfm.core.statistics import CONFIDENCE, Estimate

Numbers: TypeAlias = NDArray[np.float64]

RESAMPLES = 2000
SEED = 20260302


def spearman(x: ArrayLike, y: ArrayLike) -> Numbers:
    """Spearman's rank correlation, ties with mean ranks.

    Args:
        x: shape (..., n); infinite numbers rank, too.
        y: shape (..., n).

    Returns:
        Shape (...); NaN where either variable is constant.

    Example:
        >>> float(spearman([1, 2, 3, math.inf], [1.0, 4.0, 9.0, 10.0]))
        1.0
    """
    first, second = _centred_ranks(x), _centred_ranks(y)
    norms = (first**2).sum(axis=-1) * (second**2).sum(axis=-1)
    products = (first * second).sum(axis=-1)
    found: Numbers = np.clip(products / np.sqrt(np.where(norms > 0, norms, math.nan)), -1.0, 1.0)
    return found


def _centred_ranks(x: ArrayLike) -> Numbers:
    """Ranks along the last axis, less their mean; equal numbers share the mean of their ranks."""
    ranks = stats.rankdata(np.asarray(x, dtype=np.float64), axis=-1)
    centred: Numbers = ranks - (ranks.shape[-1] + 1) / 2
    return centred


def partial_spearman(x: ArrayLike, y: ArrayLike, control: ArrayLike) -> Numbers:
    """Rank correlation of x and y with the linear part of the ranks of `control` taken out of both.

    (r_xy - r_xc r_yc) / sqrt((1 - r_xc^2) (1 - r_yc^2)).

    Args:
        x: shape (..., n).
        y: shape (..., n).
        control: shape (..., n).

    Returns:
        Shape (...); NaN where the control ranks like x or y exactly, so that nothing is left, or anything is constant.

    References:
        Kendall, Rank Correlation Methods (1948), chapter 8.
    """
    xy, xc, yc = spearman(x, y), spearman(x, control), spearman(y, control)
    left = (1 - xc**2) * (1 - yc**2)
    found: Numbers = np.clip((xy - xc * yc) / np.sqrt(np.where(left > 1e-12, left, math.nan)), -1.0, 1.0)
    return found


def resampled(
    statistic: Callable[..., Numbers], *columns: ArrayLike, confidence: float = CONFIDENCE
) -> Estimate:
    """A statistic over cases with the percentile interval of the bootstrap: cases are drawn with replacement.

    Resamples in which the statistic does not exist are left out. With eight cases the interval is rough: read it as
    how much the statistic hangs on single cases.

    Args:
        statistic: of columns of equal shape (..., n), over the last axis.
        columns: one number per case, shape (n,), n at least 1.
        confidence: coverage of the interval.

    Returns:
        The statistic, its interval and the number of cases; no interval where it does not exist, or in fewer than
        half of the resamples. The draws are the same every time.

    References:
        Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    cases = [np.asarray(column, dtype=np.float64) for column in columns]
    n, value = cases[0].size, float(statistic(*cases))
    draws = np.random.default_rng(SEED).integers(0, n, (RESAMPLES, n))
    values = statistic(*(column[draws] for column in cases))
    known = values[~np.isnan(values)]
    if math.isnan(value) or 2 * known.size < RESAMPLES:
        return Estimate(value, math.nan, math.nan, n)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(known, [tail, 100 - tail])
    return Estimate(value, float(low), float(high), n)
