"""Unpacking: everything is verified in a folder of our own before anything is put in place."""

import hashlib
import io
import os
import shutil
import socket
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

from filelock import FileLock
from pydantic import ValidationError

from precfm.audit.archive.manifest import (
    LARGEST_TEXT,
    MANIFEST,
    Manifest,
    PackedArtifact,
    Volume,
    checked_record,
    first_mistake,
)
from precfm.core.errors import PrecfmError
from precfm.datasets.manifest import file_sha256
from precfm.pipeline.artifact import Artifact
from precfm.pipeline.files import remove
from precfm.pipeline.manifest import agrees, published_entries, without_label
from precfm.pipeline.node import RECORD, RESULTS

BLOCK = 2**20
_UNREADABLE = (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError)


@dataclass(frozen=True)
class Imported:
    """What an import did; artifacts by `experiment/kind/label-key`.

    Attributes:
        placed: came into place.
        kept: were here already, equal.
        different: are here with other bytes, and were left as they are.
        refused: are not what a manifest in results/ says of them, and were left out.
    """

    placed: tuple[str, ...]
    kept: tuple[str, ...]
    different: tuple[str, ...]
    refused: tuple[str, ...]


def import_artifacts(places: Sequence[Path]) -> Imported:
    """Verify an export and put its artifacts in place; what is here already stays as it is.

    Args:
        places: folders made by `export_artifacts`, or single files of such folders, beside whose manifest they lie;
            of a file, the volume that it belongs to is imported.

    Raises:
        PrecfmError: anything is missing, damaged or not as announced, or a manifest of this project is damaged; then
            nothing was put in place.
    """
    chosen = [volume for place in places for volume in _volumes(place)]
    volumes = list({(folder, volume.files[0].name): (folder, volume) for folder, volume in chosen}.values())
    work = RESULTS / ".work"
    (work / "locks").mkdir(parents=True, exist_ok=True)
    with FileLock(work / "locks" / "import.lock"):
        for rubbish in (work / "parts").glob("import.*"):  # of a killed import: this one holds the lock
            remove(rubbish)
        staging = work / "parts" / f"import.part-{socket.gethostname()}-{os.getpid()}"
        staging.mkdir(parents=True)
        try:
            _require_space(staging, sum(file.bytes for _, volume in volumes for file in volume.files))
            staged: dict[PackedArtifact, Path] = {}
            for number, (folder, volume) in enumerate(volumes):
                staged |= _unpack(folder, volume, staging / str(number))
            return _put_all(staged)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _volumes(place: Path) -> list[tuple[Path, Volume]]:
    """The volumes that a folder or a file stands for, each with the folder that it lies in."""
    folder = place if place.is_dir() else place.parent
    file = folder / MANIFEST
    try:
        if file.stat().st_size > LARGEST_TEXT:
            raise PrecfmError(f"{file}: has more than {LARGEST_TEXT} bytes; no export has such a manifest")
        manifest = Manifest.model_validate_json(file.read_bytes())
    except OSError as error:
        raise PrecfmError(
            f"{file}: {error.strerror or error}; an export is a folder with its manifest"
        ) from None
    except ValidationError as error:
        raise PrecfmError(f"{file}: {first_mistake(error)}; the manifest of an export is needed") from None
    if place in (folder, file):
        return [(folder, volume) for volume in manifest.volumes]
    chosen = [volume for volume in manifest.volumes if place.name in {file.name for file in volume.files}]
    if not chosen:
        raise PrecfmError(f"{place}: the manifest beside it does not know this file")
    return [(folder, volume) for volume in chosen]


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise PrecfmError(f"{folder}: {needed / 1e6:.0f} MB are needed, but {free / 1e6:.0f} MB are free")


