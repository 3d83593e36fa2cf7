"""MNIST: 70,000 handwritten digits, with the official division into training and test images."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from precfm.core.errors import PrecfmError
from precfm.datasets.idx import read_idx
from precfm.datasets.images import OFFICIAL_TEST, OFFICIAL_TRAIN, Images, pad_to

PARTS = (("train", OFFICIAL_TRAIN, 60_000), ("t10k", OFFICIAL_TEST, 10_000))


class MNIST:
    """The full MNIST data set, read from its four idx files.

    Args:
        resolution: 28, or 32 for a black margin of two pixels.

    References:
        LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition", 1998.
    """

    def __init__(self, *, resolution: Literal[28, 32] = 28) -> None:
        self.resolution = resolution

    def load(self, folder: Path) -> Images:
        """Read the images; the official training images come first, in their official order.

        Args:
            folder: where the four fetched files lie.

        Returns:
            70,000 images of one channel, with `official_split`.

        Raises:
            PrecfmError: a file is missing, broken, or not MNIST's.
        """
        return load_idx_folder(folder, tuple("0123456789"), self.resolution)


def load_idx_folder(folder: Path, class_names: tuple[str, ...], resolution: int, suffix: str = "") -> Images:
    """Read a data set that is published as MNIST is: four idx files, official training and test images.

    Args:
        folder: where the files lie.
        class_names: the name of each class.
        resolution: the size of the images in pixels, 28 or more; they get a black margin.
        suffix: what is added to the official file names, such as ".gz".

    Returns:
        70,000 images of one channel, training images first.

    Raises:
        PrecfmError: a file is missing, broken, or does not have the official shape.
    """
    images: list[NDArray[np.uint8]] = []
    labels: list[NDArray[np.uint8]] = []
    split: list[NDArray[np.int64]] = []
    for part, membership, n in PARTS:
        for kind, shape, column in (("images-idx3", (n, 28, 28), images), ("labels-idx1", (n,), labels)):
            path = folder / f"{part}-{kind}-ubyte{suffix}"
            array = read_idx(path)
            if array.shape != shape:
                raise PrecfmError(f"{path}: has shape {array.shape}, expected {shape}")
            column.append(array)
        split.append(np.full(n, membership, np.int64))
    return Images(
        images=pad_to(torch.from_numpy(np.concatenate(images)[:, None]), resolution),
        labels=torch.from_numpy(np.concatenate(labels).astype(np.int64)),
        class_names=class_names,
        official_split=torch.from_numpy(np.concatenate(split)),
    )
