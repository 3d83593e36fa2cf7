"""Verdicts on the claims: effects against the smallest ones that matter, Holm within a claim, seeds counted.

The rule, fixed before any run. An effect supports a claim if it points the claimed way, is at least the
smallest one that matters, and its p-value, adjusted by Holm over all deciding effects of the claim, is below
5%. It contradicts the claim if its whole 95% interval is below the smallest effect that matters. Otherwise it
is unresolved. A claim of no harm is supported if the change the wrong way is shown to be below the margin.
A comparison without randomness is judged by its value, and counts as one seed. A ratio to a baseline that
stands at the floor of its metric is unresolved: nothing could be gained there.

The settings of a data set must all rule the same way. A method meets a claim if all its deciding effects
support it and fails if one contradicts it. On a data set the claim is supported if one of its methods meets
it, and not supported if all fail. With fewer than five seeds a verdict is indicative at most."""

import math
from collections.abc import Iterable, Sequence
from typing import Literal, cast

from pydantic import BaseModel, ConfigDict

from precfm.core.statistics import CONFIDENCE, INDICATIVE_BELOW, holm
from precfm.report.claims import Claim, ClaimsSpec, TheoryStatistic
from precfm.report.effects import EXACT, NO_HEADROOM, Effect, effects, expected, null_value
from precfm.report.selection import Frames
from precfm.report.vocabulary import method_label

Outcome = Literal["supports", "contradicts", "unresolved"]
Ruling = Literal[
    "supported",
    "not supported",
    "indicative: supported",
    "indicative: not supported",
    "inconclusive",
    "not tested",
]


class StatisticResult(BaseModel):
    """One effect as it stands in `claims.json`; numbers that do not exist are null.

    Attributes:
        statistic: name, with the space it was taken in.
        dataset: data set; empty for theory.
        method: the preconditioner.
        baseline: what it was compared with.
        value: the effect.
        low: lower end of its 95% interval.
        high: upper end.
        n: seeds (or methods, or cases, as the name says).
        p: two-sided p-value.
        p_holm: adjusted over the deciding effects of the claim.
        smallest_effect: the smallest one that matters; null where a range decides.
        direction: the claimed direction, or the supporting range.
        role: decides or reported.
        outcome: what it says about the claim.
        note: a remark.
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


class Verdict(BaseModel):
    """The verdict on one claim in one experiment.

    Attributes:
        claim: its id.
        text: the claim.
        experiment: the experiment.
        verdict: the ruling.
        reason: one sentence.
        methods: the methods that were compared.
        statistics: the effects it rests on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    claim: str
    text: str
    experiment: str
    verdict: Ruling
    reason: str
    methods: tuple[str, ...]
    statistics: tuple[StatisticResult, ...]


def evaluate_claims(spec: ClaimsSpec, frames: Frames, experiment: str) -> list[Verdict]:
    """Judge every claim by the numbers of one experiment.

    Args:
        spec: the claims.
        frames: data frames by name, see `precfm.report.selection.COLUMNS`.
        experiment: its name.

    Returns:
        One verdict per claim, in the order of the claims.
    """
    return [_evaluate(claim, frames, experiment) for claim in spec.claims]


def _evaluate(claim: Claim, frames: Frames, experiment: str) -> Verdict:
    if experiment not in claim.experiments:
        counting = ", ".join(claim.experiments)
        return _verdict(claim, experiment, "not tested", f"Only these experiments count: {counting}.", [])
    found = list(effects(claim, _of_settings(claim, frames)))
    deciding = [effect for effect in found if effect.statistic.role == "decides"]
    adjusted: dict[int, float] = {}
    for dataset in {effect.dataset for effect in deciding}:
        family = [effect for effect in deciding if effect.dataset == dataset]
        corrected = holm([effect.estimate.p for effect in family])
        adjusted |= dict(zip(map(id, family), corrected, strict=True))
    results = [_result(effect, adjusted.get(id(effect), math.nan)) for effect in found]
    ruling, reason = _rule(claim, [result for result in results if result.role == "decides"])
    return _verdict(claim, experiment, ruling, reason, results)


def _of_settings(claim: Claim, frames: Frames) -> Frames:
    """The rows of the settings that count for a claim; frames without settings (theory) stay whole."""
    if not claim.settings:
        return frames
    return {
        name: frame[frame["setting"].isin(claim.settings)] if "setting" in frame.columns else frame
        for name, frame in frames.items()
    }


def _verdict(
    claim: Claim, experiment: str, ruling: Ruling, reason: str, results: Sequence[StatisticResult]
) -> Verdict:
    methods = tuple(dict.fromkeys(result.method for result in results if result.method))
    return Verdict(
        claim=claim.id,
        text=claim.text,
        experiment=experiment,
        verdict=ruling,
        reason=reason,
        methods=methods,
        statistics=tuple(results),
    )


