"""Where a number comes from: from a table's cell back to sources, code, parameters and seeds.

A manifest holds all of it, so artifacts need not be on this machine; of what is published, the published manifest is
enough. A cell is traced to the artifacts that its table declares it to be made of (`precfm.audit.report_inputs`).
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from precfm.audit.products import copies
from precfm.audit.report_inputs import Entries, inputs_of
from precfm.audit.target import Cell, parsed_target
from precfm.core.errors import PrecfmError
from precfm.datasets.manifest import file_sha256, source_manifest
from precfm.datasets.sources import SOURCES
from precfm.pipeline.artifact import Artifact
from precfm.pipeline.manifest import read_manifest
from precfm.pipeline.node import PUBLISHED, RECORD, RESULTS
from precfm.pipeline.plan import load_plan
from precfm.pipeline.products import PRODUCTS


@dataclass(frozen=True)
class Step:
    """One artifact on the way to a number.

    Attributes:
        id: kind and folder name.
        params: its parameters, seed included.
        parents: by role, the ids of what it was made from.
        fingerprint: of the code that made it.
        script: the file in workflow_scripts/ that made it.
        files: size and checksum of each file.
        made_on: the machine, where it is known.
        here: whether the artifact is on this machine.
    """

    id: str
    params: Mapping[str, Any]
    parents: Mapping[str, tuple[str, ...]]
    fingerprint: str
    script: str
    files: Mapping[str, Mapping[str, Any]]
    made_on: Mapping[str, Any] | None
    here: bool

    @property
    def kind(self) -> str:
        """Which sort of artifact."""
        return self.id.split("/")[0]


@dataclass(frozen=True)
class Lineage:
    """All that a file, or a number in it, was made from.

    Attributes:
        file: the file.
        sha256: its checksum.
        experiment: whose it is.
        revision: the commit that made what is published, and whether the code was as in it; None for local files.
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
    revision: Mapping[str, Any] | None
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
        target: a file below results/; `FILE:ROW` or `FILE:ROW,COLUMN` for a table in CSV; `FILE:CLAIM` for verdicts.

    Returns:
        Its lineage.

    Raises:
        PrecfmError: there is no such file, row or column, nothing is known of the file, or the manifest is damaged.
    """
    file, cell = parsed_target(target)
    home, inside = _place(file)
    manifest = read_manifest(home) or {}
    entries: Entries = manifest.get("artifacts", {})
    notes: list[str] = []
    if home.parent != PUBLISHED:
        entries, notes = _with_plan(home.name, entries)
    root, name = _holder(home, inside, entries)
    sha256 = file_sha256(file)
    if (entries[root].get("files") or {}).get(name, {"sha256": sha256})["sha256"] != sha256:
        notes.append(f"{file} is not what {root} holds; `precfm audit` says more")
    inputs = inputs_of(root, name, cell, entries)
    pairs = [pair for roles in inputs.values() for several in roles.values() for pair in several]
    seeds = {int(about["seed"]) for _, about in pairs if "seed" in about} if cell else set()
    if cell and inputs and not pairs:
        notes.append(
            f"no artifact is of the data set, method and seed of {cell.name}, so it is traced no further"
        )
    steps: dict[str, Step] = {}
    pending = [root]
    while pending:
        if (node_id := pending.pop(0)) in steps:
            continue
        if node_id not in entries:
            raise PrecfmError(f"{file}: {node_id}, from which it was made, is not in the manifest")
        step = _step(node_id, entries[node_id], RESULTS / home.name / node_id)
        if node_id in inputs:
            read = {role: [parent for parent, _ in several] for role, several in inputs[node_id].items()}
            step = replace(step, parents={role: tuple(dict.fromkeys(ids)) for role, ids in read.items()})
        steps[node_id] = step
        pending += [parent for ids in step.parents.values() for parent in ids]
    return Lineage(
        file=file.as_posix(),
        sha256=sha256,
        experiment=home.name,
        revision=manifest.get("revision"),
        cell=cell,
        root=root,
        steps=steps,
        sources=_sources(steps.values()),
        seeds=tuple(sorted(seeds)),
        notes=tuple(notes),
    )


def _place(file: Path) -> tuple[Path, Path]:
    """The folder of the experiment that a file belongs to, local or published, and its path there."""
    try:
        inside = RESULTS / file.resolve().relative_to(RESULTS.resolve())
    except ValueError:
        raise PrecfmError(f"{file}: lies outside {RESULTS}/, where products and artifacts are") from None
    above = PUBLISHED if inside.is_relative_to(PUBLISHED) else RESULTS
    name, *below = inside.relative_to(above).parts
    if not below:
        raise PrecfmError(f"{file}: is of all experiments; ask for {above}/EXPERIMENT/{name}")
    return above / name, Path(*below)


def _with_plan(experiment: str, listed: Entries) -> tuple[Entries, list[str]]:
    """What a local manifest says, and of artifacts that it does not list yet, what the plan and their records say."""
    try:
        nodes = load_plan(experiment).nodes
    except PrecfmError:
        return listed, [f"config/{experiment}.yaml gives no plan, so only the manifest is read"]
    made = {}
    for node in nodes.values():
        if node.id not in listed and node.exists:
            record = Artifact.open(node.folder).record
            made[node.id] = {**record, "parents": node.parents}  # a record names parents without their labels
    again = f"`make reproduce EXPERIMENT={experiment}` makes it anew"
    old = [] if listed.keys() <= nodes.keys() else [f"made by other code or with other parameters; {again}"]
    return {**made, **listed}, old


def _holder(home: Path, inside: Path, entries: Entries) -> tuple[str, str]:
    """The artifact that holds a file or product, and the file's name in it."""
    node_id = "/".join(inside.parts[:2])
    if node_id in entries:
        return node_id, "/".join(inside.parts[2:])
    folders = {**PRODUCTS, "frames": "frames"}
    found = copies(home, entries, folders).get(home / inside)
    if found is None:
        raise PrecfmError(f"{home / inside}: no artifact of the manifest holds it")
    return found[1], inside.relative_to(folders[found[1].split("/")[0]]).as_posix()


def _step(node_id: str, entry: Mapping[str, Any], folder: Path) -> Step:
    return Step(
        id=node_id,
        params=entry["params"],
        parents={role: tuple(ids) for role, ids in sorted(entry["parents"].items()) if ids},
        fingerprint=entry["fingerprint"],
        script=f"{node_id.split('/')[0]}.py",
        files=entry.get("files") or {},
        made_on=entry.get("made_on"),
        here=(folder / RECORD).is_file(),
    )


def _sources(steps: Iterable[Step]) -> dict[str, dict[str, Any]]:
    """Checksums of the raw data, down to single files where data/sources.yaml still has them."""
    found: dict[str, dict[str, Any]] = {}
    for step in steps:
        for name, checksum in sources_read(step.kind, step.params).items():
            found[name] = {"checksum": checksum, "files": {}}
            try:
                manifest = source_manifest(name, SOURCES)
            except PrecfmError:
                continue
            if manifest.checksum == checksum:
                found[name]["files"] = {file.name: file.sha256 for file in manifest.files}
    return found


def sources_read(kind: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """The data sources that an artifact is made from, each with its checksum."""
    if kind != "data":
        return {}
    return {str(params.get("source")): params.get("checksum"), **(params.get("without") or {})}


def flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Nested parameters as pairs `a.b`, value; what is not set, or repeats the plan or a file in git, is left out."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if name or key not in ("about", "claims"):
                yield from flat(inner, f"{name}.{key}" if name else str(key))
    elif value is not None:
        yield name, json.dumps(value) if isinstance(value, list) else str(value)
