"""Rewrites that change no byte: new code that makes the bytes of older code keeps its keys.

`accept` makes a sample of a kind's artifacts again with the present code, somewhere else. Only if every file is equal
byte for byte, config/equivalences.json records that the new fingerprint stands for the old one, with the evidence:
which artifacts, which checksums, on which machine. `precfm.pipeline.fingerprints` resolves through it, so all keys are
again what they were. One kind at a time, those that come first in the plan first.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from precfm.core.errors import PrecfmError
from precfm.datasets.manifest import file_sha256
from precfm.pipeline import fingerprints as code
from precfm.pipeline.artifact import Artifact
from precfm.pipeline.build import made_on
from precfm.pipeline.builder import build_plan
from precfm.pipeline.files import write_whole
from precfm.pipeline.job import Job, script_of
from precfm.pipeline.manifest import canonical, entries
from precfm.pipeline.node import PUBLISHED, RECORD, RESULTS, Node, homes
from precfm.pipeline.plan import KINDS, load_plan

ATTIC = RESULTS / ".attic"


@dataclass(frozen=True)
class Accepted:
    """One equivalence that was shown and recorded.

    Attributes:
        new: fingerprint of the present code.
        old: fingerprint of the older code that it stands for.
        made_on: the machine.
        artifacts: what was made again, by id the checksum of each file.
    """

    new: str
    old: str
    made_on: Mapping[str, Any]
    artifacts: Mapping[str, Mapping[str, str]]


def accept(kind: str, experiments: Sequence[str] = (), sample: int = 2) -> list[Accepted]:
    """Show that the present code of a kind makes the bytes that older code made, and record it.

    Args:
        kind: the kind whose code was rewritten.
        experiments: in whose results to look; none means all that this machine made something of.
        sample: how many artifacts to make again for each pair of fingerprints.

    Returns:
        What was recorded, which is nothing if no code has changed.

    Raises:
        PrecfmError: a file differs, nothing can be compared, or artifacts of several older codes are here; then
            nothing is recorded.
    """
    if kind not in KINDS:
        raise PrecfmError(f"kind: got {kind!r}; one of {', '.join(KINDS)} is needed")
    if sample < 1:
        raise PrecfmError(f"sample: got {sample}; at least 1 is needed")
    names = list(experiments) or [home.name for home in homes()]
    with _alone():
        shown = []
        for new, olds in _changed(names, kind).items():
            old = _latest(kind, new, olds)
            chosen = _spread(sorted(olds[old], key=lambda node: node.id), sample)
            evidence = {node.id: _made_again(node) for node in chosen}
            shown.append(Accepted(new, old, made_on(chosen[0]), evidence))
        if shown:
            _record(kind, shown)
        return shown


@contextmanager
def _alone() -> Iterator[None]:
    """Nobody else makes anything again here; what a killed run left is removed first."""
    work = RESULTS / ".work"
    (work / "locks").mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work / "locks" / "accept.lock", timeout=0):
            shutil.rmtree(work / "accept", ignore_errors=True)
            yield
    except Timeout:
        raise PrecfmError("accept: another one is running here; wait until it is finished") from None


def _changed(names: Sequence[str], kind: str) -> dict[str, dict[str, list[Node]]]:
    """By new fingerprint, and by the old one that it may stand for, the artifacts that would show it.

    Raises:
        PrecfmError: the code has changed, but nothing here can show that it does the same.
    """
    nodes = [node for name in names for node in load_plan(name).of(kind)]
    known = code.equivalences()
    changed = {own for node in nodes if not _folder(node) and (own := _own(node)) not in known}
    olds = _fingerprints(kind, {node.label for node in nodes})
    found: dict[str, dict[str, list[Node]]] = {}
    for new in sorted(changed):
        for old in sorted(olds - {new}):
            if candidates := _candidates(names, kind, new, old):
                found.setdefault(new, {})[old] = candidates
    if changed and not found:
        raise PrecfmError(
            f"{kind}: no artifact of older code is here that differs from the plan in its code alone; accept the kinds "
            "it is made from first, or bring it back with `make pull`"
        )
    return found


def _own(node: Node) -> str:
    """The fingerprint of the present code, whatever has been accepted."""
    return code.own_fingerprint(code.SCRIPTS / node.script, node.targets)


def _folder(node: Node) -> Path | None:
    """Where an artifact lies, in its place or in the attic; None if it is not here."""
    places = (node.folder, ATTIC / node.id)
    return next((place for place in places if (place / RECORD).is_file()), None)


def _fingerprints(kind: str, labels: set[str]) -> set[str]:
    """Of the artifacts of a kind that are here, the attic included, and have one of these labels."""
    folders = (file.parent for place in (*homes(), ATTIC) for file in (place / kind).glob(f"*/{RECORD}"))
    named = (folder for folder in folders if folder.name.rpartition("-")[0] in labels)
    return {str(Artifact.open(folder).record["fingerprint"]) for folder in named}


def _candidates(names: Sequence[str], kind: str, new: str, old: str) -> list[Node]:
    """The artifacts that are here and whose keys are the plan's, once the new code is assumed to stand for the old."""
    known = code.equivalences
    code.equivalences = lambda: {**known(), new: old}
    try:
        nodes = [node for name in names for node in build_plan(name).of(kind)]
    finally:
        code.equivalences = known
    found = [node for node in nodes if node.fingerprint == old and _own(node) == new]
    return [node for node in found if (folder := _folder(node)) and _was_made_alone(folder)]


