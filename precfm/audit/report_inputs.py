"""Which artifacts a report, a cell of a table or a claim is made of: what `precfm.report.reads` declares of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from precfm.audit.target import Cell
from precfm.core.errors import PrecfmError
from precfm.core.registry import load
from precfm.report.claims import parse_claims
from precfm.report.effects import frames_of
from precfm.report.frames import FrameSource, sources_of
from precfm.report.inputs import Inputs, inputs_behind
from precfm.report.reads import Row, declared

Entries: TypeAlias = Mapping[str, Mapping[str, Any]]
"""By id, what a manifest says of artifacts: at least their parameters and parents."""

GROUPS = {"table_files": "tables", "figure_files": "figures"}  # of the registry


def inputs_of(root: str, name: str, cell: Cell | None, entries: Entries) -> dict[str, Inputs]:
    """For the `frames` below a report, those of their parents that the report, or a cell of it, is made of.

    Args:
        root: the id of the report, or of `frames`.
        name: the file's name in it.
        cell: the row and column, or the claim; None for all of the file.
        entries: of the report and what is below it.

    Returns:
        By the id of `frames`; empty where nothing is declared, so that all parents count.
    """
    reading = _reading(root, name, entries[root]["params"], cell)
    if reading is None:
        return {}
    below = [root] if root.startswith("frames/") else [*_parents(entries[root])]
    return {frames: _chosen(reading, entries.get(frames, {"params": {}, "parents": {}})) for frames in below}


@dataclass(frozen=True)
class _Reading:
    """What is read: which frames, and of them the rows that say what any of `rows` says."""

    sources: Sequence[FrameSource]
    rows: Sequence[Row] = ({},)


def _parents(entry: Mapping[str, Any]) -> Iterator[str]:
    for ids in entry["parents"].values():
        yield from ids


def _chosen(reading: _Reading, frames: Mapping[str, Any]) -> Inputs:
    about = frames["params"].get("about") or {}
    return inputs_behind(reading.sources, reading.rows, about, frames["parents"])


def _reading(root: str, name: str, params: Mapping[str, Any], cell: Cell | None) -> _Reading | None:
    """As declared; None where nothing is."""
    kind = root.split("/")[0]
    about = cell.about if cell else {}
    try:
        if kind == "frames" and name.endswith(".csv"):
            return _Reading([sources_of(about.get("frame") or name.removesuffix(".csv"))], [about])
        if kind in GROUPS:
            function = load(GROUPS[kind], params["name"])
            # A statistic of theory names the one frame that it is computed from.
            frames = [about["frame"]] if about.get("frame") else declared(function)
            rows = [*function.behind(about, cell.column)] if cell else [{}]
            return _Reading([sources_of(frame) for frame in frames], rows)
        if kind == "verdicts" and cell:
            (claim,) = (each for each in parse_claims(params["claims"]).claims if each.id == about["claim"])
            frames = [frame for statistic in claim.statistics for frame in frames_of(statistic)]
            return _Reading([sources_of(frame) for frame in frames])
    except (PrecfmError, KeyError, ValueError):  # published by code that is no longer here
        pass
    return None
