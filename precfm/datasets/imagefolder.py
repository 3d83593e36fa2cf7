"""Your own images: a folder or zip file of them, the class being the folder that an image lies in."""

import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from precfm.datasets.image_names import class_name, image_names, names_below
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
        with _collection(folder) as (where, names, open_image):
            classes = [class_name(name) for name in names]
            if not names:
                raise PrecfmError(f"{where}: holds no images")
            if "" in classes and len(set(classes)) > 1:
                loose = names[classes.index("")]
                raise PrecfmError(f"{where}: '{loose}' lies in no class's folder, although other images do")
            known = sorted(set(classes))
            pixels = torch.empty(
                len(names), self.channels, self.resolution, self.resolution, dtype=torch.uint8
            )
            for row, name in enumerate(tqdm(names, "reading images", leave=False, disable=None)):
                pixels[row] = self._read(where, name, open_image)
        labels = torch.tensor([known.index(name) for name in classes], dtype=torch.int64)
        return Images(pixels, labels, tuple(name or WITHOUT_FOLDER for name in known))

    def _read(self, where: Path, name: str, open_image: _Open) -> Tensor:
        """One image, uint8, shape (channels, resolution, resolution)."""
        try:
            with open_image(name) as stream, Image.open(stream) as image:
                upright = ImageOps.exif_transpose(image)
                plain = _without_depth_and_alpha(upright).convert("L" if self.channels == 1 else "RGB")
                square = ImageOps.fit(plain, (self.resolution,) * 2, Image.Resampling.BICUBIC)
        except _CORRUPT as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise PrecfmError(
                f"{where}: image '{name}' is corrupt ({reason}); replace or remove it"
            ) from None
        pixels: Tensor = pil_to_tensor(square)
        return pixels


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
