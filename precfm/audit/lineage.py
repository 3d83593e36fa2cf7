"""Where a published number comes from: from a table's cell back to sources, code, parameters and seeds.

The manifest, which is in git, holds all of it, so artifacts need not be on this machine. A row of a table is traced
to the artifacts of its data set, methods and seeds alone, through what the plan tells the reports about each one.
"""

import ast
import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from precfm.core.errors import PrecfmError
from precfm.core.registry import REGISTRY, import_string
from precfm.datasets.manifest import file_sha256, source_manifest
from precfm.datasets.sources import SOURCES
from precfm.pipeline.artifact import Artifact
from precfm.pipeline.fingerprints import SCRIPTS, module_file, modules
from precfm.pipeline.manifest import read_manifest
from precfm.pipeline.node import RECORD, RESULTS
from precfm.pipeline.plan import KINDS, Plan, load_plan
from precfm.pipeline.publication import PRODUCTS

# Which artifacts each frame is collected from (workflow_scripts/frames.py); all others come from theory.
FRAMES = {
    "records": ("evaluations",),
    "recovery": ("evaluations",),
    "spectra": ("latents", "diagnostics"),
    "path_conditioning": ("diagnostics",),
    "preconditioners": ("diagnostics",),
    "budgets": ("flows", "diagnostics", "budgets"),
    "predictors": ("kernels",),
    "history": ("flows",),
    "theory_statistics": ("theory",),
}
_BULKY = {"about", "claims"}  # parameters that repeat the plan or a file in git


@dataclass(frozen=True)
class Step:
    """One artifact on the way to a number.

    Attributes:
        id: kind and folder name.
        params: its parameters, seed included.
        parents: by role, the ids of what it was made from.
        fingerprint: of the code that made it.
        script: the file in workflow_scripts/ that made it.
        modules: what else of precfm it ran; empty where the present code is other code.
        files: checksum and size of each file.
        made_on: the machine, where it is known.
        here: whether the artifact is on this machine.
    """

    id: str
    params: Mapping[str, Any]
    parents: Mapping[str, tuple[str, ...]]
    fingerprint: str
    script: str
    modules: tuple[str, ...]
    files: Mapping[str, Mapping[str, Any]]
    made_on: Mapping[str, Any] | None
    here: bool

    @property
    def kind(self) -> str:
        """Which sort of artifact."""
        return self.id.split("/")[0]


@dataclass(frozen=True)
class Cell:
    """One row of a table, and one column of it.

    Attributes:
        row: its number, from 1, the header not counted.
        column: the column's name; empty for the row as a whole.
        value: what stands there.
        about: the whole row.
    """

    row: int
    column: str
    value: str
    about: Mapping[str, str]