def _unpack(folder: Path, volume: Volume, staging: Path) -> dict[PackedArtifact, Path]:
    """Unpack a volume into a folder of our own, checking everything on the way."""
    paths = []
    for file in volume.files:
        path = folder / file.name
        if not path.is_file():
            raise PrecfmError(f"{path}: is missing; the export is not complete without it")
        if path.stat().st_size != file.bytes or file_sha256(path) != file.sha256:
            raise PrecfmError(f"{path}: damaged (size or checksum differ from the manifest); fetch it anew")
        paths.append(path)
    staged = {}
    what = paths[0]
    try:
        with _Joined(paths) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            members = iter(archive)
            for packed in volume.artifacts:
                target = staging / packed.experiment / packed.id
                if target.exists():
                    raise PrecfmError(f"{what}: holds {packed.id} twice")
                _unpack_artifact(archive, members, packed, target, what)
                staged[packed] = target
            for member in islice(members, 1):
                raise PrecfmError(f"{what}: member {member.name!r} belongs to no artifact of the manifest")
    except PrecfmError:
        raise
    except _UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PrecfmError(f"{what}: is no tar file of an export ({reason})") from None
    return staged


def _unpack_artifact(
    archive: tarfile.TarFile,
    members: Iterator[tarfile.TarInfo],
    packed: PackedArtifact,
    target: Path,
    what: Path,
) -> None:
    """Unpack one artifact: its record, then exactly the files that the record lists."""
    with _member(archive, members, f"{packed.id}/{RECORD}", None, what) as stream:
        text = stream.read(LARGEST_TEXT + 1)
    if hashlib.sha256(text).hexdigest() != packed.record:
        raise PrecfmError(f"{what}: the record of {packed.id} has not the checksum of the manifest")
    record = checked_record(text, packed.id)
    target.mkdir(parents=True)
    (target / RECORD).write_bytes(text)
    for name, payload in sorted(record.files.items()):
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with (
            _member(archive, members, f"{packed.id}/{name}", payload.bytes, what) as stream,
            file.open("xb") as out,
        ):
            while block := stream.read(BLOCK):
                digest.update(block)
                out.write(block)
        if digest.hexdigest() != payload.sha256:
            raise PrecfmError(f"{what}: {packed.id}/{name} has not the checksum of its record")


@contextmanager
def _member(
    archive: tarfile.TarFile, members: Iterator[tarfile.TarInfo], name: str, size: int | None, what: Path
) -> Iterator[IO[bytes]]:
    """The next member, which must be a plain file of this name and size."""
    member = next(members, None)
    if member is None or member.name != name:
        found = "its end" if member is None else f"{member.name!r}"
        raise PrecfmError(f"{what}: {found} stands where {name!r} should; it was not made by `precfm export`")
    if not member.isreg() or member.issparse():
        raise PrecfmError(f"{what}: member {name!r} is no plain file")
    if member.size != size if size is not None else member.size > LARGEST_TEXT:
        raise PrecfmError(f"{what}: member {name!r} has {member.size} bytes, which is not what was announced")
    stream = archive.extractfile(member)
    assert stream is not None  # it is a plain file
    with stream:
        yield stream


class _Joined(io.RawIOBase):
    """Several files read as one stream."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._rest = list(paths)
        self._file: IO[bytes] | None = None

    def read(self, size: int = -1) -> bytes:
        """At most so many of the next bytes; none only at the end."""
        while self._file is not None or self._rest:
            if self._file is None:
                self._file = self._rest.pop(0).open("rb")
            if block := self._file.read(size):
                return block
            self.close_file()
        return b""

    def close_file(self) -> None:
        """Close the file that is being read."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        """Close everything."""
        self.close_file()
        super().close()


def _put_all(staged: dict[PackedArtifact, Path]) -> Imported:
    """Move what is not here yet into place, each under its lock; published numbers are never made from other bytes."""
    placed, kept, different, refused = [], [], [], []
    published = published_entries(RESULTS)
    for packed, folder in staged.items():
        name = f"{packed.experiment}/{packed.id}"
        target = RESULTS / name
        kind, key = without_label(packed.id).split("/")
        record = Artifact.open(folder).record
        with FileLock(RESULTS / ".work" / "locks" / f"{kind}-{key}.lock"):
            if not all(agrees(record, entry, packed.id) for entry in published.get(f"{kind}/{key}", ())):
                refused.append(name)
            elif not (target / RECORD).is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                remove(target)  # Snakemake's empty folder, or the remains of an incomplete pull
                folder.rename(target)
                placed.append(name)
            elif file_sha256(target / RECORD) == packed.record:
                kept.append(name)
            else:
                different.append(name)
    return Imported(tuple(placed), tuple(kept), tuple(different), tuple(refused))
