"""Numbers of two runs, compared: which agree to rounding, which only within the scatter of seeds, which do not.

A number agrees to rounding as far as `precfm.audit.tolerances` declares for its statistic; interval and p-value may
move as far as the rounding of single seeds explains.

What differs by more is held against the scatter of training seeds. Two values are within it if both rows state an
interval over `MIN_SEEDS` seeds or more that holds their own value, and they differ by at most `HALF_WIDTHS` times the
shorter of the two distances from a value to its bound on the other's side. Of two honest runs whose seeds scatter
alike, 5% of the numbers with 3 seeds are still beyond that, 3% with 5, 2% with 10. Intervals of two seeds are so wide
that nearly all numbers pass: what passes by them alone cannot be told. Where values differ, the trainings were others:
interval and p-value then count as their value does.

Verdicts, outcomes and counts must be equal; files, rows and columns that only one run has are differences. Notes and
reasons are not compared.
"""

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from precfm.audit.intervals import follows, half_width, is_finite, seeds, within_intervals
from precfm.audit.number_tables import (
    FROM_SEEDS,
    VERDICT,
    Cell,
    Row,
    SideBySide,
    number,
    read_table,
    side_by_side,
)
from precfm.audit.tolerances import RELATIVE, tolerance_of

MIN_SEEDS = 3
P_VALUES = ("p", "p_holm")
NO_CHANCE = 1e-6  # p-values below it say the same, whatever their digits
_METRICS = "tables/metrics.csv"
_UNREADABLE = (csv.Error, ValueError, KeyError, TypeError, AttributeError, RecursionError)

Judgement = Literal["rounding", "declared", "scatter", "unjudged", "beyond"]
AGREES: tuple[Judgement, ...] = ("rounding", "declared")
Sizes: TypeAlias = Mapping[tuple[object, ...], float]


@dataclass(frozen=True)
class Difference:
    """One cell that does not agree to rounding.

    Attributes:
        where: its row and column.
        here: what stands in the one run.
        there: what stands in the other.
        size: relative difference; infinite for what is no number.
        judgement: `scatter`, `unjudged` or `beyond`.
    """

    where: str
    here: str
    there: str
    size: float
    judgement: Judgement

    def __str__(self) -> str:
        return f"{self.here} here, {self.there} there: {self.where}"


@dataclass(frozen=True)
class Comparison:
    """One file of numbers of two runs.

    Attributes:
        file: its path below the experiment.
        counts: how many numbers agree within `RELATIVE` (`rounding`) or by a tolerance of their own (`declared`), agree
            within the `scatter` of seeds, cannot be told since there are two seeds (`unjudged`), or are `beyond`.
        largest: the largest relative difference between numbers, those aside that have a tolerance of their own.
        at: its row and column.
        differences: every cell that does not agree to rounding, outcomes among them.
        only: files, rows and columns that one of the runs has alone.
        verdicts: how many claims' verdicts are equal, and how many both runs have; none where no claim is tested.
    """

    file: str
    counts: Mapping[Judgement, int] = field(default_factory=dict)
    largest: float = 0.0
    at: str = ""
    differences: tuple[Difference, ...] = ()
    only: tuple[str, ...] = ()
    verdicts: tuple[int, int] = (0, 0)


def compare(here: Mapping[str, bytes], there: Mapping[str, bytes]) -> list[Comparison]:
    """Compare the numbers of two runs of an experiment.

    Args:
        here: the contents of the one run's tables (`tables/*.csv`) and verdicts (`claims.json`), by path.
        there: the same of the other run.

    Returns:
        One comparison per file that either has.
    """
    sizes, found = sizes_in(here), []
    for file in sorted(here.keys() | there.keys()):
        if file not in here or file not in there:
            only = "here" if file in here else "there"
            found.append(Comparison(file, only=(f"the file is only {only}",)))
            continue
        try:
            tables = side_by_side(read_table(file, here[file]), read_table(file, there[file]))
            found.append(_compared(file, tables, sizes))
        except _UNREADABLE as error:
            found.append(Comparison(file, only=(f"it cannot be read ({' '.join(str(error).split())})",)))
    return found


def sizes_in(numbers: Mapping[str, bytes]) -> Sizes:
    """How large the metrics are that `paired` subtracts from one another; nothing where that cannot be read."""
    try:
        rows = read_table(_METRICS, numbers[_METRICS]).rows
        sizes: dict[tuple[object, ...], float] = {}
        for row in rows:
            key, size = _key(row, row["method"]), abs(row["value"] or 0.0)
            sizes[key] = max(size, sizes.get(key, 0.0))
        return sizes
    except _UNREADABLE:
        return {}


def size_of(row: Row, table: str, sizes: Sizes) -> float:
    """How large the numbers are whose difference a row of `paired` states; 0 for other tables."""
    if table != "paired":
        return 0.0
    return max(sizes.get(_key(row, row.get(name)), 0.0) for name in ("method", "baseline"))


def _key(row: Row, method: object) -> tuple[object, ...]:
    return (row.get("dataset"), method, row.get("metric"), row.get("space"))


