"""The places that a data file can come from: a mirror, a URL, an npm package, a Python package, a folder.

Each hands over a stream of the file's bytes, decompressed. Nothing here is trusted: `sources.fetch` limits
what it reads to the size that the manifest states, and keeps it only if the checksum agrees.
"""

import gzip
import subprocess
import tarfile
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from precfm.datasets.manifest import Origin, SourceFile, file_sha256

URL_SECONDS = 30.0  # without a byte
NPM_SECONDS = 300.0
LARGEST_PACKAGE = 2**30  # bytes that are decompressed in search of a file


class OriginError(Exception):
    """Why an origin could not deliver a file."""


def open_file(origin: Origin, file: SourceFile, workspace: Path) -> AbstractContextManager[BinaryIO]:
    """A stream of the file's bytes.

    Args:
        origin: the place.
        file: the wanted file.
        workspace: a scratch folder; what one file needs to be downloaded as a whole is there for the next.

    Returns:
        A context manager; reading from its stream may raise OSError, EOFError, and what gzip and tarfile
        raise.

    Raises:
        OriginError: the origin does not have the file (on entering).
    """
    place = origin.place.replace("{file}", file.name)
    match origin.kind:
        case "url":
            return _from_url(place, file)
        case "npm":
            return _from_npm(place, file, workspace)
        case "python":
            return _from_python_package(place, file)
        case _:
            return _from_folder(Path(place), file)


class Mirror:
    """A folder that is searched for files by their checksums, whatever their names.

    Args:
        folder: the folder; every file below it counts.
        files: the files that will be looked for.
    """

    def __init__(self, folder: Path, files: tuple[SourceFile, ...]) -> None:
        self.folder = folder
        sizes = {file.bytes for file in files}
        names = {PurePosixPath(file.name).name + ".gz" for file in files}
        self._by_size: dict[int, list[Path]] = {}
        self._compressed: dict[str, list[Path]] = {}
        for path in sorted(folder.rglob("*")):
            if not path.is_file():
                continue
            size = path.stat().st_size
            if size in sizes:
                self._by_size.setdefault(size, []).append(path)
            if path.name in names:
                self._compressed.setdefault(path.name, []).append(path)

    def open(self, file: SourceFile) -> AbstractContextManager[BinaryIO]:
        """A stream of the file's bytes; files of the right name are tried first, then its compressed form.

        Raises:
            OriginError: no file below the folder has the checksum.
        """
        if not self.folder.is_dir():
            raise OriginError("is not a folder")
        name = PurePosixPath(file.name).name
        for path in sorted(self._by_size.get(file.bytes, []), key=lambda path: path.name != name):
            if file_sha256(path) == file.sha256:
                return _plain(path)
        for path in self._compressed.get(f"{name}.gz", []):
            return _decompressed(path)
        raise OriginError("no file below it has the checksum")


@contextmanager
def _plain(path: Path) -> Iterator[BinaryIO]:
    with path.open("rb") as stream:
        yield stream


@contextmanager
def _decompressed(path: Path) -> Iterator[BinaryIO]:
    with gzip.open(path) as stream:
        yield cast(BinaryIO, stream)


def _from_path(path: Path, file: SourceFile) -> AbstractContextManager[BinaryIO]:
    if not path.is_file():
        raise OriginError("there is no such file")
    return _decompressed(path) if _is_compressed_form(path.name, file) else _plain(path)


def _is_compressed_form(name: str, file: SourceFile) -> bool:
    return name.endswith(".gz") and not file.name.endswith(".gz")


def _from_folder(place: Path, file: SourceFile) -> AbstractContextManager[BinaryIO]:
    return _from_path(place / file.name if place.is_dir() else place, file)


def _from_python_package(place: str, file: SourceFile) -> AbstractContextManager[BinaryIO]:
    package, _, inside = place.partition("/")
    spec = find_spec(package)  # finds the package without running it
    if spec is None or not spec.submodule_search_locations:
        raise OriginError("the Python package is not installed")
    return _from_path(Path(spec.submodule_search_locations[0], inside), file)


@contextmanager
def _from_url(url: str, file: SourceFile) -> Iterator[BinaryIO]:
    if not url.startswith(("https://", "http://")):
        raise OriginError("only http and https are read")
    request = urllib.request.Request(url, headers={"User-Agent": "precfm"})
    with urllib.request.urlopen(request, timeout=URL_SECONDS) as response:
        if _is_compressed_form(url, file):
            with gzip.GzipFile(fileobj=response) as stream:
                yield cast(BinaryIO, stream)
        else:
            yield response


@contextmanager
def _from_npm(package: str, file: SourceFile, workspace: Path) -> Iterator[BinaryIO]:
    """Look into a package without unpacking it, so that no path inside it matters."""
    wanted, read = PurePosixPath(file.name).name, 0
    with tarfile.open(_npm_pack(package, workspace)) as archive:
        for member in archive:
            read += member.size
            if read > LARGEST_PACKAGE:
                raise OriginError(f"the package is larger than {LARGEST_PACKAGE} bytes")
            if member.isfile() and PurePosixPath(member.name).name == wanted:
                stream = archive.extractfile(member)
                assert stream is not None  # it is a regular file
                with stream:
                    yield cast(BinaryIO, stream)
                return
    raise OriginError(f"the package holds no {wanted}")


def _npm_pack(package: str, workspace: Path) -> Path:
    if package.startswith("-"):
        raise OriginError("is an option, no package")
    folder = workspace / f"npm-{package.replace('/', '-')}"
    if not folder.is_dir():
        folder.mkdir()
        command = ["npm", "pack", "--ignore-scripts", "--silent", package]
        try:
            subprocess.run(
                command, cwd=folder, capture_output=True, check=True, timeout=NPM_SECONDS, text=True
            )
        except FileNotFoundError:
            raise OriginError("npm is not installed") from None
        except subprocess.TimeoutExpired:
            raise OriginError(f"npm pack took more than {NPM_SECONDS:.0f} s") from None
        except subprocess.CalledProcessError as error:
            last = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise OriginError(f"npm pack failed: {last}") from None
    packed = sorted(folder.glob("*.tgz"))
    if not packed:
        raise OriginError("npm pack delivered nothing")
    return packed[0]
