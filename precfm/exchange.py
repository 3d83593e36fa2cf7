"""Artifacts as tar files of bounded size, for sharing where there is no DVC remote: `precfm export` and `import`.

An export is a folder of volumes `precfm-0001.tar`, `precfm-0002.tar`, ... with a `manifest.json` that names every file
with its size and SHA-256, and every artifact with the SHA-256 of its record. A volume holds whole artifacts; one that
is larger than the bound is cut into `precfm-0003.tar.001`, `.002`, ..., which joined are a tar file again. The bytes
depend on nothing but the artifacts.

Nothing in an export is trusted. What is read is limited to the sizes that were announced, members must come exactly in
the order of manifest and records (so there is no place for a link, a path that leads elsewhere, or anything unknown),
and no artifact is put in place before all of them have been found right.
"""

import hashlib
import io
import json
import os
import re
import shutil
import socket
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Any, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from precfm.artifacts import RECORD, RESULTS, Artifact, record_checksum
from precfm.datasets.manifest import file_sha256
from precfm.errors import PrecfmError
from precfm.experiments import NAME
from precfm.plan import KINDS
from precfm.store import remove

MANIFEST = "manifest.json"
SMALLEST_BOUND = 2**16
LARGEST_TEXT = 2**26  # bytes of a manifest or of a record
BLOCK = 2**20
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_UNREADABLE = (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError)

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Bytes = Annotated[int, Field(ge=0)]
_SAFE = r"[A-Za-z0-9][A-Za-z0-9._=+-]*"


class _Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class PackedFile(_Plain):
    """One file of an export."""

    name: Annotated[str, Field(pattern=r"^precfm-[0-9]{4,}\.tar(\.[0-9]{3,})?$")]
    bytes: Bytes
    sha256: Sha256


class PackedArtifact(_Plain):
    """One artifact of an export: where it belongs, and the checksum of its record."""

    experiment: Annotated[str, Field(pattern=f"^{NAME}$")]
    id: Annotated[str, Field(pattern=rf"^[a-z_]+/{_SAFE}-[0-9a-f]{{12}}$")]
    record: Sha256


class Volume(_Plain):
    """One tar file, in one or more pieces."""

    files: Annotated[list[PackedFile], Field(min_length=1)]
    artifacts: Annotated[list[PackedArtifact], Field(min_length=1)]


class Manifest(_Plain):
    """What an export consists of."""

    format: Literal[1] = 1
    volumes: Annotated[list[Volume], Field(min_length=1)]


class _Payload(BaseModel):
    model_config = ConfigDict(strict=True)
    sha256: Sha256
    bytes: Bytes


class _Record(BaseModel):
    """What `artifact.json` must hold; see `precfm.artifacts`."""

    model_config = ConfigDict(strict=True)
    kind: str
    key: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    params: dict[str, Any]
    parents: dict[str, list[str]]
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]+$")]
    files: dict[str, _Payload]
    made_on: dict[str, Any]


@dataclass(frozen=True)
class Imported:
    """What an import did; artifacts by `experiment/kind/label-key`.

    Attributes:
        placed: came into place.
        kept: were here already, equal.
        different: are here with other bytes, and were left as they are.
    """

    placed: tuple[str, ...]
    kept: tuple[str, ...]
    different: tuple[str, ...]


