"""From what was measured to what to do: use a map or a skip, leave the latents as they are, or find more rows."""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from precfm.diagnosis.conditioning import Conditioning, rows_needed
from precfm.diagnosis.decoder import DecoderUse
from precfm.diagnosis.evidence import (
    LARGEST_KAPPA,
    NAMES,
    PUBLISHED,
    gaussian_skip_quoted,
    photographs_quoted,
    quoted,
)
from precfm.diagnosis.maps import TRIED, MapReport
from precfm.diagnosis.rendering import number
from precfm.diagnosis.rows import Parts
from precfm.selection.candidates import Candidate
from precfm.selection.select import Selection
from precfm.selection.standings import DEFAULT

Action: TypeAlias = Literal["use", "leave", "too few rows"]

# Just above the largest condition number of vectors with which this project has published flows: no map improved the
# Frechet distance there, and samples of such data shall not fall on the other side by chance. That of the photographs,
# 200 times as large, is far above; nothing is published between.
LEAVE_BELOW = 1.2 * LARGEST_KAPPA
# A map has to bring the condition number to a third: descent's steps fall as much, and less is lost beside what the
# bracket between `at_least` and `kappa` leaves open.
HELPS = 3.0
# Of maps that help, the simplest one within twice the best: a factor of two is one doubling of the training.
SIMPLER = 2.0

# From so many features on a vector may be a feature map that was flattened.
MAYBE_A_MAP = 256

SKIPS = {
    "gaussian_skip": Candidate(DEFAULT, ("gaussian_skip",)),
    "mixture_skip": Candidate(DEFAULT, ("mixture_skip",)),
}
SKIP = (
    "If second moments (low variances) are what counts, there is a cure that leaves the space as it is: a Gaussian "
    "skip (precfm.GaussianSkip) adds the exact velocity of a Gaussian with the data's covariance to the network."
)


@dataclass(frozen=True)
class Recommendation:
    """What to do.

    Attributes:
        action: `use` a candidate, `leave` the latents as they are but for their scale, or `too few rows` to tell.
        candidate: name of the map or skip to use; `scalar` where nothing else is.
        reason: why, in sentences; if measured, with a line for each candidate.
        measured: whether flows were trained; otherwise it rests on second moments of the data alone.
        evidence: what this project has measured of such cases, lines of text with experiment and revision.
        code: lines of Python that do it.
        alternative: what else brings second moments nearer, and what was measured of it; empty where nothing is known.
        alternative_code: lines of Python that do that.
    """

    action: Action
    candidate: str
    reason: str
    measured: bool
    evidence: tuple[str, ...]
    code: str
    alternative: str = ""
    alternative_code: str = ""

    def __str__(self) -> str:
        said = {"use": f"use {self.candidate}", "leave": "leave them", "too few rows": "too few rows to tell"}
        return said[self.action]


