"""Hashes of images, by which a copy of an image is found wherever it comes from."""

import hashlib
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Hashes: TypeAlias = NDArray[np.uint64]


def image_hashes(images: "Tensor") -> Hashes:
    """The hash of each image without its black margin, so that a padded copy has the hash of the original.

    The first 64 bits of a SHA-256 over the size and the bytes of what is left: among a hundred thousand images two
    different ones share a hash with a probability of 3e-10.

    Args:
        images: Tensor, shape (n, channels, height, width), uint8.

    Returns:
        Array, shape (n,), uint64, in the order of the images.

    Example:
        >>> import torch
        >>> image = torch.tensor([[[[7, 0], [9, 1]]]], dtype=torch.uint8)
        >>> padded = torch.nn.functional.pad(image, [1, 2, 3, 4])
        >>> bool(image_hashes(image) == image_hashes(padded))
        True
    """
    hashes = np.empty(len(images), np.uint64)
    for index, image in enumerate(images.cpu().numpy()):
        shown = image.any(axis=0)
        rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
        if len(rows):
            image = image[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        digest = hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).digest()
        hashes[index] = int.from_bytes(digest[:8], "big")
    return hashes
