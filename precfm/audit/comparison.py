"""Numbers of two runs, compared with the tolerance for other machines: `precfm audit --against`.

One machine makes equal bytes. Another processor, GPU, thread count or torch rounds differently; training amplifies
that, so its numbers agree only as far as training itself is reproducible. Two numbers agree

- if they differ by at most `RELATIVE` of the larger one, or by at most `ABSOLUTE` and a factor of `SMALL_FACTOR`:
  small errors of theory are rounding, so they may differ by that factor, and in any way below `ROUNDING`;
- or if both rows state an interval over `MIN_SEEDS` seeds or more that holds their own value, and the numbers differ by
  at most `HALF_WIDTHS` times the shorter of the two distances from a value to its bound on the other's side. Of two
  honest runs whose seeds scatter alike, 5% of the numbers with 3 seeds are still beyond that, 3% with 5, 2% with 10.

Intervals of two seeds are so wide that nearly all numbers pass; those that pass by them alone are counted as not
judged. Verdicts and counts must be equal; files, rows and columns that only one run has are differences. Bounds and
p-values follow from the values of single seeds: they are compared, with `RELATIVE`, where all values of a file agree to
rounding, and not otherwise. Notes and reasons are not compared.
"""

import io
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from precfm.audit.git import asked
from precfm.core.errors import PrecfmError
from precfm.pipeline.node import RESULTS

if TYPE_CHECKING:
    import pandas as pd

PUBLISHED = RESULTS / "published"
RELATIVE = 0.05
ABSOLUTE = 1e-6
SMALL_FACTOR = 5.0
ROUNDING = 1e-14  # some dozens of units in the last place of 1
MIN_SEEDS = 3
HALF_WIDTHS = 2.0
_FROM_SEEDS = {"low", "high", "p", "p_holm", "resolvable"}
_OUTCOMES = {"outcome", "indicative"}  # texts that are results
_NOT_COMPARED = {"note", "reason", "text", "smallest_effect"}
_NAMES = {"step", "seed", "n_real", "n_generated"}  # numbers that say what a row is about

Judgement = Literal["equal", "near", "interval", "unjudged", "beyond"]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """One file of numbers of two runs.

    Attributes:
        file: its path below the experiment.
        rows: how many rows both have.
        largest: the largest relative difference between numbers, those aside that differ as small ones may.
        at: its row and column.
        apart: how many numbers differ by more than `RELATIVE`, and by more than small ones may.
        by_intervals: how many of these agree through their intervals alone.
        unjudged: how many of these agree through the intervals of two seeds alone, which say nothing.
        beyond: what differs by more than the tolerance, or is only in one of the runs.
    """

    file: str
    rows: int = 0
    largest: float = 0.0
    at: str = ""
    apart: int = 0
    by_intervals: int = 0
    unjudged: int = 0
    beyond: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{self.file}: {self.rows} rows, {len(self.beyond)} differences beyond the tolerance"]
        if self.largest:
            parts.append(f"largest relative difference {self.largest:.2g} at {self.at}")
        if self.apart:
            parts.append(
                f"{self.apart} numbers differ by more than {RELATIVE:.0%}: {self.by_intervals} of them agree only "
                f"through intervals, {self.unjudged} cannot be judged"
            )
        return "; ".join(parts)


def numbers_in(home: Path) -> dict[str, bytes]:
    """The contents of an experiment's tables and verdicts, by path below its folder."""
    files = [*sorted(home.glob("tables/*.csv")), home / "claims.json"]
    return {file.relative_to(home).as_posix(): file.read_bytes() for file in files if file.is_file()}


def numbers_here(experiment: str) -> dict[str, bytes]:
    """The numbers that this machine made, or else the published ones."""
    return numbers_in(RESULTS / experiment) or numbers_in(PUBLISHED / experiment)


