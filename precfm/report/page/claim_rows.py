"""What the table of claims shows: rulings on both sides, the effects that decide, and what would change them."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from precfm.report.claims import Side
from precfm.report.claims_document import SIDES, MergedClaim, what_would_change
from precfm.report.formatting import MISSING, interval_text, number_text
from precfm.report.outcomes import StatisticResult
from precfm.report.rulings import Judged, counting, ruled, threshold_text
from precfm.report.verdicts import Verdict
from precfm.report.vocabulary import method_label

_BEST_FIRST = ("supports", "unresolved", "contradicts")


@dataclass(frozen=True)
class DecidingEffect:
    """The weakest criterion of the method that does best, in one data set and under one condition.

    Attributes:
        where: data set and condition.
        what: method, baseline and statistic.
        number: the effect with its 95% interval.
        claimed: what is asked of it.
        outcome: what it says: supports, contradicts or unresolved.
        experiment: whose number it is.
    """

    where: str
    what: str
    number: str
    claimed: str
    outcome: str
    experiment: str


@dataclass(frozen=True)
class ClaimRow:
    """One claim.

    Attributes:
        id, text, whose_words: as in the claims file.
        rulings: by side that the claim has, the ruling.
        shares: by side, how many of the named experiments it rests on, where that is not all.
        effects: those that decide.
        would_change: by side that was tested or could be, what would change the ruling.
    """

    id: str
    text: str
    whose_words: str
    rulings: Mapping[Side, str]
    effects: Sequence[DecidingEffect]
    would_change: Mapping[Side, str]
    shares: Mapping[Side, str] = field(default_factory=dict)

    @property
    def tested(self) -> bool:
        """Whether any side has a ruling."""
        return any(ruling != "not tested" for ruling in self.rulings.values())


def row_of(verdict: Verdict) -> ClaimRow:
    """A claim in one experiment."""
    named = [
        group.model_copy(update={"dataset": group.dataset or verdict.experiment}) for group in verdict.groups
    ]
    groups = {side: [group for group in named if group.side == side] for side in SIDES}
    rulings = {side: ruled(groups[side])[0] for side in SIDES if side in verdict.rule}
    return ClaimRow(
        verdict.claim,
        verdict.text,
        verdict.whose_words,
        rulings,
        _effects(verdict),
        {side: what_would_change(rulings[side], groups[side], "") for side in rulings if groups[side]},
    )


def row_of_all(merged: MergedClaim, planned: Collection[str]) -> ClaimRow:
    """A claim over all experiments."""
    claim = merged.claim
    return ClaimRow(
        claim.id,
        claim.text,
        claim.whose_words,
        {side: ruled(groups)[0] for side, groups in merged.groups.items()},
        [effect for verdict in merged.verdicts for effect in _effects(verdict)],
        {side: merged.would_change(side, planned) for side in merged.groups},
        {side: found.share.strip(" ()") for side, found in merged.coverage.items()},
    )


def _effects(verdict: Verdict) -> list[DecidingEffect]:
    found = []
    for side in SIDES:
        groups = counting([group for group in verdict.groups if group.side == side])
        best = _best_method(groups)
        for group in groups:
            if weakest := _weakest(group, best, verdict.statistics):
                found.append(_written(group, weakest, verdict.experiment))
    return found


def _best_method(groups: Sequence[Judged]) -> str:
    """The method that comes nearest to the claim over all conditions; empty where there are no methods."""
    distances: dict[str, list[tuple[int, int, float]]] = {}
    for each in (each for group in groups for each in group.methods):
        distances.setdefault(each.method, []).append(
            (_BEST_FIRST.index(each.outcome), len(each.fails), each.p)
        )
    return min(distances, key=lambda name: tuple(map(sum, zip(*distances[name], strict=True))), default="")


def _weakest(group: Judged, method: str, statistics: Sequence[StatisticResult]) -> StatisticResult | None:
    """Of a method, the criterion that it is farthest from."""
    deciding = [
        each
        for each in statistics
        if each.role == "decides"
        and (each.dataset, each.value is None) == (group.dataset, False)
        and each.condition in ("", group.condition)
        and each.method in ("", method)
    ]

    def strength(each: StatisticResult) -> tuple[int, float, bool]:
        return _BEST_FIRST.index(each.outcome), each.p or 0.0, each.condition != ""

    return max(deciding, key=strength, default=None)


def _written(group: Judged, result: StatisticResult, experiment: str) -> DecidingEffect:
    value, low, high = (
        math.nan if each is None else each for each in (result.value, result.low, result.high)
    )
    beside = f" against {method_label(result.baseline)}" if result.baseline else ""
    method = method_label(result.method) + beside if result.method else ""
    interval = f" {interval_text(low, high)}" if low < high else ""
    return DecidingEffect(
        where=", ".join(filter(None, (group.dataset, group.condition))),
        what=": ".join(filter(None, (method, result.statistic))),
        number=(MISSING if math.isnan(value) else number_text(value)) + interval,
        claimed=threshold_text(result),
        outcome=result.outcome,
        experiment=experiment,
    )
