"""A printed table: blocks of formatted cells with caption and notes, as Markdown and LaTeX."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from precfm.core.statistics import Estimate
from precfm.report.vocabulary import is_flow, method_label

MISSING = "–"


@dataclass(frozen=True)
class Block:
    """A part of a printed table whose columns are comparable from row to row.

    Attributes:
        title: what all its rows share (data set, feature space).
        cells: formatted text; the first column names the row.
        note: its protocol, printed below it.
    """

    title: str
    cells: pd.DataFrame
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table as numbers and as it is printed.

    Attributes:
        data: tidy numbers, one row per number; this becomes the CSV file.
        blocks: the printed parts.
        caption: one paragraph: what it shows, how many seeds, which intervals.
        notes: further remarks, printed as a list below the last block.
    """

    data: pd.DataFrame
    blocks: list[Block]
    caption: str
    notes: list[str] = field(default_factory=list)


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
    return str(power).translate(str.maketrans(_PLAIN, _SUPERSCRIPTS))


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


def method_cells(
    methods: Sequence[str],
    columns: Mapping[str, Mapping[str, str]],
    label: Callable[[str], str] = method_label,
) -> pd.DataFrame:
    """The cells of a block with one row per method; a dash where a column has no text for it.

    Args:
        methods: in the order of the rows.
        columns: by heading, the texts by method.
        label: how a method is written.

    Example:
        >>> method_cells(["none", "scalar"], {"steps": {"none": "10"}}).values.tolist()
        [['none', '10'], ['scalar', '–']]
    """
    rows = [
        {"method": label(method), **{head: texts.get(method, MISSING) for head, texts in columns.items()}}
        for method in methods
    ]
    return pd.DataFrame(rows, columns=["method", *columns])


def steps_and_seeds(rows: pd.DataFrame) -> dict[str, dict[str, str]]:
    """The columns `steps` and `seeds` of `method_cells`; what is no trained flow has no steps.

    Args:
        rows: of a tidy table, with columns method, step and n.
    """
    about = rows.groupby("method")[["step", "n"]].max()
    methods = [str(method) for method in about.index]
    steps = [
        count_text(step) if is_flow(m) else MISSING for m, step in zip(methods, about["step"], strict=True)
    ]
    seeds = [str(n) for n in about["n"]]
    return {"steps": dict(zip(methods, steps, strict=True)), "seeds": dict(zip(methods, seeds, strict=True))}


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


def markdown_cells(cells: pd.DataFrame, *, numbers: bool = True) -> str:
    """The cells as a Markdown table; with numbers, all columns but the first are set to the right."""
    columns = [_markdown(str(column)) for column in cells.columns]
    lines = [
        "| " + " | ".join(columns) + " |",
        "| --- |" + (" ---: |" if numbers else " --- |") * (len(columns) - 1),
        *("| " + " | ".join(map(_markdown, map(str, row))) + " |" for row in cells.itertuples(index=False)),
    ]
    return "\n".join(lines)


def _markdown(text: str) -> str:
    return text.replace("|", "\\|")


def markdown(table: Table, command: str) -> str:
    """The table as a Markdown document: caption and command, blocks with their protocol, notes."""
    parts = [f"{table.caption} Made by `{command}`."]
    for block in table.blocks:
        parts.append(f"**{block.title}**")
        parts.append(markdown_cells(block.cells))
        if block.note:
            parts.append(block.note)
    if table.notes:
        parts.append("\n".join(f"- {note}" for note in table.notes))
    return "\n\n".join(parts) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: "\\" + character for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": "$-$",
    "–": "--",
    "∞": r"$\infty$",
    "≤": r"$\leq$",
    "→": r"$\to$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "κ": r"$\kappa$",
    "λ": r"$\lambda$",
    "Σ": r"$\Sigma$",
    "é": r"\'e",
    "ₜ": "$_t$",
    "₁": "$_1$",
    "√": r"$\surd$",
    "½": r"$\frac{1}{2}$",
}
_SUPERSCRIPTS = "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"
_PLAIN = "-0123456789"


def latex_text(text: str) -> str:
    """Text with everything escaped that LaTeX would read otherwise; backticks become typewriter.

    Example:
        >>> latex_text("1.2×10⁻⁴ & `a_b`")
        '1.2$\\\\times$10$^{-4}$ \\\\& \\\\texttt{a\\\\_b}'
    """
    pieces = text.split("`")
    escaped = [_escaped(piece) for piece in pieces]
    return "".join(rf"\texttt{{{piece}}}" if i % 2 else piece for i, piece in enumerate(escaped))


def _escaped(text: str) -> str:
    plain = "".join(_LATEX.get(character, character) for character in text)
    return re.sub(
        f"[{_SUPERSCRIPTS}]+",
        lambda run: "$^{" + run.group().translate(str.maketrans(_SUPERSCRIPTS, _PLAIN)) + "}$",
        plain,
    )


def latex(table: Table, name: str, command: str) -> str:
    """The table as a LaTeX float (package booktabs): one tabular per block, label `tab:<name>`."""
    lines = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table}[p]",
        r"\centering\small",
        rf"\caption{{{latex_text(table.caption)} Made by {latex_text(f'`{command}`')}.}}",
        rf"\label{{tab:{name}}}",
    ]
    for block in table.blocks:
        columns = [latex_text(str(column)) for column in block.cells.columns]
        lines += [
            "",
            rf"\medskip\textbf{{{latex_text(block.title)}}}\par\smallskip",
            rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
            r"\toprule",
            " & ".join(columns) + r" \\",
            r"\midrule",
            *(
                " & ".join(latex_text(str(cell)) for cell in row) + r" \\"
                for row in block.cells.itertuples(index=False)
            ),
            r"\bottomrule",
            r"\end{tabular}\par",
        ]
        if block.note:
            lines.append(rf"{{\footnotesize {latex_text(block.note)}\par}}")
    if table.notes:
        lines += ["", r"\begin{itemize}\footnotesize"]
        lines += [rf"\item {latex_text(note)}" for note in table.notes]
        lines.append(r"\end{itemize}")
    return "\n".join([*lines, r"\end{table}", ""])
