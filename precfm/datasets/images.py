"""What a data set hands over: images in memory with their labels.

A data set is a class with `load(folder) -> Images`, and `counts`: the number of its images, or of the official training
and test images; empty where only the files tell.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError

OFFICIAL_TRAIN, OFFICIAL_TEST = 0, 1


@dataclass(frozen=True)
class Images:
    """A data set in memory.

    Attributes:
        images: Tensor, shape (n, channels, height, width), uint8.
        labels: Tensor, shape (n,), int64; class indices into `class_names`.
        class_names: the name of each class.
        official_split: Tensor, shape (n,), int64: 0 where the publisher put an image into the training set, 1
            for the test set; None where there is no such division.

    Raises:
        PrecfmError: the parts do not fit each other.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    official_split: Tensor | None = None

    def __post_init__(self) -> None:
        n = len(self.images)
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            found = f"{self.images.dtype} of shape {tuple(self.images.shape)}"
            raise PrecfmError(f"images: expected uint8 of shape (n, channels, height, width), found {found}")
        for name, column in (("labels", self.labels), ("official_split", self.official_split)):
            if column is not None and (column.dtype != torch.int64 or column.shape != (n,)):
                found = f"{column.dtype} of shape {tuple(column.shape)}"
                raise PrecfmError(f"{name}: expected int64 of shape ({n},) like the images, found {found}")
        if n and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.class_names):
            found = f"{int(self.labels.min())} to {int(self.labels.max())}"
            raise PrecfmError(f"labels: {found}, but there are {len(self.class_names)} class names")

    def __len__(self) -> int:
        return len(self.images)
