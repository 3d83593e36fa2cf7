"""First and second moments of data that comes in batches: count, mean and scatter, in float64 and bounded memory."""

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError

# Numbers that are converted to float64 and centred at once in a fit, 34 MB: so much memory does any number of rows
# take, twice. What is summed block by block differs in low bits from what is summed at once.
BLOCK = 2**22


def rows_per_block(features: int) -> int:
    """How many rows of so many features make a block."""
    return max(1, BLOCK // max(features, 1))


class Moments:
    """Count, mean and scatter of all rows so far; the result does not depend on the batches beyond rounding.

    Sums are taken relative to the first row, so that a constant feature has variance exactly 0, whatever its value,
    and a mean far from 0 costs no digits.

    Args:
        diagonal: keep the variance of each feature and no covariances, in memory of order dim instead of dim^2.
        products: what is kept of second moments instead: for rows (batch, dim), the sum over rows of some of the
            products of two features, or of fixed sums of such products, in any shape.

    Attributes:
        count: number of rows.
        scatter: sum of the outer products of the centred rows, shape (dim, dim), or of their squares, shape (dim,),
            if `diagonal`, or of their `products`; float64, known after the first batch.

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

    def __init__(self, *, diagonal: bool = False, products: Callable[[Tensor], Tensor] | None = None) -> None:
        self.count = 0
        self._products = products or (_squares if diagonal else _outer_products)

    @classmethod
    def of(cls, mean: Tensor, covariance: Tensor, count: int) -> Self:
        """Moments that are known already, of as many rows.

        Args:
            mean: shape (dim,), float64.
            covariance: with divisor `count - 1`, shape (dim, dim), float64.
            count: number of rows, at least 2.
        """
        moments = cls()
        moments.count, moments.scatter = count, covariance * (count - 1)
        moments._origin, moments._mean = mean, torch.zeros_like(mean)
        return moments

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
        batch = Moments(products=self._products)
        batch.count, batch._origin = len(rows), self._origin if self.count else rows[0].clone()
        shifted = rows - batch._origin
        batch._mean = shifted.mean(dim=0)
        batch.scatter = self._products(shifted.sub_(batch._mean))
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
            between = self._products(apart[None]).mul_(self.count * other.count / total)
            self.scatter = (self.scatter + other.scatter).add_(between)
            self._mean = self._mean + apart * (other.count / total)
            self.count = total
        return self

    @property
    def mean(self) -> Tensor:
        """Mean of the rows, shape (dim,), float64."""
        return self._origin + self._mean

    def covariance(self) -> Tensor:
        """Scatter over `count - 1`: the sample covariance, shape (dim, dim), or what is kept of it; float64.

        Raises:
            PrecfmError: there are fewer than two rows.
        """
        if self.count < 2:
            raise PrecfmError(f"x: got {self.count} rows; a covariance needs at least 2 rows")
        return self.scatter / (self.count - 1)


def _squares(centred: Tensor) -> Tensor:
    return centred.square().sum(dim=0)


def _outer_products(centred: Tensor) -> Tensor:
    return centred.T @ centred
