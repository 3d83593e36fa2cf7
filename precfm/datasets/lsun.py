"""A category of LSUN: photographs as JPEG or WebP in an LMDB data base, inside a zip file."""

import io
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from precfm.core.errors import PrecfmError
from precfm.datasets.imagefolder import ImageFiles, ImageFolder

DATABASE = "data.mdb"
BLOCK = 2**24  # bytes that are read at once


class LSUN(ImageFolder):
    """Photographs of one class, resized and cropped as `imagefolder` does.

    The data base is unpacked beside the zip file once, and again where it is not what the zip file holds. Needs the
    package lmdb.

    Args:
        inherited: as `imagefolder`.

    References:
        Yu et al., "LSUN", https://arxiv.org/abs/1506.03365
    """

    def __init__(self, *, source: str = "lsun_church", **inherited: Any) -> None:
        super().__init__(source=source, **inherited)

    @contextmanager
    def _files(self, folder: Path) -> Iterator[ImageFiles]:
        try:
            import lmdb
        except ImportError:
            raise PrecfmError(
                f"{self.source}: needs lmdb, which is not installed; pip install lmdb, or export the images to a "
                "folder and use imagefolder"
            ) from None
        where = _database(folder)
        try:
            database = lmdb.open(str(where.parent), readonly=True, lock=False, readahead=False)
        except lmdb.Error as error:
            raise PrecfmError(f"{where}: is no LMDB data base ({error}); fetch the data again") from None
        with database, database.begin(buffers=True) as transaction:
            names = [bytes(key).decode() for key in transaction.cursor().iternext(values=False)]
            if not names:
                raise PrecfmError(f"{where}: holds no images")

            def open_image(name: str) -> IO[bytes]:
                return io.BytesIO(transaction.get(name.encode(), b""))

            yield ImageFiles(where, sorted(names), open_image)


def _database(folder: Path) -> Path:
    """The data base below a folder: that of the zip file there, unpacked if need be, or one that lies open."""
    for packed in sorted(folder.glob("*.zip")):  # first, since their checksums are in the manifest
        try:
            with zipfile.ZipFile(packed) as archive:
                for member in archive.infolist():
                    if Path(member.filename).name == DATABASE:
                        target = folder / packed.stem / DATABASE
                        return target if _is_unpacked(member, target) else _unpacked(archive, member, target)
        except (zipfile.BadZipFile, zlib.error) as error:
            raise PrecfmError(f"{packed}: is no readable zip file ({error}); fetch the data again") from None
    if found := sorted(folder.rglob(DATABASE)):
        return found[0]
    raise PrecfmError(f"{folder}: holds neither {DATABASE} nor a zip file with it; fetch the data first")


def _is_unpacked(member: zipfile.ZipInfo, file: Path) -> bool:
    """Whether a file is what a zip file holds, by size and CRC-32."""
    if not file.is_file() or file.stat().st_size != member.file_size:
        return False
    found = 0
    with file.open("rb") as stream:
        while block := stream.read(BLOCK):
            found = zlib.crc32(block, found)
    return found == member.CRC


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> Path:
    """The file, whole: the part is renamed once zipfile has found the CRC-32 right at its end."""
    target.parent.mkdir(exist_ok=True)
    part = target.with_suffix(f".{os.getpid()}.part")  # another job may unpack it, too
    try:
        with archive.open(member) as source, part.open("wb") as unpacked:
            shutil.copyfileobj(source, unpacked, BLOCK)
        return part.replace(target)
    finally:
        part.unlink(missing_ok=True)