@dataclass(frozen=True)
class Lineage:
    """All that a file, or a number in it, was made from.

    Attributes:
        file: the file.
        sha256: its checksum.
        experiment: whose it is.
        cell: the row and column that were asked for.
        root: the artifact that holds the file.
        steps: every artifact on the way, by id, the root first.
        sources: for each data source its checksum and files.
        seeds: of the artifacts that the number is a summary of.
        notes: what to know before trusting it.
    """

    file: str
    sha256: str
    experiment: str
    cell: Cell | None
    root: str
    steps: Mapping[str, Step]
    sources: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data, for other programs."""
        return asdict(self)


def lineage(target: str) -> Lineage:
    """Trace a product or an artifact's file.

    Args:
        target: a file below results/, or `FILE:ROW` or `FILE:ROW,COLUMN` for a table in CSV.

    Returns:
        Its lineage.

    Raises:
        PrecfmError: there is no such file, row or column, nothing is known of the file, or the manifest is damaged.
    """
    file, cell = _parse(target)
    experiment, inside = _place(file)
    plan = _plan(experiment)
    entries = _entries(experiment, plan)
    root, name = _holder(inside, entries, file)
    chosen, seeds = _chosen(root, cell, entries) if cell else ({}, set())
    steps: dict[str, Step] = {}
    pending = [root]
    while pending:
        if (node_id := pending.pop(0)) in steps:
            continue
        if node_id not in entries:
            raise PrecfmError(f"{file}: {node_id}, from which it was made, is not in the manifest")
        step = _step(node_id, entries[node_id], plan, RESULTS / experiment)
        if node_id in chosen:
            step = replace(step, parents=chosen[node_id])
        steps[node_id] = step
        pending.extend(parent for ids in step.parents.values() for parent in ids)
    sha256 = file_sha256(file)
    stamped = entries[root].get("files") or {}
    notes = list(_notes(experiment, plan, entries))
    if name and name in stamped and stamped[name]["sha256"] != sha256:
        notes.append(f"{file} is not what {root} holds; `precfm audit` says more")
    if cell and chosen and not any(chosen.values()):
        notes.append(
            f"no artifact is of the data set, method and seed of row {cell.row}, so it is traced no further"
        )
    return Lineage(
        file.as_posix(),
        sha256,
        experiment,
        cell,
        root,
        steps,
        _sources(steps),
        tuple(sorted(seeds)),
        tuple(notes),
    )


def _parse(target: str) -> tuple[Path, Cell | None]:
    """A file, and the row and column that stand behind the colon."""
    match = re.fullmatch(r"(.+?):(\d+)(?:,(.+))?", target)
    table, colon, cell = target.rpartition(":")
    if match is None and colon and Path(table).is_file():
        raise PrecfmError(f"{table}: {cell!r} is no cell; ROW or ROW,COLUMN is needed, as in 3,value")
    file = Path(match[1] if match and not Path(target).exists() else target)
    if not file.is_file():
        raise PrecfmError(f"{file}: no such file; a product or artifact file below {RESULTS}/ is needed")
    if file == Path(target) or match is None:
        return file, None
    if file.suffix != ".csv":
        raise PrecfmError(f"{file}: rows and columns are those of tables in CSV")
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    number = int(match[2])
    if not 1 <= number <= len(rows):
        raise PrecfmError(f"{file}: row {number}: it has rows 1 to {len(rows)}, the header not counted")
    about, column = rows[number - 1], match[3] or ""
    if column.isdigit() and 1 <= int(column) <= len(about):
        column = list(about)[int(column) - 1]
    if column and column not in about:
        raise PrecfmError(f"{file}: column {column!r}: it has {', '.join(about)}")
    return file, Cell(number, column, about.get(column, ""), about)


def _place(file: Path) -> tuple[str, Path]:
    """The experiment that a file belongs to, and its path there."""
    try:
        inside = file.resolve().relative_to(RESULTS.resolve())
    except ValueError:
        raise PrecfmError(f"{file}: lies outside {RESULTS}/, where products and artifacts are") from None
    if len(inside.parts) < 2:
        raise PrecfmError(f"{file}: merges all experiments; ask for {RESULTS}/EXPERIMENT/{inside.name}")
    return inside.parts[0], Path(*inside.parts[1:])


def _plan(experiment: str) -> Plan | None:
    try:
        return load_plan(experiment)
    except PrecfmError:  # an old experiment, or another code: the manifest says all but the modules
        return None


def _entries(experiment: str, plan: Plan | None) -> dict[str, dict[str, Any]]:
    """What is known of each artifact: the manifest's word, completed by the artifacts that are here."""
    manifest = read_manifest(RESULTS / experiment)
    entries = manifest["artifacts"] if manifest else {}
    found: dict[str, dict[str, Any]] = dict(entries)
    for node in plan.nodes.values() if plan else ():  # what was made but not published yet
        if node.id not in found and node.exists:
            found[node.id] = {**node.to_json(), "files": Artifact.open(node.folder).record["files"]}
    return found


def _holder(inside: Path, entries: Mapping[str, Any], file: Path) -> tuple[str, str]:
    """The artifact that holds a file or product, and the file's name in it."""
    node_id = "/".join(inside.parts[:2])
    if node_id in entries:
        return node_id, "/".join(inside.parts[2:])
    for node_id, entry in entries.items():
        folder = PRODUCTS.get(node_id.split("/")[0])
        if folder is None:
            continue
        for name in entry.get("files") or {}:
            if inside == Path(folder) / name:
                return node_id, name
    raise PrecfmError(
        f"{file}: no artifact of the manifest holds it; `make reproduce EXPERIMENT={file.parts[1]}` "
        "publishes what the plan wants"
    )


def _step(node_id: str, entry: Mapping[str, Any], plan: Plan | None, home: Path) -> Step:
    kind = node_id.split("/")[0]
    node = plan.nodes.get(node_id) if plan else None
    folder = home / node_id
    here = (folder / RECORD).is_file()
    made_on = Artifact.open(folder).record.get("made_on") if here else entry.get("made_on")
    return Step(
        id=node_id,
        params=entry["params"],
        parents={role: tuple(ids) for role, ids in sorted(entry["parents"].items()) if ids},
        fingerprint=entry["fingerprint"],
        script=KINDS.get(kind, ""),
        modules=tuple(modules(SCRIPTS / node.script, node.targets)) if node else (),
        files=entry.get("files") or {},
        made_on=made_on,
        here=here,
    )


