"""Frechet distances for few samples: in principal components of the training features, or extrapolated.

References:
    Chong and Forsyth, Effectively unbiased FID and Inception Score, https://arxiv.org/abs/1911.07023
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.metrics.checks import Features, feature_matrix, feature_pair
from precfm.metrics.frechet import frechet_distance, mean_and_covariance


@dataclass(frozen=True)
class PrincipalComponents:
    """Directions of largest variance of a training set.

    Args:
        mean: shape (dim,), float64.
        directions: orthonormal columns, shape (dim, count), float64, by decreasing variance.
        explained: share of the training variance along them, in [0, 1].
        n: number of training samples.
    """

    mean: Tensor
    directions: Tensor
    explained: float
    n: int

    def project(self, features: Features, name: str = "features") -> Tensor:
        """Coordinates along the directions, float64, shape (n, count).

        Raises:
            PrecfmError: unusable features, or of another width than the training features.
        """
        x = feature_matrix(features, name)
        if x.shape[1] != len(self.mean):
            raise PrecfmError(f"{name}: width {x.shape[1]}; the components were fitted on {len(self.mean)}")
        mean, directions = self.mean.to(x.device), self.directions.to(x.device)
        return torch.cat([(block.to(torch.float64) - mean) @ directions for block in torch.split(x, 8192)])


def principal_components(training: Features, count: int) -> PrincipalComponents:
    """The first principal components of the training features.

    Fitted on the training split, so that neither of the two compared sets chooses its own directions.

    Args:
        training: shape (n, dim).
        count: number of components, at most min(n - 1, dim).

    Raises:
        PrecfmError: unusable features, or more components than they have.
    """
    x = feature_matrix(training, "training")
    n, dim = x.shape
    if not 1 <= count <= min(n - 1, dim):
        raise PrecfmError(
            f"components: {count} of {n} training samples in {dim} dimensions; "
            f"1 to {min(n - 1, dim)} can be had"
        )
    if n > dim:
        mean, covariance = mean_and_covariance(x)
        values, vectors = torch.linalg.eigh(covariance)
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    else:
        double = x.to(torch.float64)
        mean = double.mean(0)
        _, singular, rows = torch.linalg.svd(double - mean, full_matrices=False)
        values, vectors = singular.square() / (n - 1), rows.T
    explained = float(values[:count].sum() / values.sum()) if float(values.sum()) > 0 else 1.0
    return PrincipalComponents(mean, vectors[:, :count].contiguous(), explained, n)


def frechet_in_components(generated: Features, reference: Features, components: PrincipalComponents) -> float:
    """Squared Frechet distance of the projections: finite-sample noise grows with their number, not with dim.

    Raises:
        PrecfmError: unusable features, or not more samples than components.
    """
    return frechet_distance(
        components.project(generated, "generated"), components.project(reference, "reference")
    )


@dataclass(frozen=True)
class Extrapolation:
    """A Frechet distance at infinitely many samples.

    Args:
        value: intercept of the fitted line; may fall slightly below zero, as an unbiased estimate must.
        slope: bias of the plain distance at the full size, which has been removed.
        plain: distance at the full size.
        smallest: generated samples in the smallest subset.
        residual: root mean square distance of the points from the line.
    """

    value: float
    slope: float
    plain: float
    smallest: int
    residual: float


def extrapolated_frechet(
    generated: Features, reference: Features, *, seed: int = 0, points: int = 6, repeats: int = 4
) -> Extrapolation:
    """Frechet distance extrapolated to infinitely many samples of both sets.

    The plain distance is measured on nested random parts (half of both sets up to all of them); its bias is
    linear in one over the size, so a line is fitted and read off at zero.

    Args:
        generated: shape (n, dim).
        reference: shape (m, dim).
        seed: of the random order in which parts are taken.
        points: number of sizes.
        repeats: random orders over which each size is averaged.

    Raises:
        PrecfmError: unusable features, or half of a set has not more samples than dimensions: there the bias
            is not linear, and no extrapolation can be trusted.
    """
    x, y = feature_pair(generated, reference)
    for name, features in (("generated", x), ("reference", y)):
        if len(features) // 2 <= features.shape[1]:
            raise PrecfmError(
                f"{name}: {len(features)} samples in {features.shape[1]} dimensions; an extrapolation needs "
                f"more than {2 * features.shape[1] + 1}, or fewer components"
            )
    generator = torch.Generator().manual_seed(seed)
    fractions = torch.linspace(0.5, 1.0, points, dtype=torch.float64)
    totals = torch.zeros(points, dtype=torch.float64)
    plain = frechet_distance(x, y)
    for _ in range(repeats):
        order_x, order_y = (torch.randperm(len(z), generator=generator).to(z.device) for z in (x, y))
        for index, fraction in enumerate(fractions[:-1].tolist()):
            part_x, part_y = order_x[: round(fraction * len(x))], order_y[: round(fraction * len(y))]
            totals[index] += frechet_distance(x[part_x], y[part_y])
    totals[-1] = repeats * plain
    design = torch.stack([torch.ones(points, dtype=torch.float64), 1.0 / fractions], dim=1)
    solution = torch.linalg.lstsq(design, (totals / repeats)[:, None]).solution[:, 0]
    residuals = design @ solution - totals / repeats
    return Extrapolation(
        value=float(solution[0]),
        slope=float(solution[1]),
        plain=plain,
        smallest=round(0.5 * len(x)),
        residual=math.sqrt(float(residuals.square().mean())),
    )
