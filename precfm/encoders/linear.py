"""Coordinates of images along fixed axes that have the same bits on every machine.

A sum of products depends on its order by rounding, and the order on the machine. Here nothing is rounded before the
end: pixels are integers, and axes and centre are multiples of `STEP`, so that every product and every partial sum is a
multiple of a power of two that float64 holds, whatever the order.
"""

from torch import Tensor

# Coarse enough that axes from an eigensolver, which agree between machines to some 1e-13, nearly always round to the
# same multiples; fine enough to leave them orthonormal to 1e-6. Multiples of it up to 1 are float32 numbers.
STEP = 2.0**-22


def rounded(values: Tensor) -> Tensor:
    """The nearest multiples of `STEP`, in the type of `values`; zeros are positive."""
    return (values / STEP).round() * STEP + 0.0


def coordinates(images: Tensor, centre: Tensor, axes: Tensor) -> Tensor:
    """`(images - centre) @ axes`; the one division and the one difference are all that is rounded.

    Args:
        images: shape (..., dim), bytes / 255 in float32.
        centre: shape (dim,), multiples of `STEP` in [0, 1].
        axes: shape (dim, k), orthonormal columns of multiples of `STEP`. The sums are exact for dim up to 2^18: partial
            sums of a unit vector's entries stay below sqrt(dim).

    Returns:
        Tensor, shape (..., k), float64.
    """
    axes = axes.double()
    levels = (images * 255).round().double()
    return (levels @ axes) / 255 - centre.double() @ axes
