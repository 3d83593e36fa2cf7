"""The statistics behind every interval and verdict: t and joint intervals, paired differences, Holm, Spearman."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

Alternative: TypeAlias = Literal["two-sided", "less", "greater"]

CONFIDENCE = 0.95
INDICATIVE_BELOW = 5  # seeds: with fewer, a comparison is at most indicative


@dataclass(frozen=True)
class Estimate:
    """A number with its confidence interval.

    Attributes:
        value: the estimate.
        low: lower end of the interval; NaN if there is none: one observation, or several that do not vary.
        high: upper end of the interval.
        n: how many independent observations it rests on.
        p: p-value against the null value, two-sided unless something else is asked for; NaN where there is no test.
    """

    value: float
    low: float
    high: float
    n: int
    p: float = math.nan


def t_estimate(values: ArrayLike, *, null: float = 0.0, confidence: float = CONFIDENCE) -> Estimate:
    """Mean of independent values with Student's t interval and the two-sided test against `null`.

    Values that do not vary have neither: they are one observation repeated (a closed-form preconditioner on the
    same data) or a discrete metric that ties, and neither gives an estimate of the scatter.

    Args:
        values: shape (n,), finite.
        null: the mean under the null hypothesis.
        confidence: coverage of the interval.

    Example:
        >>> t_estimate([1.0, 2.0, 3.0])
        Estimate(value=2.0, low=-0.484..., high=4.484..., n=3, p=0.0741...)
    """
    return joint_estimate(values, null=null, confidence=confidence)


def joint_estimate(
    values: ArrayLike,
    replicates: ArrayLike | None = None,
    *,
    null: float = 0.0,
    alternative: Alternative = "two-sided",
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Mean over seeds with an interval that also holds the uncertainty of what all seeds share.

    Seeds that are compared with the same held-out rows err together, and their scatter does not show it. So two
    variances are added: that of the mean over seeds, s^2 / n, and that of the same mean over bootstrap replicates of
    what is shared. The degrees of freedom are those of Welch and Satterthwaite. Without replicates this is Student's t.

    Args:
        values: one (paired) value per seed, shape (n,), finite.
        replicates: the same values where what they share is resampled, shape (n, B), one resample per column; NaN where
            a resample is missing, which leaves neither interval nor test.
        null: the mean under the null hypothesis.
        alternative: the side of the test; the interval always has two.
        confidence: coverage of the interval.

    Returns:
        The estimate. One seed has neither interval nor test, and neither have several that do not vary unless their
        replicates do.

    References:
        Satterthwaite, An approximate distribution of estimates of variance components, Biometrics 2 (1946).

    Example:
        >>> joint_estimate([1.0, 2.0, 3.0], [[0.0, 2.0], [1.0, 3.0], [2.0, 4.0]], alternative="greater")
        Estimate(value=2.0, low=-8.864..., high=12.864..., n=3, p=0.1853...)
    """
    sample = np.asarray(values, dtype=np.float64)
    n = sample.size
    if n < 2:
        return Estimate(float(sample[0]) if n else math.nan, math.nan, math.nan, n)
    mean = float(sample.mean())
    parts = [(float(sample.var(ddof=1)) / n, n - 1)]
    if replicates is not None:
        shared = np.asarray(replicates, dtype=np.float64).mean(axis=0)
        parts.append((float(shared.var(ddof=1)), shared.size - 1))
    error = math.sqrt(sum(variance for variance, _ in parts))
    if error <= 1e-12 * max(abs(mean), abs(null)):
        return Estimate(mean, math.nan, math.nan, n)
    # In units of the error, since the square of a variance may underflow.
    freedom = 1 / sum((variance / error**2) ** 2 / degrees for variance, degrees in parts)
    half = float(stats.t.ppf(0.5 + confidence / 2, freedom)) * error
    t = (mean - null) / error
    tails = {"two-sided": 2 * stats.t.sf(abs(t), freedom), "greater": stats.t.sf(t, freedom)}
    p = float(tails.get(alternative, stats.t.cdf(t, freedom)))
    return Estimate(mean, mean - half, mean + half, n, p)


