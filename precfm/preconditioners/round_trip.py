"""How well a preconditioner's inverse undoes its forward map, on the data and in the tails."""

import math

import torch
from torch import Tensor

from precfm.core.seeds import generator_for
from precfm.geometry.recovery import smallest_std
from precfm.preconditioners.base import Preconditioner
from precfm.preconditioners.fit_data import FitRows

TAIL = 1.5  # standard deviations of the noise that stands for the tails
POINTS = 2000  # rows on which a fit or a score measures the round trip, and as many in the tails


def round_trip_error(preconditioner: Preconditioner, x: Tensor, labels: Tensor | None = None) -> float:
    """Largest `|inverse(forward(x)) - x|` of all numbers, relative to the smallest standard deviation of `x`.

    Args:
        preconditioner: a fitted preconditioner.
        x: data, shape (batch, *dim).
        labels: class indices, shape (batch,), where the preconditioner needs them.

    Returns:
        The relative error; see `Preconditioner.round_trip_tolerance`.

    Raises:
        PrecfmError: the covariance of `x` is rank-deficient, or the preconditioner refuses the input.
    """
    return _largest_difference(preconditioner, x, labels) / smallest_std(x)


def tail_round_trip_error(
    preconditioner: Preconditioner, x: Tensor, labels: Tensor | None = None, *, seed: int = 0
) -> float:
    """As `round_trip_error`, at points of the tails: `inverse(1.5 z)` with `z ~ N(0, I)`, one per row of `x`.

    Args:
        preconditioner: a fitted preconditioner.
        x: data, shape (batch, *dim); gives the number of points, their labels and the scale of the error.
        labels: class indices, shape (batch,), where the preconditioner needs them.
        seed: seed of `z`.

    Returns:
        The error relative to the smallest standard deviation of `x`.

    Raises:
        PrecfmError: the covariance of `x` is rank-deficient, or the preconditioner refuses the input.
    """
    noise = torch.randn(x.shape, generator=generator_for(seed, "tail round trip"), dtype=torch.float64)
    tail = preconditioner.inverse(TAIL * noise.to(x), labels)
    return _largest_difference(preconditioner, tail, labels) / smallest_std(x)


def fitting_error(
    preconditioner: Preconditioner, data: FitRows, smallest_std: float, points: int = POINTS
) -> float:
    """The larger of both errors within a fit, whose map is not released yet, on at most `points` rows.

    Args:
        preconditioner: its `_forward` and `_inverse` work.
        data: the rows of the fit.
        smallest_std: the unit of the error.
        points: rows, and as many in the tails.

    Returns:
        The error in that unit; infinite where a point does not come back as finite numbers.
    """
    every = stride(len(data.x), points)
    x, classes = data.x[::every], None if data.classes is None else data.classes[::every]
    noise = torch.randn(x.shape, generator=generator_for(data.seed, "tails"), dtype=torch.float64)
    error = 0.0
    for each in (x, preconditioner._inverse(TAIL * noise.to(x), classes)):
        back = preconditioner._inverse(preconditioner._forward(each, classes), classes)
        largest = float((back - each).abs().max() / smallest_std)
        error = max(error, largest) if math.isfinite(largest) else math.inf
    return error


def stride(rows: int, points: int = POINTS) -> int:
    """Every how many rows to take so that at most `points` remain."""
    return -(-rows // points)


def _largest_difference(preconditioner: Preconditioner, x: Tensor, labels: Tensor | None) -> float:
    back = preconditioner.inverse(preconditioner.forward(x, labels), labels)
    return float((back - x).abs().max()) if x.numel() else 0.0