def parse_size(text: str) -> int:
    """A number of bytes from text such as `16MiB`, `2 GB` or `1000000`.

    Raises:
        PrecfmError: it is no size, or below `SMALLEST_BOUND`.

    Example:
        >>> parse_size("16MiB"), parse_size("2 GB")
        (16777216, 2000000000)
    """
    match = re.fullmatch(r"\s*(\d+)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise PrecfmError(f"size: '{text}' should be a whole number with a unit, such as 16MiB or 1GB")
    size = int(match[1]) * _UNITS[match[2].upper()]
    if size < SMALLEST_BOUND:
        raise PrecfmError(f"size: '{text}' should be at least {SMALLEST_BOUND // 1024}KiB")
    return size


def find_artifacts(names: Iterable[str]) -> list[Path]:
    """The folders of artifacts that lie in results/.

    Args:
        names: each EXPERIMENT, EXPERIMENT/KIND, or KIND/LABEL-KEY (in whichever experiment holds it). An experiment
            may be called as a kind is.

    Raises:
        PrecfmError: a name fits no complete artifact.
    """
    found: dict[Path, None] = {}
    for name in names:
        head, _, tail = name.partition("/")
        one = False
        if re.fullmatch(NAME, head) and tail in ("", *KINDS) and (RESULTS / head).is_dir():
            kinds = [tail] if tail else list(KINDS)
            folders = [folder for kind in kinds for folder in sorted((RESULTS / head / kind).glob("*"))]
        elif head in KINDS and re.fullmatch(_SAFE, tail):
            one = True
            folders = [home / head / tail for home in sorted(RESULTS.glob("[!.]*"))]
        else:
            folders = []
        complete = [folder for folder in folders if (folder / RECORD).is_file()]
        if not complete:
            raise PrecfmError(
                f"{name}: no complete artifact in {RESULTS}/ is called so; an experiment, EXPERIMENT/KIND or "
                "KIND/LABEL-KEY is needed, and `precfm ls EXPERIMENT` lists them"
            )
        found.update(dict.fromkeys(complete[:1] if one else complete))
    return list(found)


# ---- export


def export_artifacts(folders: Sequence[Path], to: Path, max_size: int) -> Manifest:
    """Pack artifacts into tar files.

    Args:
        folders: `results/<experiment>/<kind>/<label>-<key>`, as `find_artifacts` gives them.
        to: a folder that is empty or does not exist yet; its manifest is written last.
        max_size: no file is larger than that, in bytes.

    Raises:
        PrecfmError: an artifact is damaged, or the folder holds something.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise PrecfmError(f"--to: '{to}' holds something already; a new or empty folder is needed")
    artifacts = [_members(folder) for folder in folders]
    to.mkdir(parents=True, exist_ok=True)
    volumes = []
    for number, group in enumerate(_groups(artifacts, max_size), start=1):
        parts = _Parts(to, f"precfm-{number:04d}.tar", max_size, cut=_tar_size(group) > max_size)
        with parts, tarfile.open(fileobj=parts, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            for _, members in group:
                for info, path in members:
                    with path.open("rb") as stream:
                        archive.addfile(info, stream)
        volumes.append(Volume(files=parts.files, artifacts=[packed for packed, _ in group]))
    manifest = Manifest(volumes=volumes)
    text = json.dumps(manifest.model_dump(), indent=1, sort_keys=True) + "\n"
    (to / MANIFEST).write_text(text, encoding="utf-8")
    return manifest


_Members = tuple[PackedArtifact, list[tuple[tarfile.TarInfo, Path]]]


def _members(folder: Path) -> _Members:
    """The record of an artifact that was found right, then its payload by name."""
    experiment, kind, name = folder.parts[-3:]
    text = (folder / RECORD).read_bytes()
    names = [RECORD, *sorted(checked_record(text, f"{kind}/{name}").files)]
    Artifact.open(folder).verified()
    members = [(_info(f"{kind}/{name}/{file}", folder / file), folder / file) for file in names]
    record = hashlib.sha256(text).hexdigest()
    return PackedArtifact(experiment=experiment, id=f"{kind}/{name}", record=record), members


def _info(name: str, path: Path) -> tarfile.TarInfo:
    """A member's header without times and owners."""
    info = tarfile.TarInfo(name)
    info.size = path.stat().st_size
    return info


def _groups(artifacts: Sequence[_Members], max_size: int) -> Iterator[list[_Members]]:
    """Consecutive artifacts that fit into one file; one that is too large stays alone."""
    group: list[_Members] = []
    for artifact in artifacts:
        if group and _tar_size([*group, artifact]) > max_size:
            yield group
            group = []
        group.append(artifact)
    if group:
        yield group


def _tar_size(group: Sequence[_Members]) -> int:
    """The size of a tar file: headers, contents in whole blocks, the end, all in whole records."""
    size = 2 * tarfile.BLOCKSIZE
    for _, members in group:
        for info, _ in members:
            header = len(info.tobuf(tarfile.PAX_FORMAT, tarfile.ENCODING, "surrogateescape"))
            size += header + _whole(info.size, tarfile.BLOCKSIZE)
    return _whole(size, tarfile.RECORDSIZE)


def _whole(size: int, unit: int) -> int:
    return -(-size // unit) * unit


class _Parts(io.RawIOBase):
    """A stream for writing that goes on in the next file when one is full, and knows their checksums.

    Args:
        folder: where the files are made.
        name: of the file; with `cut`, its pieces are `<name>.001`, ...
        bound: bytes of a piece.
        cut: whether there will be pieces.
    """

    def __init__(self, folder: Path, name: str, bound: int, *, cut: bool) -> None:
        self.folder, self.name, self.bound, self.cut = folder, name, bound, cut
        self.files: list[PackedFile] = []
        self._file: IO[bytes] | None = None

    def write(self, data: Any) -> int:
        """Write everything."""
        rest = memoryview(data)
        while rest:
            file = self._file or self._start()
            piece = rest[: self.bound - file.tell()] if self.cut else rest
            file.write(piece)
            self._digest.update(piece)
            rest = rest[len(piece) :]
            if self.cut and file.tell() == self.bound:
                self._end()
        return len(data)

    def _start(self) -> IO[bytes]:
        name = f"{self.name}.{len(self.files) + 1:03d}" if self.cut else self.name
        self._file, self._digest = (self.folder / name).open("xb"), hashlib.sha256()
        return self._file

    def _end(self) -> None:
        if self._file is not None:
            name, size = Path(self._file.name).name, self._file.tell()
            self._file.close()
            self._file = None
            self.files.append(PackedFile(name=name, bytes=size, sha256=self._digest.hexdigest()))

    def close(self) -> None:
        """Close the last file."""
        self._end()
        super().close()


# ---- import


def import_artifacts(places: Sequence[Path]) -> Imported:
    """Verify an export and put its artifacts in place; what is here already stays as it is.

    Args:
        places: folders made by `export_artifacts`, or single files of such folders, beside whose manifest they lie;
            of a file, the volume that it belongs to is imported.

    Raises:
        PrecfmError: anything is missing, damaged or not as announced; then nothing was put in place.
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
        raise PrecfmError(f"{file}: {_first(error)}; the manifest of an export is needed") from None
    if place in (folder, file):
        return [(folder, volume) for volume in manifest.volumes]
    chosen = [volume for volume in manifest.volumes if place.name in {file.name for file in volume.files}]
    if not chosen:
        raise PrecfmError(f"{place}: the manifest beside it does not know this file")
    return [(folder, volume) for volume in chosen]


def _first(error: ValidationError) -> str:
    """The first thing that is wrong, with its place."""
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(str(part) for part in first['loc']) or 'the whole file'}: {first['msg']}"


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


def checked_record(text: bytes, artifact_id: str) -> _Record:
    """The record of an artifact, once it is what a record must be.

    Args:
        text: the contents of `artifact.json`.
        artifact_id: `kind/label-key`, where it was found.

    Raises:
        PrecfmError: a field is missing or malformed, its own checksum is wrong, it belongs to another artifact, or a
            file's name leads elsewhere.
    """
    where = f"{artifact_id}/{RECORD}"
    try:
        record = _Record.model_validate_json(text)
    except ValidationError as error:
        raise PrecfmError(f"{where}: {_first(error)}; the record of an artifact is needed") from None
    content = json.loads(text)
    if "checksum" in content and content["checksum"] != record_checksum(content):
        raise PrecfmError(f"{where}: damaged (its own checksum is wrong); fetch it anew")
    kind, _, name = artifact_id.partition("/")
    if kind not in KINDS or record.kind != kind or not name.endswith(f"-{record.key}"):
        raise PrecfmError(
            f"{where}: says it is {record.kind} {record.key}; it should be what its folder is called"
        )
    names = frozenset(record.files)
    for file in record.files:
        _check_file_name(file, names, where)
    return record


def _check_file_name(name: str, names: frozenset[str], where: str) -> None:
    """Refuse what leads out of the artifact, hides, or stands in another file's way."""
    path = PurePosixPath(name)
    plain = all(re.fullmatch(r"[A-Za-z0-9_=+:,@ -][A-Za-z0-9._=+:,@ -]*", part) for part in path.parts)
    if not plain or str(path) != name or not path.parts or name == RECORD:
        raise PrecfmError(f"{where}: file name {name!r} is none that a payload may have")
    if any(str(parent) in names for parent in path.parents):
        raise PrecfmError(f"{where}: {name!r} lies below a file")


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
    """Move what is not here yet into place, each under its lock."""
    placed, kept, different = [], [], []
    for packed, folder in staged.items():
        name = f"{packed.experiment}/{packed.id}"
        target = RESULTS / name
        kind, key = packed.id.split("/")[0], packed.id[-12:]
        with FileLock(RESULTS / ".work" / "locks" / f"{kind}-{key}.lock"):
            if not (target / RECORD).is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                remove(target)  # Snakemake's empty folder, or the remains of an incomplete pull
                folder.rename(target)
                placed.append(name)
            elif file_sha256(target / RECORD) == packed.record:
                kept.append(name)
            else:
                different.append(name)
    return Imported(tuple(placed), tuple(kept), tuple(different))
