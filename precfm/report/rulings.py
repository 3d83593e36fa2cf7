"""From the outcomes of its effects to the ruling on a claim.

The settings of a data set must all rule the same way. A method meets a claim if all its deciding effects support it
and fails if one contradicts it. On a data set the claim is supported if one of its methods meets it, and not supported
if all fail. With fewer than five seeds a ruling is indicative at most.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, cast

from precfm.core.statistics import INDICATIVE_BELOW
from precfm.report.claims import Claim
from precfm.report.effects import expected
from precfm.report.outcomes import Outcome, StatisticResult
from precfm.report.vocabulary import method_label

Ruling = Literal[
    "supported",
    "not supported",
    "indicative: supported",
    "indicative: not supported",
    "inconclusive",
    "not tested",
]


def rule(claim: Claim, results: Sequence[StatisticResult]) -> tuple[Ruling, str]:
    """The ruling on a claim over its data sets, and its reason in one sentence.

    Args:
        claim: the claim.
        results: of its deciding statistics.
    """
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
