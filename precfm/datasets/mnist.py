"""MNIST: 70,000 handwritten digits, with the official division into training and test images."""

import struct
from math import prod
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from precfm.core.errors import PrecfmError
from precfm.core.options import checked
from precfm.datasets.images import OFFICIAL_TEST, OFFICIAL_TRAIN, Images


class MNIST:
    """The full MNIST data set, read from its four idx files.

    Args:
        resolution: 28, or 32 for a black margin of two pixels.

    Attributes:
        counts: the official training and test images.
        channels: grey.
        class_names: the name of each class.

    References:
        LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition", 1998.
    """

    counts: tuple[int, ...] = (60_000, 10_000)
    channels = 1
    class_names: tuple[str, ...] = tuple("0123456789")

    @checked
    def __init__(self, *, resolution: Literal[28, 32] = 28) -> None:
        self.resolution = resolution

    def load(self, folder: Path) -> Images:
        """Read the images; the official training images come first, in their official order.

        Args:
            folder: where the four fetched files lie.

        Returns:
            70,000 images of one channel, with `official_split`.

        Raises:
            PrecfmError: a file is missing, broken, or does not have the official shape.
        """
        images, labels = [], []
        for part, n in zip(("train", "t10k"), self.counts, strict=True):
            images.append(read_idx(folder / f"{part}-images-idx3-ubyte", (n, 28, 28)))
            labels.append(read_idx(folder / f"{part}-labels-idx1-ubyte", (n,)))
        margin = (self.resolution - 28) // 2
        parts = torch.tensor([OFFICIAL_TRAIN, OFFICIAL_TEST])
        return Images(
            images=pad(torch.cat(images)[:, None], [margin] * 4),
            labels=torch.cat(labels).long(),
            class_names=self.class_names,
            official_split=parts.repeat_interleave(torch.tensor(self.counts)),
        )


def read_idx(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Read an idx file of unsigned bytes, whose shape is known.

    The format: two zero bytes, the type of the elements (8: unsigned byte), the number of dimensions, each dimension
    as a big-endian 32-bit integer, then the elements in row-major order and nothing more.

    Args:
        path: the file.
        shape: what its header must state.

    Returns:
        Tensor of that shape, uint8.

    Raises:
        PrecfmError: the file cannot be read, or is not one of that shape.

    References:
        LeCun, Cortes, Burges, "The MNIST database of handwritten digits", section "File formats".
    """
    header = struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape)
    size = len(header) + prod(shape)
    try:
        with path.open("rb") as stream:
            content = bytearray(stream.read(size + 1))
    except OSError as error:
        raise PrecfmError(f"{path}: cannot be read ({error}); fetch the data again") from None
    if not content.startswith(header) or len(content) != size:
        raise PrecfmError(f"{path}: is no idx file of {size} bytes and shape {shape}; fetch the data again")
    return torch.frombuffer(content, dtype=torch.uint8, offset=len(header)).reshape(shape)
