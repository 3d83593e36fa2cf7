"""Tables and verdicts of two runs, side by side: which rows and columns are the same ones.

A row is known by all that is no result: data set, method, metric, step, protocol. Nothing here needs pandas, so that
the comparison at the end of `make reproduce` costs no time.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Cell: TypeAlias = float | str | None
Row: TypeAlias = Mapping[str, Any]

VERDICT = "verdict"  # the statistic under which a claim's verdict stands
FROM_SEEDS = frozenset(
    {"low", "high", "p", "p_holm", "resolvable"}
)  # computed from the values of single seeds
_OUTCOMES = frozenset({"outcome", "indicative", "at_most"})  # texts that are results
_NOT_COMPARED = frozenset({"note", "reason", "text"})
_NAMES = frozenset({"step", "seed", "n_real", "n_generated"})  # numbers that say what a row is about
# What tells no two rows of a table apart that a reader could not tell by the other names.
_UNSPOKEN = frozenset({"n_real", "n_generated", "reference", "extractor", "direction", "role", "frame"})


@dataclass(frozen=True)
class Table:
    """A table as it was read.

    Attributes:
        columns: their names.
        rows: cells by column: numbers, other texts, or None where a cell is empty.
    """

    columns: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class SideBySide:
    """What two tables share, and what they do not.

    Attributes:
        numbers: the columns of numbers that both have.
        outcomes: the columns of other results that both have.
        rows: those that both have: a readable name, the row of the one run and that of the other.
        only: rows and columns that one of them has alone, as sentences.
    """

    numbers: tuple[str, ...]
    outcomes: tuple[str, ...]
    rows: tuple[tuple[str, Row, Row], ...]
    only: tuple[str, ...]


def number(cell: Any) -> Cell:
    """A cell as a number if it is one, else as text; None if it is empty or says that there is no number."""
    if cell is None or isinstance(cell, bool):
        return None if cell is None else str(cell)
    try:
        found = float(cell)
    except (TypeError, ValueError):
        return str(cell) or None
    return None if found != found else found


def read_table(file: str, content: bytes) -> Table:
    """A table in CSV, or the statistics of all verdicts, each claim's verdict among them, as one.

    Raises:
        csv.Error, ValueError, KeyError, TypeError, AttributeError, RecursionError: it cannot be read.
    """
    text = content.decode("utf-8")
    if not file.endswith(".json"):
        header, *lines = csv.reader(io.StringIO(text), strict=True)
        rows = [dict(zip(header, map(number, line), strict=True)) for line in lines]
        return Table(tuple(header), tuple(rows))
    found: list[dict[str, Any]] = []
    for verdict in json.loads(text)["claims"]:
        found.append({"claim": verdict["claim"], "statistic": VERDICT, "outcome": verdict["verdict"]})
        found += [{"claim": verdict["claim"], **statistic} for statistic in verdict["statistics"]]
    columns = tuple(dict.fromkeys(name for row in found for name in row))
    return Table(columns, tuple({name: number(row.get(name)) for name in columns} for row in found))


def side_by_side(here: Table, there: Table) -> SideBySide:
    """Match the rows of two tables; a classifier is known without its key."""
    shared = [name for name in here.columns if name in there.columns and name not in _NOT_COMPARED]
    numbers = [name for name in shared if _holds_numbers(name, here) or _holds_numbers(name, there)]
    outcomes = [name for name in shared if name in _OUTCOMES]
    about = [name for name in shared if name not in {*numbers, *outcomes, *FROM_SEEDS}]
    mine, other = (_by_name(table.rows, about) for table in (here, there))
    spoken = _spoken(about, [*mine, *other])
    only = [f"the row {spoken[name]} is only here" for name in mine if name not in other]
    only += [f"the column {name} is only here" for name in here.columns if name not in there.columns]
    only += [f"the row {spoken[name]} is only there" for name in other if name not in mine]
    only += [f"the column {name} is only there" for name in there.columns if name not in here.columns]
    rows = tuple((spoken[name], mine[name], other[name]) for name in mine if name in other)
    return SideBySide(tuple(numbers), tuple(outcomes), rows, tuple(only))


def _holds_numbers(name: str, table: Table) -> bool:
    """Whether a column is one of results: all that stands in it are numbers, and they name no rows."""
    cells = [row[name] for row in table.rows if row[name] is not None]
    return name not in _NAMES | _OUTCOMES and bool(cells) and all(isinstance(cell, float) for cell in cells)


def _by_name(rows: Sequence[Row], about: Sequence[str]) -> dict[tuple[str, ...], Row]:
    """Rows by what they are about; the last part says which one it is of several with equal names."""
    named: dict[tuple[str, ...], Row] = {}
    seen: Counter[tuple[str, ...]] = Counter()
    for row in rows:
        name = tuple(_name_part(row[column]) for column in about)
        seen[name] += 1
        named[*name, f"#{seen[name]}" if seen[name] > 1 else ""] = row
    return named


def _name_part(cell: Cell) -> str:
    text = f"{cell:.12g}" if isinstance(cell, float) else cell or ""
    return re.sub(r"@[0-9a-f]{12}$", "", text)


def _spoken(about: Sequence[str], names: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """What rows are called: by what tells them apart, or by all names where that is not enough."""
    parts = list(zip(*names, strict=True))
    telling = [
        place
        for place, values in enumerate(parts)
        if place == len(about) or (about[place] not in _UNSPOKEN and len(set(values)) > 1)
    ]
    short = {name: " ".join(filter(None, (name[place] for place in telling))) for name in names}
    if len(set(short.values())) == len(short) and all(short.values()):
        return short
    return {name: " ".join(filter(None, name)) or "(without a name)" for name in names}
