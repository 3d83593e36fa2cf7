"""Your own images: a folder or zip file of them, the class being the folder that an image lies in."""

import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Annotated, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor
from tqdm import tqdm

from precfm.core.errors import PrecfmError
from precfm.core.options import Count, Neutral, checked
from precfm.datasets.image_names import IMAGE_SUFFIXES, class_name, image_names, names_below
from precfm.datasets.images import Images
from precfm.datasets.streams import RowStream

LARGEST_FILE = 2**28  # bytes of one image inside a zip file
CROPS = {"center": 0.5, "top": 0.0}  # share of what is cut off that is cut off above
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
        resize: `short_side` keeps the shape of what is shown, and the square is cut out of it; `exact` presses the
            whole image into the square.
        crop: where the square is cut out.
        small: what happens to an image whose short side has fewer pixels than the square: `enlarge` it, or `refuse`.

    Attributes:
        counts: empty: only the files tell how many images there are.
    """

    counts: tuple[int, ...] = ()

    @checked
    def __init__(
        self,
        *,
        source: str = "imagefolder",
        resolution: Count = 64,
        channels: Literal[1, 3] = 3,
        resize: Annotated[Literal["short_side", "exact"], Neutral("short_side")] = "short_side",
        crop: Annotated[Literal["center", "top"], Neutral("center")] = "center",
        small: Annotated[Literal["enlarge", "refuse"], Neutral("enlarge")] = "enlarge",
    ) -> None:
        self.source = source
        self.resolution = resolution
        self.channels = channels
        self.resize = resize
        self.crop = crop
        self.small = small

    @contextmanager
    def open(self, folder: Path) -> Iterator[RowStream]:
        """Look which images there are; each is decoded when it is asked for.

        Prints how many of those that were asked for have other channels than wanted, or were enlarged.

        Args:
            folder: a folder of images, or one that holds a single zip file of them.

        Raises:
            PrecfmError: there are no images, one is corrupt or too small, or some lie in folders and others in none.
        """
        seen: dict[str, list[str]] = {}
        with self._files(folder) as files:
            labels, class_names = self._labels(folder, files)

            def read(rows: Tensor) -> Tensor:
                pixels = torch.empty(
                    len(rows), self.channels, self.resolution, self.resolution, dtype=torch.uint8
                )
                for place, row in enumerate(tqdm(rows.tolist(), "reading images", leave=False, disable=None)):
                    pixels[place] = pil_to_tensor(self._square(files, row, seen))
                return pixels

            shape = (self.channels, self.resolution, self.resolution)
            yield RowStream("images", shape, labels, class_names, read)
        for what, names in seen.items():
            print(f"{files.where}: {len(names)} images {what}, '{names[0]}' among them")

    def load(self, folder: Path) -> Images:
        """Read every image, in the order of their names.

        Args:
            folder: as for `open`.

        Returns:
            Images with the sorted folder names as classes; there is no official split.

        Raises:
            PrecfmError: as `open`.
        """
        with self.open(folder) as stream:
            pixels = stream.read(torch.arange(len(stream)))
            return Images(pixels, stream.labels, stream.class_names)

    def _files(self, folder: Path) -> AbstractContextManager["ImageFiles"]:
        return open_images(folder)

    def _labels(self, folder: Path, files: "ImageFiles") -> tuple[Tensor, tuple[str, ...]]:
        return files.labels()

    def _square(self, files: "ImageFiles", row: int, seen: dict[str, list[str]]) -> Image.Image:
        """One image of the resolution; notes its name under what had to be done to it."""
        image, mode, name = *files.decoded(row, self.channels), files.names[row]
        if image.mode != mode:
            seen.setdefault(f"are stored as {mode} and read as {image.mode}", []).append(name)
        if min(image.size) < self.resolution:
            if self.small == "refuse":
                raise PrecfmError(
                    f"small: got 'refuse', but image '{name}' in {files.where} has {image.width} x {image.height} "
                    f"pixels; at least {self.resolution} on each side are needed"
                )
            seen.setdefault(
                f"have fewer than {self.resolution} pixels on a side and are enlarged", []
            ).append(name)
        size = (self.resolution,) * 2
        if self.resize == "exact":
            return image.resize(size, Image.Resampling.BICUBIC)
        return ImageOps.fit(image, size, Image.Resampling.BICUBIC, centering=(0.5, CROPS[self.crop]))


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
        image, _ = self.decoded(row, channels)
        if resolution is not None:
            image = ImageOps.fit(image, (resolution,) * 2, Image.Resampling.BICUBIC)
        pixels: Tensor = pil_to_tensor(image)
        return pixels

    def decoded(self, row: int, channels: int) -> tuple[Image.Image, str]:
        """One image, upright, of these channels with 8 bits, and the mode in which Pillow found it.

        Raises:
            PrecfmError: it is corrupt.
        """
        name = self.names[row]
        try:
            with self.open(name) as stream, Image.open(stream) as image:
                mode = image.mode
                upright = ImageOps.exif_transpose(image)
                plain = _without_depth_and_alpha(upright).convert("L" if channels == 1 else "RGB")
        except _CORRUPT as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise PrecfmError(
                f"{self.where}: image '{name}' is corrupt ({reason}); replace or remove it"
            ) from None
        return plain, mode


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