def _compared(file: str, tables: SideBySide, sizes: Sizes) -> Comparison:
    table = Path(file).stem
    judged = [
        _Row(name, mine, other, _judged(mine, other, tables.numbers, table, size_of(mine, table, sizes)))
        for name, mine, other in tables.rows
    ]
    trained_apart = any(row.of_value not in AGREES for row in judged)
    moves = [row.cells["p"][0] for row in judged if "p" in row.cells and row.cells["p"][1] == "declared"]
    for row in judged:
        for column in FROM_SEEDS & row.cells.keys():
            size, judgement = row.cells[column]
            if judgement in AGREES:
                continue
            if row.of_value not in AGREES:
                judgement = row.of_value
            elif trained_apart and (column == "p_holm" or tolerance_of("value", row.mine, table).jump):
                # Adjusted over all rows; and a share may be the same by chance, though its seeds are others.
                judgement = _of_seeds(row.mine, row.other)
            elif column == "p_holm" and size <= max(moves, default=0.0):
                judgement = "declared"
            row.cells[column] = size, judgement
    cells = [
        Difference(f"{row.name}, {column}", _shown(row.mine[column]), _shown(row.other[column]), *cell)
        for row in judged
        for column, cell in row.cells.items()
    ]
    outcomes = [
        Difference(
            f"{row.name}, {column}", _shown(row.mine[column]), _shown(row.other[column]), math.inf, "beyond"
        )
        for row in judged
        for column in tables.outcomes
        if row.mine[column] != row.other[column]
    ]
    shown = [cell for cell in cells if cell.judgement != "declared" and math.isfinite(cell.size)]
    largest = max(shown, key=lambda cell: cell.size, default=None)
    verdicts = [row for row in judged if row.mine.get("statistic") == VERDICT]
    if all(run["outcome"] == "not tested" for row in verdicts for run in (row.mine, row.other)):
        verdicts = []
    return Comparison(
        file,
        counts=dict(Counter(cell.judgement for cell in cells)),
        largest=largest.size if largest else 0.0,
        at=largest.where if largest and largest.size else "",
        differences=(*outcomes, *(cell for cell in cells if cell.judgement not in AGREES)),
        only=tables.only,
        verdicts=(sum(row.mine["outcome"] == row.other["outcome"] for row in verdicts), len(verdicts)),
    )


@dataclass(frozen=True)
class _Row:
    """A row of both runs, and for each column of numbers the relative difference and the judgement."""

    name: str
    mine: Row
    other: Row
    cells: dict[str, tuple[float, Judgement]]

    @property
    def of_value(self) -> Judgement:
        return self.cells.get("value", (0.0, "rounding"))[1]


def _judged(
    mine: Row, other: Row, columns: Sequence[str], table: str, size: float
) -> dict[str, tuple[float, Judgement]]:
    held = [column for column in columns if not (mine[column] is None and other[column] is None)]
    return {column: judge(column, mine, other, table=table, size=size) for column in held}


def _shown(cell: Cell) -> str:
    return f"{cell:.7g}" if isinstance(cell, float) else cell or "nothing"


def judge(
    column: str, mine: Row, other: Row, *, table: str = "", size: float = 0.0
) -> tuple[float, Judgement]:
    """Hold one cell of a row against that of another run.

    Args:
        column: which one.
        mine: this run's row, cells by column: numbers or their texts.
        other: the other run's.
        table: the name of the table, as `paired`; it may have tolerances of its own.
        size: of the numbers whose difference the row states, see `size_of`.

    Returns:
        The relative difference (infinite for what is no number), and whether the cells agree within `RELATIVE`
        (`rounding`), by a tolerance of their own (`declared`), within the `scatter` of seeds, cannot be told apart by
        the intervals of two seeds (`unjudged`), or are `beyond` all that.
    """
    a, b = number(mine[column]), number(other[column])
    if a == b:
        return 0.0, "rounding"
    tolerance, of_value = (tolerance_of(name, mine, table) for name in (column, "value"))
    if column in FROM_SEEDS and None in (a, b):  # seeds that tie to the last digit have no interval
        half = max(half_width(mine), half_width(other))
        tied = 0 < half <= follows("low", mine, other, of_value, size)
        return math.inf, "declared" if tied else "beyond"
    if not (is_finite(a) and is_finite(b)):
        return math.inf, "beyond"
    apart, larger = abs(a - b), max(abs(a), abs(b))
    if apart <= min(tolerance.relative, RELATIVE) * larger:
        return apart / larger, "rounding"
    if column in FROM_SEEDS:
        limit = max(RELATIVE * larger, follows(column, mine, other, of_value, size))
        if column in P_VALUES and larger < NO_CHANCE:
            limit = larger
    else:
        limit = max(tolerance.rounding(a, b, size if column == "value" else 0.0), tolerance.jump)
    if apart <= limit:
        return apart / larger, "declared"
    if column != "value" or not within_intervals(mine, other):
        return apart / larger, "beyond"
    return apart / larger, _of_seeds(mine, other)


def _of_seeds(mine: Row, other: Row) -> Judgement:
    """What intervals say of two values that they both allow."""
    return "scatter" if seeds(mine, other) >= MIN_SEEDS else "unjudged"
