"""From the outcomes of its effects to the ruling on a claim: for theory and for data, which never overrule each other.

One named method must meet all deciding statistics on every data set and recipe that counts. That is an
intersection-union test, so each statistic is tested at its own level and a method's p-value is the largest of its
statistics; over the methods, one of which suffices, it is adjusted by Holm. A method fails where one statistic
contradicts, and a claim is contradicted if every method fails on every data set and recipe; on data all of them in one
and the same statistic, in whatever space and beside whatever baseline. Conditions, which the claims file lists before
the run, are judged one by one: where one is supported and another contradicted, the claim is mixed. All else is open,
conditions among it that are all supported but by no one method. With fewer than five seeds a ruling is indicative at
most, and counts only where no other does.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, cast

from pydantic import BaseModel, ConfigDict

from precfm.core.statistics import CONFIDENCE, INDICATIVE_BELOW, holm
from precfm.report.claims import Claim, EffectStatistic, Side, Statistic
from precfm.report.effects import NO_HEADROOM, expected, names_of, places_named
from precfm.report.formatting import MISSING, interval_text, number_text
from precfm.report.judges import Place
from precfm.report.outcomes import Outcome, StatisticResult
from precfm.report.vocabulary import method_label

Ruling = Literal[
    "supported",
    "contradicted",
    "mixed",
    "open",
    "not tested",
    "indicative: supported",
    "indicative: contradicted",
    "indicative: mixed",
]


class MethodOutcome(BaseModel):
    """What all deciding statistics say about one method.

    Attributes:
        method: its name; empty if the statistics are of none.
        outcome: supports if all do, contradicts if one does; before the adjustment for other methods.
        fails: the names of the statistics that contradict, without their spaces.
        p: the largest of its statistics; 0 where all speak by their value, 1 where one is missing or has no test.
        words: the same for a reader.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    outcome: Outcome
    fails: tuple[str, ...] = ()
    p: float
    words: str


class Judged(BaseModel):
    """One side, data set (with its recipe) and condition: what the methods of a claim do there.

    Attributes:
        side: theory or data.
        dataset: empty for theory.
        condition: one of the claim's; empty if it lists none for this side.
        n: the fewest seeds that a deciding statistic of this side and data set rests on.
        methods: one outcome for each.
        headroom: whether every baseline leaves room for the claimed effect above the floor.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    side: Side
    dataset: str
    condition: str
    n: int
    methods: tuple[MethodOutcome, ...]
    headroom: bool = True

    @property
    def head(self) -> str:
        """Where, how it rules, and on how many seeds."""
        where = ", ".join(filter(None, (self.dataset, self.condition)))
        return (f"{where}: " if where else "") + f"{ruled([self])[0]} (n = {self.n})"

    @property
    def said(self) -> list[str]:
        """What each method does."""
        return [
            f"{method_label(each.method)} {each.words}" if each.method else each.words
            for each in self.methods
        ]


def judged(claim: Claim, results: Sequence[StatisticResult]) -> list[Judged]:
    """A claim's deciding statistics, by side, data set, condition and method.

    Args:
        claim: the claim.
        results: of its statistics; what is only reported is left out.
    """
    deciding = [result for result in results if result.role == "decides"]
    found = []
    for dataset in dict.fromkeys(result.dataset for result in deciding):
        here = [result for result in deciding if result.dataset == dataset]
        places = places_named(claim, {result.statistic for result in results if result.dataset == dataset})
        side: Side = "data" if dataset else "theory"
        for condition in claim.conditions_of(side):
            under = [result for result in here if result.condition in ("", condition)]
            outcomes = [
                _method_outcome(
                    method,
                    statistics,
                    expected(claim, statistics, method, places),
                    places,
                    [result for result in under if result.method in ("", method)],
                )
                for method, statistics in claim.criteria(side, condition).items()
            ]
            fewest = min(
                result.n for result in here
            )  # of all conditions, so that none counts more than another
            found.append(
                Judged(
                    side=side,
                    dataset=dataset,
                    condition=condition,
                    n=fewest,
                    methods=tuple(outcomes),
                    headroom=not any(result.note.startswith(NO_HEADROOM) for result in under),
                )
            )
    return found


def _method_outcome(
    method: str,
    statistics: Sequence[Statistic],
    wanted: set[tuple[str, str]],
    places: set[Place],
    results: Sequence[StatisticResult],
) -> MethodOutcome:
    """All deciding statistics, in every space and against every baseline, must be there and support."""

    def outcome(what: Outcome, words: str, p: float = 1.0, fails: tuple[str, ...] = ()) -> MethodOutcome:
        return MethodOutcome(method=method, outcome=what, fails=fails, p=p, words=words)

    against = [result for result in results if result.outcome == "contradicts"]
    if against:
        names = {result.statistic for result in against}
        fails = tuple(each.name for each in statistics if names & set(names_of(each, places)))
        words = f"fails {_listed(map(_named, against), len(results))}{_met(results)}"
        left = sum(result.outcome == "unresolved" for result in results)
        return outcome("contradicts", words + (f"; leaves open {left}" if left else ""), fails=fails)
    missing = wanted - {(result.statistic, result.baseline) for result in results}
    if missing:
        lacking = sorted(_compared(name, baseline) for name, baseline in missing)
        return outcome("unresolved", f"lacks {_listed(lacking, len(wanted))}")
    p_values = [result.p for result in results if result.dataset and not result.note.startswith("exact")]
    p = max((1.0 if value is None else value for value in p_values), default=0.0)
    unresolved = [result for result in results if result.outcome == "unresolved"]
    if unresolved:
        words = f"leaves open {_listed(map(_named, unresolved), len(results))}{_met(results)}"
        return outcome("unresolved", words, p)
    words = f"meets {'its' if len(results) == 1 else 'all'} {_criteria(len(results))}"
    weakest = max(results, key=lambda result: result.p or 0.0)
    if len(results) == 1:
        words += f" ({_named(weakest)})"
    elif p_values:  # theory of several criteria has no weakest one
        words += f" (weakest: {_named(weakest)})"
    return outcome("supports", words, p)


def _named(result: StatisticResult) -> str:
    """A criterion with its number and threshold; of theory's rows with the remark that tells equal names apart."""
    low, high = (math.nan if end is None else end for end in (result.low, result.high))
    value = MISSING if result.value is None else number_text(result.value)
    interval = f" {interval_text(low, high)}" if low < high else ""
    asked = "claimed range" if result.smallest_effect is None else "claimed"
    asked = "allowed" if result.margin is not None else asked
    note = f"; {result.note}" if result.note and not result.note.startswith("exact") else ""
    name = _compared(result.statistic, result.baseline)
    return f"{name}: {value}{interval}, {asked}: {threshold_text(result)}{note}"


