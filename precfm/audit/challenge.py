"""Randomly drawn published numbers, made again from their sources and compared: `precfm challenge`.

Whoever doubts a published table need not believe its manifest: cells are drawn (`precfm.audit.drawn_cells`), what they
are made from is made in an empty folder (`precfm.audit.rebuild`), and the new numbers are held against the published
ones as far as rounding may move them (`precfm.audit.comparison`).
"""

import csv
import io
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from precfm.audit.agreement import AGREEMENT, BEYOND, SCATTER
from precfm.audit.comparison import AGREES, Judgement, compare
from precfm.audit.drawn_cells import DrawnCell
from precfm.audit.number_tables import Row, Table, number, read_table, side_by_side
from precfm.audit.rebuild import bring_inputs, part_of, rebuild, scratch_folder
from precfm.audit.tolerances import RELATIVE
from precfm.pipeline.artifact import Artifact
from precfm.pipeline.costs import read_costs
from precfm.pipeline.node import PUBLISHED, Node
from precfm.pipeline.plan import KINDS, Plan

METRICS = "tables/metrics.csv"  # says how large the numbers are that `paired` subtracts
SAID: dict[Judgement, str] = {
    "rounding": f"agrees within {RELATIVE:.0e}",
    "declared": "agrees within the tolerance of its statistic",
    "scatter": "differs within the scatter of seeds",
    "unjudged": "differs, and two seeds cannot tell",
    "beyond": "DIFFERS",
}


@dataclass(frozen=True)
class Outcome:
    """A number that was made again.

    Attributes:
        drawn: the published one.
        rebuilt: the new one; None where the new table has no such row, or nothing there.
        judgement: see `precfm.audit.comparison.judge`.
    """

    drawn: DrawnCell
    rebuilt: float | None
    judgement: Judgement

    @property
    def size(self) -> float:
        """The relative difference."""
        published, rebuilt = self.drawn.value, self.rebuilt
        if published == rebuilt:
            return 0.0
        if rebuilt is None or not (math.isfinite(published) and math.isfinite(rebuilt)):
            return math.inf
        return abs(published - rebuilt) / max(abs(published), abs(rebuilt))


@dataclass(frozen=True)
class Challenge:
    """Drawn cells, and the parts of plans that make them again.

    Attributes:
        cells: what was drawn, experiment by experiment.
        parts: of each experiment's plan.
        tables: for each cell, the artifact that will hold it.
    """

    cells: tuple[DrawnCell, ...]
    parts: tuple[Plan, ...]
    tables: tuple[Node, ...]

    @classmethod
    def of(cls, drawn: Sequence[DrawnCell]) -> "Challenge":
        """Find out what cells are made from.

        Raises:
            PrecfmError: no artifact of the plan is behind a row.
        """
        cells: list[DrawnCell] = []
        parts, tables = [], []
        for plan in {each.table.plan.experiment: each.table.plan for each in drawn}.values():
            of_plan = [each for each in drawn if each.table.plan is plan]
            part, holding = part_of(plan, [(each.table.name, each.cell) for each in of_plan])
            cells += of_plan
            parts.append(part)
            tables += holding
        return cls(tuple(cells), tuple(parts), tuple(tables))

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
            pairs = zip(self.cells, self.tables, strict=True)
            return [outcome(cell, Artifact.open(folder / node.folder)) for cell, node in pairs]


def outcome(drawn: DrawnCell, artifact: Artifact) -> Outcome:
    """Hold a cell against the same one of the table that was made again."""
    nothing, name = Outcome(drawn, None, "beyond"), drawn.table.file.name
    if name not in artifact.record["files"]:  # the table was left out
        return nothing
    file, columns = f"tables/{name}", drawn.table.content.columns
    made = read_table(file, artifact.path(name).read_bytes())
    rows = side_by_side(Table(columns, (drawn.row,)), made).rows
    found = number(rows[0][2].get(drawn.column)) if rows else None
    if not isinstance(found, float):
        return nothing
    metrics = drawn.table.file.with_name("metrics.csv")
    sizes = {METRICS: metrics.read_bytes()} if metrics.is_file() else {}
    here, there = ({**sizes, file: _as_csv(columns, row)} for row in rows[0][1:])
    (compared,) = (each for each in compare(here, there) if each.file == file)
    judged = [each for each in compared.differences if each.where.endswith(f", {drawn.column}")]
    if judged:
        return Outcome(drawn, found, judged[0].judgement)
    agrees = Outcome(drawn, found, "rounding")
    return agrees if agrees.size <= RELATIVE else Outcome(drawn, found, "declared")


def _as_csv(columns: Sequence[str], row: Row) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([columns, [row.get(column) for column in columns]])
    return text.getvalue().encode()


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
        yield f"{each.drawn.value!r:>24}{rebuilt:>24}{size:>10}  {SAID[each.judgement]}: {each.drawn}"
    agree = sum(each.judgement in AGREES for each in outcomes)
    yield f"{agree} of {len(outcomes)} numbers agree"
