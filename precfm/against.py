"""Published numbers of two runs, compared with the tolerance for other machines.

One machine makes equal bytes. Another processor, GPU, thread count or torch rounds differently; training amplifies
that, so its numbers agree only as far as training itself is reproducible. Two numbers agree if they differ by at
most `RELATIVE` of the larger one, or by at most `ABSOLUTE` and a factor of `SMALL_FACTOR`, or if one lies within the
95% interval over training seeds that the other's row states. Small errors of theory are rounding, so they may differ by
that factor, and in any way below `ROUNDING`. Verdicts and counts must be equal; files, rows and columns that only one
run has are differences.
"""

import io
import json
import math
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precfm.artifacts import RESULTS
from precfm.errors import PrecfmError

if TYPE_CHECKING:
    import pandas as pd

RELATIVE = 0.05
ABSOLUTE = 1e-6
SMALL_FACTOR = 5.0
ROUNDING = 1e-14  # some dozens of units in the last place of 1
_NOT_COMPARED = {"low", "high", "p", "p_holm", "resolvable", "smallest_effect"}  # they follow from the values
_TEXTS = {"note", "reason", "text"}
_INTEGERS = {"step", "seed", "n_real", "n_generated"}


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
        beyond: rows and columns that differ by more than the tolerance, or that only one of them has.
    """

    file: str
    rows: int
    only_here: int
    only_there: int
    largest: float | None
    at: str
    beyond: tuple[str, ...]

    def __str__(self) -> str:
        if self.largest is None:
            told = "no difference"
        else:
            told = f"largest relative difference {self.largest:.2g} at {self.at}"
        more = f", {self.only_here} rows only here, {self.only_there} only there"
        return f"{self.file}: {self.rows} rows, {told}{more if self.only_here + self.only_there else ''}"


def published_here(experiment: str, results: Path = RESULTS) -> dict[str, str]:
    """The texts of an experiment's tables and verdicts, by path below results/."""
    home = results / experiment
    files = [*sorted(home.glob("tables/*.csv")), home / "claims.json"]
    return {
        file.relative_to(results).as_posix(): file.read_text(encoding="utf-8")
        for file in files
        if file.is_file()
    }


def published_in(place: str, experiment: str) -> dict[str, str]:
    """The same of another run.

    Args:
        place: `git:REVISION`, or a folder: another checkout, or its results folder.
        experiment: its name.

    Raises:
        PrecfmError: there is no such revision or folder.
    """
    if not place.startswith("git:"):
        folder = Path(place)
        if not folder.is_dir():
            raise PrecfmError(f"against: {place} is no folder; a folder or git:REVISION is needed")
        return published_here(experiment, folder / RESULTS if (folder / RESULTS).is_dir() else folder)
    name = place.removeprefix("git:")
    try:
        revision = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}").strip()
    except PrecfmError:
        raise PrecfmError(f"against: {name!r} is no revision of this repository") from None
    listed = _git("ls-tree", "-r", "-z", "--name-only", revision, "--", f"./{RESULTS}/{experiment}/").split(
        "\0"
    )
    wanted = [
        path
        for path in listed
        if path.endswith("/claims.json") or ("/tables/" in path and path.endswith(".csv"))
    ]
    return {
        Path(path).relative_to(RESULTS).as_posix(): _git("show", f"{revision}:./{path}") for path in wanted
    }


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise PrecfmError(f"git {arguments[0]}: {' '.join(done.stderr.split()) or 'failed'}")
    return done.stdout


def compare(here: Mapping[str, str], there: Mapping[str, str]) -> list[Comparison]:
    """Compare what two runs have published.

    Args:
        here: texts by file, of `published_here`.
        there: of `published_in`.

    Returns:
        One comparison per file that either has.
    """
    found = []
    for file in sorted(here.keys() | there.keys()):
        try:
            frames = [_frame(file, texts[file]) if file in texts else None for texts in (here, there)]
        except (ValueError, KeyError, TypeError) as error:
            found.append(Comparison(file, 0, 0, 0, None, "", (f"cannot be read ({error})",)))
            continue
        found.append(_compare(file, *frames))
    return found