def _compared(name: str, baseline: str) -> str:
    return f"{name}, compared with {method_label(baseline)}" if baseline else name


def threshold_text(about: StatisticResult | EffectStatistic) -> str:
    """What is claimed or allowed, in words: a least effect, a largest harmless change, or theory's range."""
    way = about.direction.replace("_", " ")
    if about.margin is not None:
        return f"{way} beyond {about.margin:g}"
    return way if about.smallest_effect is None else f"{way} of at least {about.smallest_effect:g}"


def _met(results: Iterable[StatisticResult]) -> str:
    """The criteria that are met, without numbers: each statistic once, with its baselines, or with theory's remarks."""
    met: dict[str, list[str]] = {}
    for result in results:
        if result.outcome == "supports":
            beside = method_label(result.baseline) if result.baseline else result.note
            met.setdefault(result.statistic, []).append(beside)
    names = [f"{name} ({' and '.join(beside)})".removesuffix(" ()") for name, beside in met.items()]
    return f"; meets {sum(map(len, met.values()))}: {' | '.join(names)}" if met else ""


def _listed(names: Iterable[str], of: int) -> str:
    """How many of how many criteria, and which; two of them by name."""
    each = list(names)
    which = " | ".join(each[:2]) + (" and others" if len(each) > 2 else "")
    return f"{len(each)} of {_criteria(of)} ({which})"


def _criteria(count: int) -> str:
    return f"{count} criteri{'on' if count == 1 else 'a'}"


def adjusted(groups: Sequence[Judged]) -> Mapping[str, float]:
    """By method, its p-value over these groups, adjusted by Holm over the methods."""
    methods = list(dict.fromkeys(each.method for group in groups for each in group.methods))
    largest = [max(_of(group, method).p for group in groups) for method in methods]
    return dict(zip(methods, holm(largest), strict=True))


def _of(group: Judged, method: str) -> MethodOutcome:
    absent = MethodOutcome(method=method, outcome="unresolved", p=1.0, words="was not run")
    return next((each for each in group.methods if each.method == method), absent)


def ruled(groups: Sequence[Judged]) -> tuple[Ruling, str]:
    """The ruling of one side over its data sets and conditions.

    Args:
        groups: of one side, of one experiment or of several.

    Returns:
        The ruling, and in words how its conditions rule where they do not agree.
    """
    if not groups:
        return "not tested", ""
    indicative = few_seeds(groups)
    conditions: dict[str, list[Judged]] = {}
    for group in counting(groups):
        conditions.setdefault(group.condition, []).append(group)
    found = {condition: _way(several) for condition, several in conditions.items()}
    ways = {condition: way for condition, (way, _) in found.items()}
    mark = " (indicative)" if indicative else ""
    said = [f"{condition}: {each}{mark if each != 'open' else ''}" for condition, each in ways.items()]
    words = ", ".join(said) if len(said) > 1 else ""
    if set(ways.values()) == {"supported"}:
        same = set.intersection(*(set(methods) for _, methods in found.values()))
        way = "supported" if same else "open"
        words += "" if same else ", but by no one method"
    elif set(ways.values()) == {"contradicted"}:
        way = "contradicted"
    else:
        way = "mixed" if {"supported", "contradicted"} <= set(ways.values()) else "open"
    return cast(Ruling, f"indicative: {way}" if indicative and way != "open" else way), words


def counting(groups: Sequence[Judged]) -> Sequence[Judged]:
    """Those that count: with enough seeds, or all where none has enough."""
    return [group for group in groups if group.n >= INDICATIVE_BELOW] or groups


def few_seeds(groups: Sequence[Judged]) -> bool:
    """Whether none has enough seeds for more than an indicative ruling."""
    return all(group.n < INDICATIVE_BELOW for group in groups)


def _way(groups: Sequence[Judged]) -> tuple[str, list[str]]:
    """Supported, contradicted or open, under one condition on all its data sets; and the methods that support."""
    p = adjusted(groups)
    outcomes = {method: {_of(group, method).outcome for group in groups} for method in p}
    supporting = [method for method in p if p[method] < 1 - CONFIDENCE and outcomes[method] == {"supports"}]
    if supporting:
        return "supported", supporting
    failed = all(found == {"contradicts"} for found in outcomes.values())
    return "contradicted" if failed and _same_way(groups) else "open", []


def _same_way(groups: Sequence[Judged]) -> bool:
    """Whether all methods fail in one and the same statistic; in theory each may have statistics of its own."""
    fails = [set(each.fails) for group in groups if group.side == "data" for each in group.methods]
    return not fails or bool(set.intersection(*fails))
