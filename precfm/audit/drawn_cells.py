"""Which numbers of published tables can be challenged, and a random draw of them."""

import csv
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from precfm.audit.number_tables import Row, Table, read_table, side_by_side
from precfm.audit.target import Cell, parsed_target
from precfm.core.errors import PrecfmError
from precfm.pipeline.node import PUBLISHED
from precfm.pipeline.plan import Plan, load_plan
from precfm.pipeline.publication import origin

COUNTS = frozenset({"n", "first", "last", "checkpoints"})  # the configuration says them


@dataclass(frozen=True)
class PublishedTable:
    """A published table that the present plan would make from the same artifacts: their keys are equal."""

    plan: Plan
    name: str

    @property
    def file(self) -> Path:
        """Where it lies."""
        return PUBLISHED / self.plan.experiment / "tables" / f"{self.name}.csv"

    @cached_property
    def content(self) -> Table:
        """What it holds.

        Raises:
            PrecfmError: it cannot be read.
        """
        try:
            return read_table(self.file.name, self.file.read_bytes())
        except (OSError, ValueError, csv.Error) as error:
            reason = " ".join(str(error).split())
            raise PrecfmError(
                f"{self.file}: damaged ({reason}); `git checkout -- {self.file}` brings it back"
            ) from None

    def cells(self) -> Iterator["DrawnCell"]:
        """All its numbers but counts of seeds and checkpoints, and what only says what a row is about."""
        for column in (each for each in self._numbers if each not in COUNTS):
            for position, row in enumerate(self.content.rows):
                if isinstance(row[column], float):
                    yield DrawnCell(self, position, column)

    @property
    def _numbers(self) -> tuple[str, ...]:
        """Columns of numbers; a text in one of them takes the others out of no draw."""
        rows = [
            {name: cell if isinstance(cell, float) else None for name, cell in row.items()}
            for row in self.content.rows
        ]
        alone = Table(self.content.columns, tuple(rows))
        return side_by_side(alone, alone).numbers


@dataclass(frozen=True)
class DrawnCell:
    """One number of a published table, by the position of its row, from 0, and its column."""

    table: PublishedTable
    position: int
    column: str

    @property
    def row(self) -> Row:
        """Its row, numbers as such."""
        return self.table.content.rows[self.position]

    @property
    def value(self) -> float:
        """The number."""
        return float(self.row[self.column])

    @property
    def cell(self) -> Cell:
        """The same as `precfm why` takes it."""
        _, cell = parsed_target(str(self))
        assert cell is not None
        return cell

    def __str__(self) -> str:
        return f"{self.table.file}:{self.position + 1},{self.column}"


def challengeable(experiment: str | None = None) -> tuple[list[PublishedTable], list[str]]:
    """What can be challenged with the present code and configuration.

    Args:
        experiment: only this one.

    Returns:
        The tables, and for each experiment that is left out the reason.

    Raises:
        PrecfmError: the experiment is not published, or there is nothing to challenge.
    """
    published = sorted(path.name for path in PUBLISHED.glob("*") if path.is_dir())
    if experiment is not None and experiment not in published:
        raise PrecfmError(f"experiment: got {experiment!r}; published are {', '.join(published) or 'none'}")
    tables: list[PublishedTable] = []
    left_out = []
    for name in published if experiment is None else [experiment]:
        try:
            made_by = origin(PUBLISHED / name)
            if made_by.current < made_by.keys:
                commit, home = made_by.revision.split()[0], PUBLISHED / name
                raise PrecfmError(
                    f"{name}: published by revision {made_by.revision}, of whose {made_by.keys} keys the present plan "
                    f"has {made_by.current}; with that code it can be challenged: `git checkout {commit}`, then "
                    f"`git checkout @{{-1}} -- {home}`"
                )
            plan = load_plan(name)
            found = [PublishedTable(plan, node.params["name"]) for node in plan.of("table_files")]
            tables += [table for table in found if table.file.exists() and any(table.cells())]
        except PrecfmError as error:
            left_out.append(str(error))
    if not tables:
        raise PrecfmError("; ".join(left_out) or f"{PUBLISHED}: holds no table with numbers")
    return tables, left_out


def draw(tables: Sequence[PublishedTable], count: int, seed: int) -> list[DrawnCell]:
    """Draw different cells: each time a table, all alike, then one of its cells, so that no long table takes all.

    Raises:
        PrecfmError: the tables do not hold so many.
    """
    remaining = [list(table.cells()) for table in tables]
    if not 1 <= count <= sum(map(len, remaining)):
        raise PrecfmError(f"N: got {count}; 1 to {sum(map(len, remaining))} numbers can be challenged")
    generator, drawn = random.Random(seed), []
    for _ in range(count):
        cells = generator.choice([cells for cells in remaining if cells])
        drawn.append(cells.pop(generator.randrange(len(cells))))
    return drawn
