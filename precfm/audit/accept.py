"""Behaviour-preserving rewrites: new code that makes the same bytes keeps the older code's keys.

`accept` rebuilds a sample of a kind's artifacts with the present code, somewhere else. Only if every file of every one
is equal byte for byte, the new fingerprint is recorded in config/equivalences.json as standing for the old one, with
the evidence: which artifacts, which checksums, on which machine. `precfm.pipeline.fingerprints.fingerprint` resolves through it,
so all keys are again what they were. One kind at a time, those that come first in the plan first.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from precfm.core.errors import PrecfmError
from precfm.datasets.manifest import file_sha256
from precfm.pipeline import fingerprints as code
from precfm.pipeline.artifact import Artifact
from precfm.pipeline.build import made_on
from precfm.pipeline.fingerprints import SCRIPTS
from precfm.pipeline.job import Job, script_of
from precfm.pipeline.manifest import canonical, entries
from precfm.pipeline.node import RECORD, RESULTS, Node
from precfm.pipeline.plan import KINDS, Plan, load_plan


@dataclass(frozen=True)
class Accepted:
    """One equivalence that was shown and recorded.

    Attributes:
        new: fingerprint of the present code.
        old: fingerprint of the older code that it stands for.
        artifacts: the ids of what was rebuilt.
    """

    new: str
    old: str
    artifacts: tuple[str, ...]


def accept(kind: str, experiments: Sequence[str] = (), sample: int = 2) -> list[Accepted]:
    """Show that the present code of a kind makes the bytes that older code made, and record it.

    Args:
        kind: the kind whose code was rewritten.
        experiments: in whose results to look; none means all that have results.
        sample: how many artifacts to rebuild for each pair of fingerprints.

    Returns:
        What was recorded, which is nothing if no code has changed.

    Raises:
        PrecfmError: a rebuilt file differs, nothing can be compared, or artifacts of several older codes are here;
            then nothing is recorded.
    """
    if kind not in KINDS:
        raise PrecfmError(f"kind: {kind!r} is none; the kinds are {', '.join(KINDS)}")
    if sample < 1:
        raise PrecfmError(f"sample: {sample} should be at least 1")
    with _alone():
        return _accept(kind, list(experiments) or _with_results(), sample)


def _accept(kind: str, names: Sequence[str], sample: int) -> list[Accepted]:
    lacking = False
    olds: dict[str, set[str]] = {}
    for name in names:
        for new, nodes in _lacking(load_plan(name), kind).items():
            lacking = True
            olds.setdefault(new, set()).update(_older(name, kind, nodes))
    pairs = [(new, _only(kind, new, several)) for new, several in sorted(olds.items()) if several]
    found = {pair: nodes for pair in pairs if (nodes := _candidates(names, kind, *pair))}
    if not found:
        if not lacking:
            return []
        raise PrecfmError(
            f"{kind}: no artifact of older code is here that differs from the plan in its code alone; accept the kinds "
            "it is made from first, or bring it back with `make pull`"
        )
    shown = []
    for (new, old), nodes in sorted(found.items()):
        chosen = _spread(sorted(nodes, key=lambda node: node.id), sample)
        evidence = {node.id: _rebuilt(node) for node in chosen}
        shown.append((Accepted(new, old, tuple(evidence)), made_on(chosen[0]), evidence))
    _record(kind, shown)
    return [accepted for accepted, _, _ in shown]


def _with_results() -> list[str]:
    return sorted(path.name for path in RESULTS.glob("[!.]*") if path.is_dir())


@contextmanager
def _alone() -> Iterator[None]:
    """Nobody else rebuilds here; what a killed run left behind is removed first."""
    work = RESULTS / ".work"
    (work / "locks").mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work / "locks" / "accept.lock", timeout=0):
            shutil.rmtree(work / "accept", ignore_errors=True)
            yield
    except Timeout:
        raise PrecfmError("accept: another one is running here; wait until it is finished") from None


def _lacking(plan: Plan, kind: str) -> dict[str, list[Node]]:
    """By new fingerprint, the plan's artifacts of a kind, where some are not here and nothing was accepted yet."""
    nodes: dict[str, list[Node]] = {}
    for node in plan.of(kind):
        nodes.setdefault(code.own_fingerprint(SCRIPTS / node.script, node.targets), []).append(node)
    return {
        new: several
        for new, several in nodes.items()
        if new not in code.equivalences() and not all(node.exists or _in_attic(node) for node in several)
    }