def _was_made_alone(folder: Path) -> bool:
    """Whether no others were trained beside it, which rounds its numbers in another way."""
    return "side_by_side" not in Artifact.open(folder).record["made_on"]


def _latest(kind: str, new: str, olds: Mapping[str, Sequence[Node]]) -> str:
    """The older code that was the last one: whose artifacts are in place, or else in a manifest."""
    last = {old for old, nodes in olds.items() if any(node.exists for node in nodes)} or set(olds)
    if len(last) > 1:
        last &= {old for old, nodes in olds.items() if any(_is_listed(node) for node in nodes)} or last
    if len(last) > 1:
        raise PrecfmError(
            f"{kind}: artifacts of several older codes are here ({', '.join(sorted(last))}), and {new} can stand for "
            "one alone; name an experiment whose manifest or artifacts are of that one"
        )
    return last.pop()


def _is_listed(node: Node) -> bool:
    return any(node.id in entries(place / node.experiment) for place in (RESULTS, PUBLISHED))


def _spread(nodes: Sequence[Node], count: int) -> list[Node]:
    """At most so many, evenly spaced: the same ones every time."""
    step = max(len(nodes) / count, 1.0)
    return [nodes[int(index * step)] for index in range(min(count, len(nodes)))]


def _made_again(node: Node) -> dict[str, str]:
    """The checksums of an artifact's files, which the present code makes byte for byte as they are.

    Raises:
        PrecfmError: it makes something else, or the artifact is damaged.
    """
    old = Artifact.open(_folder(node) or node.folder)
    old.verified()
    expected = {name: stamp["sha256"] for name, stamp in old.record["files"].items()}
    _use_threads(old.record["made_on"].get("threads"))
    place = RESULTS / ".work" / "accept"
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as temporary:
        folder, scratch = Path(temporary, "payload"), Path(temporary, "scratch")
        folder.mkdir()
        scratch.mkdir()
        for module in node.packages:
            import_module(module)
        script_of(node)(Job(node, folder, scratch))
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        made = {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}
    if other := sorted({name for name, _ in made.items() ^ expected.items()}):
        then, now = old.record["made_on"], made_on(node)
        differences = [
            f"{name} {value}, here {now[name]}"
            for name, value in then.items()
            if now.get(name, value) != value
        ]
        why = f" (it was made with {', '.join(differences)})" if differences else ""
        raise PrecfmError(
            f"{node.id}: the present code makes other bytes of {', '.join(other)}{why}; nothing is accepted, "
            "`make reproduce` makes it anew under a new key"
        )
    return made


def _use_threads(count: int | None) -> None:
    """As many threads as then: their number changes bytes. Reports need no torch."""
    if count is not None:
        import torch

        torch.set_num_threads(count)


def _record(kind: str, shown: Sequence[Accepted]) -> None:
    """Add to config/equivalences.json in one step; earlier evidence stays."""
    known = dict(code.read_equivalences())
    for each in shown:
        evidence = {"made_on": each.made_on, "artifacts": each.artifacts}
        known[each.new] = {"kind": kind, "same_as": each.old, **evidence}
    write_whole(code.EQUIVALENCES, canonical(known).encode())
