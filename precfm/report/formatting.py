"""Numbers as text: significant digits, estimates with intervals, p-values, counts of seeds."""

import math
from collections.abc import Sequence

import pandas as pd

from precfm.core.statistics import Estimate

MISSING = "–"
PLAIN_DIGITS = "-0123456789"
SUPERSCRIPTS = "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"


def number_text(value: float, digits: int = 3) -> str:
    """A number with the given significant digits; powers of ten outside 1e-3 to 1e5.

    Example:
        >>> [number_text(value) for value in (123.456, 0.5, 75123.0, 1.2e7, -0.0004)]
        ['123', '0.500', '75,123', '1.20×10⁷', '−4.00×10⁻⁴']
    """
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "−∞" if value < 0 else "∞"
    if value == 0:
        return "0"
    sign = "−" if value < 0 else ""
    mantissa, exponent = f"{abs(value):.{digits - 1}e}".split("e")
    power = int(exponent)
    if not -3 <= power < 5:
        return f"{sign}{mantissa}×10{_superscript(power)}"
    decimals = max(0, digits - 1 - power)
    return f"{sign}{abs(value):,.{decimals}f}"


def _superscript(power: int) -> str:
    return str(power).translate(str.maketrans(PLAIN_DIGITS, SUPERSCRIPTS))


def count_text(value: float) -> str:
    """A whole number with separators, or a power of ten if it is long.

    Example:
        >>> count_text(12345), count_text(3.2e12)
        ('12,345', '3.20×10¹²')
    """
    if math.isnan(value):
        return MISSING
    return f"{int(value):,}" if abs(value) < 1e7 else number_text(value)


def estimate_texts(estimates: Sequence[Estimate], *, multiplicative: bool = False) -> list[str]:
    """Means with their intervals for one column: `1.57 ± 0.15`, or `2.77 [2.11, 3.64]` on the log scale.

    The whole column has the decimals, and for very small or large numbers the power of ten, that its narrower
    intervals ask for; where the largest mean is over a thousand times the median one, each cell has its own. A mean
    without an interval stands alone.

    Example:
        >>> estimate_texts([Estimate(1.5678, 1.4178, 1.7178, 5), Estimate(12.0, 11.8, 12.2, 5)])
        ['1.57 ± 0.15', '12.00 ± 0.20']
        >>> estimate_texts([Estimate(2.772, 2.11, 3.64, 5)], multiplicative=True)
        ['2.77 [2.11, 3.64]']
        >>> estimate_texts([Estimate(-1.1e-4, -1.8e-4, -0.4e-4, 5), Estimate(2e-5, -1e-5, 5e-5, 5)])
        ['(−1.10 ± 0.70)×10⁻⁴', '(0.20 ± 0.30)×10⁻⁴']
        >>> wide = [Estimate(0.012, 0.010, 0.014, 5), Estimate(0.013, 0.013, 0.013, 5), Estimate(5e4, 4e4, 6e4, 5)]
        >>> estimate_texts(wide)
        ['0.0120 ± 0.0020', '0.0130 ± 0', '50,000 ± 10,000']
    """
    if multiplicative:
        return [_bracketed(estimate) for estimate in estimates]
    halves = [(estimate.high - estimate.low) / 2 for estimate in estimates]
    widths = sorted(half for half in halves if half > 0)  # NaN is not
    if not widths:
        return [number_text(estimate.value) for estimate in estimates]
    sizes = sorted(abs(estimate.value) for estimate in estimates if not math.isnan(estimate.value))
    if sizes[-1] > 1e3 * sizes[len(sizes) // 2]:
        return [
            number_text(estimate.value) + ("" if math.isnan(half) else f" ± {number_text(half, 2)}")
            for estimate, half in zip(estimates, halves, strict=True)
        ]
    size = max(sizes[-1], widths[0])
    power = 0 if 1e-3 <= size < 1e5 else math.floor(math.log10(size))
    narrow = widths[(len(widths) - 1) // 4] / 10**power
    decimals = min(max(0, 1 - math.floor(math.log10(narrow))), 5)
    return [
        _plus_minus(estimate.value / 10**power, half / 10**power, decimals, power)
        for estimate, half in zip(estimates, halves, strict=True)
    ]


def _plus_minus(value: float, half: float, decimals: int, power: int) -> str:
    if math.isnan(value):
        return MISSING
    sign = "−" if value < 0 and round(value, decimals) != 0 else ""
    text = f"{sign}{abs(value):,.{decimals}f}"
    if not math.isnan(half):
        text += f" ± {half:,.{decimals}f}"
    if not power:
        return text
    return f"({text})×10{_superscript(power)}" if "±" in text else f"{text}×10{_superscript(power)}"


def _bracketed(estimate: Estimate) -> str:
    known = not (math.isnan(estimate.low) or math.isnan(estimate.high))
    return number_text(estimate.value) + (f" {interval_text(estimate.low, estimate.high)}" if known else "")


def estimates_of(rows: pd.DataFrame) -> list[Estimate]:
    """The estimates in the columns value, low, high and n of a tidy table."""
    columns = (rows[name].astype(float) for name in ("value", "low", "high", "n"))
    return [Estimate(value, low, high, int(n)) for value, low, high, n in zip(*columns, strict=True)]


def interval_text(low: float, high: float) -> str:
    """An interval in brackets; a dash if there is none."""
    return MISSING if math.isnan(low) or math.isnan(high) else f"[{number_text(low)}, {number_text(high)}]"


def p_text(p: float) -> str:
    """A p-value.

    Example:
        >>> p_text(0.0312), p_text(0.0000123), p_text(float("nan"))
        ('0.031', '< 0.001', '–')
    """
    if math.isnan(p):
        return MISSING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def seeds_text(counts: pd.Series) -> str:
    """How many seeds, in words: "5 training seeds", or a range if rows differ."""
    low, high = int(counts.min()), int(counts.max())
    if low == high:
        return f"{high} training seed" + ("" if high == 1 else "s")
    return f"{low} to {high} training seeds"
