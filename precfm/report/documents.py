"""Printed tables as Markdown and LaTeX documents."""

import re

import pandas as pd

from precfm.report.formatting import PLAIN_DIGITS, SUPERSCRIPTS
from precfm.report.tables.blocks import Table

_NUMBER = re.compile(r"[−<>≤≥≈ ]*[.\d∞]|[–-]$|$")


def markdown_cells(cells: pd.DataFrame, *, numbers: bool = True) -> str:
    """The cells as a Markdown table; with numbers, columns of them are set to the right."""
    columns = [_markdown(str(column)) for column in cells.columns]
    right = [numbers and all(map(_NUMBER.match, map(str, cells.iloc[:, i]))) for i in range(len(columns))]
    lines = [
        "| " + " | ".join(columns) + " |",
        "|" + "".join(" ---: |" if each else " --- |" for each in right),
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
        f"[{SUPERSCRIPTS}]+",
        lambda run: "$^{" + run.group().translate(str.maketrans(SUPERSCRIPTS, PLAIN_DIGITS)) + "}$",
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
