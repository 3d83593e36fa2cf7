"""Artifacts: immutable folders with a checksum for every file, built under a lock and put in place whole.

An artifact lives at `results/<experiment>/<kind>/<label>-<key>/` and is complete if and only if it holds
`artifact.json`. A job works in a part-folder that is renamed when it is finished, so neither a kill, a full disk
nor a second run over the same folder can leave a half-written artifact behind.
"""

import hashlib
import os
import platform
import shutil
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from precfm.core.errors import PrecfmError
from precfm.datasets.manifest import file_sha256
from precfm.pipeline.artifact import Artifact, record_checksum
from precfm.pipeline.files import write_whole
from precfm.pipeline.fingerprints import SCRIPTS, fingerprint, versions
from precfm.pipeline.gpus import held_gpus
from precfm.pipeline.job import Job, Make, script_of_many
from precfm.pipeline.locks import lock
from precfm.pipeline.manifest import canonical, without_label
from precfm.pipeline.node import RECORD, RESULTS, WITHOUT_TORCH, Node, homes
from precfm.pipeline.processes import make_together, require_gpus


def build(node: Node, make: Make) -> bool:
    """Make an artifact unless it exists.

    Args:
        node: the artifact as planned.
        make: writes the payload into the job's folder.

    Returns:
        Whether it was made now.

    Raises:
        PrecfmError: a user's mistake; a full disk and missing permissions, too.
    """

    def alone(jobs: Sequence[Job], gpus: Sequence[int]) -> None:
        (job,) = jobs
        make(job) if node.devices == 1 else make_together(job, gpus)

    return bool(_build([node], alone))


def build_side_by_side(nodes: Sequence[Node]) -> list[Node]:
    """Make artifacts of one batch in one computation, where their script has a `make_many`.

    Where it fails, standard error says why, and `build` has to make each by itself: then one alone fails, if it has to.

    Args:
        nodes: the artifacts as planned, of one kind, their parents made.

    Returns:
        Those that were made now; none of those that exist, nor a single one that is missing.
    """
    missing = [node for node in nodes if not node.exists]
    if len(missing) < 2:
        return []
    try:
        make_many = script_of_many(missing[0])
        return [] if make_many is None else _build(missing, lambda jobs, _: make_many(jobs), fewest=2)
    except Exception as error:
        if not isinstance(error, PrecfmError):
            traceback.print_exc()
        print(f"{missing[0].batch}: not made side by side ({error}); one by one", file=sys.stderr, flush=True)
        return []


def _build(
    nodes: Sequence[Node], make: Callable[[Sequence[Job], Sequence[int]], None], fewest: int = 1
) -> list[Node]:
    """Make those artifacts of a kind that do not exist, all in one call.

    Args:
        nodes: the artifacts as planned.
        make: gets their jobs, with one scratch folder, and the GPUs that are held for them.
        fewest: makes nothing where fewer are missing, once those of other experiments are taken over.

    Returns:
        Those that were made now.
    """
    work = RESULTS / ".work"
    try:
        with ExitStack() as locks:
            for node in sorted(nodes, key=lambda each: each.key):  # the same order for all who want several
                locks.enter_context(lock(node))
            missing = []
            for node in nodes:
                if node.exists or adopt(node):
                    _drop_scratch(node)  # of a job killed when it was all but finished
                else:
                    missing.append(node)
            if len(missing) < fewest:
                return []
            first = missing[0]
            if _on_gpu(first):
                require_gpus(first)
            scratch = _scratch(first)
            if len(missing) > 1:  # beside that of the first one alone, and cleared with it
                keys = "".join(node.key for node in missing)
                scratch /= f"side-by-side-{hashlib.sha256(keys.encode()).hexdigest()[:12]}"
            parts = {node.key: work / "parts" / f"{_job_name(node)}.part-{_process()}" for node in missing}
            try:
                for node in missing:
                    _require_planned_code(node)
                    for remains in (work / "parts").glob(f"{_job_name(node)}.*"):  # of killed jobs: this one
                        shutil.rmtree(remains, ignore_errors=True)  # holds the lock
                _keep_of_same_parents(scratch, missing)
                for part in parts.values():
                    part.mkdir(parents=True, exist_ok=True)
                for module in (module for node in missing for module in node.packages):
                    import_module(module)
                jobs, gpus = [Job(node, parts[node.key], scratch) for node in missing], nullcontext(())
                with held_gpus(work / "locks", first.devices) if _on_gpu(first) else gpus as held:
                    make(jobs, held)
                    for node in missing:
                        _require_planned_code(node)
                        _seal(node, parts[node.key], len(missing))
                for node in missing:
                    _put(parts[node.key], node.folder)
            finally:
                for part in parts.values():
                    shutil.rmtree(part, ignore_errors=True)
            for node in missing:
                _drop_scratch(node)
            return missing
    except OSError as error:
        raise PrecfmError(_disk_trouble(nodes[0], error)) from error
    except SafetensorError as error:  # its own error for a full disk, too
        if "os error" not in str(error):
            raise
        raise PrecfmError(_disk_trouble(nodes[0], error)) from error