def _frame(file: str, text: str) -> "pd.DataFrame":
    """A table, or the statistics of all verdicts as one, indexed by what its rows are about."""
    import pandas as pd

    if file.endswith(".json"):
        rows: list[dict[str, Any]] = []
        for verdict in json.loads(text)["claims"]:
            named = {"claim": verdict["claim"]}
            rows.append({**named, "statistic": "verdict", "outcome": verdict["verdict"]})
            rows += [{**named, **statistic} for statistic in verdict["statistics"]]
        frame = pd.DataFrame(rows)
    else:
        frame = pd.read_csv(io.StringIO(text))
    names = [
        name
        for name in frame.columns
        if name in _INTEGERS or (not pd.api.types.is_numeric_dtype(frame[name]) and name not in _TEXTS)
    ]
    names = [name for name in names if name not in ("outcome", "indicative")]
    about = frame[names].fillna("").astype(str)
    about = about.apply(
        lambda column: column.str.replace(r"@[0-9a-f]{12}$", "", regex=True)
    )  # a classifier's key
    index = about.agg(" ".join, axis="columns") if names else pd.Series("", index=frame.index)
    again = index.groupby(index).cumcount()
    frame.index = pd.Index(index.where(again == 0, index + " #" + (again + 1).astype(str)))
    return frame.drop(columns=names)


def _compare(file: str, here: "pd.DataFrame | None", there: "pd.DataFrame | None") -> Comparison:
    if here is None or there is None:
        rows = (0 if here is None else len(here), 0 if there is None else len(there))
        where = "here" if here is None else "there"
        return Comparison(file, 0, *rows, None, "", (f"it is not published {where}",))
    mine, other = here.to_dict("index"), there.to_dict("index")
    both = [row for row in mine if row in other]
    columns = [name for name in here.columns if name in there.columns and name not in _NOT_COMPARED | _TEXTS]
    largest, at, beyond = None, "", []
    for row in both:
        for column in columns:
            where = f"{row}, {column}"
            difference, agrees = _difference(str(column), mine[row], other[row])
            if not agrees:
                beyond.append(f"{where}: {mine[row][column]} here, {other[row][column]} there")
            if difference > (largest or 0.0):
                largest, at = difference, where
    only = (len(here) - len(both), len(there) - len(both))
    places = ("here", "there")
    beyond += [f"{count} rows are only {place}" for count, place in zip(only, places, strict=True) if count]
    for mine_alone, place in zip(
        (set(here.columns) - set(there.columns), set(there.columns) - set(here.columns)), places, strict=True
    ):
        beyond += [f"the column {name} is only {place}" for name in sorted(map(str, mine_alone))]
    return Comparison(file, len(both), *only, largest, at, tuple(beyond))


def _difference(column: str, mine: Mapping[Any, Any], other: Mapping[Any, Any]) -> tuple[float, bool]:
    """The relative difference of two cells, and whether they agree within the tolerance."""
    a, b = mine[column], other[column]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in (a, b)):
        equal = a == b or (a != a and b != b)
        return (0.0 if equal else math.inf), bool(equal)
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0, True
    if not (math.isfinite(a) and math.isfinite(b)):
        return math.inf, False
    if _as_small(float(a), float(b)):
        return 0.0, True
    difference = abs(a - b) / max(abs(a), abs(b))
    inside = column == "value" and (_inside(a, other) or _inside(b, mine))
    return difference, bool(column != "n" and (difference <= RELATIVE or inside))


def _as_small(a: float, b: float) -> bool:
    """Whether two numbers differ as rounding may: by at most `ABSOLUTE`, and tiny or of the same order."""
    smaller, larger = sorted((abs(a), abs(b)))
    return abs(a - b) <= ABSOLUTE and (larger <= ROUNDING or larger <= SMALL_FACTOR * smaller)


def _inside(value: float, row: Mapping[Any, Any]) -> bool:
    """Whether a number lies within the interval that a row states; a missing bound holds nothing."""
    low, high = (row.get(name) for name in ("low", "high"))
    return low is not None and high is not None and bool(low <= value <= high)
