"""What one effect says about its claim: supports, contradicts, or leaves it open.

The rule, fixed before any run. An effect supports a claim if it points the claimed way, is at least the smallest one
that matters, and its p-value, adjusted by Holm over the deciding effects of the claim, is below 5%. It contradicts the
claim if its whole 95% interval is below the smallest effect that matters. Otherwise it is unresolved. A claim of no
harm is supported if the change the wrong way is shown to be below the margin. A comparison without randomness speaks
by its value, and counts as one seed. A ratio to a baseline that stands at the floor of its metric is unresolved:
nothing could be gained there.
"""

import math
from dataclasses import asdict
from typing import Literal

from pydantic import BaseModel, ConfigDict

from precfm.core.statistics import CONFIDENCE
from precfm.report.claims import TheoryStatistic
from precfm.report.effects import EXACT, NO_HEADROOM, Effect, null_value

Outcome = Literal["supports", "contradicts", "unresolved"]


class StatisticResult(BaseModel):
    """One effect as it stands in `claims.json`; numbers that do not exist are null.

    Attributes:
        statistic, dataset, method, baseline, note: as of the `Effect`.
        value, low, high, n, p: its estimate, with 95% interval and two-sided p-value.
        p_holm: adjusted over the deciding effects of the claim.
        smallest_effect: the smallest one that matters; null where a range decides.
        direction: the claimed direction, or the supporting range.
        role: decides or reported.
        outcome: what it says about the claim.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    statistic: str
    dataset: str
    method: str
    baseline: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    p: float | None
    p_holm: float | None
    smallest_effect: float | None
    direction: str
    role: str
    outcome: Outcome
    note: str


def result_of(effect: Effect, p_holm: float) -> StatisticResult:
    """What an effect says about its claim.

    Args:
        effect: the effect.
        p_holm: its p-value, adjusted over the deciding effects of its claim; NaN for one that is only reported.
    """
    statistic, estimate = effect.statistic, effect.estimate
    if isinstance(statistic, TheoryStatistic):
        low, high = statistic.supported_range
        direction = f"within [{'-inf' if low is None else low:}, {'inf' if high is None else high}]"
        smallest, outcome = None, _outcome_of_range(effect)
    else:
        direction, smallest = statistic.direction, statistic.smallest_effect
        outcome = _outcome(effect, p_holm if statistic.role == "decides" else estimate.p)
    numbers = {name: _known(number) for name, number in asdict(estimate).items() if name != "n"}
    return StatisticResult(
        statistic=effect.name,
        dataset=effect.dataset,
        method=effect.method,
        baseline=effect.baseline,
        **numbers,
        n=estimate.n,
        p_holm=_known(p_holm),
        smallest_effect=smallest,
        direction=direction,
        role=statistic.role,
        outcome=outcome,
        note=effect.note,
    )


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _outcome(effect: Effect, p: float) -> Outcome:
    """What an effect with a direction says; measured so that the claimed way is positive."""
    statistic, estimate = effect.statistic, effect.estimate
    assert not isinstance(statistic, TheoryStatistic)
    exact = effect.note == EXACT
    if effect.note == NO_HEADROOM or not (exact or math.isfinite(estimate.low + p)):
        return "unresolved"
    sign = 1 if statistic.direction in ("increase", "no_decrease") else -1
    value, null = sign * estimate.value, sign * null_value(statistic)
    highest = value if exact else max(sign * estimate.low, sign * estimate.high)
    needed = null if statistic.direction.startswith("no_") else statistic.smallest_effect
    if highest < needed:
        return "contradicts"
    shown = exact or p < 1 - CONFIDENCE
    return "supports" if value >= needed and value > null and shown else "unresolved"


def _outcome_of_range(effect: Effect) -> Outcome:
    """What a number with a supporting range says; one without an interval speaks by its value."""
    assert isinstance(effect.statistic, TheoryStatistic)
    estimate, (low, high) = effect.estimate, effect.statistic.supported_range
    if math.isnan(estimate.value):
        return "unresolved"
    exact = math.isnan(estimate.low) or math.isnan(estimate.high)
    lowest, highest = (estimate.value, estimate.value) if exact else (estimate.low, estimate.high)
    bottom, top = -math.inf if low is None else low, math.inf if high is None else high
    if bottom <= lowest and highest <= top:
        return "supports"
    return "contradicts" if highest < bottom or lowest > top else "unresolved"
