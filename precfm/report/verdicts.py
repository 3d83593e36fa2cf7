"""Verdicts on the claims of the paper, and on our own, from the numbers of one experiment.

What an effect says stands in `precfm.report.outcomes`, how effects make a ruling in `precfm.report.rulings`.
"""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from precfm.report.claims import COMPARING, Claim, ClaimsSpec, Side, Statistic, TheoryStatistic
from precfm.report.effects import effects, frames_of
from precfm.report.frames import Frames
from precfm.report.outcomes import StatisticResult, known, range_text, result_of
from precfm.report.rulings import Judged, Ruling, adjusted, judged, ruled, threshold_text
from precfm.report.vocabulary import method_label


class Verdict(BaseModel):
    """The verdict on one claim in one experiment: on theory and on data, apart.

    Attributes:
        claim, text, whose_words, caveat: as in the claims file.
        rule: by side, what decides, in Markdown; a side that nothing decides is absent.
        experiments: those that count.
        experiment: the one of this verdict.
        fingerprint: hash of what decides, `precfm.report.claims.Claim.fingerprint`.
        theory: the ruling by controlled experiments.
        data: the ruling by data sets.
        verdict: both in one line.
        reason: in one sentence for each side, data set and condition.
        methods: those that were compared.
        groups: what the rulings are made of.
        statistics: all numbers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    claim: str
    text: str
    whose_words: str
    caveat: str
    rule: dict[Side, str]
    experiments: tuple[str, ...]
    experiment: str
    fingerprint: str
    theory: Ruling
    data: Ruling
    verdict: str
    reason: str
    methods: tuple[str, ...]
    groups: tuple[Judged, ...]
    statistics: tuple[StatisticResult, ...]


def evaluate_claims(spec: ClaimsSpec, frames: Frames, experiment: str) -> list[Verdict]:
    """Rule on every claim by the numbers of one experiment.

    Args:
        spec: the claims.
        frames: data frames by name, see `precfm.report.frames.FRAMES`.
        experiment: its name.

    Returns:
        One verdict per claim, in the order of the claims.
    """
    return [_evaluate(claim, frames, experiment) for claim in spec.claims]


def frames_read(spec: ClaimsSpec) -> frozenset[str]:
    """The frames that the statistics of all claims are computed from."""
    return frozenset(
        name for claim in spec.claims for statistic in claim.statistics for name in frames_of(statistic)
    )


def summary(theory: Ruling, data: Ruling) -> str:
    """Both rulings in one line; what was not tested on one side is left out.

    Example:
        >>> summary("supported", "open"), summary("not tested", "open"), summary("not tested", "not tested")
        ('theory supported, data open', 'data open', 'not tested')
    """
    said = [f"{side} {way}" for side, way in (("theory", theory), ("data", data)) if way != "not tested"]
    return ", ".join(said) or "not tested"


def _evaluate(claim: Claim, frames: Frames, experiment: str) -> Verdict:
    groups: list[Judged] = []
    results: list[StatisticResult] = []
    if experiment in claim.experiments:
        results = [result_of(effect) for effect in effects(claim, _of_settings(claim, frames))]
        groups = judged(claim, results)
    theory, data = (
        ruled([group for group in groups if group.side == side])[0] for side in ("theory", "data")
    )
    return Verdict(
        claim=claim.id,
        text=claim.text,
        whose_words=claim.whose_words,
        caveat=claim.caveat,
        rule=rules_of(claim),
        experiments=claim.experiments,
        experiment=experiment,
        fingerprint=claim.fingerprint,
        theory=theory,
        data=data,
        verdict=summary(theory, data),
        reason=_reason(claim, experiment, groups),
        methods=tuple(dict.fromkeys(result.method for result in results if result.method)),
        groups=tuple(groups),
        statistics=tuple(_with_holm(result, groups) for result in results),
    )


def _of_settings(claim: Claim, frames: Frames) -> Frames:
    """The rows of the settings that count for a claim; frames without settings (theory) stay whole."""
    if not claim.settings:
        return frames
    return {
        name: frame[frame["setting"].isin(claim.settings)] if "setting" in frame.columns else frame
        for name, frame in frames.items()
    }


def _with_holm(result: StatisticResult, groups: Sequence[Judged]) -> StatisticResult:
    """With the adjusted p-value of its method: on its data set, under its condition or the worst of all."""
    here = [g for g in groups if g.dataset == result.dataset and result.condition in ("", g.condition)]
    if result.role != "decides" or not result.dataset or not here:
        return result
    p = max(adjusted([group]).get(result.method, 1.0) for group in here)
    return result.model_copy(update={"p_holm": known(p)})


def _reason(claim: Claim, experiment: str, groups: Sequence[Judged]) -> str:
    if experiment not in claim.experiments:
        return f"Only these experiments count: {', '.join(claim.experiments)}."
    if not groups:
        return "The experiment has no numbers for it."
    return " ".join(f"{group.head}: {'; '.join(group.said)}." for group in groups)


def rules_of(claim: Claim) -> dict[Side, str]:
    """What decides a claim, by side, in Markdown: what is compared, then a list of criteria by condition."""
    sides: tuple[Side, ...] = ("theory", "data")
    return {side: _rule(claim, side) for side in sides if claim.deciding(side)}


def _rule(claim: Claim, side: Side) -> str:
    deciding, conditions = claim.deciding(side), claim.conditions_of(side)
    methods = {condition: _one_of(claim, side, condition) for condition in conditions}
    same = len(set(methods.values())) == 1
    head = []
    if side == "data" and claim.settings:
        head.append(f"Setting: {' or '.join(claim.settings)}.")
    if any(s.kind in COMPARING and not getattr(s, "baselines", ()) for s in deciding):
        head.append(f"Compared with each of: {_labels(claim.baselines)}.")
    if same:
        (one_of,) = set(methods.values())
        head.append(f"Needed: {one_of} meets every line." if one_of else "Needed: every line.")
    else:
        head.append("Needed: every line, by one and the same method.")
    lines = []
    for condition in dict.fromkeys((*conditions, "")):
        criteria = dict.fromkeys(_criterion(s) for s in deciding if s.condition == condition)
        if criteria and conditions != ("",):
            needed = "" if same or not condition else f" ({methods[condition]})"
            lines.append(f"- {condition or 'under each condition'}{needed}")
        indent = "" if conditions == ("",) else "  "
        lines += [f"{indent}- {criterion}" for criterion in criteria]
    return f"{' '.join(head)}\n\n" + "\n".join(lines)


def _one_of(claim: Claim, side: Side, condition: str) -> str:
    """The methods that have criteria under a condition, one of which suffices."""
    labels = [method_label(name) for name in claim.criteria(side, condition) if name]
    return ("one of " if len(labels) > 1 else "") + ", ".join(labels)


def _labels(baselines: Sequence[str]) -> str:
    return "; ".join(method_label(name.format(method="the method")) for name in baselines)


def _criterion(statistic: Statistic) -> str:
    if isinstance(statistic, TheoryStatistic):
        name = statistic.name.replace(statistic.method, "<method>") if statistic.method else statistic.name
        return f"`{name}`: {range_text(statistic)}"
    spaces = f" ({', '.join(getattr(statistic, 'spaces', ()))})".replace(" ()", "")
    own = f", compared with {_labels(statistic.baselines)}" if statistic.baselines else ""
    return f"{statistic.name}{spaces}: {threshold_text(statistic)}{own}"