def _job_name(node: Node) -> str:
    return f"{node.kind}-{node.key}"


def _process() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


def _scratch(node: Node) -> Path:
    return RESULTS / ".work" / "scratch" / _job_name(node)


def _drop_scratch(node: Node) -> None:
    shutil.rmtree(_scratch(node), ignore_errors=True)


def _keep_of_same_parents(scratch: Path, nodes: Sequence[Node]) -> None:
    """Keep what a killed job left only if its parents still have the bytes that it saw: a pull may bring others."""
    folders = {
        RESULTS / node.experiment / parent
        for node in nodes
        for parents in node.parents.values()
        for parent in parents
    }
    there = [
        folder for folder in sorted(folders) if (folder / RECORD).is_file()
    ]  # a job misses what it reads
    text = canonical({str(folder): Artifact.open(folder).record["files"] for folder in there})
    file = scratch / "parents.json"
    if scratch.exists() and not (file.is_file() and file.read_text(encoding="utf-8") == text):
        shutil.rmtree(scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    write_whole(file, text.encode())


def _disk_trouble(node: Node, error: Exception) -> str:
    file, what = getattr(error, "filename", None), getattr(error, "strerror", None)
    return (
        f"{file or node.folder}: {what or error}; free space and write permission are needed; "
        "what was already made is kept"
    )


def adopt(node: Node) -> bool:
    """Take an equal artifact from the attic (moved) or from another experiment (copied) if there is one.

    A damaged one is named and left where it lies. The caller holds the artifact's lock.

    Returns:
        Whether the artifact is now in place.
    """
    for place in (RESULTS / ".attic", *homes()):
        for folder in sorted((place / node.kind).glob(f"*-{node.key}")):
            if folder == node.folder or not (folder / RECORD).is_file():
                continue
            try:
                Artifact.open(folder).verified()
                _put(folder if place.name == ".attic" else _copied(node, folder), node.folder)
                return True
            except (PrecfmError, shutil.Error) as error:
                print(f"{folder}: not used ({error})", file=sys.stderr)
    return False


def _copied(node: Node, folder: Path) -> Path:
    """A verified copy of another experiment's artifact, which DVC may be moving at this moment."""
    place = RESULTS / ".work" / "parts"
    copy = place / f"{_job_name(node)}.copy-{_process()}"
    shutil.rmtree(copy, ignore_errors=True)
    try:
        shutil.copytree(folder, copy)
        return Artifact.open(copy).verified()
    except BaseException:
        shutil.rmtree(copy, ignore_errors=True)
        raise


def _put(source: Path, target: Path) -> None:
    """Move a finished folder into place with one rename; what lies there without a record is removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():  # Snakemake's empty folder, or the remains of an incomplete pull
        shutil.rmtree(target)
    source.rename(target)


def _seal(node: Node, part: Path, together: int) -> None:
    """Write the record, once all else is on the disk; `together` with how many others it was made, itself counted."""
    files = {
        str(path.relative_to(part)): {"sha256": file_sha256(path), "bytes": path.stat().st_size}
        for path in sorted(part.rglob("*"))
        if path.is_file()
    }
    for file in files:
        _sync(part / file)
    record = {
        "kind": node.kind,
        "key": node.key,
        "params": node.recorded_params,
        "parents": {role: [without_label(parent) for parent in ids] for role, ids in node.parents.items()},
        "fingerprint": node.fingerprint,
        "files": files,
        "made_on": made_on(node) | ({"side_by_side": together} if together > 1 else {}),
    }
    record["checksum"] = record_checksum(record)
    (part / RECORD).write_text(canonical(record), encoding="utf-8")
    _sync(part / RECORD)


def _sync(file: Path) -> None:
    """Wait until a file's bytes are on the disk; some file systems say only now that they are not."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def made_on(node: Node) -> dict[str, Any]:
    """What of the machine may change an artifact's bytes, versions of libraries too; constant on one machine."""
    place: dict[str, Any] = {"python": platform.python_version(), **versions(node.libraries)}
    if node.kind in WITHOUT_TORCH:
        return place
    import torch

    return place | {
        "device": torch.cuda.get_device_name() if _on_gpu(node) else "cpu",
        "torch": torch.__version__,
        "processor": processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        **({"devices": node.devices} if node.devices > 1 else {}),
    }


@cache
def processor() -> str:
    """Maker, family, model and stepping of the processor: with the same instructions, too, two of them round apart."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
        found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        named = [found.get(name, "") for name in ("vendor_id", "cpu family", "model", "stepping")]
        if all(named):
            return " ".join(named)
    return platform.processor() or platform.machine()


def _on_gpu(node: Node) -> bool:
    return node.device == "cuda" and node.on_device


def _require_planned_code(node: Node) -> None:
    """An artifact never carries the fingerprint of other code than that which made it."""
    if not node.fingerprint:
        return
    try:
        found = fingerprint(SCRIPTS / node.script, node.targets)
    except SyntaxError:  # somebody is writing it
        found = ""
    if found != node.fingerprint:
        raise PrecfmError(
            "the code that makes it was changed after the plan was made; run the same command again"
        )
