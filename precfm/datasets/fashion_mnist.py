"""Fashion-MNIST: 70,000 pictures of clothes, published in the format of MNIST."""

from pathlib import Path
from typing import Literal

from precfm.datasets.images import Images
from precfm.datasets.mnist import load_idx_folder

CLASS_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


class FashionMNIST:
    """The Fashion-MNIST data set, read from its four compressed idx files.

    Args:
        resolution: 28, or 32 for a black margin of two pixels.

    References:
        Xiao, Rasul, Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning
        algorithms", https://arxiv.org/abs/1708.07747
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
            PrecfmError: a file is missing, broken, or not Fashion-MNIST's.
        """
        return load_idx_folder(folder, CLASS_NAMES, self.resolution, suffix=".gz")
