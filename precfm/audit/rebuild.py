"""Making cells of tables again, from sources and pinned models alone: a part of the plan, in a folder of its own.

The part is what the lineage of each cell names: its artifacts under their planned keys, one `frames` that gathers these
and no others, and the table made from it. All of it is made in a scratch folder in which nothing of results/ lies, so
that there is nothing to be taken from there. Raw data and pinned models are inputs, held against their checksums.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from precfm.audit.lineage import sources_read
from precfm.audit.report_inputs import Entries, inputs_of
from precfm.audit.target import Cell
from precfm.core.errors import PrecfmError
from precfm.datasets.manifest import file_lists
from precfm.datasets.sources import RAW, SOURCES, fetch_raw
from precfm.pipeline.keys import KeyedArtifacts
from precfm.pipeline.node import MODELS, RESULTS, Node
from precfm.pipeline.plan import Plan
from precfm.report.inputs import Inputs

MARK = "challenge.txt"  # in a scratch folder, which so can be told from any other
_MARKED = "A scratch folder of `precfm challenge`: whatever is below results/ was made here.\n"


_BESIDE = {"paired": ("metrics",)}  # tables that say how large the numbers are that another one subtracts


@dataclass(frozen=True)
class MadeAgain:
    """What will hold a cell.

    Attributes:
        tables: its table, of the artifacts behind the cell and of no others, so that other rows may be missing; and
            those that say how large its numbers are.
        columns: of its row, those that rest on no other artifacts than the cell does.
    """

    tables: tuple[Node, ...]
    columns: frozenset[str]


def part_of(plan: Plan, cells: Sequence[tuple[str, Cell]]) -> tuple[Plan, list[MadeAgain]]:
    """The part of a plan that makes cells of its tables again.

    Args:
        plan: of the experiment.
        cells: names of tables, each with a cell of it.

    Returns:
        The part, parents before children, and for each cell what will hold it.
    """
    entries = {node.id: {"params": node.params, "parents": node.parents} for node in plan.nodes.values()}
    chosen = [_inputs(plan, _table(plan, name), cell, entries) for name, cell in cells]
    wanted = set[str]().union(*map(_ids, chosen))
    for node in reversed(plan.nodes.values()):
        if node.id in wanted:
            wanted.update(parent for ids in node.parents.values() for parent in ids)
    part = replace(plan, nodes={node.id: node for node in plan.nodes.values() if node.id in wanted})
    add = KeyedArtifacts(part).add
    targets = []
    for (name, cell), inputs in zip(cells, chosen, strict=True):
        about = {role: [dict(about) for _, about in pairs] for role, pairs in inputs.items()}
        parents = {role: [plan.nodes[node_id] for node_id, _ in pairs] for role, pairs in inputs.items()}
        frames = add("frames", plan.experiment, {"about": about}, parents)
        tables = [_table(plan, each) for each in (name, *_BESIDE.get(name, ()))]
        made = [
            add(table.kind, table.params["name"], table.params, {"frames": frames}, table.targets)
            for table in tables
        ]
        columns = [
            column
            for column in cell.about
            if _ids(_inputs(plan, tables[0], replace(cell, column=column), entries)) <= _ids(inputs)
        ]
        targets.append(MadeAgain(tuple(made), frozenset(columns)))
    return part, targets


def _table(plan: Plan, name: str) -> Node:
    (table,) = [node for node in plan.of("table_files") if node.params["name"] == name]
    return table


def _ids(inputs: Inputs) -> set[str]:
    return {node_id for pairs in inputs.values() for node_id, _ in pairs}


def _inputs(plan: Plan, table: Node, cell: Cell, entries: Entries) -> Inputs:
    """What a cell is made of; nothing for a row that no artifact stands for, and all where nothing is declared."""
    (frames,) = table.parents["frames"]
    found = inputs_of(table.id, f"{table.params['name']}.csv", cell, entries)
    about = plan.nodes[frames].params["about"]
    everything = {
        role: list(zip(plan.nodes[frames].parents[role], about[role], strict=True)) for role in about
    }
    return found.get(frames, everything)


@contextmanager
def scratch_folder(folder: Path | None) -> Iterator[Path]:
    """A folder to make artifacts in.

    Args:
        folder: a new or empty one, or one in which this was done before; it is kept. None: a temporary one.

    Yields:
        Its absolute path.

    Raises:
        PrecfmError: the folder lies in results/, or holds anything else.
    """
    if folder is None:
        with TemporaryDirectory(prefix="precfm-challenge-") as temporary:
            yield Path(temporary).resolve()
        return
    found = folder.resolve()
    if found.is_relative_to(RESULTS.resolve()):
        raise PrecfmError(f"scratch: {folder} lies in {RESULTS}/; a folder outside of it is needed")
    if found.exists() and not (found.is_dir() and (not any(found.iterdir()) or (found / MARK).is_file())):
        raise PrecfmError(f"scratch: {folder} holds something else; a new or empty folder is needed")
    found.mkdir(parents=True, exist_ok=True)
    yield found


def bring_inputs(parts: Sequence[Plan], scratch: Path) -> None:
    """Raw data, fetched to data/raw/ as for any run, and pinned models, as links in the scratch folder.

    Raises:
        PrecfmError: a source cannot be had.
    """
    (scratch / MARK).write_text(_MARKED, encoding="utf-8")
    (scratch / SOURCES.parent).mkdir(exist_ok=True)
    for file in (SOURCES, *file_lists(SOURCES)):
        shutil.copyfile(file, scratch / file)
    for name in sorted(_sources(parts)):
        fetch_raw(name)
    for folder in (RAW, MODELS):
        if folder.is_dir() and not (scratch / folder).exists():
            (scratch / folder).symlink_to(folder.resolve())


def _sources(parts: Sequence[Plan]) -> set[str]:
    return {
        name for part in parts for node in part.of("data") for name in sources_read(node.kind, node.params)
    }


def rebuild(parts: Sequence[Plan], scratch: Path) -> Iterator[tuple[Node, bool]]:
    """Make all artifacts of parts of plans in a scratch folder, as `precfm make` does.

    Yields:
        Each artifact, and whether it was made now: one that this folder has from before is kept.

    Raises:
        PrecfmError: an artifact cannot be made.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(parts[0].threads))
    import torch

    from precfm.pipeline.build import build
    from precfm.pipeline.job import script_of

    for part in parts:
        torch.set_num_threads(part.threads)
        for node in part.nodes.values():
            with chdir(scratch):
                try:
                    made = build(node, script_of(node))
                except PrecfmError as error:
                    raise PrecfmError(f"{node.id}: {error}") from error
            yield node, made
