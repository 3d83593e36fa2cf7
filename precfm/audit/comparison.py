"""Published numbers of two runs, compared with the tolerance for other machines.

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
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from precfm.audit.git import asked, committed
from precfm.core.errors import PrecfmError
from precfm.pipeline.node import RESULTS

if TYPE_CHECKING:
    import pandas as pd

RELATIVE = 0.05
ABSOLUTE = 1e-6
SMALL_FACTOR = 5.0
ROUNDING = 1e-14  # some dozens of units in the last place of 1
MIN_SEEDS = 3
HALF_WIDTHS = 2.0
_FROM_SEEDS = ("low", "high", "p", "p_holm", "resolvable")
_TEXTS = {"note", "reason", "text", "smallest_effect"}
_INTEGERS = {"step", "seed", "n_real", "n_generated"}
_OUTCOMES = {"outcome", "indicative"}  # texts that are results

Judgement = Literal["equal", "near", "interval", "unjudged", "beyond"]


@dataclass(frozen=True)
class Comparison:
    """One published file of two runs.

    Attributes:
        file: below results/.
        rows: how many rows both have.
        only_here: rows that only this run has.
        only_there: rows that only the other one has.
        largest: the largest relative difference; None without a number that differs by more than small numbers may.
        at: the row and column of the largest difference.
        apart: how many numbers differ by more than the relative tolerance, and by more than small numbers may.
        by_intervals: how many of these agree through their intervals alone.
        unjudged: how many of these agree through the intervals of two seeds alone, which say nothing.
        beyond: rows and columns that differ by more than the tolerance, or that only one of them has.
    """

    file: str
    rows: int
    only_here: int
    only_there: int
    largest: float | None
    at: str
    apart: int
    by_intervals: int
    unjudged: int
    beyond: tuple[str, ...]

    def __str__(self) -> str:
        told = f"{self.file}: {self.rows} rows"
        if self.largest is None:
            told += ", no difference" if not self.beyond else f", {len(self.beyond)} differences"
        else:
            told += f", largest relative difference {self.largest:.2g} at {self.at}"
        if self.apart:
            told += (
                f"; {self.apart} numbers differ by more than {RELATIVE:.0%}: {self.by_intervals} of them agree only "
                f"through intervals, {self.unjudged} cannot be judged"
            )
        if self.only_here + self.only_there:
            told += f"; {self.only_here} rows only here, {self.only_there} only there"
        return told


def published_here(experiment: str, results: Path = RESULTS) -> dict[str, bytes]:
    """The contents of an experiment's tables and verdicts, by path below results/."""
    home = results / experiment
    files = [*sorted(home.glob("tables/*.csv")), home / "claims.json"]
    return {file.relative_to(results).as_posix(): file.read_bytes() for file in files if file.is_file()}


