"""A category of LSUN: photographs as JPEG or WebP in an LMDB data base, inside a zip file."""

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from precfm.core.errors import PrecfmError
from precfm.datasets.imagefolder import ImageFiles, ImageFolder

DATABASE = "data.mdb"


class LSUN(ImageFolder):
    """Photographs of one class, resized and cropped as `imagefolder` does.

    The data base is unpacked beside the zip file once. Needs the package lmdb.

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
    """The data base below a folder, unpacked from the zip file there if need be."""
    if found := sorted(folder.rglob(DATABASE)):
        return found[0]
    for packed in sorted(folder.glob("*.zip")):
        try:
            with zipfile.ZipFile(packed) as archive:
                for member in archive.namelist():
                    if Path(member).name == DATABASE:
                        target = folder / packed.stem / DATABASE
                        target.parent.mkdir(exist_ok=True)
                        part = target.with_suffix(".part")
                        with archive.open(member) as source, part.open("wb") as unpacked:
                            while block := source.read(2**24):
                                unpacked.write(block)
                        return part.replace(target)
        except zipfile.BadZipFile as error:
            raise PrecfmError(f"{packed}: is no readable zip file ({error}); fetch the data again") from None
    raise PrecfmError(f"{folder}: holds neither {DATABASE} nor a zip file with it; fetch the data first")
