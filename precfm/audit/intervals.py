"""What the interval of a row allows: to follow the rounding of its seeds, and to hold the value of another run."""

import math
from typing import TypeGuard

from precfm.audit.number_tables import Cell, Row, number
from precfm.audit.tolerances import Tolerance

HALF_WIDTHS = 2.0
# 97.5% quantiles of t for 2, 3, ... seeds; for more than six they are smaller.
_T_QUANTILES = (12.71, 4.31, 3.19, 2.78, 2.58)


def follows(column: str, mine: Row, other: Row, tolerance: Tolerance, size: float) -> float:
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
    n = seeds(mine, other)
    if not (is_finite(a) and is_finite(b)) or n < 2:
        return 0.0
    if tolerance.multiplicative and min(a, b) > 0:
        moved, apart, scale = tolerance.relative, abs(math.log(a / b)), _largest(column, mine, other)
    else:
        moved, apart, scale = tolerance.rounding(a, b, size), abs(a - b), 1.0
    if apart > moved:
        if apart > tolerance.jump:
            return 0.0
        moved = n * apart  # one seed may have made all of the jump
    of_half = _T_QUANTILES[min(n - 2, len(_T_QUANTILES) - 1)] / math.sqrt(n - 1) * moved
    if column in ("low", "high"):
        return (moved + of_half) * scale
    if column == "resolvable":  # about 1.3 times half the interval
        return 1.5 * of_half
    half = min(half_width(mine), half_width(other))
    from_null = min(abs(value - _null(mine)) for value in (a, b))
    if half == 0.0:  # seeds that tie: one that does not any more moves the value, and the p-value at will
        return 1.0 if apart else 0.0
    if from_null == 0.0:  # p is 1, and moves by no more than T does
        return of_half * math.sqrt(n - 1) / half
    return _largest(column, mine, other) * (n - 1) * (moved / from_null + of_half / half)


def half_width(row: Row) -> float:
    """Half the width of a row's interval; 0 if it has none."""
    low, high = number(row.get("low")), number(row.get("high"))
    return (high - low) / 2 if is_finite(low) and is_finite(high) else 0.0


def _null(row: Row) -> float:
    """What the p-value of a row is against: no effect, or the margin of a claim that nothing gets worse."""
    margin = number(row.get("smallest_effect"))
    sign = {"no_increase": 1.0, "no_decrease": -1.0}.get(str(row.get("direction")), 0.0)
    return sign * margin if isinstance(margin, float) else 0.0


def _largest(column: str, mine: Row, other: Row) -> float:
    cells = [number(row[column]) for row in (mine, other)]
    return max((abs(cell) for cell in cells if isinstance(cell, float)), default=0.0)


def seeds(mine: Row, other: Row) -> int:
    """How many seeds, or other observations, both rows rest on at least."""
    cells = [number(row.get("n")) for row in (mine, other)]
    return int(min(cell if isinstance(cell, float) else 0.0 for cell in cells))


def is_finite(cell: Cell) -> TypeGuard[float]:
    """Whether a cell holds a finite number."""
    return isinstance(cell, float) and math.isfinite(cell)


def within_intervals(mine: Row, other: Row) -> bool:
    """Whether two values differ by no more than their intervals allow; a row without a whole interval allows nothing.

    The shorter distance counts, so that no row can make itself agree with everything by stating a wide interval.
    """
    found: list[tuple[float, float, float]] = []
    for row in (mine, other):
        value, low, high = (number(row.get(name)) for name in ("value", "low", "high"))
        if not (is_finite(value) and is_finite(low) and is_finite(high) and low <= value <= high):
            return False
        found.append((value, low, high))
    (lower, _, top), (upper, bottom, _) = sorted(found)
    return upper - lower <= HALF_WIDTHS * min(top - lower, upper - bottom)
