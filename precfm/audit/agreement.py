"""Does a run say the same as another one, the published one above all: `precfm compare`."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from precfm.audit.comparison import AGREES, Comparison, Difference, Judgement, compare
from precfm.audit.runs import HERE, THE_PUBLISHED, THIS_MACHINE, Place, Run, place_of
from precfm.audit.tolerances import RELATIVE
from precfm.core.errors import PrecfmError
from precfm.core.options import suggestion
from precfm.pipeline.experiments import check_name

AGREEMENT, BEYOND, SCATTER = 0, 1, 2  # exit codes
WIDTH = 100
_WITHIN = f"{RELATIVE:.0e}".replace("e-0", "e-")
FEW = 5  # so many differences are named
_HEAD = ("numbers", "agree", "scatter", "2 seeds", "beyond", "  largest difference, and where")
_LABELS = dict(zip(("scatter", "unjudged", "beyond"), _HEAD[2:], strict=False))


@dataclass(frozen=True)
class Agreement:
    """How far two runs of an experiment agree.

    Attributes:
        experiment: its name.
        other: what this run was compared with, as said within a sentence.
        comparisons: file by file.
        origin: who made the other run, where its keys are not those of this run; else empty.
    """

    experiment: str
    other: str
    comparisons: tuple[Comparison, ...]
    origin: str

    @property
    def counts(self) -> Counter[Judgement]:
        """How many numbers of all files have which judgement."""
        return sum((Counter(each.counts) for each in self.comparisons), Counter())

    @property
    def differences(self) -> list[Difference]:
        """Every cell that does not agree to rounding."""
        return [difference for each in self.comparisons for difference in each.differences]

    @property
    def exit_code(self) -> int:
        """`AGREEMENT` to rounding; `SCATTER`: all differences are within that of seeds; `BEYOND`."""
        found = {difference.judgement for difference in self.differences}
        if "beyond" in found or any(each.only for each in self.comparisons):
            return BEYOND
        return SCATTER if found else AGREEMENT

    @property
    def line(self) -> str:
        """The result in one line."""
        counts = self.counts
        same, verdicts = (sum(each.verdicts[place] for each in self.comparisons) for place in (0, 1))
        parts = [f"{same:,} of {verdicts:,} verdicts"] if verdicts else []
        parts.append(f"{counts['rounding']:,} of {counts.total():,} numbers within {_WITHIN}")
        others = {
            "within tolerances of their own": counts["declared"],
            "within the scatter of seeds": counts["scatter"],
            "cannot be told: two seeds": counts["unjudged"],
            "beyond": counts["beyond"],
            "rows, columns or files of one run alone": sum(len(each.only) for each in self.comparisons),
        }
        parts += [f"{count:,} {what}" for what, count in others.items() if count]
        as_far = ", as far as can be told," if counts["unjudged"] else ""
        result = {
            AGREEMENT: f"agrees with {self.other}",
            SCATTER: f"differs from {self.other}{as_far} by no more than seeds do",
            BEYOND: f"differs from {self.other}",
        }[self.exit_code]
        return f"{self.experiment}: {result}: {', '.join(parts)}{self.origin and f'; {self.origin}'}"

    def lines(self) -> Iterator[str]:
        """The table of files, the largest differences, the result."""
        names = [_table(each) for each in self.comparisons]
        wide = max(map(len, names), default=0)
        yield _row("", _HEAD, wide)
        for name, each in zip(names, self.comparisons, strict=True):
            counts = [each.counts.get(judgement, 0) for judgement in ("scatter", "unjudged")]
            agree = sum(each.counts.get(judgement, 0) for judgement in AGREES)
            beyond = sum(difference.judgement == "beyond" for difference in each.differences) + len(each.only)
            numbers = [f"{number:,}" for number in (sum(each.counts.values()), agree, *counts, beyond)]
            yield _row(name, [*numbers, f"  {each.largest:.1e} {each.at}" if each.largest else ""], wide)
        yield from self._worst()
        yield self.line

    def _worst(self) -> Iterator[str]:
        """The largest differences; those beyond the scatter first, and what one run has alone before them."""
        found: list[tuple[int, bool, float, str]] = []
        for each in self.comparisons:
            table = _table(each)
            found += [(0, False, 0.0, f"beyond: {sentence}: {table}") for sentence in each.only]
            found += [
                (
                    1 + (cell.judgement != "beyond"),
                    "nothing" in (cell.here, cell.there),
                    -cell.size,
                    f"{_LABELS[cell.judgement]}: {table} {cell}",
                )
                for cell in each.differences
            ]
        yield from (sentence[:WIDTH] for *_, sentence in sorted(found)[:FEW])
        if len(found) > FEW:
            yield f"and {len(found) - FEW:,} more differences; --json lists all"

    def to_json(self) -> dict[str, Any]:
        """Plain data, for other programs; infinite sizes are null."""
        found = asdict(self)
        for each in found["comparisons"]:
            for part in (each, *each["differences"]):
                for name in part.keys() & {"largest", "size"}:
                    part[name] = part[name] if math.isfinite(part[name]) else None
        return {**found, "line": self.line, "exit_code": self.exit_code}


def _table(compared: Comparison) -> str:
    return compared.file.removeprefix("tables/").partition(".")[0]


def _row(name: str, cells: Sequence[str], wide: int) -> str:
    return "".join([f"{name:{wide}}", *(f"{cell:>8}" for cell in cells)])[:WIDTH].rstrip()


def agreements(place: str | None = None, experiments: Sequence[str] = ()) -> list[Agreement]:
    """Compare the numbers of this checkout with those of another run.

    Args:
        place: a folder (a checkout, its results, its results/published, or the folder of one experiment) or else a git
            revision, whose published numbers count. None: what this machine made, against what is published.
        experiments: which ones; none means all that are in both places. Where a place is given, an experiment counts
            as published if this machine has made nothing of it.

    Returns:
        One for each experiment.

    Raises:
        PrecfmError: there is no such place, or nothing to compare.
    """
    here, there = (THIS_MACHINE, THE_PUBLISHED) if place is None else (HERE, place_of(place))
    for name in experiments:
        check_name(name)
    both = sorted(here.experiments() & there.experiments())
    found = []
    for name in experiments or both:
        mine, other = here.run(name), there.run(name)
        if not mine.numbers:
            others = suggestion(name, sorted(here.experiments() | there.experiments()))
            raise PrecfmError(
                f"{name}: this machine has no tables or verdicts of it{others}; "
                f"`make reproduce EXPERIMENT={name}` makes them"
            )
        if not other.numbers:
            raise PrecfmError(f"{name}: {there.name} has no numbers of it, but of {_listed(there)}")
        if other.experiment not in ("", name):
            raise PrecfmError(
                f"{name}: {there.name} holds the verdicts of {other.experiment} under this name"
            )
        if mine.folder is not None and other.folder is not None and mine.folder.samefile(other.folder):
            if experiments:
                raise PrecfmError(
                    f"{name}: {there.name} is this run itself; another folder or a revision is needed"
                )
            continue
        compared = compare(mine.numbers, other.numbers)
        found.append(Agreement(name, there.name, tuple(compared), _origin(mine, other)))
    if not found:
        raise PrecfmError(
            f"nothing to compare: {here.name} has numbers of {_listed(here)}, {there.name} of {_listed(there)}"
        )
    return found


def worst(found: Sequence[Agreement]) -> int:
    """The exit code for several experiments: one that is `BEYOND` decides, then one within the `SCATTER`."""
    return max((each.exit_code for each in found), key=(AGREEMENT, SCATTER, BEYOND).index)


def agreement_with_published(experiment: str) -> Agreement | None:
    """How far what this machine made agrees with what is published; None where nothing is.

    Raises:
        PrecfmError: this machine made nothing of it, or what is published is of another experiment.
    """
    published = THE_PUBLISHED.run(experiment).numbers
    return agreements(None, [experiment])[0] if published else None


def _listed(place: Place) -> str:
    return ", ".join(sorted(place.experiments())) or "nothing"


def _origin(mine: Run, other: Run) -> str:
    """Who made the other run, if its keys are not those of this run: differences are no surprise then."""
    if not (mine.keys and other.keys) or mine.keys == other.keys:
        return ""
    same = len(mine.keys & other.keys)
    made_by = f"by revision {other.revision}, " if other.revision else ""
    return f"made {made_by}{same} of its {len(other.keys)} keys are those of this run"