def numbers_there(place: str, experiment: str) -> dict[str, bytes]:
    """The numbers of another run.

    Args:
        place: `git:REVISION`, for what was published there, or a folder: another checkout, or its `results` or
            `results/published`.
        experiment: its name.

    Raises:
        PrecfmError: there is no such revision or folder, or it is this run itself.
    """
    if place.startswith("git:"):
        return _numbers_of(place.removeprefix("git:"), PUBLISHED / experiment)
    folder = Path(place)
    if not place or not folder.is_dir():
        raise PrecfmError(f"against: {place!r} is no folder; a folder or git:REVISION is needed")
    if folder.resolve() in (Path.cwd(), RESULTS.resolve()):
        raise PrecfmError(f"against: {place!r} is this run itself; another folder or git:REVISION is needed")
    homes = (folder / RESULTS / experiment, folder / PUBLISHED / experiment, folder / experiment)
    return next((found for home in homes if (found := numbers_in(home))), {})


def _numbers_of(name: str, home: Path) -> dict[str, bytes]:
    found = asked("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    if found is None:
        raise PrecfmError(f"against: {name!r} is no revision of this repository")
    revision = found.decode().strip()
    listed = os.fsdecode(asked("ls-tree", "-r", "-z", "--name-only", revision, "--", f"./{home}/") or b"")
    wanted = re.compile(rf"{re.escape(home.as_posix())}/(tables/[^/]+\.csv|claims\.json)")
    contents = {}
    for path in filter(wanted.fullmatch, listed.split("\0")):
        content = asked("cat-file", "blob", f"{revision}:./{path}")
        if content is None:
            raise PrecfmError(f"against: {name!r} lists {path}, but this repository does not hold it")
        contents[Path(path).relative_to(home).as_posix()] = content
    return contents


def compare(here: Mapping[str, bytes], there: Mapping[str, bytes]) -> list[Comparison]:
    """Compare the numbers of two runs of an experiment: contents by file, one comparison per file that either has."""
    found = []
    for file in sorted(here.keys() | there.keys()):
        if file not in here or file not in there:
            only = "here" if file in here else "there"
            found.append(Comparison(file, beyond=(f"it is only {only}",)))
            continue
        try:
            found.append(_compared(file, _frame(file, here[file]), _frame(file, there[file])))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            found.append(Comparison(file, beyond=(f"it cannot be read ({' '.join(str(error).split())})",)))
    return found


def _frame(file: str, content: bytes) -> "pd.DataFrame":
    """A table, or the statistics of all verdicts as one."""
    import pandas as pd

    text = content.decode("utf-8")
    if not file.endswith(".json"):
        return pd.read_csv(io.StringIO(text))
    rows: list[dict[str, Any]] = []
    for verdict in json.loads(text)["claims"]:
        rows.append({"claim": verdict["claim"], "statistic": "verdict", "outcome": verdict["verdict"]})
        rows += [{"claim": verdict["claim"], **statistic} for statistic in verdict["statistics"]]
    return pd.DataFrame(rows)


def _compared(file: str, here: "pd.DataFrame", there: "pd.DataFrame") -> Comparison:
    shared = [name for name in here.columns if name in there.columns]
    numbers = {name for name in shared if _holds_numbers(name, here, there)}
    about = [name for name in shared if name not in numbers | _FROM_SEEDS | _OUTCOMES | _NOT_COMPARED]
    mine, other = (_rows(frame, about, numbers) for frame in (here, there))
    both = [row for row in mine if row in other]
    compared = [name for name in shared if name in (numbers | _OUTCOMES) - _FROM_SEEDS]
    cells = [(row, name, *judge(name, mine[row], other[row])) for row in both for name in compared]
    differences = [(size, f"{row}, {name}") for row, name, size, _ in cells if name in numbers and size]
    largest, at = max(differences, key=lambda each: each[0], default=(0.0, ""))
    if not differences:  # the same trainings: what was computed from them is the same, too
        bounds = [name for name in shared if name in _FROM_SEEDS]
        cells += [(row, name, *judge(name, mine[row], other[row])) for row in both for name in bounds]
    counts = [judgement for *_, judgement in cells]
    beyond = [
        f"{row}, {name}: {mine[row][name]} here, {other[row][name]} there"
        for row, name, _, judgement in cells
        if judgement == "beyond"
    ]
    for only, rows, others, frame, another in (
        ("here", mine, other, here, there),
        ("there", other, mine, there, here),
    ):
        beyond += [f"the row {row or '(without a name)'} is only {only}" for row in rows if row not in others]
        beyond += [
            f"the column {name} is only {only}" for name in frame.columns if name not in another.columns
        ]
    return Comparison(
        file=file,
        rows=len(both),
        largest=largest,
        at=at,
        apart=sum(size > RELATIVE for size, _ in differences),
        by_intervals=counts.count("interval"),
        unjudged=counts.count("unjudged"),
        beyond=tuple(beyond),
    )


def _holds_numbers(name: str, *frames: "pd.DataFrame") -> bool:
    """Whether a column is one of results: numbers in either run, and no names of rows."""
    import pandas as pd

    numeric = any(pd.api.types.is_numeric_dtype(frame[name]) and len(frame) for frame in frames)
    return numeric and name not in _NAMES | _NOT_COMPARED | _OUTCOMES


def _rows(frame: "pd.DataFrame", about: Sequence[str], numbers: set[str]) -> dict[str, Row]:
    """Rows by what they are about; of equal ones the second is called `#2`."""
    rows: dict[str, Row] = {}
    for row in frame.to_dict("records"):
        named: Row = {str(name): _number(cell) if name in numbers else cell for name, cell in row.items()}
        # A classifier is named without its key.
        name = base = " ".join(
            "" if cell is None or cell != cell else re.sub(r"@[0-9a-f]{12}$", "", str(cell))
            for cell in (named[column] for column in about)
        )
        count = 1
        while name in rows:
            count += 1
            name = f"{base} #{count}"
        rows[name] = named
    return rows


def _number(cell: Any) -> Any:
    """A cell of a column of numbers: one cell of text makes pandas read all of them as text."""
    try:
        return float(cell)
    except (TypeError, ValueError):
        return cell


def judge(column: str, mine: Row, other: Row) -> tuple[float, Judgement]:
    """Hold one cell of a row against that of another run.

    Args:
        column: which one; only `value` has an interval, and `n` must be equal.
        mine: this run's row: `column`, and where there is an interval `low`, `high` and `n`.
        other: the other run's.

    Returns:
        The relative difference (0 where numbers differ as small ones may, infinite for what is no number), and whether
        they are `equal`, `near` (within the tolerance), agree through an `interval` alone, cannot be told apart by the
        intervals of two seeds (`unjudged`), or are `beyond` the tolerance.
    """
    a, b = mine[column], other[column]
    if a == b or (a != a and b != b):
        return 0.0, "equal"
    if not all(isinstance(value, float | int) and math.isfinite(value) for value in (a, b)):
        return math.inf, "beyond"
    smaller, larger = sorted((abs(a), abs(b)))
    if abs(a - b) <= ABSOLUTE and (larger <= ROUNDING or larger <= SMALL_FACTOR * smaller):
        return 0.0, "near"
    difference = abs(a - b) / larger
    if column != "n" and difference <= RELATIVE:
        return difference, "near"
    if column != "value" or not _within_intervals(mine, other):
        return difference, "beyond"
    return difference, "interval" if min(
        row.get("n", 0) for row in (mine, other)
    ) >= MIN_SEEDS else "unjudged"


def _within_intervals(mine: Row, other: Row) -> bool:
    """Whether two values differ by no more than their intervals allow; a row without a whole interval allows nothing.

    The shorter distance counts, so that no row can make itself agree with everything by stating a wide interval.
    """
    lower, upper = sorted((mine, other), key=lambda row: float(row["value"]))
    for row in (lower, upper):
        bounds = [row.get("low"), row.get("high")]
        if not all(isinstance(bound, int | float) and math.isfinite(bound) for bound in bounds):
            return False
        if not row["low"] <= row["value"] <= row["high"]:
            return False
    shorter = min(lower["high"] - lower["value"], upper["value"] - upper["low"])
    return bool(upper["value"] - lower["value"] <= HALF_WIDTHS * shorter)