def published_in(place: str, experiment: str) -> dict[str, bytes]:
    """The same of another run.

    Args:
        place: `git:REVISION`, or a folder: another checkout, or its results folder.
        experiment: its name.

    Raises:
        PrecfmError: there is no such revision or folder, or it cannot be read.
    """
    if not place.startswith("git:"):
        folder = Path(place)
        if not place or not folder.is_dir():
            raise PrecfmError(f"against: {place!r} is no folder; a folder or git:REVISION is needed")
        results = folder / RESULTS if (folder / RESULTS).is_dir() else folder
        if results.resolve() == RESULTS.resolve():
            raise PrecfmError(
                f"against: {place!r} is this run itself; another folder or git:REVISION is needed"
            )
        return published_here(experiment, results)
    name = place.removeprefix("git:")
    found = asked("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    if found is None:
        raise PrecfmError(f"against: {name!r} is no revision of this repository")
    revision = found.decode().strip()
    listed = asked("ls-tree", "-r", "-z", "--name-only", revision, "--", f"./{RESULTS}/{experiment}/")
    published = {}
    for path in os.fsdecode(listed or b"").split("\0"):
        if path.endswith("/claims.json") or ("/tables/" in path and path.endswith(".csv")):
            content = committed(Path(path), revision)
            if content is None:
                raise PrecfmError(f"against: {name!r} lists {path}, but this repository does not hold it")
            published[Path(path).relative_to(RESULTS).as_posix()] = content
    return published


def compare(here: Mapping[str, bytes], there: Mapping[str, bytes]) -> list[Comparison]:
    """Compare what two runs have published.

    Args:
        here: contents by file, of `published_here`.
        there: of `published_in`.

    Returns:
        One comparison per file that either has.
    """
    found = []
    for file in sorted(here.keys() | there.keys()):
        if file not in here or file not in there:
            where = "here" if file not in here else "there"
            found.append(_unread(file, f"it is not published {where}"))
            continue
        try:
            found.append(_compare(file, _frame(file, here[file]), _frame(file, there[file])))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            found.append(_unread(file, f"cannot be read ({' '.join(str(error).split())})"))
    return found


def _unread(file: str, why: str) -> Comparison:
    return Comparison(file, 0, 0, 0, None, "", 0, 0, 0, (why,))


def _frame(file: str, content: bytes) -> "pd.DataFrame":
    """A table, or the statistics of all verdicts as one."""
    import pandas as pd

    text = content.decode("utf-8")
    if not file.endswith(".json"):
        return pd.read_csv(io.StringIO(text))
    rows: list[dict[str, Any]] = []
    for verdict in json.loads(text)["claims"]:
        named = {"claim": verdict["claim"]}
        rows.append({**named, "statistic": "verdict", "outcome": verdict["verdict"]})
        rows += [{**named, **statistic} for statistic in verdict["statistics"]]
    return pd.DataFrame(rows)


def _compare(file: str, here: "pd.DataFrame", there: "pd.DataFrame") -> Comparison:
    shared = [name for name in here.columns if name in there.columns]
    numbers = [name for name in shared if _holds_numbers(name, here, there)]
    about = [name for name in shared if name not in (*numbers, *_TEXTS, *_OUTCOMES, *_FROM_SEEDS)]
    mine, other = ({**_rows(frame, about, numbers)} for frame in (here, there))
    both = [row for row in mine if row in other]
    compared = [name for name in shared if name in (*numbers, *_OUTCOMES) and name not in _FROM_SEEDS]
    counts = dict.fromkeys(("equal", "near", "interval", "unjudged", "beyond"), 0)
    largest, at, apart, beyond = None, "", 0, []
    for row in both:
        for column in compared:
            difference, judgement = judge(str(column), mine[row], other[row])
            counts[judgement] += 1
            apart += difference > RELATIVE and column in numbers
            if judgement == "beyond":
                beyond.append(_told(row, column, mine[row], other[row]))
            if column in numbers and difference > (largest or 0.0):
                largest, at = difference, f"{row}, {column}"
    if largest is None:  # the same trainings: what was computed from them is the same, too
        for row in both:
            for column in (name for name in shared if name in _FROM_SEEDS):
                if judge("bound", {"bound": mine[row][column]}, {"bound": other[row][column]})[1] == "beyond":
                    beyond.append(_told(row, column, mine[row], other[row]))
    alone = ([row for row in mine if row not in other], [row for row in other if row not in mine])
    for rows, columns, place in zip(
        alone,
        (set(here.columns) - set(there.columns), set(there.columns) - set(here.columns)),
        ("here", "there"),
        strict=True,
    ):
        beyond += [f"the row {row or '(without a name)'} is only {place}" for row in rows]
        beyond += [f"the column {name} is only {place}" for name in sorted(map(str, columns))]
    return Comparison(
        file=file,
        rows=len(both),
        only_here=len(alone[0]),
        only_there=len(alone[1]),
        largest=largest,
        at=at,
        apart=apart,
        by_intervals=counts["interval"],
        unjudged=counts["unjudged"],
        beyond=tuple(beyond),
    )


def _told(row: str, column: Hashable, mine: Mapping[Any, Any], other: Mapping[Any, Any]) -> str:
    return f"{row}, {column}: {mine[column]} here, {other[column]} there"


def _holds_numbers(name: Any, *frames: "pd.DataFrame") -> bool:
    """Whether a column is one of results: numbers in either run, and no names of rows."""
    import pandas as pd

    numeric = any(pd.api.types.is_numeric_dtype(frame[name]) and len(frame) for frame in frames)
    return bool(numeric and name not in _INTEGERS | _TEXTS | _OUTCOMES)


def _rows(frame: "pd.DataFrame", about: list[Any], numbers: list[Any]) -> dict[str, dict[Any, Any]]:
    """Rows by what they are about; of equal ones the second is called `#2`."""
    frame = frame.copy()
    for name in numbers:
        frame[name] = frame[name].map(_number).astype(object)
    rows: dict[str, dict[Any, Any]] = {}
    seen: dict[str, int] = {}
    for row in frame.to_dict("records"):
        name = " ".join(_name(row[column]) for column in about)
        seen[name] = seen.get(name, 0) + 1
        rows[name if seen[name] == 1 else f"{name} #{seen[name]}"] = row
    return rows


def _number(cell: Any) -> Any:
    """A cell of a column of numbers: one cell of text makes pandas read all of them as text."""
    if isinstance(cell, str):
        try:
            return float(cell)
        except ValueError:
            return cell
    return cell


def _name(cell: Any) -> str:
    """What a cell adds to a row's name; a classifier is named without its key."""
    if cell is None or cell != cell:
        return ""
    text = str(cell)
    place = text.rfind("@")
    return text[:place] if place >= 0 and _is_key(text[place + 1 :]) else text


def _is_key(text: str) -> bool:
    return len(text) == 12 and set(text) <= set("0123456789abcdef")


def judge(column: str, mine: Mapping[Any, Any], other: Mapping[Any, Any]) -> tuple[float, Judgement]:
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
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in (a, b)):
        return (0.0, "equal") if a == b or (a != a and b != b) else (math.inf, "beyond")
    a, b = float(a), float(b)
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0, "equal"
    if not (math.isfinite(a) and math.isfinite(b)):
        return math.inf, "beyond"
    if _as_small(a, b):
        return 0.0, "near"
    difference = abs(a - b) / max(abs(a), abs(b))
    if column == "n":
        return difference, "beyond"
    if difference <= RELATIVE:
        return difference, "near"
    if column != "value" or not _within_intervals(mine, other):
        return difference, "beyond"
    seeds = [row.get("n", 0) for row in (mine, other)]
    return difference, "interval" if all(count >= MIN_SEEDS for count in seeds) else "unjudged"


def _as_small(a: float, b: float) -> bool:
    """Whether two numbers differ as rounding may: by at most `ABSOLUTE`, and tiny or of the same order."""
    smaller, larger = sorted((abs(a), abs(b)))
    return abs(a - b) <= ABSOLUTE and (larger <= ROUNDING or larger <= SMALL_FACTOR * smaller)


def _within_intervals(mine: Mapping[Any, Any], other: Mapping[Any, Any]) -> bool:
    """Whether two values differ by no more than their intervals allow; a row without a whole interval allows nothing.

    The shorter distance counts, so that no row can make itself agree with everything by stating a wide interval.
    """
    lower, upper = sorted((mine, other), key=lambda row: float(row["value"]))
    bounds = [row.get(name) for row in (lower, upper) for name in ("low", "high")]
    if not all(isinstance(bound, int | float) and math.isfinite(bound) for bound in bounds):
        return False
    if not all(row["low"] <= row["value"] <= row["high"] for row in (lower, upper)):
        return False
    shorter = min(lower["high"] - lower["value"], upper["value"] - upper["low"])
    return bool(upper["value"] - lower["value"] <= HALF_WIDTHS * shorter)
