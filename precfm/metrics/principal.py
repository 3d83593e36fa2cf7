"""Small sets: the first principal coordinates of features, in which a Frechet distance needs no thousands of samples.

A covariance of dim features needs more than dim rows. With fewer, the Frechet distance measures the sample size; in the
first 64 principal coordinates it measures the samples again. Wide features are compared in the same way, however many
rows there are: a hundred resamples of their covariance are out of reach.

The axes are fitted to the train split, so that neither of the two sets that are compared decides where one looks. The
floor, which is drawn from that split, lies a little higher than a fresh sample would (by 2 to 7 per cent, on latents of
1,634 photographs), so that headroom is found too rarely rather than too often.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.metric_names import COMPONENTS
from precfm.core.options import Count, checked
from precfm.metrics.checks import Features, feature_matrix

WIDE = 1024  # features, beyond which no covariance of all is made


@dataclass(frozen=True)
class PrincipalAxes:
    """The directions of largest variance of a feature set, largest first.

    Attributes:
        centre: mean, shape (dim,), float64.
        axes: one unit vector per column, shape (dim, components), float64.
        variances: along the axes, shape (components,), float64.
    """

    centre: Tensor
    axes: Tensor
    variances: Tensor

    def coordinates(self, features: Features, *, whitened: bool = False) -> Tensor:
        """Principal coordinates, (n, components), float64, of features (n, dim); whitened: each over its deviation."""
        found = (feature_matrix(features, "features").double() - self.centre) @ self.axes
        return found / self.variances.sqrt() if whitened else found


@checked
def principal_axes(features: Features, components: Count = COMPONENTS) -> PrincipalAxes:
    """The first principal axes of a feature set.

    Args:
        features: shape (n, dim), usually of the train split.
        components: how many axes.

    Raises:
        PrecfmError: unusable features, or so few rows or dimensions that an axis has no variance.

    Example:
        >>> features = torch.tensor([[0.0, 0.0, 1.0], [0.0, 4.0, 1.0], [0.0, 2.0, 1.0]])
        >>> principal_axes(features, 1).variances
        tensor([4.], dtype=torch.float64)
    """
    x = feature_matrix(features, "features")
    centre = x.mean(0, dtype=torch.float64)
    centred = x - centre
    wide = len(x) < x.shape[1]  # then the products of rows are the smaller matrix, with the same eigenvalues
    values, vectors = torch.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    values, vectors = values.flip(0)[:components], vectors.flip(1)[:, :components]
    if len(values) < components or float(values[-1]) <= len(x) * torch.finfo(torch.float64).eps * float(
        values[0]
    ):
        raise PrecfmError(
            f"features: {len(x)} rows in {x.shape[1]} dimensions have no {components} directions with variance; more "
            "rows are needed"
        )
    axes = centred.T @ vectors / values.sqrt() if wide else vectors
    return PrincipalAxes(centre, axes, values / (len(x) - 1))


def is_small(rows: int, dim: int) -> bool:
    """Whether sets of so many rows (the smaller one) and features have no Frechet distance of all features."""
    return rows <= dim or dim > WIDE


def axes_of_small_sets(train: Features, rows: int) -> PrincipalAxes | None:
    """The axes in which small sets are compared; None where they are not small, or too small or narrow even for axes.

    Args:
        train: features of the train split, or of part of it, shape (m, dim).
        rows: of the smaller one of the two sets that are compared; see `is_small`.
    """
    x = feature_matrix(train, "train")
    fits = min(rows, len(x), x.shape[1]) > COMPONENTS
    return principal_axes(x) if is_small(rows, x.shape[1]) and fits else None