def geometric_estimate(values: ArrayLike, *, confidence: float = CONFIDENCE) -> Estimate:
    """Geometric mean with the t interval of the logarithms: for ratios and condition numbers.

    Args:
        values: shape (n,), positive.
        confidence: coverage of the interval.
    """
    logs = t_estimate(np.log(np.asarray(values, dtype=np.float64)), confidence=confidence)
    return Estimate(math.exp(logs.value), math.exp(logs.low), math.exp(logs.high), logs.n, logs.p)


def smallest_resolvable(
    differences: ArrayLike, *, confidence: float = CONFIDENCE, power: float = 0.8
) -> float:
    """The true mean difference that a two-sided paired t test of this size finds with the stated probability.

    The reader's guard against taking "not significant" for "no effect". Exact, given the standard deviation: the
    power is averaged over the law of its estimate, a chi law. (The non-central t of scipy is NaN for two pairs.)

    Args:
        differences: shape (n,), paired differences; fewer than two give NaN.
        confidence: one minus the level of the test.
        power: probability of finding that difference.

    References:
        Cohen, Statistical Power Analysis for the Behavioral Sciences (1988), chapter 2.
    """
    sample = np.asarray(differences, dtype=np.float64)
    n = sample.size
    if n < 2:
        return math.nan
    critical = float(stats.t.ppf(0.5 + confidence / 2, n - 1))
    quantiles = (np.arange(4096) + 0.5) / 4096
    thresholds = critical * np.sqrt(stats.chi2.ppf(quantiles, n - 1) / (n - 1))

    def excess(effect: float) -> float:
        found = stats.norm.sf(thresholds - effect) + stats.norm.sf(thresholds + effect)
        return float(found.mean()) - power

    high = critical + 4.0
    while excess(high) < 0:
        high *= 2
    effect = float(optimize.brentq(excess, 0.0, high))  # in standard errors
    return effect * float(sample.std(ddof=1)) / math.sqrt(n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment; NaN entries (no test was possible) stay NaN and do not count.

    References:
        Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979).

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted = [math.nan] * len(p_values)
    tested = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    running = 0.0
    for rank, (p, i) in enumerate(tested):
        running = max(running, min(1.0, (len(tested) - rank) * p))
        adjusted[i] = running
    return adjusted


def rank_correlation(x: ArrayLike, y: ArrayLike, *, confidence: float = CONFIDENCE) -> Estimate:
    """Spearman's rank correlation with the Fisher-z interval of Bonett and Wright.

    A perfect correlation is taken half of the smallest possible step inside, since the interval would have no
    width at exactly one.

    Args:
        x: shape (n,).
        y: shape (n,).
        confidence: coverage of the interval.

    Returns:
        The correlation; interval and p-value are NaN for fewer than four points, and all is NaN if either
        variable is constant.

    References:
        Bonett and Wright, Sample size requirements for estimating Pearson, Kendall and Spearman correlations,
        Psychometrika 65 (2000).
    """
    ranks_x, ranks_y = stats.rankdata(np.asarray(x)), stats.rankdata(np.asarray(y))
    n = ranks_x.size
    if n < 2 or np.ptp(ranks_x) == 0 or np.ptp(ranks_y) == 0:
        return Estimate(math.nan, math.nan, math.nan, n)
    value = float(np.corrcoef(ranks_x, ranks_y)[0, 1])
    value = max(-1.0, min(1.0, value))
    if n < 4:
        return Estimate(value, math.nan, math.nan, n)
    limit = 1 - 6 / (n * (n**2 - 1))
    inside = max(-limit, min(limit, value))
    centre, error = math.atanh(inside), math.sqrt((1 + inside**2 / 2) / (n - 3))
    half = float(stats.norm.ppf(0.5 + confidence / 2)) * error
    p = 2 * float(stats.norm.sf(abs(centre) / error))
    low, high = min(value, math.tanh(centre - half)), max(value, math.tanh(centre + half))
    return Estimate(value, low, high, n, p)


def slope(x: ArrayLike, y: ArrayLike) -> float:
    """Least-squares slope of y against x, both of shape (n,); NaN for fewer than two distinct x."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    centred = x - x.mean() if x.size else x
    spread = float(centred @ centred)
    return float(centred @ y) / spread if spread > 0 else math.nan
