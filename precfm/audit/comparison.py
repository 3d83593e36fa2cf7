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
from typing import Literal, TypeAlias, TypeGuard

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
from precfm.audit.tolerances import RELATIVE, Tolerance, tolerance_of

MIN_SEEDS = 3
HALF_WIDTHS = 2.0
_T_QUANTILES = (
    12.71,
    4.31,
    3.19,
    2.78,
    2.58,
)  # 97.5% of t, for 2, 3, ... seeds; for more than six it is less
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
        verdicts: how many claims' verdicts are equal, and how many both runs have.
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
        return {_key(row, row["method"]): abs(row["value"]) for row in rows if row["value"] is not None}
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
    jumped = any(_has_jumped(row.mine, row.other, table) for row in judged)
    for row in judged:
        for column in FROM_SEEDS & row.cells.keys():
            size, judgement = row.cells[column]
            if judgement not in AGREES and row.of_value not in AGREES:
                row.cells[column] = size, row.of_value
            elif judgement not in AGREES and trained_apart:
                row.cells[column] = (
                    size,
                    "scatter" if _seeds(row.mine, row.other) >= MIN_SEEDS else "unjudged",
                )
            elif judgement not in AGREES and jumped and column == "p_holm":  # adjusted over all rows
                row.cells[column] = size, "declared"
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
    return Comparison(
        file,
        counts=Counter(cell.judgement for cell in cells),
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
    tolerance = tolerance_of(column, mine, table)
    if not (_is_finite(a) and _is_finite(b)):
        excused = column in FROM_SEEDS and None in (a, b) and _has_jumped(mine, other, table)
        return math.inf, "declared" if excused else "beyond"
    apart, larger = abs(a - b), max(abs(a), abs(b))
    if apart <= min(tolerance.relative, RELATIVE) * larger:
        return apart / larger, "rounding"
    rounding = _rounding(a, b, tolerance, size)
    if column in FROM_SEEDS:
        rounding = max(
            RELATIVE * larger, _follows(column, mine, other, tolerance_of("value", mine, table), size)
        )
    if apart <= max(rounding, tolerance.jump if column == "value" else 0.0):
        return apart / larger, "declared"
    if column != "value" or not _within_intervals(mine, other):
        return apart / larger, "beyond"
    return apart / larger, "scatter" if _seeds(mine, other) >= MIN_SEEDS else "unjudged"


def _rounding(a: float, b: float, tolerance: Tolerance, size: float = 0.0) -> float:
    """How far rounding may move a value."""
    return max(tolerance.relative * max(abs(a), abs(b)), RELATIVE * size, tolerance.absolute)


def _has_jumped(mine: Row, other: Row, table: str) -> bool:
    """Whether the values of two rows differ by a jump that their statistic may make."""
    a, b = number(mine.get("value")), number(other.get("value"))
    tolerance = tolerance_of("value", mine, table)
    return _is_finite(a) and _is_finite(b) and _rounding(a, b, tolerance) < abs(a - b) <= tolerance.jump


def _follows(column: str, mine: Row, other: Row, tolerance: Tolerance, size: float) -> float:
    """How far what is computed from the values of single seeds may move, if each of these is moved by rounding.

    A mean of n values, each moved by at most d, moves by at most d, and half of its t interval by at most
    t / sqrt(n - 1) d. A p-value, 2 P(T > t), moves relatively by at most n - 1 times the relative move of t.

    Args:
        column: one of `FROM_SEEDS`.
        mine: a row with a value.
        other: the other run's.
        tolerance: of the value.
        size: as of `judge`.

    Returns:
        The largest move; 0 where the row has no two seeds, or its values differ by more than rounding.
    """
    a, b = number(mine.get("value")), number(other.get("value"))
    n = _seeds(mine, other)
    if not (_is_finite(a) and _is_finite(b)) or n < 2:
        return 0.0
    if tolerance.multiplicative and min(a, b) > 0:
        moved, apart, scale = tolerance.relative, abs(math.log(a / b)), _largest(column, mine, other)
    else:
        moved, apart, scale = _rounding(a, b, tolerance, size), abs(a - b), 1.0
    if apart > moved:
        if apart > tolerance.jump:
            return 0.0
        moved = n * apart  # one seed may have made all of the jump
    of_half = _T_QUANTILES[min(n - 2, len(_T_QUANTILES) - 1)] / math.sqrt(n - 1) * moved
    if column in ("low", "high"):
        return (moved + of_half) * scale
    if column == "resolvable":  # about 1.3 times half the interval
        return 1.5 * of_half
    half = min(_half(mine), _half(other))
    from_null = min(abs(value - _null(mine)) for value in (a, b))
    if half == 0.0 or from_null == 0.0:
        return 1.0
    return _largest(column, mine, other) * (n - 1) * (moved / from_null + of_half / half)


def _half(row: Row) -> float:
    """Half the width of a row's interval; 0 if it has none."""
    low, high = number(row.get("low")), number(row.get("high"))
    return (high - low) / 2 if _is_finite(low) and _is_finite(high) else 0.0


def _null(row: Row) -> float:
    """What the p-value of a row is against: no effect, or the margin of a claim that nothing gets worse."""
    margin = number(row.get("smallest_effect"))
    sign = {"no_increase": 1.0, "no_decrease": -1.0}.get(str(row.get("direction")), 0.0)
    return sign * margin if isinstance(margin, float) else 0.0


def _largest(column: str, mine: Row, other: Row) -> float:
    cells = [number(row[column]) for row in (mine, other)]
    return max((abs(cell) for cell in cells if isinstance(cell, float)), default=0.0)


def _seeds(mine: Row, other: Row) -> int:
    cells = [number(row.get("n")) for row in (mine, other)]
    return int(min(cell if isinstance(cell, float) else 0.0 for cell in cells))


def _is_finite(cell: Cell) -> TypeGuard[float]:
    return isinstance(cell, float) and math.isfinite(cell)


def _within_intervals(mine: Row, other: Row) -> bool:
    """Whether two values differ by no more than their intervals allow; a row without a whole interval allows nothing.

    The shorter distance counts, so that no row can make itself agree with everything by stating a wide interval.
    """
    found: list[tuple[float, float, float]] = []
    for row in (mine, other):
        value, low, high = (number(row.get(name)) for name in ("value", "low", "high"))
        if not (_is_finite(value) and _is_finite(low) and _is_finite(high) and low <= value <= high):
            return False
        found.append((value, low, high))
    (lower, _, top), (upper, bottom, _) = sorted(found)
    return upper - lower <= HALF_WIDTHS * min(top - lower, upper - bottom)