def recommend(
    parts: Parts, raw: Conditioning, maps: list[MapReport], decoder: DecoderUse | None
) -> Recommendation:
    """Judge by diagnostics alone.

    The data's condition number lies between `at_least` and `kappa` of held-out rows. They are left as they are if
    `kappa` is small, or is where the decoder looks; they are ill-conditioned if `at_least` is not small; between the
    two the rows are too few. A map helps if what the rows behind it show at most is well below what the raw rows show
    at least.
    """

    labelled = parts.fit[1] is not None

    def found(
        action: Action, reason: str, report: MapReport | None = None, *, or_skip: bool = False
    ) -> Recommendation:
        candidate = Candidate(DEFAULT if report is None else TRIED[report.name].spec)
        # It needs a covariance of full rank, and a dense matrix in every step.
        beside = or_skip and parts.dense and len(parts.fit[0]) > parts.features
        return Recommendation(
            action,
            DEFAULT if report is None else report.name,
            reason,
            measured=False,
            evidence=tuple(quoted()),
            code=code(candidate, labelled=labelled),
            alternative=f"{SKIP} {gaussian_skip_quoted()}" if beside else "",
            alternative_code=code(SKIPS["gaussian_skip"], labelled=labelled) if beside else "",
        )

    kappas = " and ".join(f"{each.kappa:g}" for each in PUBLISHED)
    measured = f"on latents with condition numbers {kappas} ({NAMES}) no map improved the Frechet distance"
    if decoder is not None and decoder.unused and decoder.kappa_used <= LEAVE_BELOW:
        return found(
            "leave",
            f"The decoder hardly uses {decoder.unused} of {decoder.directions} directions, and along the others the "
            f"variances differ by a factor of {number(decoder.kappa_used)} only: no image shows what a map gains.",
        )
    if raw.kappa <= LEAVE_BELOW:
        return found(
            "leave",
            f"Their condition number is at most about {number(raw.kappa)}. Latents with one up to {LEAVE_BELOW:g} are "
            f"left as they are but for one scale, since {measured}.",
            or_skip=True,
        )
    more = f"about {rows_needed(parts.features, max(raw.at_least, LEAVE_BELOW) / HELPS):,} rows would tell"
    if len(parts.event_shape) == 1 and parts.features >= MAYBE_A_MAP:
        more += "; feature maps in their own shape, (rows, channels, height, width), need far fewer"
    if raw.at_least <= LEAVE_BELOW:
        upper = f"at most about {number(raw.kappa)}"
        if math.isinf(raw.kappa):
            upper = (
                "these rows give no upper bound, which needs more rows than features"
                if parts.features <= parts.dense_features
                else f"no upper bound is looked for in {parts.features:,} features"
            )
        return found(
            "too few rows",
            f"The condition number is at least {number(raw.at_least)}; {upper}. Latents with one up to "
            f"{LEAVE_BELOW:g} are left as they are, since {measured}; above, a map may help. Which holds, {more}.",
        )
    goal = raw.at_least / HELPS
    helping = {each.name: each for each in maps if _shown(each) <= goal}
    if helping:
        best = min(_shown(each) for each in helping.values())
        chosen = next(each for each in helping.values() if _shown(each) <= SIMPLER * best)
        assert chosen.conditioning is not None
        behind = f"it is at most about {number(_shown(chosen))}"
        if math.isinf(chosen.conditioning.kappa):
            behind = f"the same lower bound is {number(_shown(chosen))}, as far as so few rows show"
        return found(
            "use",
            f"The condition number is at least {number(raw.at_least)}; behind {chosen.name} {behind}, and no "
            f"simpler map comes within a factor of {SIMPLER:g} of the best. By the theory of linear models the slowest "
            "direction then needs fewer steps in the same proportion. Whether samples get better is not known: "
            f"{measured}; second moments improved behind some of the four maps, likelihood behind none. But "
            f"{photographs_quoted()}. `--train MINUTES` (minutes=) measures it on your rows.",
            chosen,
            or_skip=True,
        )
    worst = f"The condition number is at least {number(raw.at_least)}"
    dense = [each for each in maps if each.floor > goal or each.refused is not None]
    if dense and parts.total < rows_needed(parts.features, goal):
        return found(
            "too few rows",
            f"{worst}, the maps that few rows can fit bring less than a factor of {HELPS:g}, and a dense one has more "
            f"numbers than {parts.total:,} rows can tell: {more}.",
        )
    return found("leave", f"{worst}, but no map that was tried brings it to a third.", or_skip=True)


def from_selection(selection: Selection, candidate: Candidate, *, labelled: bool) -> Recommendation:
    """What short trainings have shown."""
    leave = selection.chosen == DEFAULT
    full, last = selection.record["steps"], selection.record["rungs"][-1]
    short = f"\nThe longest trainings had {last['steps']} of {full} steps: which is better at the end is not known."
    return Recommendation(
        "leave" if leave else "use",
        selection.chosen,
        selection.summary() + (short if last["projected_to"] < full else ""),
        measured=True,
        evidence=tuple(quoted()),
        code=code(candidate, labelled=labelled),
    )


def code(candidate: Candidate, *, labelled: bool) -> str:
    """Lines of Python that train the flow; `x` and `labels` are the reader's tensors."""
    around = f", wrappers={[*candidate.wrappers]}" if candidate.wrappers else ""
    fit = ")\nflow.fit" if around else ").fit"  # lines that a terminal shows whole
    of = ", labels" if labelled else ""
    return (
        "from precfm import PreconditionedFlow\n\n"
        f"flow = PreconditionedFlow({candidate.preconditioner!r}{around}{fit}(x{of})\n"
        "samples = flow.sample(1000)"
    )


def _shown(report: MapReport) -> float:
    """Condition number that held-out rows show behind a map: at most, or, where there is none, what they can show."""
    if report.conditioning is None:
        return math.inf
    kappa = report.conditioning.kappa
    return kappa if math.isfinite(kappa) else report.conditioning.at_least
