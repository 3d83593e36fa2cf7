"""Artifacts in one tar file, for sharing without a DVC remote: `precfm export` and `precfm import`.

The first member is `manifest.json`, with the size of every other one, `<experiment>/<kind>/<label>-<key>/...`; records
hold the checksums. The bytes depend on nothing but the artifacts. Nothing in an archive is trusted: only the listed
plain files in their listed sizes are unpacked, into a folder of our own; each artifact is held against its record and
against the manifests of this project; and all of them must be whole before the first one is moved into place.
"""

import io
import os
import re
import shutil
import socket
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from filelock import FileLock
from pydantic import Field

from precfm.audit.records import KEY, PAYLOAD, check_artifact, parsed
from precfm.audit.report import Report
from precfm.core.errors import PrecfmError
from precfm.core.options import Natural, Strict
from precfm.datasets.manifest import file_sha256
from precfm.pipeline.artifact import Artifact
from precfm.pipeline.experiments import NAME
from precfm.pipeline.files import remove
from precfm.pipeline.manifest import agrees, canonical, published_entries, without_label
from precfm.pipeline.node import PUBLISHED, RECORD, RESULTS
from precfm.pipeline.plan import KINDS

MANIFEST = "manifest.json"
_FOLDER = rf"{NAME}/[a-z_]+/[A-Za-z0-9][A-Za-z0-9._=+-]*-{KEY}"  # of an artifact, below results/
_UNREADABLE = (
    tarfile.TarError,
    EOFError,
    ValueError,
    ArithmeticError,
    RecursionError,
    FileExistsError,
    NotADirectoryError,
)
_Member = Annotated[str, Field(pattern=f"^{_FOLDER}/{PAYLOAD}$")]


class Manifest(Strict):
    """What an archive holds beside this: the size in bytes of every file, by its name in the archive."""

    format: Literal[2] = 2
    files: Annotated[dict[_Member, Natural], Field(min_length=1)]


def find_artifacts(names: Iterable[str]) -> list[Path]:
    """The folders of the artifacts in results/ that names stand for.

    Args:
        names: each EXPERIMENT, EXPERIMENT/KIND, or KIND/LABEL-KEY (in whichever experiments hold it).

    Raises:
        PrecfmError: a name fits no complete artifact.
    """
    places = [file.parent.relative_to(RESULTS) for file in RESULTS.glob(f"[!.]*/*/*/{RECORD}")]
    found: set[Path] = set()
    for name in names:
        chosen = {
            RESULTS / place
            for place in places
            if name in (place.parts[0], place.parent.as_posix(), "/".join(place.parts[1:]))
            and re.fullmatch(_FOLDER, place.as_posix())
        }
        if not chosen:
            needed = "EXPERIMENT, EXPERIMENT/KIND or KIND/LABEL-KEY, as `precfm ls EXPERIMENT` lists them, is needed"
            raise PrecfmError(f"{name!r}: no complete artifact in {RESULTS}/ is called that; {needed}")
        found |= chosen
    return sorted(found)


def export_artifacts(folders: Sequence[Path], to: Path) -> Manifest:
    """Write artifacts into a tar file.

    Args:
        folders: `results/<experiment>/<kind>/<label>-<key>`, as `find_artifacts` gives them.
        to: the file; it must not exist yet.

    Raises:
        PrecfmError: an artifact is damaged, or the file exists.
    """
    if to.exists():
        raise PrecfmError(f"--to: '{to}' is there already; the name of a new file is needed")
    paths = [folder / name for folder in folders for name in _files_of_whole(folder)]
    manifest = Manifest(files={path.relative_to(RESULTS).as_posix(): path.stat().st_size for path in paths})
    to.parent.mkdir(parents=True, exist_ok=True)
    part = to.with_name(f".{to.name}.part")
    with tarfile.open(part, "w", format=tarfile.PAX_FORMAT) as archive:
        text = canonical(manifest.model_dump()).encode()
        archive.addfile(_header(MANIFEST, len(text)), io.BytesIO(text))
        for name, size in sorted(manifest.files.items()):
            with (RESULTS / name).open("rb") as content:
                archive.addfile(_header(name, size), content)
    part.rename(to)
    return manifest


