"""First and second moments of data that comes in batches: count, mean and scatter, in float64 and bounded memory."""

import math
from typing import Self

from torch import Tensor

from precfm.core.errors import PrecfmError


class Moments:
    """Count, mean and scatter of all rows so far; the result does not depend on the batches beyond rounding.

    Sums are taken relative to the first row, so that a constant feature has variance exactly 0, whatever its value,
    and a mean far from 0 costs no digits.

    Args:
        diagonal: keep the variance of each feature and no covariances, in memory of order dim instead of dim^2.

    Attributes:
        count: number of rows.
        scatter: sum of the outer products of the centred rows, shape (dim, dim), or of their squares, shape (dim,),
            if `diagonal`; float64, known after the first batch.

    References:
        | Updating Formulae and a Pairwise Algorithm for Computing Sample Variances (Chan, Golub & LeVeque, 1979),
        | eq. 2.1; http://i.stanford.edu/pub/cstr/reports/cs/tr/79/773/CS-TR-79-773.pdf

    Example:
        >>> import torch
        >>> moments = Moments()
        >>> for batch in torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]).split(2):
        ...     moments = moments.update(batch)
        >>> moments.covariance()
        tensor([[4., 4.],
                [4., 4.]], dtype=torch.float64)
    """

    scatter: Tensor
    _origin: Tensor  # the first row
    _mean: Tensor  # relative to the origin

    def __init__(self, *, diagonal: bool = False) -> None:
        self.count = 0
        self._diagonal = diagonal

    def update(self, rows: Tensor) -> Self:
        """Add a batch.

        Args:
            rows: shape (batch, *dim), finite; trailing dimensions are flattened, and batch may be 0.

        Returns:
            The moments themselves.
        """
        if not len(rows):
            return self
        rows = rows.detach().reshape(len(rows), math.prod(rows.shape[1:])).double()
        batch = Moments(diagonal=self._diagonal)
        batch.count, batch._origin = len(rows), self._origin if self.count else rows[0].clone()
        shifted = rows - batch._origin
        batch._mean = shifted.mean(dim=0)
        batch.scatter = self._squared(shifted - batch._mean)
        return self.merge(batch)

    def merge(self, other: "Moments") -> Self:
        """Add the rows of other moments of the same kind.

        Returns:
            The moments themselves.
        """
        if not other.count:
            return self
        if not self.count:
            self.count, self.scatter = other.count, other.scatter
            self._origin, self._mean = other._origin, other._mean
        else:
            total = self.count + other.count
            apart = other._mean - self._mean + (other._origin - self._origin)
            self.scatter = (
                self.scatter + other.scatter + self._squared(apart[None]) * (self.count * other.count / total)
            )
            self._mean = self._mean + apart * (other.count / total)
            self.count = total
        return self

    @property
    def mean(self) -> Tensor:
        """Mean of the rows, shape (dim,), float64."""
        return self._origin + self._mean

    def covariance(self) -> Tensor:
        """Sample covariance with divisor `count - 1`, shape (dim, dim), or variances (dim,) if `diagonal`; float64.

        Raises:
            PrecfmError: there are fewer than two rows.
        """
        if self.count < 2:
            raise PrecfmError(f"x: got {self.count} rows; a covariance needs at least 2 rows")
        return self.scatter / (self.count - 1)

    def _squared(self, centred: Tensor) -> Tensor:
        return centred.square().sum(dim=0) if self._diagonal else centred.T @ centred
