"""Randomly drawn published numbers, made again from their sources and compared: `precfm challenge`.

Whoever doubts a published table need not believe its manifest: cells are drawn (`precfm.audit.drawn_cells`), what they
are made from is made in an empty folder (`precfm.audit.rebuild`), and the new numbers are held against the published
ones as far as rounding may move them (`precfm.audit.comparison`). How far that is, what was made again says alone: a
published interval, count or size that was forged must not excuse another forged number. For the same reason a drawn
number agrees only if all results of its row do that were made again with it.
"""

import csv
import io
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from precfm.audit.agreement import AGREEMENT, BEYOND, SCATTER
from precfm.audit.comparison import AGREES, Judgement, compare
from precfm.audit.drawn_cells import DrawnCell
from precfm.audit.number_tables import Cell, Row, number, read_table, side_by_side
from precfm.audit.rebuild import MadeAgain, bring_inputs, part_of, rebuild, scratch_folder
from precfm.audit.tolerances import RELATIVE
from precfm.pipeline.artifact import Artifact
from precfm.pipeline.costs import read_costs
from precfm.pipeline.node import PUBLISHED
from precfm.pipeline.plan import KINDS, Plan

METRICS = "tables/metrics.csv"  # says how large the numbers are that `paired` subtracts
SAID: dict[Judgement, str] = {
    "rounding": f"agrees within {RELATIVE:.0e}",
    "declared": "agrees within the tolerance of its statistic",
    "scatter": "differs within the scatter of seeds",
    "unjudged": "differs, and two seeds cannot tell",
    "beyond": "DIFFERS",
}
_ORDER: tuple[Judgement, ...] = get_args(Judgement)  # from the best to the worst


@dataclass(frozen=True)
class Outcome:
    """A number that was made again, and the row that it stands in.

    Attributes:
        drawn: the published one.
        rebuilt: the new one; None where the new table has no such row, or nothing there.
        judgement: the worst of its row, see `precfm.audit.comparison.judge`.
        where: if it is another number of the row that is judged so, that number.
    """

    drawn: DrawnCell
    rebuilt: float | None
    judgement: Judgement
    where: str = ""

    @property
    def size(self) -> float:
        """The relative difference."""
        return _relative(self.drawn.value, self.rebuilt)


def _relative(published: Cell, rebuilt: Cell) -> float:
    if published == rebuilt:
        return 0.0
    if not (isinstance(published, float) and isinstance(rebuilt, float)):
        return math.inf
    if not (math.isfinite(published) and math.isfinite(rebuilt)):
        return math.inf
    return abs(published - rebuilt) / max(abs(published), abs(rebuilt))


@dataclass(frozen=True)
class Challenge:
    """Drawn cells, and the parts of plans that make them again.

    Attributes:
        cells: what was drawn, experiment by experiment.
        parts: of each experiment's plan.
        targets: for each cell, what will hold it.
    """

    cells: tuple[DrawnCell, ...]
    parts: tuple[Plan, ...]
    targets: tuple[MadeAgain, ...]

    @classmethod
    def of(cls, drawn: Sequence[DrawnCell]) -> "Challenge":
        """Find out what cells are made from.

        Raises:
            PrecfmError: no artifact of the plan is behind a row.
        """
        cells: list[DrawnCell] = []
        parts, targets = [], []
        for plan in {each.table.plan.experiment: each.table.plan for each in drawn}.values():
            of_plan = [each for each in drawn if each.table.plan is plan]
            part, holding = part_of(plan, [(each.table.name, each.cell) for each in of_plan])
            cells += of_plan
            parts.append(part)
            targets += holding
        return cls(tuple(cells), tuple(parts), tuple(targets))

    def __len__(self) -> int:
        return sum(len(part.nodes) for part in self.parts)

    def cost(self) -> Iterator[str]:
        """What it will take, in lines, by what the published runs took."""
        artifacts, untimed = Counter[str](), Counter[str]()
        seconds: dict[str, float] = defaultdict(float)
        memory = 0.0
        for part in self.parts:
            costs = read_costs(PUBLISHED / part.experiment)
            for kind in (node.kind for node in part.nodes.values()):
                artifacts[kind] += 1
                if kind in costs:
                    seconds[kind] += costs[kind].seconds / costs[kind].artifacts
                    memory = max(memory, costs[kind].megabytes or 0.0)
                else:
                    untimed[kind] += 1
        for kind in filter(artifacts.__contains__, KINDS):
            said = "-" if untimed[kind] else f"{seconds[kind]:.0f} s"
            yield f"{kind:18}{artifacts[kind]:5}{said:>10}"
        if len(untimed) == len(artifacts):
            yield f"{len(self)} artifacts; the published run left no times"
            return
        total = sum(seconds.values())
        duration = f"{total:.0f} seconds" if total < 100 else f"{total / 60:.0f} minutes"
        yield (
            f"{len(self)} artifacts: about {duration} and up to {memory:.0f} MB, as in the published run"
            + (f"; of {untimed.total()} it left no times" if untimed else "")
        )

    def outcomes(self, scratch: Path | None, say: Callable[[str], None]) -> list[Outcome]:
        """Make the cells again and compare them.

        Args:
            scratch: see `precfm.audit.rebuild.scratch_folder`.
            say: gets a line for each artifact.

        Raises:
            PrecfmError: a source cannot be had, or an artifact not be made.
        """
        with scratch_folder(scratch) as folder:
            bring_inputs(self.parts, folder)
            for count, (node, made) in enumerate(rebuild(self.parts, folder), start=1):
                say(f"[{count}/{len(self)}] {'made' if made else 'kept'} {node.id}")
            pairs = zip(self.cells, self.targets, strict=True)
            return [outcome(cell, _tables(target, folder), target.columns) for cell, target in pairs]


