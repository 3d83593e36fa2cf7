"""From a printed row to the lines of the CSV file behind it, and from these to the artifacts that they are made of."""

import csv
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from precfm.core.registry import load
from precfm.report.frames import About, sources_of
from precfm.report.inputs import inputs_behind
from precfm.report.page.text import Grid
from precfm.report.reads import Row, declared
from precfm.report.vocabulary import method_label, metric_text, space_label

# How the columns that tell lines of a table apart are printed, in the first cells of a row or in its block's title.
_PRINTED: Mapping[str, Callable[[str], str]] = {
    "dataset": str,
    "claim": "Claim {}".format,
    "method": method_label,
    "metric": lambda metric: metric_text(metric).head,
    "space": space_label,
    "statistic": str,
}
_NAMING = ("metric", "space", "quantity", "statistic", "side", "step", "note")  # of a line, beside its row
_NO_NUMBER = ("step", "seed", "n", *_PRINTED)


@dataclass
class Lineage:
    """All numbers of an experiment's tables with what is behind them, for the script of the page.

    Attributes:
        about: by role of the parents of `frames`, what each of them stands for.
        parents: by role, their ids `kind/key`, in the same order.
        tables: by name, the column that holds the number, and for each line of the CSV file what it is, the number as
            text and the place of its artifacts in `groups`.
        artifacts: kind, what it stands for, and key.
        groups: places in `artifacts`, each group once.
    """

    about: Mapping[str, Sequence[About]]
    parents: Mapping[str, Sequence[str]]
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    artifacts: list[list[str]] = field(default_factory=list)
    groups: list[list[int]] = field(default_factory=list)
    _places: dict[Any, int] = field(default_factory=dict)

    def add(self, name: str, text: str) -> Sequence[Row]:
        """Take in a table.

        Args:
            name: a name of the registry's group `tables`.
            text: its CSV file.

        Returns:
            Its lines.
        """
        rows = list(csv.DictReader(io.StringIO(text)))
        if rows:
            column = next((each for each in rows[0] if each not in _NO_NUMBER and _is_number(rows, each)), "")
            lines = [[_named(row), _number(row, column), self._group(name, row)] for row in rows]
            self.tables[name] = {"column": column, "lines": lines}
        return rows

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {name: getattr(self, name) for name in ("tables", "artifacts", "groups")}

    def _group(self, name: str, row: Row) -> int:
        function = load("tables", name)
        names = [row["frame"]] if row.get("frame") else declared(function)
        sources = [sources_of(each) for each in names]
        keys = dict.fromkeys(key for source in sources for key in source.keys)
        rows = [{key: each.get(key) for key in keys} for each in vars(function)["behind"](row, "")]
        known = (tuple(names), tuple(tuple(each.items()) for each in rows))
        if known not in self._places:
            found = inputs_behind(sources, rows, self.about, self.parents)
            pairs = dict.fromkeys(
                (node, _stands_for(each)) for several in found.values() for node, each in several
            )
            self._places[known] = self._place(self.groups, [self._artifact(*pair) for pair in pairs])
        return self._places[known]

    def _artifact(self, node_id: str, what: str) -> int:
        kind, _, key = node_id.partition("/")
        return self._place(self.artifacts, [kind, what, key])

    def _place(self, known: list[Any], item: list[Any]) -> int:
        found = self._places.setdefault((id(known), tuple(item)), len(known))
        if found == len(known):
            known.append(item)
        return found


def lines_behind(grid: Grid, rows: Sequence[Row]) -> list[list[int]]:
    """For each printed row of a block, the places of the lines that it shows.

    A line belongs to a row unless its data set, method, metric, ... is another one than that which the row or, where
    the row is silent, the block's title names.
    """
    printed = [{name: say(row[name]) for name, say in _PRINTED.items() if name in row} for row in rows]
    values = {name: {each[name] for each in printed} for name in (printed[0] if printed else ())}
    titled = {name: _within(grid.title, texts) for name, texts in values.items()}
    found = []
    for cells in grid.texts:
        said = {name: values[name].intersection(cells) or titled[name] for name in values}
        found.append(
            [
                place
                for place, line in enumerate(printed)
                if all(line[name] in named for name, named in said.items() if named)
            ]
        )
    return found


def _within(title: str, texts: set[str]) -> set[str]:
    """The longest of the texts that stand in a title as whole words."""
    there = {text for text in texts if re.search(rf"(?<![\w-]){re.escape(text)}(?![\w-])", title)}
    return {text for text in there if not any(text in other for other in there - {text})}


def _named(row: Row) -> str:
    spoken = {
        "metric": lambda metric: metric_text(metric).label,
        "space": space_label,
        "step": "step {}".format,
    }
    said = {name: row[name] for name in _NAMING if row.get(name) not in (None, "", "0")}
    if "metric" in said:
        said.pop("side", None)
    return ", ".join(spoken.get(name, str)(value) for name, value in said.items())


def _number(row: Row, column: str) -> str:
    """The number with its interval and count, as the file has them."""
    numbers = {name: _float(row.get(name)) for name in (column, "low", "high")}
    text = _digits(numbers[column])
    if not math.isnan(numbers["low"] + numbers["high"]):
        text += f" [{_digits(numbers['low'])}, {_digits(numbers['high'])}]"
    return text + (f", n = {row['n']}" if row.get("n") else "")


def _digits(value: float) -> str:
    return f"{value:.6g}".replace("-", "−")


def _float(text: Any) -> float:
    with suppress(TypeError, ValueError):
        return float(text)
    return math.nan


def _is_number(rows: Sequence[Row], column: str) -> bool:
    return any(not math.isnan(_float(row[column])) for row in rows)


def _stands_for(about: About) -> str:
    named = [str(about[name]) for name in ("dataset", "name") if name in about]
    named += [method_label(about["method"])] if "method" in about else []
    return ", ".join(named + ([f"seed {about['seed']}"] if "seed" in about else []))
