"""What a data set hands over: images in memory with their labels."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

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


def pad_to(images: Tensor, resolution: int) -> Tensor:
    """Put square images into the middle of larger, black ones.

    Args:
        images: Tensor, shape (n, channels, size, size).
        resolution: the new size; it exceeds the old one by an even number, or equals it.

    Returns:
        Tensor, shape (n, channels, resolution, resolution).

    Raises:
        PrecfmError: the image would not sit in the middle.

    Example:
        >>> pad_to(torch.ones(1, 1, 28, 28), 32).shape
        torch.Size([1, 1, 32, 32])
    """
    margin, odd = divmod(resolution - images.shape[-1], 2)
    if odd or margin < 0:
        size = images.shape[-1]
        raise PrecfmError(
            f"resolution: {resolution} is impossible for images of {size} pixels; try {size} or {size + 4}"
        )
    return pad(images, (margin, margin, margin, margin)) if margin else images
