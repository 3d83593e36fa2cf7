"""From what was measured to what to do: use a map or a skip, leave the latents as they are, or find more rows."""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from precfm.diagnosis.conditioning import Conditioning, rows_needed
from precfm.diagnosis.decoder import DecoderUse
from precfm.diagnosis.evidence import LARGEST_KAPPA, NAMES, gaussian_skip_quoted, quoted
from precfm.diagnosis.maps import TRIED, MapReport
from precfm.diagnosis.rendering import number
from precfm.diagnosis.rows import Parts
from precfm.selection.candidates import Candidate
from precfm.selection.select import Selection
from precfm.selection.standings import DEFAULT

Action: TypeAlias = Literal["use", "leave", "too few rows"]

# Just above the largest condition number at which this project has published flows on data: no map improved the Frechet
# distance there, and samples of such data shall not fall on the other side by chance.
LEAVE_BELOW = 1.2 * LARGEST_KAPPA
# A map has to bring the condition number to a third: descent's steps fall as much, and less is lost beside what the
# bracket between `at_least` and `kappa` leaves open.
HELPS = 3.0
# Of maps that help, the simplest one within twice the best: a factor of two is one doubling of the training.
SIMPLER = 2.0


@dataclass(frozen=True)
class Recommendation:
    """What to do.

    Attributes:
        action: `use` a candidate, `leave` the latents as they are but for their scale, or `too few rows` to tell.
        candidate: name of the map or skip to use; `scalar` where nothing else is.
        reason: why, in sentences; if measured, with a line for each candidate.
        measured: whether flows were trained; otherwise it rests on second moments of the data alone.
        evidence: what this project has measured of such cases, quoted with experiment and revision.
        code: lines of Python that do it.
    """

    action: Action
    candidate: str
    reason: str
    measured: bool
    evidence: tuple[str, ...]
    code: str

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

    def found(action: Action, reason: str, report: MapReport | None = None) -> Recommendation:
        candidate = Candidate(DEFAULT if report is None else TRIED[report.name].spec)
        name = DEFAULT if report is None else report.name
        lines = code(candidate, labelled=parts.fit[1] is not None)
        return Recommendation(action, name, reason, measured=False, evidence=tuple(quoted()), code=lines)

    limit = (
        f"up to about which flows on data were measured ({NAMES}: {LARGEST_KAPPA:g}), and no map improved the Frechet "
        "distance"
    )
    if decoder is not None and decoder.unused and decoder.kappa_used <= LEAVE_BELOW:
        return found(
            "leave",
            f"The decoder hardly uses {decoder.unused} of {decoder.directions} directions, and along the others the "
            f"variances differ by a factor of {number(decoder.kappa_used)} only: no image shows what a map gains.",
        )
    if raw.kappa <= LEAVE_BELOW:
        return found(
            "leave",
            f"Their condition number on held-out rows, {number(raw.kappa)}, is not above {LEAVE_BELOW:g}, {limit}. "
            f"One scale is all they need. {gaussian_skip_quoted()}",
        )
    more = f"about {rows_needed(parts.features, max(raw.at_least, LEAVE_BELOW) / HELPS):,} rows would tell"
    if raw.at_least <= LEAVE_BELOW:
        upper = "cannot be told" if math.isinf(raw.kappa) else f"is at most about {number(raw.kappa)}"
        return found(
            "too few rows",
            f"Of {parts.total:,} rows with {parts.features:,} features the condition number is at least "
            f"{number(raw.at_least)} and {upper}; below {LEAVE_BELOW:g}, {limit}, they would be left alone: {more}.",
        )
    goal = raw.at_least / HELPS
    helping = {each.name: each for each in maps if _shown(each) <= goal}
    if helping:
        best = min(_shown(each) for each in helping.values())
        chosen = next(each for each in helping.values() if _shown(each) <= SIMPLER * best)
        assert chosen.conditioning is not None
        seen = "" if math.isfinite(chosen.conditioning.kappa) else ", as far as so few rows show"
        return found(
            "use",
            f"The condition number of held-out rows is at least {number(raw.at_least)}, and behind {chosen.name} "
            f"{number(_shown(chosen))}{seen}; it is the simplest map within a factor of {SIMPLER:g} of the best. By "
            "the theory of linear models the slowest direction needs fewer steps in the same proportion. That samples "
            f"get better does not follow: in {NAMES} second moments gained behind some maps of four, not behind "
            "whitening, perceptual distance and likelihood lost behind all, and of data much worse conditioned no flow "
            "is published. `--train MINUTES` (minutes=) measures it.",
            chosen,
        )
    worst = f"They are ill-conditioned (at least {number(raw.at_least)} on held-out rows)"
    dense = [each for each in maps if each.floor > goal or each.refused is not None]
    if dense and parts.total < rows_needed(parts.features, goal):
        return found(
            "too few rows",
            f"{worst}, the maps that few rows can fit bring less than a factor of {HELPS:g}, and a dense one has more "
            f"numbers than {parts.total:,} rows can tell: {more}.",
        )
    return found(
        "leave",
        f"{worst}, but no map that was tried brings the condition number of held-out rows to a third of that.",
    )


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
    of = ", labels" if labelled else ""
    return (
        "from precfm import PreconditionedFlow\n\n"
        f"flow = PreconditionedFlow({candidate.preconditioner!r}{around}).fit(x{of})\n"
        "samples = flow.sample(1000)"
    )


def _shown(report: MapReport) -> float:
    """Condition number that held-out rows show behind a map: at most, or, where there is none, what they can show."""
    if report.conditioning is None:
        return math.inf
    kappa = report.conditioning.kappa
    return kappa if math.isfinite(kappa) else report.conditioning.at_least
