"""Principal components: latents in which errors are errors in pixels, fitted without training."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.options import Count, checked
from precfm.encoders.base import Encoder
from precfm.encoders.linear import coordinates, rounded
from precfm.training.options import TrainingOptions

# A sum of products of two bytes over 256 rows is an integer of at most 256 x 255^2 < 2^24: exact in float32, whatever
# the order of summation. Sums of such blocks are exact in float64, so that moments have the same bits on every machine.
ROWS = 256


class PCA(Encoder):
    """The coordinates of an image along the leading principal axes of the images that it was fitted to.

    Latents have zero mean and are uncorrelated on those images. Decoding is isometric as long as nothing is clamped:
    the distance of two latents is that of their images.

    Args:
        channels: 1 for grey images, 3 for colour.
        image_size: height and width in pixels.
        components: dimension of the latents. The fit needs more images than components, and memory of order m^2, m the
            smaller one of the numbers of images and of pixels.

    Raises:
        PrecfmError: an argument is impossible.

    References:
        Jolliffe, "Principal Component Analysis", 2nd edition, Springer 2002, chapter 3

    Example:
        >>> images = torch.randint(0, 256, (100, 1, 8, 8), dtype=torch.uint8)
        >>> pca = PCA(image_size=8, components=5)
        >>> pca.fit(images)
        >>> latents = pca.encode(images)
        >>> latents.shape, pca.decode(latents).shape
        (torch.Size([100, 5]), torch.Size([100, 1, 8, 8]))
    """

    mean: Tensor
    axes: Tensor

    @checked
    def __init__(self, channels: Literal[1, 3] = 1, image_size: Count = 28, components: Count = 64) -> None:
        super().__init__(channels, image_size, (components,))
        self.components = components
        dim = channels * image_size**2
        if components > dim:
            raise PrecfmError(
                f"components: got {components}, but an image has {dim} numbers; take at most as many"
            )
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("axes", torch.zeros(dim, components))

    def check_rows(self, rows: int) -> None:
        """Refuse so few images that they do not span the components; n centred images span n - 1 directions."""
        if rows <= self.components:
            raise PrecfmError(
                f"components: got {self.components}, but there are {rows} images to fit to; "
                "take fewer components than images"
            )

    def _fit(
        self,
        images: Tensor,
        seed: int,
        training: TrainingOptions | None,
        validation: Tensor | None,
        scratch: Path | None,
    ) -> None:
        mean, axes = principal_axes(images.flatten(1).cpu(), self.components)
        self.mean.copy_(rounded(mean / 255))
        # Rounded first: of entries that differ by an eigensolver's error, the first one decides on every machine.
        axes = rounded(axes)
        largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
        self.axes.copy_(axes * largest.sign())

    def _encode(self, images: Tensor, noise: Tensor | None) -> Tensor:
        self._require_fitted()
        return coordinates(images.flatten(1), self.mean, self.axes).float()

    def _decode(self, latents: Tensor) -> Tensor:
        self._require_fitted()
        return (self.mean + latents @ self.axes.T).reshape(-1, *self.image_shape)

    def _require_fitted(self) -> None:
        if not self.axes.any():
            raise PrecfmError("PCA: is not fitted; call fit before encode and decode")


def principal_axes(rows: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """Mean and leading eigenvectors of the covariance of bytes, by descending variance; signs are the solver's.

    Args:
        rows: shape (n, dim), uint8, on the CPU.
        components: how many eigenvectors, below n and at most dim.

    Returns:
        The mean, shape (dim,), exact but for one division; and the axes, shape (dim, components); float64.

    Raises:
        PrecfmError: the rows vary in fewer directions.
    """
    n, dim = rows.shape
    total = torch.zeros(dim, dtype=torch.float64)
    for block in torch.split(
        rows, ROWS
    ):  # the sum of bytes makes a copy eight times as wide, so not of all at once
        total += block.sum(dim=0)
    if n > dim:  # n^2 times the covariance: integers, for n up to 370,000 below 2^53
        matrix = gram(rows).mul_(n).addr_(total, total, alpha=-1)
    else:  # the products of centred images with each other have the same eigenvalues, and fewer entries
        matrix = gram(rows.T)
        means = matrix.mean(dim=0)
        matrix -= means + means[:, None] - means.mean()
    values, vectors = torch.linalg.eigh(matrix)
    varying = int((values > len(values) * torch.finfo(torch.float64).eps * values[-1]).sum())
    if varying < components:
        raise PrecfmError(
            f"components: got {components}, but the images to fit to vary in {varying} directions only; "
            "take at most as many"
        )
    leading = vectors[:, -components:].flip(1)
    if n > dim:
        return total / n, leading
    axes = torch.cat([columns.T.double() @ leading for columns in torch.split(rows, ROWS, dim=1)])
    axes -= torch.outer(total / n, leading.sum(dim=0))
    return total / n, axes / axes.norm(dim=0)


def gram(rows: Tensor) -> Tensor:
    """The sum of outer products of rows of bytes, shape (n, dim), exact: shape (dim, dim), float64."""
    total = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for block in torch.split(rows, ROWS):
        levels = block.float()
        total += levels.T @ levels
    return total
