"""What printed tables consist of: blocks of formatted cells, most of them with one row per method."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import pandas as pd

from precfm.report.formatting import MISSING, count_text, estimate_texts, estimates_of, number_text
from precfm.report.vocabulary import in_order, is_flow, method_label

Columns: TypeAlias = dict[str, dict[str, str]]
"""Formatted cells by heading, and in each column by method."""


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


@dataclass(frozen=True)
class Quantity:
    """A column that shows one number of every method.

    Attributes:
        head: its heading.
        kind: a mean with its interval; a ratio, averaged on the log scale; a size, of which the order of magnitude
            matters and not the spread; or a count.
    """

    head: str
    kind: Literal["mean", "ratio", "size", "count"] = "mean"

    @property
    def multiplicative(self) -> bool:
        """Whether it is averaged on the log scale."""
        return self.kind == "ratio"

    def column(self, rows: pd.DataFrame) -> dict[str, str]:
        """Formatted cells by method, from rows of a tidy table: one per method."""
        if self.kind == "count":
            return by_method(rows, map(count_text, rows["value"]))
        if self.kind == "size":
            return by_method(rows, (number_text(value, digits=2) for value in rows["value"]))
        return estimate_column(rows, multiplicative=self.multiplicative)


def quantity_columns(rows: pd.DataFrame, quantities: Mapping[str, Quantity]) -> Columns:
    """A column for each of the quantities that the rows have, in the order of the mapping.

    Args:
        rows: of a tidy table, with columns method, quantity, value, low, high, n.
        quantities: by the name in the column quantity.
    """
    present = set(rows["quantity"])
    return {
        quantity.head: quantity.column(rows[rows["quantity"] == name])
        for name, quantity in quantities.items()
        if name in present
    }


def by_method(rows: pd.DataFrame, texts: Iterable[str]) -> dict[str, str]:
    """Texts, one for each row, by the rows' methods."""
    return dict(zip(rows["method"], texts, strict=True))


def estimate_column(rows: pd.DataFrame, *, multiplicative: bool = False) -> dict[str, str]:
    """Means with intervals by method, from rows of a tidy table: one per method."""
    return by_method(rows, estimate_texts(estimates_of(rows), multiplicative=multiplicative))


def method_cells(columns: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    """The cells of a block with one row per method; a dash where a column has no text for it.

    Args:
        columns: by heading, the texts by method.

    Example:
        >>> method_cells({"steps": {"none": "10"}, "seeds": {"scalar": "5", "none": "3"}}).values.tolist()
        [['none', '10', '3'], ['scalar', '–', '5']]
    """
    rows = [
        [method_label(method), *(texts.get(method, MISSING) for texts in columns.values())]
        for method in in_order(method for texts in columns.values() for method in texts)
    ]
    return pd.DataFrame(rows, columns=["method", *columns])


def steps_and_seeds(rows: pd.DataFrame) -> Columns:
    """The columns `steps` and `seeds`; what is no trained flow has no steps.

    Args:
        rows: of a tidy table, with columns method, step and n.
    """
    about = rows.groupby("method", as_index=False)[["step", "n"]].max()
    steps = [
        count_text(step) if is_flow(method) else MISSING
        for method, step in zip(about["method"], about["step"], strict=True)
    ]
    return {"steps": by_method(about, steps), "seeds": by_method(about, map(str, about["n"]))}
