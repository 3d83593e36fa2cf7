"""Your own images: a folder or zip file of them, the class being the folder that an image lies in."""

import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor
from tqdm import tqdm

from precfm.core.errors import PrecfmError
from precfm.core.options import Count, checked
from precfm.datasets.image_names import IMAGE_SUFFIXES, class_name, image_names, names_below
from precfm.datasets.images import Images

LARGEST_FILE = 2**28  # bytes of one image inside a zip file
WITHOUT_FOLDER = "images"  # the one class of images that lie in no folder
_CORRUPT = (
    OSError,
    SyntaxError,  # what Pillow raises for a broken PNG
    ValueError,
    RuntimeError,  # an encrypted zip file
    zipfile.BadZipFile,
    zlib.error,
    Image.DecompressionBombError,
)

_Open = Callable[[str], IO[bytes]]


class ImageFolder:
    """Images of any size and format, resized and cropped to squares.

    Only the innermost folder counts: `train/daisy/1.jpg` and `daisy/2.jpg` are both of class `daisy`. Hidden
    files and files without an image's suffix are left aside.

    Args:
        source: the name under which the images stand in data/sources.yaml.
        resolution: height and width in pixels.
        channels: 3 for colour, 1 for grey.

    Attributes:
        counts: empty: only the files tell how many images there are.
    """

    counts: tuple[int, ...] = ()

    @checked
    def __init__(
        self, *, source: str = "imagefolder", resolution: Count = 64, channels: Literal[1, 3] = 3
    ) -> None:
        self.source = source
        self.resolution = resolution
        self.channels = channels

    def load(self, folder: Path) -> Images:
        """Read every image, in the order of their names.

        Args:
            folder: a folder of images, or one that holds a single zip file of them.

        Returns:
            Images with the sorted folder names as classes; there is no official split.

        Raises:
            PrecfmError: there are no images, one is corrupt, or some lie in folders and others in none.
        """
        with open_images(folder) as files:
            labels, class_names = files.labels()
            pixels = torch.empty(
                len(files.names), self.channels, self.resolution, self.resolution, dtype=torch.uint8
            )
            for row in tqdm(range(len(pixels)), "reading images", leave=False, disable=None):
                pixels[row] = files.read(row, self.channels, self.resolution)
        return Images(pixels, labels, class_names)


@dataclass(frozen=True)
class ImageFiles:
    """Images in a folder or an open zip file; each is read when it is asked for.

    Attributes:
        where: the folder or zip file.
        names: of the images, sorted.
        open: gives the bytes of the image of that name.
    """

    where: Path
    names: list[str]
    open: _Open

    def labels(self) -> tuple[Tensor, tuple[str, ...]]:
        """Class of each image, int64, shape (n,), and the sorted folder names that they count.

        Raises:
            PrecfmError: some images lie in folders and others in none.
        """
        classes = [class_name(name) for name in self.names]
        known = sorted(set(classes))
        if "" in known and len(known) > 1:
            loose = self.names[classes.index("")]
            raise PrecfmError(f"{self.where}: '{loose}' lies in no class's folder, although other images do")
        position = {name: index for index, name in enumerate(known)}
        labels = torch.tensor([position[name] for name in classes], dtype=torch.int64)
        return labels, tuple(name or WITHOUT_FOLDER for name in known)

    def read(self, row: int, channels: int, resolution: int | None = None) -> Tensor:
        """One image, uint8, shape (channels, height, width).

        Args:
            row: its position among the names.
            channels: 3 for colour, 1 for grey.
            resolution: height and width of the square that it is resized and cropped to; None leaves its size.

        Raises:
            PrecfmError: it is corrupt.
        """
        name = self.names[row]
        try:
            with self.open(name) as stream, Image.open(stream) as image:
                upright = ImageOps.exif_transpose(image)
                plain = _without_depth_and_alpha(upright).convert("L" if channels == 1 else "RGB")
                if resolution is not None:
                    plain = ImageOps.fit(plain, (resolution,) * 2, Image.Resampling.BICUBIC)
        except _CORRUPT as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise PrecfmError(
                f"{self.where}: image '{name}' is corrupt ({reason}); replace or remove it"
            ) from None
        pixels: Tensor = pil_to_tensor(plain)
        return pixels


@contextmanager
def open_images(folder: Path) -> Iterator[ImageFiles]:
    """Look which images a folder, or the single zip file in it, holds.

    Raises:
        PrecfmError: there is no such folder, it holds no images, or its zip file is broken.
    """
    with _collection(folder) as (where, names, open_image):
        if not names:
            endings = ", ".join(sorted(IMAGE_SUFFIXES))
            raise PrecfmError(f"{where}: holds no images; files that end in {endings} are needed")
        yield ImageFiles(where, names, open_image)


def _without_depth_and_alpha(image: Image.Image) -> Image.Image:
    """An image with 8 bits per channel, laid over white where it is transparent."""
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels have no known range; save it with 8 or 16 bits")
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured)
    return image


@contextmanager
def _collection(folder: Path) -> Iterator[tuple[Path, list[str], _Open]]:
    """Where the images are, their sorted names, and how to open one."""
    if not folder.is_dir():
        raise PrecfmError(f"{folder}: there is no such folder; fetch the data first")
    files = names_below(folder)
    names, zips = image_names(files), sorted(name for name in files if name.lower().endswith(".zip"))
    if names or not zips:
        yield folder, names, lambda name: (folder / name).open("rb")
        return
    if len(zips) > 1:
        raise PrecfmError(f"{folder}: holds {len(zips)} zip files ({', '.join(zips)}); leave one")
    try:
        archive = zipfile.ZipFile(folder / zips[0])
    except (OSError, zipfile.BadZipFile) as error:
        raise PrecfmError(f"{folder / zips[0]}: is no readable zip file ({error})") from None
    with archive:
        yield folder / zips[0], image_names(archive.namelist()), partial(_open_member, archive)


def _open_member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    size = archive.getinfo(name).file_size
    if size > LARGEST_FILE:
        raise ValueError(f"it has {size} bytes, more than the {LARGEST_FILE} that are read")
    return archive.open(name)
