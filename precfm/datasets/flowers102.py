"""Oxford Flowers 102: 8,189 photographs of flowers, in a tar file with the labels beside it."""

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from scipy.io import loadmat
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.datasets.image_names import image_names
from precfm.datasets.imagefolder import ImageFiles, ImageFolder

ARCHIVE, LABELS = "102flowers.tgz", "imagelabels.mat"


class Flowers102(ImageFolder):
    """The photographs of Oxford Flowers 102, resized and cropped as `imagefolder` does.

    Its division into three parts is left aside: what it calls training images are a ninth of them.

    Args:
        inherited: as `imagefolder`, without `source`.

    References:
        Nilsback, Zisserman, "Automated flower classification over a large number of classes", ICVGIP 2008.
    """

    counts: tuple[int, ...] = (8189,)
    class_names = tuple(map(str, range(1, 103)))

    def __init__(self, *, source: str = "flowers102", **inherited: Any) -> None:
        super().__init__(source=source, **inherited)

    @contextmanager
    def _files(self, folder: Path) -> Iterator[ImageFiles]:
        """The members of the tar file; it is compressed as a whole, so their bytes (345 MB) are kept."""
        where = folder / ARCHIVE
        try:
            with tarfile.open(where) as archive:
                held: dict[str, bytes] = {}
                for member in archive:
                    if member.isfile() and image_names([member.name]):
                        opened = archive.extractfile(member)
                        assert opened is not None  # a file
                        held[member.name] = opened.read()
        except (OSError, EOFError, tarfile.TarError) as error:
            raise PrecfmError(f"{where}: is no readable tar file ({error}); fetch the data again") from None

        def open_member(name: str) -> IO[bytes]:
            return io.BytesIO(held[name])

        yield ImageFiles(where, sorted(held), open_member)

    def _labels(self, folder: Path, files: ImageFiles) -> tuple[Tensor, tuple[str, ...]]:
        where = folder / LABELS
        try:
            labels = torch.from_numpy(loadmat(where)["labels"][0].astype("int64")) - 1
        except (OSError, KeyError, ValueError) as error:
            raise PrecfmError(f"{where}: holds no labels ({error}); fetch the data again") from None
        if len(labels) != len(files.names):
            raise PrecfmError(f"{where}: holds {len(labels)} labels; {len(files.names)} are needed")
        return labels, self.class_names
