"""Artifacts: immutable folders with a checksum for every file, built under a lock and put in place whole.

An artifact lives at `results/<experiment>/<kind>/<label>-<key>/` and is complete if and only if it holds
`artifact.json`. A job works in a part-folder that is renamed when it is finished, so neither a kill, a full disk
nor a second run over the same folder can leave a half-written artifact behind.
"""

import hashlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from safetensors import SafetensorError

from precfm.core.errors import PrecfmError
from precfm.datasets.manifest import file_sha256
from precfm.pipeline import fingerprints as code
from precfm.pipeline.fingerprints import SCRIPTS
from precfm.pipeline.gpus import one_gpu
from precfm.pipeline.manifest import canonical, without_label

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

RESULTS = Path("results")
RECORD = "artifact.json"
# Kinds whose jobs compute on the configured device; all others use the processor, and reports no torch at all.
ON_DEVICE = frozenset(
    {
        "classifiers",
        "autoencoders",
        "latents",
        "features",
        "preconditioners",
        "recipes",
        "flows",
        "samples",
        "evaluations",
    }
)
WITHOUT_TORCH = frozenset({"frames", "table_files", "figure_files", "verdicts"})


@dataclass(frozen=True)
class Node:
    """One artifact as the plan wants it.

    Attributes:
        kind: which sort of artifact, such as `flows`.
        label: a readable name; not part of the key.
        key: short hash of everything that decides the artifact's content.
        params: all parameters, as plain data.
        parents: for each role, the ids `kind/label-key` of the artifacts that are read.
        fingerprint: of the code that makes it.
        experiment: the experiment whose folder holds it.
        device: where it is made, `cpu` or `cuda`; not part of the key.
        script: the file in workflow_scripts/ that makes it.
        targets: import strings of what the script loads from the registry.
    """

    kind: str
    label: str
    key: str
    params: Mapping[str, Any]
    parents: Mapping[str, tuple[str, ...]]
    fingerprint: str
    experiment: str
    device: str = "cpu"
    script: str = ""
    targets: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Node":
        """The inverse of `to_json`."""
        parents = {role: tuple(ids) for role, ids in data["parents"].items()}
        return cls(**{**data, "parents": parents, "targets": tuple(data["targets"])})

    @property
    def name(self) -> str:
        """Name of the folder."""
        return f"{self.label}-{self.key}"

    @property
    def id(self) -> str:
        """Kind and folder name."""
        return f"{self.kind}/{self.name}"

    @property
    def folder(self) -> Path:
        """Where the artifact lives."""
        return RESULTS / self.experiment / self.id

    @property
    def exists(self) -> bool:
        """Whether the artifact is complete."""
        return (self.folder / RECORD).is_file()

    def to_json(self) -> dict[str, Any]:
        """Plain data, for a job in another process."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class Artifact:
    """A finished artifact, for reading. Every file is checked against its checksum before it is used."""

    folder: Path
    record: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> "Artifact":
        """Open the artifact in a folder.

        Raises:
            PrecfmError: there is none, or its record is damaged.
        """
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            if not all(
                isinstance(value, dict) for value in (record, record["files"], *record["files"].values())
            ):
                raise ValueError("it lists no files")
            if record["checksum"] != record_checksum(record):
                raise ValueError("its own checksum is wrong")
            return cls(folder, record)
        except FileNotFoundError:
            raise PrecfmError(
                f"{folder}: no complete artifact there; run `make reproduce` to make it"
            ) from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise PrecfmError(f"{folder / RECORD}: damaged ({error}); {_REMEDY}") from None

    @property
    def params(self) -> Mapping[str, Any]:
        """The parameters that it was made with."""
        params: Mapping[str, Any] = self.record["params"]
        return params

    @property
    def key(self) -> str:
        """Its content key."""
        return str(self.record["key"])

    def path(self, name: str) -> Path:
        """The path of a payload file, once its checksum is found right.

        Raises:
            PrecfmError: the file is missing, unknown or damaged.
        """
        file = self.folder / name
        expected = self.record["files"].get(name)
        if expected is None or Path(name).is_absolute() or ".." in Path(name).parts:
            raise PrecfmError(
                f"{file}: not part of this artifact, which holds {', '.join(self.record['files'])}"
            )
        try:
            found = file_sha256(file)
        except OSError as error:
            raise PrecfmError(f"{file}: {error.strerror or error}; {_REMEDY}") from None
        if found != expected.get("sha256"):
            raise PrecfmError(
                f"{file}: damaged (checksum {found[:12]}, expected {str(expected.get('sha256'))[:12]}); {_REMEDY}"
            )
        return file

    def verified(self) -> Path:
        """The folder, once every payload file is found right."""
        for name in self.record["files"]:
            self.path(name)
        return self.folder

    def tensors(self, name: str) -> dict[str, "Tensor"]:
        """A safetensors file as a mapping of tensors."""
        from safetensors.torch import load_file

        tensors: dict[str, Tensor] = load_file(self.path(name))
        return tensors

    def frame(self, name: str) -> "pd.DataFrame":
        """A CSV file as a data frame."""
        import pandas as pd

        return pd.read_csv(self.path(name))

    def json(self, name: str) -> Any:
        """A JSON file as plain data."""
        return json.loads(self.path(name).read_text(encoding="utf-8"))


_REMEDY = "delete this folder and run the same command again, which makes it anew"


@dataclass(frozen=True)
class Job:
    """What a script sees of the artifact that it makes.

    Attributes:
        node: the artifact as planned.
        folder: where to write the payload.
        scratch: where to keep what a killed run needs to go on; emptied when the artifact is finished.
    """

    node: Node
    folder: Path
    scratch: Path

    @property
    def params(self) -> Mapping[str, Any]:
        """The parameters of the artifact."""
        return self.node.params

    def parents(self, role: str) -> list[Artifact]:
        """The artifacts that stand in a role; none where the plan gives none."""
        base = RESULTS / self.node.experiment
        return [Artifact.open(base / parent) for parent in self.node.parents.get(role, ())]

    def parent(self, role: str) -> Artifact:
        """The one artifact that stands in a role."""
        (artifact,) = self.parents(role)
        return artifact

    def write_json(self, name: str, value: Any) -> None:
        """Write plain data as JSON; NaN and infinity are refused."""
        (self.folder / name).write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")

    def write_frame(self, name: str, frame: "pd.DataFrame") -> None:
        """Write a data frame as CSV; floats keep all their digits."""
        frame.to_csv(self.folder / name, index=False, lineterminator="\n")

    def write_tensors(self, name: str, tensors: Mapping[str, "Tensor"]) -> None:
        """Write tensors as one safetensors file."""
        from safetensors.torch import save_file

        save_file(
            {key: value.detach().cpu().contiguous() for key, value in tensors.items()}, self.folder / name
        )


Make = Callable[[Job], None]


def script_of(node: Node) -> Make:
    """The function that makes an artifact, from its script."""
    spec = importlib.util.spec_from_file_location("precfm_script", SCRIPTS / node.script)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    make: Make = script.make
    return make


def build(node: Node, make: Make) -> bool:
    """Make an artifact unless it exists.

    Args:
        node: the artifact as planned.
        make: writes the payload into the job's folder.

    Returns:
        Whether it was made now.

    Raises:
        PrecfmError: a mistake that a user can mend, disk and permissions included.
    """
    work, name = RESULTS / ".work", f"{node.kind}-{node.key}"
    scratch = work / "scratch" / name
    try:
        with lock(node):
            if node.exists or adopt(node):
                shutil.rmtree(scratch, ignore_errors=True)  # of a job killed when it was all but finished
                return False
            _require_device(node)
            _require_planned_code(node)
            for rubbish in (work / "parts").glob(f"{name}.*"):  # of killed jobs: this one holds the lock
                shutil.rmtree(rubbish, ignore_errors=True)
            part = work / "parts" / f"{name}.part-{socket.gethostname()}-{os.getpid()}"
            for folder in (part, scratch):
                folder.mkdir(parents=True, exist_ok=True)
            try:
                with one_gpu(work / "locks") if _on_gpu(node) else nullcontext():
                    make(Job(node, part, scratch))
                    _require_planned_code(node)
                    _finish(node, part)
            finally:
                shutil.rmtree(part, ignore_errors=True)
            shutil.rmtree(scratch, ignore_errors=True)
            return True
    except OSError as error:
        raise PrecfmError(_disk_trouble(node, error)) from error
    except SafetensorError as error:  # its own error for a full disk, too
        if "os error" not in str(error):
            raise
        raise PrecfmError(_disk_trouble(node, error)) from error


def lock(node: Node, timeout: float = -1) -> FileLock:
    """The lock that whoever makes or moves an artifact holds; -1 waits for it as long as it takes."""
    folder = RESULTS / ".work" / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{node.kind}-{node.key}.lock", timeout=timeout)


def _disk_trouble(node: Node, error: Exception) -> str:
    file, what = getattr(error, "filename", None), getattr(error, "strerror", None)
    return (
        f"{file or node.folder}: {what or error}; free space and write permission are needed; "
        "what was already made is kept"
    )


def adopt(node: Node) -> bool:
    """Take an equal artifact from the attic (moved) or from another experiment (copied) if there is one.

    What is damaged is told and left where it lies. The caller holds the artifact's lock.

    Returns:
        Whether the artifact is now in place.
    """
    places = (RESULTS / ".attic", *sorted(path for path in RESULTS.glob("[!.]*") if path.is_dir()))
    for place in places:
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
    copy = place / f"{node.kind}-{node.key}.copy-{socket.gethostname()}-{os.getpid()}"
    shutil.rmtree(copy, ignore_errors=True)
    try:
        shutil.copytree(folder, copy)
        return Artifact.open(copy).verified()
    except BaseException:
        shutil.rmtree(copy, ignore_errors=True)
        raise


def _put(source: Path, target: Path) -> None:
    """Move a finished folder into place with one rename; what lies there without a record is rubbish."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():  # Snakemake's empty folder, or the remains of an incomplete pull
        shutil.rmtree(target)
    source.rename(target)


