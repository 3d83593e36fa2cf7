"""What one effect says about its claim: supports, contradicts, or leaves it open.

The rule, fixed before any run. An effect supports a claim if it points the claimed way, is at least the smallest one
that matters, and its one-sided p-value is below 5%; a claim of no harm is supported if a change beyond the margin is
excluded. It contradicts the claim if its whole 95% interval is below the smallest effect that matters, or beyond the
margin. Otherwise it is unresolved. A comparison without randomness speaks by its value, and counts as one seed. Where
the baseline stands at the floor of its metric (of ln kappa: 0), nothing could be gained: an effect cannot support
there, and contradicts only by harm, if its whole interval is on the wrong side of zero. Where a metric has replicates
of the held-out rows and a run lacks them, there is no interval, and the effect is unresolved. A number of theory
supports if its whole interval is within the range, and contradicts if it is outside; of a gain, the same holds at the
floor.
"""

import math
from dataclasses import asdict
from typing import Literal

from pydantic import BaseModel, ConfigDict

from precfm.core.statistics import CONFIDENCE
from precfm.report.claims import EffectStatistic, TheoryStatistic
from precfm.report.effects import EXACT, NO_HEADROOM, Effect

Outcome = Literal["supports", "contradicts", "unresolved"]


class StatisticResult(BaseModel):
    """One effect as it stands in `claims.json`; numbers that do not exist are null.

    Attributes:
        statistic, dataset, method, baseline, note: as of the `Effect`; theory has no data set.
        condition: the claim's condition that it is about; empty: all of them.
        value, low, high, n, p: its estimate, with 95% interval and one-sided p-value.
        p_holm: the p-value of its method under its condition (the largest of its statistics), adjusted by Holm over the
            methods of the claim; null for what is only reported.
        smallest_effect: the smallest one that matters; null where a margin or a range decides.
        margin: the largest harmless change; null where no such claim is made.
        direction: the claimed direction, or the supporting range.
        role: decides or reported.
        outcome: what it says about the claim.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    statistic: str
    condition: str
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
    margin: float | None
    direction: str
    role: str
    outcome: Outcome
    note: str


def result_of(effect: Effect) -> StatisticResult:
    """What an effect says about its claim, before its method is adjusted for the others."""
    statistic = effect.statistic
    if isinstance(statistic, TheoryStatistic):
        smallest = margin = None
        direction, outcome = range_text(statistic), _outcome_of_range(effect, statistic)
    else:
        smallest, margin = statistic.smallest_effect, statistic.margin
        direction, outcome = statistic.direction, _outcome(effect, statistic)
    numbers = {name: known(number) for name, number in asdict(effect.estimate).items() if name != "n"}
    return StatisticResult(
        statistic=effect.name,
        condition=statistic.condition,
        dataset=effect.dataset,
        method=effect.method,
        baseline=effect.baseline,
        **numbers,
        n=effect.estimate.n,
        p_holm=None,
        smallest_effect=smallest,
        margin=margin,
        direction=direction,
        role=statistic.role,
        outcome=outcome,
        note=effect.note,
    )


def range_text(statistic: TheoryStatistic) -> str:
    """The range that supports a claim, in words."""
    low, high = statistic.supported_range
    if low is None:
        return f"at most {high:g}"
    return f"at least {low:g}" if high is None else f"{low:g} to {high:g}"


def known(value: float) -> float | None:
    """The number, or null if there is none."""
    return value if math.isfinite(value) else None


def _outcome(effect: Effect, statistic: EffectStatistic) -> Outcome:
    """What an effect with a direction says; measured so that the claimed way is up."""
    estimate, exact = effect.estimate, effect.note == EXACT
    if not (exact or math.isfinite(estimate.low + estimate.p)):
        return "unresolved"
    value = statistic.sign * estimate.value
    highest = value if exact else max(statistic.sign * estimate.low, statistic.sign * estimate.high)
    if highest < (0.0 if effect.note == NO_HEADROOM else statistic.needed):
        return "contradicts"
    shown = exact or estimate.p < 1 - CONFIDENCE
    return "supports" if value >= statistic.needed and shown and effect.note != NO_HEADROOM else "unresolved"


def _outcome_of_range(effect: Effect, statistic: TheoryStatistic) -> Outcome:
    """What a number with a supporting range says; one without an interval speaks by its value."""
    estimate, (low, high) = effect.estimate, statistic.supported_range
    if math.isnan(estimate.value):
        return "unresolved"
    exact = math.isnan(estimate.low) or math.isnan(estimate.high)
    lowest, highest = (estimate.value, estimate.value) if exact else (estimate.low, estimate.high)
    bottom, top = -math.inf if low is None else low, math.inf if high is None else high
    if effect.note.startswith(NO_HEADROOM):  # of a gain, which is a decrease: the range ends below zero
        return "contradicts" if lowest > 0 else "unresolved"
    if bottom <= lowest and highest <= top:
        return "supports"
    return "contradicts" if highest < bottom or lowest > top else "unresolved"
