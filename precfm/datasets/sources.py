"""Fetching data: from a mirror folder or the source's own origins, and kept only if the checksum agrees."""

import hashlib
import os
import secrets
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError

from precfm.core.errors import PrecfmError
from precfm.core.progress import progress_bar
from precfm.datasets.image_names import image_names, names_below
from precfm.datasets.manifest import (
    Origin,
    SourceFile,
    SourceManifest,
    add_source,
    file_sha256,
    source_manifest,
)
from precfm.datasets.origins import Mirror, OriginError, open_file

__all__ = ["Fetched", "SourceFile", "SourceManifest", "add_source", "fetch", "fetch_raw", "source_manifest"]

SOURCES = Path("data/sources.yaml")
RAW = Path("data/raw")
MIRROR = "PRECFM_MIRROR"  # environment variable: a folder that is searched before any other place
BLOCK = 2**20
NAMED = 3  # files that an error names
_UNREADABLE = (OriginError, OSError, EOFError, HTTPException, tarfile.TarError, zlib.error)
_Opener = Callable[[SourceFile], AbstractContextManager[BinaryIO]]


@dataclass(frozen=True)
class Fetched:
    """What happened to one file.

    Attributes:
        file: its name.
        origin: where it came from; "kept" if it was there already.
        refused: the origins that failed before, each with the reason.
    """

    file: str
    origin: str
    refused: tuple[str, ...] = ()

    def __str__(self) -> str:
        refused = f" (refused before: {'; '.join(self.refused)})" if self.refused else ""
        return f"{self.file}: {self.origin}{refused}"


def fetch_raw(name: str) -> tuple[Path, list[Fetched]]:
    """Bring a source's files to their place in this project, `data/raw/<name>`.

    Returns:
        That folder, and what happened to each file.
    """
    mirror = os.environ.get(MIRROR)
    return RAW / name, fetch(name, RAW / name, sources_file=SOURCES, mirror=Path(mirror) if mirror else None)


def fetch(name: str, folder: Path, *, sources_file: Path, mirror: Path | None = None) -> list[Fetched]:
    """Bring a source's files into a folder, each checked against its SHA-256.

    A file that is there and intact is kept. Any other is looked for by checksum below the mirror folder, then
    taken from the source's own origins in turn; whatever is wrong or truncated is refused and the next origin
    tried. A file appears under its name only when it is complete and right.

    Args:
        name: the source.
        folder: where its files shall lie.
        sources_file: data/sources.yaml.
        mirror: a folder to search first (the environment variable PRECFM_MIRROR), or None.

    Returns:
        What happened to each file, in the order of the manifest.

    Raises:
        PrecfmError: there is no such source, a file could not be had anywhere, the folder cannot be
            written, or it holds images that the manifest does not list.
    """
    manifest = source_manifest(name, sources_file)
    kept = [file for file in manifest.files if _is_intact(folder / file.name, file)]
    done = {file.name: Fetched(file.name, "kept") for file in kept}
    missing = [file for file in manifest.files if file.name not in done]
    if missing:
        refused: dict[str, list[str]] = {file.name: [] for file in missing}
        with (
            tempfile.TemporaryDirectory(prefix="precfm-") as workspace,
            progress_bar(sum(file.bytes for file in missing), f"fetching {name}") as progress,
        ):
            for place, opener in _openers(manifest, tuple(missing), sources_file, mirror, Path(workspace)):
                for file in _fetch_from(place, opener, missing, folder, refused):
                    origin = place.replace("{file}", file.name)
                    done[file.name] = Fetched(file.name, origin, tuple(refused[file.name]))
                    progress.update(file.bytes)
                missing = [file for file in missing if file.name not in done]
                if not missing:
                    break
            else:
                raise PrecfmError(_nowhere(name, missing, refused[missing[0].name], folder))
    strays = sorted(set(image_names(names_below(folder))) - done.keys())
    if strays:
        raise PrecfmError(
            f"{folder}: image '{strays[0]}' is not in the manifest of data source '{name}'; remove it, "
            "or register the folder anew with `precfm data add`"
        )
    return [done[file.name] for file in manifest.files]


def _fetch_from(
    place: str, opener: _Opener, files: list[SourceFile], folder: Path, refused: dict[str, list[str]]
) -> Iterator[SourceFile]:
    """Try one origin: yield the files that it delivered, note in `refused` why others failed."""
    unreachable = ""
    for file in files:
        try:
            if unreachable:  # one wait per host is enough
                raise OriginError(unreachable)
            with opener(file) as stream:
                _place(stream, file, folder / file.name)
        except _UNREADABLE as error:
            if isinstance(error, URLError) and not isinstance(error, HTTPError):
                unreachable = f"no connection, {error.reason}"
            reason = unreachable or " ".join(str(error).split()) or type(error).__name__
            refused[file.name].append(f"{place.replace('{file}', file.name)}: {reason}")
        else:
            yield file


def _openers(
    manifest: SourceManifest,
    files: tuple[SourceFile, ...],
    sources_file: Path,
    mirror: Path | None,
    workspace: Path,
) -> Iterator[tuple[str, _Opener]]:
    """The places to look, each with its description, in the order of trying."""
    if mirror is not None:
        yield f"PRECFM_MIRROR={mirror}", Mirror(mirror, files).open
    for origin in manifest.origins:
        place = str(sources_file.parent / origin.place) if origin.kind == "folder" else origin.place
        yield f"{origin.kind} {place}", partial(open_file, Origin(origin.kind, place), workspace=workspace)


def _is_intact(path: Path, file: SourceFile) -> bool:
    return path.is_file() and path.stat().st_size == file.bytes and file_sha256(path) == file.sha256


def _place(stream: BinaryIO, file: SourceFile, target: Path) -> None:
    """Copy a stream to a file, which appears only when its size and checksum are right.

    Raises:
        OriginError: the bytes are not the file's.
        PrecfmError: they could not be written.
    """
    part = target.with_name(f".{target.name}.part-{secrets.token_hex(4)}")
    digest, size = hashlib.sha256(), 0
    try:
        with _writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            output = part.open("xb")
        with output:
            while block := stream.read(min(BLOCK, file.bytes + 1 - size)):
                digest.update(block)
                size += len(block)
                with _writing(target):
                    output.write(block)
                    output.flush()
        if size != file.bytes:
            found = f"truncated at {size} of" if size < file.bytes else "longer than"
            raise OriginError(f"{found} {file.bytes} bytes")
        if digest.hexdigest() != file.sha256:
            raise OriginError(
                f"wrong checksum, SHA-256 {digest.hexdigest()[:12]}... instead of {file.sha256[:12]}..."
            )
        with _writing(target):
            part.replace(target)
    finally:
        with suppress(OSError):  # it was moved, or never made
            part.unlink()


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Tell failures of our own disk from those of an origin: another origin would not help."""
    try:
        yield
    except OSError as error:
        raise PrecfmError(
            f"{target}: cannot be written ({error.strerror}); free space or mend the permissions"
        ) from None


def _nowhere(name: str, lost: list[SourceFile], tried: list[str], folder: Path) -> str:
    names = ", ".join(file.name for file in lost[:NAMED])
    more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
    reasons = "; ".join(tried) or "it has no origins"
    return (
        f"data source '{name}': {names}{more} could not be had (tried for {lost[0].name}: {reasons}); "
        f"set PRECFM_MIRROR to a folder that holds the missing files, or put them into {folder} "
        f"(their SHA-256 are in data/sources.yaml)"
    )