def _result(effect: Effect, p_holm: float) -> StatisticResult:
    statistic, estimate = effect.statistic, effect.estimate
    if isinstance(statistic, TheoryStatistic):
        low, high = statistic.supported_range
        direction = f"within [{'-inf' if low is None else low:}, {'inf' if high is None else high}]"
        smallest, outcome = None, _outcome_of_range(effect)
    else:
        direction, smallest = statistic.direction, statistic.smallest_effect
        outcome = _outcome(effect, p_holm if statistic.role == "decides" else estimate.p)
    return StatisticResult(
        statistic=effect.name,
        dataset=effect.dataset,
        method=effect.method,
        baseline=effect.baseline,
        value=_known(estimate.value),
        low=_known(estimate.low),
        high=_known(estimate.high),
        n=estimate.n,
        p=_known(estimate.p),
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


def _rule(claim: Claim, results: Sequence[StatisticResult]) -> tuple[Ruling, str]:
    """The ruling on a claim over its data sets, and its reason."""
    if not results:
        return "not tested", f"The experiment has no numbers for it: {_wanted(claim)} would be needed."
    rulings: dict[str, list[Ruling]] = {}
    sentences = []
    for dataset in dict.fromkeys(result.dataset for result in results):
        ruling, sentence = _rule_dataset(claim, [r for r in results if r.dataset == dataset])
        rulings.setdefault(_without_setting(dataset, claim.settings), []).append(ruling)
        sentences.append((f"{dataset}: " if dataset else "") + sentence)
    return combine(agreed(several) for several in rulings.values()), "; ".join(sentences) + "."


def _without_setting(dataset: str, settings: Sequence[str]) -> str:
    """The data set that a setting is of: settings stand behind its name."""
    return next((dataset.removesuffix(f"-{s}") for s in settings if dataset.endswith(f"-{s}")), dataset)


def agreed(rulings: Sequence[Ruling]) -> Ruling:
    """One ruling from several settings of a data set, which must all rule the same way.

    Example:
        >>> agreed(["supported", "indicative: supported"]), agreed(["supported", "inconclusive"])
        ('indicative: supported', 'inconclusive')
    """
    ways = {ruling.removeprefix("indicative: ") for ruling in rulings}
    if len(ways) > 1:
        return "inconclusive"
    return next((ruling for ruling in rulings if ruling.startswith("indicative")), rulings[0])


def _wanted(claim: Claim) -> str:
    names = ", ".join(statistic.name for statistic in claim.statistics if statistic.role == "decides")
    if not claim.methods:
        return names
    baselines = ", ".join(name.format(method="<method>") for name in claim.baselines)
    return f"{names} of {' or '.join(claim.methods)} beside {baselines}"


def _rule_dataset(claim: Claim, results: Sequence[StatisticResult]) -> tuple[Ruling, str]:
    groups: dict[str, list[StatisticResult]] = {}
    for result in results:
        groups.setdefault(result.method, []).append(result)
    outcomes = {method: _outcome_of_method(claim, method, group) for method, group in groups.items()}
    supporting = [method for method, (outcome, _) in outcomes.items() if outcome == "supports"]
    if supporting:
        ruling: Ruling = "supported"
    elif all(outcome == "contradicts" for outcome, _ in outcomes.values()):
        ruling = "not supported"
    else:
        ruling = "inconclusive"
    counted = [r for method in (supporting or groups) for r in groups[method]]
    fewest = min(result.n for result in counted)
    if ruling != "inconclusive" and fewest < INDICATIVE_BELOW:
        ruling = cast(Ruling, f"indicative: {ruling}")
    said = ", ".join(
        (f"{method_label(method)} " if method else "") + words for method, (_, words) in outcomes.items()
    )
    return ruling, f"{said} (n = {fewest}{' or more' if any(r.n > fewest for r in counted) else ''})"


def _outcome_of_method(claim: Claim, method: str, results: Sequence[StatisticResult]) -> tuple[Outcome, str]:
    """All deciding statistics, in every space and against every baseline, must be there and support."""
    against = sum(result.outcome == "contradicts" for result in results)
    if against:
        return "contradicts", f"fails {against} of {_criteria(len(results))}"
    missing = expected(claim, results[0].dataset, method) - {
        (result.statistic, result.baseline) for result in results
    }
    if missing:
        names = ", ".join(
            sorted(name + (f" to {baseline}" if baseline else "") for name, baseline in missing)
        )
        return "unresolved", f"lacks {names}"
    open_ones = sum(result.outcome == "unresolved" for result in results)
    if open_ones:
        return "unresolved", f"leaves {open_ones} of {_criteria(len(results))} open"
    return "supports", f"meets {'its' if len(results) == 1 else 'all'} {_criteria(len(results))}"


def _criteria(count: int) -> str:
    return f"{count} criteri{'on' if count == 1 else 'a'}"


def combine(rulings: Iterable[Ruling]) -> Ruling:
    """One ruling from several data sets or experiments: full verdicts before indicative ones.

    Rulings of the same weight that disagree leave it open.

    Example:
        >>> combine(["supported", "inconclusive", "indicative: not supported"])
        'supported'
        >>> combine(["supported", "not supported"]), combine(["not tested", "inconclusive"])
        ('inconclusive', 'inconclusive')
    """
    present = set(rulings)
    pairs: tuple[tuple[Ruling, Ruling], ...] = (
        ("supported", "not supported"),
        ("indicative: supported", "indicative: not supported"),
    )
    for pair_of in pairs:
        chosen = [ruling for ruling in pair_of if ruling in present]
        if chosen:
            return chosen[0] if len(chosen) == 1 else "inconclusive"
    return "inconclusive" if "inconclusive" in present else "not tested"