def _finish(node: Node, part: Path) -> None:
    """Write the record, once all else is on the disk, and move the folder into place."""
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
        "params": node.params,
        "parents": {role: [without_label(parent) for parent in ids] for role, ids in node.parents.items()},
        "fingerprint": node.fingerprint,
        "files": files,
        "made_on": made_on(node),
    }
    record["checksum"] = record_checksum(record)
    (part / RECORD).write_text(canonical(record), encoding="utf-8")
    _sync(part / RECORD)
    _put(part, node.folder)


def _sync(file: Path) -> None:
    """Wait until a file's bytes are on the disk; some file systems tell only now that they are not."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def record_checksum(record: Mapping[str, Any]) -> str:
    """The checksum of everything else that a record holds."""
    content = {name: value for name, value in record.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def made_on(node: Node) -> dict[str, Any]:
    """What of the machine may change an artifact's bytes; constant on one machine."""
    place: dict[str, Any] = {"python": platform.python_version()}
    if node.kind in WITHOUT_TORCH:
        return place
    import torch

    return place | {
        "device": torch.cuda.get_device_name() if _on_gpu(node) else "cpu",
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def _on_gpu(node: Node) -> bool:
    return node.device == "cuda" and node.kind in ON_DEVICE


def _require_planned_code(node: Node) -> None:
    """An artifact never carries the fingerprint of other code than that which made it."""
    if not node.script:
        return
    _read_again(_code_state())
    try:
        found = code.fingerprint(SCRIPTS / node.script, node.targets)
    except SyntaxError:  # somebody is writing it
        found = ""
    if found != node.fingerprint:
        raise PrecfmError(
            "the code that makes it was changed after the plan was made; run the same command again"
        )


def _code_state() -> tuple[tuple[str, int, int], ...]:
    """Which files of code there are, when each was written and how long it is."""
    files = [file for folder in (code.PACKAGE, SCRIPTS) for file in sorted(folder.rglob("*.py"))]
    states = [(str(file), file.stat()) for file in (*files, code.EQUIVALENCES) if file.is_file()]
    return tuple((name, state.st_mtime_ns, state.st_size) for name, state in states)


@lru_cache(maxsize=1)
def _read_again(_: tuple[tuple[str, int, int], ...]) -> None:
    """Forget fingerprints, once for each state of the code: a plan may have computed them before it changed."""
    for cached in (code.fingerprint, code.equivalences, code.imports, code.module_file, code.syntax_hash):
        cached.cache_clear()


def _require_device(node: Node) -> None:
    if _on_gpu(node):
        import torch

        if not torch.cuda.is_available():
            raise PrecfmError(
                "device: 'cuda', but torch finds no GPU here; a GPU, or `device: cpu`, is needed"
            )


@contextmanager
def messages_to(log: Path) -> Iterator[None]:
    """Send standard output and error of a job to its log file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        kept = [(descriptor, os.dup(descriptor)) for descriptor in (1, 2)]
        try:
            for descriptor, _ in kept:
                os.dup2(file.fileno(), descriptor)
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError):  # a full disk must not hide what went wrong
                    stream.flush()
            for descriptor, copy in kept:
                os.dup2(copy, descriptor)
                os.close(copy)


def run_rule(make: Make, snakemake: Any) -> None:
    """Entry point of a script under Snakemake: build the node that the rule asks for.

    A user's mistake is told in one line on standard error, and kept beside the log for the end of the run.
    """
    node = Node.from_json(snakemake.params.node)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(snakemake.threads)
    log = Path(snakemake.log[0])
    complaint = log.with_suffix(".error")
    try:
        complaint.unlink(missing_ok=True)
        with messages_to(log):
            build(node, make)
    except (PrecfmError, OSError) as error:
        sentence = f"precfm: {node.id}: {error}"
        with suppress(OSError):
            complaint.write_text(sentence + "\n", encoding="utf-8")
        sys.exit(sentence)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