def _files_of_whole(folder: Path) -> list[str]:
    """The names of an artifact's files, its record's included, once every byte is found right."""
    report = Report()
    record = check_artifact(report, folder)
    if record is None or report.findings:
        raise PrecfmError(str(report.findings[0]))
    return [RECORD, *record["files"]]


def _header(name: str, size: int) -> tarfile.TarInfo:
    """A member's header without times and owners."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member


@dataclass(frozen=True)
class Imported:
    """What an import did; artifacts by `experiment/kind/label-key`.

    Attributes:
        placed: came into place.
        kept: were there already, equal.
        different: are there with other bytes, and were left as they are.
        refused: are not what a manifest of this project says of them, and were left out.
    """

    placed: list[str]
    kept: list[str]
    different: list[str]
    refused: list[str]


def import_artifacts(file: Path) -> Imported:
    """Verify an archive and put its artifacts in place; what is there already stays as it is.

    Raises:
        PrecfmError: it is no archive of `export_artifacts`, anything in it is missing, damaged or not as listed, or a
            manifest of this project is damaged; then nothing was put in place.
    """
    work = RESULTS / ".work"
    (work / "locks").mkdir(parents=True, exist_ok=True)
    with FileLock(work / "locks" / "import.lock"):
        for left in (work / "parts").glob("import.*"):  # by a killed import: this one holds the lock
            remove(left)
        staging = work / "parts" / f"import.part-{socket.gethostname()}-{os.getpid()}"
        staging.mkdir(parents=True)
        try:
            return _put_all(staging, _unpack(file, staging))
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _unpack(file: Path, staging: Path) -> list[str]:
    """The artifacts of an archive, unpacked into a folder of our own and whole."""
    try:
        with tarfile.open(file, "r:") as archive:
            first, *members = archive.getmembers()
            content = archive.extractfile(first) if first.name == MANIFEST else None
            if content is None:
                raise PrecfmError(f"its first member is not {MANIFEST}")
            files = parsed(Manifest, content.read()).files
            if [member.name for member in members] != sorted(files):
                raise PrecfmError(f"its members are not those that {MANIFEST} lists")
            for member in members:
                if not member.isreg() or member.issparse() or member.size != files[member.name]:
                    raise PrecfmError(f"{member.name} is no plain file of the listed size")
            for member in members:  # by hand: tarfile's own safe extraction came with Python 3.11.4
                source, place = archive.extractfile(member), staging / member.name
                assert source is not None, "a plain file"
                place.parent.mkdir(parents=True, exist_ok=True)
                with place.open("xb") as copy:
                    shutil.copyfileobj(source, copy)
        artifacts = sorted({"/".join(name.split("/")[:3]) for name in files})
        for artifact in artifacts:
            experiment, kind, _ = artifact.split("/")
            if kind not in KINDS or experiment == PUBLISHED.name:
                raise PrecfmError(f"{artifact} is no place of an artifact")
            _files_of_whole(staging / artifact)
        return artifacts
    except _UNREADABLE as error:
        what = " ".join(str(error).replace(f"{staging}/", "").split()) or type(error).__name__
        raise PrecfmError(f"{file}: no whole archive of `precfm export` ({what})") from None


def _put_all(staging: Path, artifacts: Sequence[str]) -> Imported:
    """Move what is not there yet into place, each under its lock; published numbers are never made from other bytes."""
    done = Imported([], [], [], [])
    published = published_entries(RESULTS)
    for name in artifacts:
        source, target, node_id = staging / name, RESULTS / name, name.partition("/")[2]
        kind, key = without_label(node_id).split("/")
        record = Artifact.open(source).record
        with FileLock(RESULTS / ".work" / "locks" / f"{kind}-{key}.lock"):
            if not all(agrees(record, entry, node_id) for entry in published.get(f"{kind}/{key}", ())):
                done.refused.append(name)
            elif not (target / RECORD).is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                remove(target)  # Snakemake's empty folder, or the remains of an incomplete pull
                source.rename(target)
                done.placed.append(name)
            elif file_sha256(target / RECORD) == file_sha256(source / RECORD):
                done.kept.append(name)
            else:
                done.different.append(name)
    return done
