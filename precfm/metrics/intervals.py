"""Methods compared over training seeds: paired tests, Holm's correction, and what these could resolve."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import optimize, stats

from precfm.core.errors import PrecfmError
from precfm.core.statistics import holm, t_estimate


def seed_interval(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean over training seeds and the ends of its t interval.

    Raises:
        PrecfmError: fewer than 2 values, or one that is not finite.

    Example:
        >>> mean, low, high = seed_interval([1.0, 2.0, 3.0])
        >>> round(mean, 3), round(low, 3), round(high, 3)
        (2.0, -0.484, 4.484)
    """
    estimate = t_estimate(_scores("values", values), confidence=confidence)
    return estimate.value, estimate.low, estimate.high


def smallest_resolvable_difference(
    deviation: float, n: int, *, level: float = 0.05, power: float = 0.8
) -> float:
    """Smallest mean paired difference that a two-sided paired t test finds with the stated probability.

    Exact, by the power of the test. A table's reader needs it to tell "no difference" from "no
    means of seeing one".

    Args:
        deviation: standard deviation of the paired differences.
        n: number of pairs.
        level: of the test, after any correction for several tests.
        power: probability of finding the difference.

    Returns:
        The difference, in the unit of the deviation; NaN for fewer than two pairs.

    References:
        Cohen, Statistical power analysis for the behavioral sciences, 1988.
    """
    if n < 2:
        return math.nan
    critical = float(stats.t.isf(level / 2, n - 1))
    # The power is an average over the estimated deviation, whose law is a chi law; scipy's non-central t is not a
    # number for few pairs.
    shares = (np.arange(4096) + 0.5) / 4096
    thresholds = critical * np.sqrt(stats.chi2.ppf(shares, n - 1) / (n - 1))

    def excess(effect: float) -> float:
        found = stats.norm.sf(thresholds - effect) + stats.norm.sf(thresholds + effect)
        return float(found.mean()) - power

    high = critical + 4.0
    while excess(high) < 0:
        high *= 2
    return float(optimize.brentq(excess, 0.0, high)) * deviation / math.sqrt(n)


def paired_comparisons(
    scores: Mapping[str, Sequence[float]],
    baseline: str,
    *,
    confidence: float = 0.95,
    power: float = 0.8,
) -> pd.DataFrame:
    """Every method against a baseline, paired by training seed.

    Args:
        scores: per method its scores, in the same order of seeds.
        baseline: method that the others are compared with.
        confidence: of the intervals; 1 - confidence is the level of the family of tests.
        power: at which `resolvable` is stated.

    Returns:
        One row per other method: method, baseline, n, difference (mean of method - baseline), low, high, p
        (paired t), p_wilcoxon (signed ranks: no normality assumed, but p < 0.05 needs at least 6 pairs),
        p_holm (of the t tests), resolvable (smallest difference found with the stated power at Holm's
        strictest step).

    Raises:
        PrecfmError: the baseline is missing, numbers of seeds differ, fewer than 2, or a score is not finite.
    """
    if baseline not in scores:
        raise PrecfmError(f"baseline: '{baseline}' has no scores; known are {', '.join(scores)}")
    base = _scores(baseline, scores[baseline])
    others = [method for method in scores if method != baseline]
    rows = []
    for method in others:
        values = _scores(method, scores[method])
        if len(values) != len(base):
            raise PrecfmError(
                f"{method}: {len(values)} scores against {len(base)} of '{baseline}'; pairs need equal seeds"
            )
        differences = values - base
        estimate = t_estimate(differences, confidence=confidence)
        zero = not np.any(differences)
        rows.append(
            {
                "method": method,
                "baseline": baseline,
                "n": len(values),
                "difference": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "p": estimate.p,
                "p_wilcoxon": 1.0 if zero else float(stats.wilcoxon(differences).pvalue),
                "resolvable": smallest_resolvable_difference(
                    float(differences.std(ddof=1)),
                    len(values),
                    level=(1 - confidence) / len(others),
                    power=power,
                ),
            }
        )
    table = pd.DataFrame(rows)
    if rows:
        table.insert(8, "p_holm", holm(table["p"].tolist()))
    return table


def _scores(name: str, values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < 2:
        raise PrecfmError(f"{name}: {array.size} scores; at least 2 training seeds are needed")
    if not np.isfinite(array).all():
        index = int(np.flatnonzero(~np.isfinite(array))[0])
        raise PrecfmError(f"{name}: score {index} is {array[index]}; every score must be finite")
    return array
