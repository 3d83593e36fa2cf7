"""Orthonormal directions along which a skip takes data to be uncorrelated: of all numbers, of frequencies, of patches.

A feature map has too many numbers for one covariance of all: 18 x 8 x 8 are 1,152 directions, which no 1,600 rows tell.
"""

import math
from abc import ABC, abstractmethod
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.geometry.cosines import channel_products, cosine_transform
from precfm.geometry.spectra import eigen_spectrum

LARGEST = 8192  # numbers of a datum up to which one covariance of all is computed: 0.5 GB
ROWS_PER_DIRECTION = 10  # of a covariance; with fewer samples its small variances are chance

Directions: TypeAlias = Literal["eigen", "frequency", "patches"]


def basis_of(name: Directions, shape: tuple[int, ...], patch: int) -> "Basis":
    """The kind of basis for data of a shape.

    Args:
        name: `eigen`, `frequency` or `patches`.
        shape: of one datum; `(channels, *positions)` for a feature map.
        patch: positions of a patch along each axis.

    Raises:
        PrecfmError: data of this shape have no such basis.
    """
    positions = shape[1:]
    if name == "eigen":
        if math.prod(shape) > LARGEST:
            raise PrecfmError(
                f"directions: got 'eigen' for data of shape {shape}; at most {LARGEST} numbers are possible, so "
                "'frequency' or 'patches' is needed"
            )
        return EigenBasis(shape)
    if not positions:
        raise PrecfmError(f"directions: got '{name}' for vectors of {shape[0]} numbers; 'eigen' is needed")
    if name == "frequency":
        return FrequencyBasis(shape)
    if any(size % patch for size in positions):
        raise PrecfmError(
            f"patch: got {patch} for feature maps of shape {shape}; a divisor of {positions} is needed"
        )
    return PatchBasis(shape, patch)


class Basis(ABC):
    """Covariances of groups of numbers, and their eigenvectors, as an orthonormal basis of whole data.

    Rows are flattened data, shape (n, dim). A rotation holds eigenvectors in columns.

    Attributes:
        size: numbers in a group, `dim` of all.
        rotation_shape: one matrix for each group, (groups, size, size), or one that all groups share, (size, size).
        samples: groups that share a covariance.
    """

    size: int
    rotation_shape: tuple[int, ...]
    samples: int = 1

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.dim = shape, math.prod(shape)

    @abstractmethod
    def second_moment(self, rows: Tensor) -> Tensor:
        """Sums of outer products over rows, and means over groups that share them; of the rotation's shape."""

    @abstractmethod
    def to(self, rows: Tensor, rotation: Tensor) -> Tensor:
        """Coordinates of rows along the directions, shape (n, dim)."""

    @abstractmethod
    def back(self, along: Tensor, rotation: Tensor) -> Tensor:
        """Rows from their coordinates, shape (n, dim)."""

    def spectrum(self, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Variances along the directions, shape (dim,), in each group ascending; and the rotation; in float64."""
        found = [eigen_spectrum(each) for each in covariance.reshape(-1, self.size, self.size)]
        variances = torch.stack([each.eigenvalues for each in found]).flatten().repeat(self.samples)
        return variances, torch.stack([each.eigenvectors for each in found]).reshape(self.rotation_shape)

    @property
    def num_numbers(self) -> int:
        """Free numbers of the covariances."""
        return math.prod(self.rotation_shape[:-2]) * self.size * (self.size + 1) // 2

    def flops(self, rows: int) -> int:
        """Floating point operations of covariances, rotations and eigen-decompositions."""
        return 4 * rows * self.dim * self.size + 9 * math.prod(self.rotation_shape[:-2]) * self.size**3

    def few_rows(self, rows: int) -> list[str]:
        """A sentence where rows are few for such covariances."""
        if rows * self.samples >= ROWS_PER_DIRECTION * self.size:
            return []
        return [f"{rows} rows are few for covariances of {self.size} numbers: small variances are uncertain"]


class EigenBasis(Basis):
    """Eigenvectors of one covariance of all numbers, of vectors or small feature maps."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.size, self.rotation_shape = self.dim, (self.dim, self.dim)

    def second_moment(self, rows: Tensor) -> Tensor:
        """See `Basis`."""
        return rows.T @ rows

    def to(self, rows: Tensor, rotation: Tensor) -> Tensor:
        """See `Basis`; a rotation may also be one for each row, shape (n, dim, dim)."""
        return rows @ rotation if rotation.ndim == 2 else torch.einsum("bi,bij->bj", rows, rotation)

    def back(self, along: Tensor, rotation: Tensor) -> Tensor:
        """See `Basis`; a rotation may also be one for each row, shape (n, dim, dim)."""
        return along @ rotation.T if rotation.ndim == 2 else torch.einsum("bj,bij->bi", along, rotation)


class FrequencyBasis(Basis):
    """At each spatial frequency the eigenvectors of the channels' covariance, as in the preconditioner `PerFrequency`.

    Exact for fields whose statistics are the same at every position and which are mirrored at their edges.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.size = shape[0]
        self.rotation_shape = math.prod(shape[1:]), self.size, self.size

    def second_moment(self, rows: Tensor) -> Tensor:
        """See `Basis`."""
        return channel_products(self._split(rows))

    def to(self, rows: Tensor, rotation: Tensor) -> Tensor:
        """See `Basis`."""
        return torch.einsum("nkc,kcd->nkd", self._split(rows), rotation).flatten(1)

    def back(self, along: Tensor, rotation: Tensor) -> Tensor:
        """See `Basis`."""
        coefficients = torch.einsum("nkd,kcd->nck", along.reshape(len(along), -1, self.size), rotation)
        return cosine_transform(coefficients.reshape(-1, *self.shape), inverse=True).flatten(1)

    def _split(self, rows: Tensor) -> Tensor:
        """Cosine coefficients, shape (n, frequencies, channels)."""
        return cosine_transform(rows.reshape(-1, *self.shape)).flatten(2).mT


class PatchBasis(Basis):
    """Principal components of patches, the same ones wherever the patch lies.

    Args:
        shape: of one datum, (channels, *positions).
        patch: positions of a patch along each axis.
    """

    def __init__(self, shape: tuple[int, ...], patch: int) -> None:
        super().__init__(shape)
        channels, *positions = shape
        self.size = channels * patch ** len(positions)
        self.rotation_shape = self.size, self.size
        self.samples = self.dim // self.size
        axes = range(len(positions))
        self._grid = [channels, *(each for size in positions for each in (size // patch, patch))]
        self._order = [0, *(2 + 2 * axis for axis in axes), 1, *(3 + 2 * axis for axis in axes)]

    def second_moment(self, rows: Tensor) -> Tensor:
        """See `Basis`."""
        patches = self._split(rows).flatten(0, 1)
        return patches.T @ patches / self.samples

    def to(self, rows: Tensor, rotation: Tensor) -> Tensor:
        """See `Basis`."""
        return (self._split(rows) @ rotation).flatten(1)

    def back(self, along: Tensor, rotation: Tensor) -> Tensor:
        """See `Basis`."""
        patches = along.reshape(len(along), -1, self.size) @ rotation.T
        sizes = [len(along), *self._grid]
        split = patches.reshape([sizes[axis] for axis in self._order])
        return split.permute([self._order.index(axis) for axis in range(len(sizes))]).flatten(1)

    def _split(self, rows: Tensor) -> Tensor:
        """Patches, shape (n, patches, size)."""
        maps = rows.reshape(len(rows), *self._grid).permute(self._order)
        return maps.reshape(len(rows), -1, self.size)