def _tables(target: MadeAgain, folder: Path) -> dict[str, bytes]:
    """What was made, as `precfm.audit.comparison.compare` takes it; a table that was left out has no file."""
    artifacts = [Artifact.open(folder / node.folder) for node in target.tables]
    return {
        f"tables/{name}": artifact.path(name).read_bytes()
        for artifact in artifacts
        for name in artifact.record["files"]
        if name.endswith(".csv")
    }


def outcome(drawn: DrawnCell, made: Mapping[str, bytes], columns: Collection[str]) -> Outcome:
    """Hold a cell, and what stands beside it, against the same row of the table that was made again.

    Args:
        drawn: the cell.
        made: the contents of tables that were made again, by path.
        columns: those of its row that are compared.
    """
    nothing, file = Outcome(drawn, None, "beyond"), f"tables/{drawn.table.file.name}"
    if file not in made:
        return nothing
    remade, published = read_table(file, made[file]), drawn.table.content
    tables = side_by_side(published, remade)
    # The whole published table, since rows with equal names are told apart by their order.
    row = next((other for _, mine, other in tables.rows if mine is drawn.row), None)
    found = number(row.get(drawn.column)) if row is not None else None
    if row is None or not isinstance(found, float):
        return nothing
    lacking = [
        name for name in remade.columns if name not in published.columns and isinstance(row[name], float)
    ]
    results = dict.fromkeys((drawn.column, *tables.numbers, *tables.outcomes, *lacking))
    sizes = {METRICS: made[METRICS]} if METRICS in made and file != METRICS else {}
    judged = {name: _judged(name, drawn.row, row, file, sizes) for name in results if name in columns}
    worst = max(judged, key=lambda name: _ORDER.index(judged[name]))  # of equals the first, the drawn one
    if worst == drawn.column:
        return Outcome(drawn, found, judged[worst])
    where = f"{worst} beside it, {_shown(drawn.row.get(worst))}, made again {_shown(row[worst])}"
    return Outcome(drawn, found, judged[worst], where)


def _judged(column: str, published: Row, made: Row, file: str, sizes: Mapping[str, bytes]) -> Judgement:
    """One column of a row; interval and number of seeds, by which it is judged, are those that were made again."""
    names = [name for name in ("value", "p", column) if name in made]
    held = {**made, **{name: published.get(name) for name in names}}
    if column == "value" and isinstance(held[column], float) and isinstance(made[column], float):
        moved = held[column] - made[column]  # an interval of the same width, around the published value
        bounds = {name: made.get(name) for name in ("low", "high")}
        held |= {name: bound + moved for name, bound in bounds.items() if isinstance(bound, float)}
    here, there = ({**sizes, file: _as_csv(row)} for row in (held, made))
    (compared,) = (each for each in compare(here, there) if each.file == file)
    if compared.only:  # a text where a number should be
        return "beyond"
    for each in compared.differences:
        if each.where.endswith(f", {column}"):
            return each.judgement
    return "rounding" if _relative(held[column], made[column]) <= RELATIVE else "declared"


def _as_csv(row: Row) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([row.keys(), row.values()])
    return text.getvalue().encode()


def _shown(cell: Cell) -> str:
    return "nothing" if cell is None else f"{cell}"


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """`AGREEMENT` to rounding; `SCATTER`: all differences are within that of seeds; `BEYOND`."""
    found = {each.judgement for each in outcomes}
    if "beyond" in found:
        return BEYOND
    return AGREEMENT if found <= set(AGREES) else SCATTER


def lines(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """The numbers side by side."""
    yield f"{'published':>24}{'made again':>24}{'relative':>10}"
    for each in outcomes:
        rebuilt = "nothing" if each.rebuilt is None else repr(each.rebuilt)
        size = f"{each.size:.1e}" if each.size else "0"
        where = f" ({each.where})" if each.where else ""
        yield f"{each.drawn.value!r:>24}{rebuilt:>24}{size:>10}  {SAID[each.judgement]}: {each.drawn}{where}"
    agree = sum(each.judgement in AGREES for each in outcomes)
    yield f"{agree} of {len(outcomes)} numbers agree"
