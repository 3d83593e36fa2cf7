"""Behaviour-preserving rewrites: new code that makes the same bytes keeps the older code's keys.

`accept` rebuilds a sample of a kind's artifacts with the present code, somewhere else. Only if every file of every one
is equal byte for byte, the new fingerprint is recorded in config/equivalences.json as standing for the old one, with
the evidence: which artifacts, which checksums, on which machine. `precfm.fingerprint.fingerprint` resolves through it,
so all keys are again what they were. One kind at a time, those that come first in the plan first.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precfm import fingerprint as code
from precfm.artifacts import RECORD, RESULTS, Artifact, Job, Node, made_on, script_of
from precfm.datasets.manifest import file_sha256
from precfm.errors import PrecfmError
from precfm.fingerprint import SCRIPTS
from precfm.plan import KINDS, Plan, load_plan


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
        PrecfmError: a rebuilt file differs, or nothing can be compared; then nothing is recorded.
    """
    if kind not in KINDS:
        raise PrecfmError(f"kind: {kind!r} is none; the kinds are {', '.join(KINDS)}")
    if sample < 1:
        raise PrecfmError(f"sample: {sample} should be at least 1")
    names = list(experiments) or sorted(path.name for path in RESULTS.glob("[!.]*") if path.is_dir())
    found: dict[tuple[str, str], list[Node]] = {}
    changed = False
    for name in names:
        plan = load_plan(name)
        changed |= any(not node.exists and not _in_attic(node) for node in plan.of(kind))
        for pair, nodes in _candidates(plan, kind).items():
            found.setdefault(pair, []).extend(nodes)
    if not found:
        if not changed:
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


def _candidates(plan: Plan, kind: str) -> dict[tuple[str, str], list[Node]]:
    """For each pair of new and old fingerprint, the artifacts whose key is the plan's once the pair is assumed."""
    pairs = set()
    for node in plan.of(kind):
        new = code.own_fingerprint(SCRIPTS / node.script, node.targets)
        for folder in _folders(plan.experiment.name, kind):
            if folder.name.rpartition("-")[0] == node.label:
                old = str(Artifact.open(folder).record["fingerprint"])
                if old != node.fingerprint:
                    pairs.add((new, old))
    found: dict[tuple[str, str], list[Node]] = {}
    for pair in sorted(pairs):
        with _assumed(*pair):
            for node in load_plan(plan.experiment.name).of(kind):
                own = code.own_fingerprint(SCRIPTS / node.script, node.targets)
                if own == pair[0] and (node.exists or _in_attic(node)):
                    found.setdefault(pair, []).append(node)
    return found


def _folders(experiment: str, kind: str) -> Iterator[Path]:
    """Complete artifacts of a kind, in the attic too."""
    for place in (RESULTS / experiment / kind, RESULTS / ".attic" / kind):
        yield from (file.parent for file in sorted(place.glob(f"*/{RECORD}")))


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
    part.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    part.replace(file)
    code.equivalences.cache_clear()
    code.fingerprint.cache_clear()
