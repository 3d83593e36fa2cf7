"""Packing: which artifacts, into which volumes."""

import hashlib
import io
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from precfm.audit.archive.manifest import (
    MANIFEST,
    SAFE_NAME,
    Manifest,
    PackedArtifact,
    PackedFile,
    Volume,
    checked_record,
)
from precfm.core.errors import PrecfmError
from precfm.pipeline.artifact import Artifact
from precfm.pipeline.experiments import NAME
from precfm.pipeline.manifest import canonical
from precfm.pipeline.node import RECORD, RESULTS
from precfm.pipeline.plan import KINDS

SMALLEST_BOUND = 2**16
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


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
        elif head in KINDS and re.fullmatch(SAFE_NAME, tail):
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
    (to / MANIFEST).write_text(canonical(manifest.model_dump()), encoding="utf-8")
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