def _chosen(
    root: str, cell: Cell, entries: Mapping[str, Any]
) -> tuple[dict[str, dict[str, tuple[str, ...]]], set[int]]:
    """For each frames artifact below a table, those of its parents that the row is about, and their seeds."""
    roles = _roles(entries[root]["params"].get("name", ""))
    wanted: dict[str, set[str | None]] = {
        "dataset": {cell.about.get("dataset")},
        "method": {cell.about.get("method"), cell.about.get("baseline")},
        "seed": {cell.about.get("seed")},
        "run": {*experiments_of(cell.about.get("claim", ""))},
    }

    def meant(told: Mapping[str, Any]) -> bool:
        known = [name for name in wanted if name in told and wanted[name] - {None, ""}]
        return all(str(told[name]) in wanted[name] for name in known)

    chosen: dict[str, dict[str, tuple[str, ...]]] = {}
    seeds: set[int] = set()
    for frames in (parent for ids in entries[root]["parents"].values() for parent in ids):
        entry = entries.get(frames, {})
        if not (about := entry.get("params", {}).get("about")):
            continue
        chosen[frames] = {}
        for role in sorted(roles & about.keys() or about.keys()):
            kept = [
                pair
                for pair in zip(entry["parents"].get(role, ()), about[role], strict=False)
                if meant(pair[1])
            ]
            seeds |= {int(told["seed"]) for _, told in kept if "seed" in told}
            if kept:
                chosen[frames][role] = tuple(dict.fromkeys(parent for parent, _ in kept))
    return chosen, seeds


def _roles(table: str) -> set[str]:
    """The roles of the artifacts that a table reads: those behind the frames that its module names."""
    if table not in REGISTRY["tables"]:
        return set()
    source = module_file(import_string("tables", table).split(":")[0]).read_text(encoding="utf-8")
    named = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    return {role for frame, roles in FRAMES.items() if frame in named for role in roles}


def experiments_of(claim: str) -> set[str]:
    """The controlled experiments whose tables decide a claim's statistics; empty if none does.

    They stand in the source of precfm/theory/claims.py, as `<experiment>.<table>` in the claim's function and in those
    that it calls.
    """
    tree = ast.parse(module_file("precfm.theory.claim_statistics").read_text(encoding="utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    found: set[str] = set()
    pending, seen = [f"claim_{claim.lower()}"], set()
    while pending:
        if (name := pending.pop()) in seen or name not in functions:
            continue
        seen.add(name)
        for node in ast.walk(functions[name]):
            if isinstance(node, ast.Name):
                pending.append(node.id)
            elif (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and (match := re.fullmatch(r"(\w+)\.\w+", node.value))
            ):
                found.add(match[1])
    return found


def _sources(steps: Mapping[str, Step]) -> dict[str, dict[str, Any]]:
    """Checksums of the raw data, down to single files."""
    found: dict[str, dict[str, Any]] = {}
    for step in steps.values():
        if step.kind != "data":
            continue
        name, checksum = str(step.params.get("source")), step.params.get("checksum")
        found[name] = {"checksum": checksum, "files": {}}
        try:
            manifest = source_manifest(name, SOURCES)
        except PrecfmError:
            continue
        if manifest.checksum == checksum:
            found[name]["files"] = {file.name: file.sha256 for file in manifest.files}
    return found


def _notes(experiment: str, plan: Plan | None, entries: Mapping[str, Any]) -> Iterator[str]:
    if plan is None:
        yield f"config/{experiment}.yaml gives no plan, so only the manifest is told"
    elif not entries.keys() <= plan.nodes.keys():
        yield (
            "published by earlier code or with other parameters than the present; "
            f"`make reproduce EXPERIMENT={experiment}` publishes again"
        )


def flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Nested parameters as pairs `a.b`, value; what is not set, or only repeats the plan, is left out."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if name or key not in _BULKY:
                yield from flat(inner, f"{name}.{key}" if name else str(key))
    elif value is not None:
        yield name, json.dumps(value) if isinstance(value, list) else str(value)
