"""Fetching data: from a mirror folder or the source's own origins, and kept only if the checksum agrees."""

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tqdm import tqdm

from precfm.core.errors import PrecfmError
from precfm.datasets.image_names import image_names, names_below
from precfm.datasets.manifest import Origin, SourceFile, SourceManifest, file_sha256, source_manifest
from precfm.datasets.origins import Mirror, OriginError, UnreachableError, read

SOURCES = Path("data/sources.yaml")
RAW = Path("data/raw")
MIRROR = "PRECFM_MIRROR"  # environment variable: a folder that is searched before any other place
NAMED = 3  # files that an error names


@dataclass(frozen=True)
class Fetched:
    """What happened to one file.

    Attributes:
        file: its name.
        origin: where it came from; "kept" if it was there already; empty if it could not be had.
        refused: the origins that failed before, each with the reason.
    """

    file: str
    origin: str
    refused: tuple[str, ...] = ()

    def __str__(self) -> str:
        refused = f" (refused before: {'; '.join(self.refused)})" if self.refused else ""
        return f"{self.file}: {self.origin}{refused}"


def mirror_folder() -> Path | None:
    """The folder that the environment variable PRECFM_MIRROR names."""
    folder = os.environ.get(MIRROR)
    return Path(folder) if folder else None


def place_here(source: SourceManifest) -> str:
    """Where all files of a source are to be had without a network, in words; empty if nowhere."""
    raw = RAW / source.name
    if source.listed and all(_is_in(raw, file) for file in source.files):
        return f"in {raw}"
    mirror = mirror_folder()
    with suppress(OriginError):
        if mirror is not None and source.files and all(map(Mirror(mirror).find, source.files)):
            return f"in {mirror}"
    for origin in source.origins:
        if origin.kind == "python" and find_spec(package := origin.place.partition("/")[0]):
            return f"comes with the package {package}"
        if origin.kind == "folder" and (SOURCES.parent / origin.place).exists():
            return f"in {SOURCES.parent / origin.place}"
    return ""


def _is_in(folder: Path, file: SourceFile) -> bool:
    path = folder / file.name
    whole = path.is_file() and path.stat().st_size == file.bytes
    return whole or Path(f"{path}.gz").is_file()


def fetch_raw(name: str) -> tuple[Path, list[Fetched]]:
    """Bring a source's files to their place in this project, `data/raw/<name>`.

    Returns:
        That folder, and what happened to each file.
    """
    return RAW / name, fetch(name, RAW / name, sources_file=SOURCES, mirror=mirror_folder())


def fetch(name: str, folder: Path, *, sources_file: Path, mirror: Path | None = None) -> list[Fetched]:
    """Bring a source's files into a folder, each checked against its SHA-256.

    A file that is there and intact is kept; one that is there as NAME.gz is decompressed. Any other is looked for
    by checksum below the mirror folder, then taken from the source's own origins in turn; whatever is wrong or
    truncated is refused and the next origin tried. A file appears under its name only when it is complete and
    right.

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
    if not manifest.listed:
        raise PrecfmError(
            f"data source '{name}': its files are not listed on this machine; `precfm data add {name} FOLDER` lists "
            "those of the folder or zip file that you have"
        )
    places: dict[str, Origin | Mirror] = {f"{MIRROR}={mirror}": Mirror(mirror)} if mirror else {}
    for origin in manifest.origins:
        place = str(sources_file.parent / origin.place) if origin.kind == "folder" else origin.place
        places[f"{origin.kind} {place}"] = Origin(origin.kind, place)
    with tempfile.TemporaryDirectory(prefix="precfm-") as workspace:
        silent: dict[str, str] = {}
        files = tqdm(manifest.files, f"fetching {name}", leave=False, disable=None)
        fetched = [_fetch_file(file, folder, places, silent, Path(workspace)) for file in files]
    lost = [file for file in fetched if not file.origin]
    if lost:
        raise PrecfmError(_nowhere(name, lost, folder))
    strays = sorted(set(image_names(names_below(folder))) - {file.name for file in manifest.files})
    if strays:
        raise PrecfmError(
            f"{folder}: image '{strays[0]}' is not in the manifest of data source '{name}'; remove it, "
            "or register the folder anew with `precfm data add`"
        )
    return fetched


def _fetch_file(
    file: SourceFile,
    folder: Path,
    places: Mapping[str, Origin | Mirror],
    silent: dict[str, str],
    workspace: Path,
) -> Fetched:
    """Try one place after the other; `silent` gains those that cannot be reached, since one wait for each is enough."""
    target, refused = folder / file.name, []
    if target.is_file() and target.stat().st_size == file.bytes and file_sha256(target) == file.sha256:
        return Fetched(file.name, "kept")
    packed = f"{target}.gz"
    if Path(packed).is_file():
        places = {f"folder {packed}": Origin("folder", packed), **places}
    for place, origin in places.items():
        shown = place.replace("{file}", file.name)
        try:
            if place in silent:
                raise OriginError(silent[place])
            _write(read(origin, file, workspace), target, file.sha256)
        except OriginError as error:
            refused.append(f"{shown}: {error}")
            if isinstance(error, UnreachableError):
                silent[place] = str(error)
        else:
            return Fetched(file.name, shown, tuple(refused))
    return Fetched(file.name, "", tuple(refused))


def _write(blocks: Iterable[bytes], target: Path, sha256: str) -> None:
    """Write a file, which appears only when all of it is there and has the right checksum.

    Raises:
        OriginError: the bytes are not the file's.
        PrecfmError: they cannot be written, where another origin would not help.
    """
    part = target.with_name(f".{target.name}.part-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as output:
                output.writelines(blocks)
            if (found := file_sha256(part)) != sha256:
                raise OriginError(f"wrong checksum, SHA-256 {found[:12]}... instead of {sha256[:12]}...")
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise PrecfmError(
            f"{target}: cannot be written ({error.strerror}); free space and permission to write are needed"
        ) from None


def _nowhere(name: str, lost: Sequence[Fetched], folder: Path) -> str:
    names = ", ".join(file.file for file in lost[:NAMED])
    more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
    reasons = "; ".join(lost[0].refused) or "it has no origins"
    return (
        f"data source '{name}': {names}{more} could not be had (tried for {lost[0].file}: {reasons}); "
        f"set {MIRROR} to a folder that holds the missing files, or put them into {folder}, as they are or "
        "compressed as NAME.gz (SHA-256 of the decompressed files: data/sources.yaml)"
    )
