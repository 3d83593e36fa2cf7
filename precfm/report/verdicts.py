"""Verdicts on the claims of the paper from the numbers of one experiment.

What an effect says stands in `precfm.report.outcomes`, how effects make a ruling in `precfm.report.rulings`.
"""

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from precfm.core.statistics import holm
from precfm.report.claims import Claim, ClaimsSpec
from precfm.report.effects import effects, frames_of
from precfm.report.frames import Frames
from precfm.report.outcomes import StatisticResult, result_of
from precfm.report.rulings import Ruling, rule


class Verdict(BaseModel):
    """The verdict on one claim in one experiment, its reason in one sentence, and what it rests on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    claim: str
    text: str
    experiment: str
    verdict: Ruling
    reason: str
    methods: tuple[str, ...]
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
    results = [result_of(effect, adjusted.get(id(effect), math.nan)) for effect in found]
    ruling, reason = rule(claim, [result for result in results if result.role == "decides"])
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
    return Verdict(
        claim=claim.id,
        text=claim.text,
        experiment=experiment,
        verdict=ruling,
        reason=reason,
        methods=tuple(dict.fromkeys(result.method for result in results if result.method)),
        statistics=tuple(results),
    )