def _older(experiment: str, kind: str, nodes: Sequence[Node]) -> set[str]:
    """The fingerprints that came before the present one of some artifacts.

    Those that results/<experiment>/ holds (of several the published one), or else what the manifest says, or else
    those in the attic, which may be much older.
    """
    labels, present = {node.label for node in nodes}, nodes[0].fingerprint
    home = RESULTS / experiment
    here = _fingerprints(home / kind, labels)
    published = {
        str(entry["fingerprint"])
        for node_id, entry in entries(home).items()
        if node_id.split("/")[0] == kind and _label(node_id.split("/")[1]) in labels
    }
    if older := here - {present}:
        return older & published or older
    if here | published:
        return published - {present}
    return _fingerprints(RESULTS / ".attic" / kind, labels) - {present}


def _fingerprints(place: Path, labels: Collection[str]) -> set[str]:
    """Of the complete artifacts below a folder that have one of some labels."""
    folders = (file.parent for file in place.glob(f"*/{RECORD}"))
    return {
        str(Artifact.open(folder).record["fingerprint"])
        for folder in folders
        if _label(folder.name) in labels
    }


def _label(name: str) -> str:
    return name.rpartition("-")[0]


def _only(kind: str, new: str, olds: Collection[str]) -> str:
    """The one older fingerprint, since code can stand for one alone."""
    if len(olds) > 1:
        raise PrecfmError(
            f"{kind}: artifacts of several older codes are here ({', '.join(sorted(olds))}), and {new} can stand for "
            "one alone; name an experiment whose manifest or artifacts are of that one"
        )
    (old,) = olds
    return old


def _candidates(names: Iterable[str], kind: str, new: str, old: str) -> list[Node]:
    """The artifacts that are here and whose key is the plan's once the pair is assumed."""
    with _assumed(new, old):
        return [
            node
            for name in names
            for node in load_plan(name).of(kind)
            if code.own_fingerprint(SCRIPTS / node.script, node.targets) == new
            and (node.exists or _in_attic(node))
        ]


def _in_attic(node: Node) -> bool:
    return (RESULTS / ".attic" / node.id / RECORD).is_file()


@contextmanager
def _assumed(new: str, old: str) -> Iterator[None]:
    """Plan as if an equivalence had been accepted."""
    known = code.equivalences
    code.equivalences = lambda: {**known(), new: old}  # type: ignore[assignment]
    code.fingerprint.cache_clear()
    try:
        yield
    finally:
        code.equivalences = known
        code.fingerprint.cache_clear()


def _spread(nodes: Sequence[Node], count: int) -> list[Node]:
    """At most so many, evenly spaced: the same ones every time."""
    step = max(len(nodes) / count, 1.0)
    return [nodes[int(index * step)] for index in range(min(count, len(nodes)))]


def _rebuilt(node: Node) -> dict[str, str]:
    """The checksums of an artifact that the present code makes byte for byte as it is.

    Raises:
        PrecfmError: it makes something else.
    """
    old = Artifact.open(node.folder if node.exists else RESULTS / ".attic" / node.id)
    old.verified()
    expected = {name: stamp["sha256"] for name, stamp in old.record["files"].items()}
    _use_threads(old.record["made_on"].get("threads"))
    place = RESULTS / ".work" / "accept"
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as temporary:
        folder, scratch = Path(temporary, "payload"), Path(temporary, "scratch")
        for empty in (folder, scratch):
            empty.mkdir()
        script_of(node)(Job(node, folder, scratch))
        made = {
            path.relative_to(folder).as_posix(): file_sha256(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        shutil.rmtree(scratch, ignore_errors=True)
    other = sorted(name for name in made.keys() | expected.keys() if made.get(name) != expected.get(name))
    if other:
        place_then, place_now = old.record.get("made_on"), made_on(node)
        why = "" if place_then == place_now else f" (it was made on {place_then}, here is {place_now})"
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


def _record(kind: str, shown: Sequence[tuple[Accepted, Mapping[str, Any], Mapping[str, Any]]]) -> None:
    """Add to config/equivalences.json, in one step; earlier evidence stays."""
    file = code.EQUIVALENCES
    code.equivalences.cache_clear()
    code.equivalences()  # refuses a damaged file before it is replaced
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for accepted, place, evidence in shown:
        known[accepted.new] = {"kind": kind, "same_as": accepted.old, "made_on": place, "artifacts": evidence}
    part = file.with_name(f".{file.name}.part-{os.getpid()}")
    part.write_text(canonical(known), encoding="utf-8")
    part.replace(file)
    code.equivalences.cache_clear()
    code.fingerprint.cache_clear()
