"""Frechet distance between the Gaussian fits of two feature sets, in float64 and in symmetric form.

With factors cov_a = A A^T and cov_b = B B^T the cross term tr sqrt(cov_a cov_b) is the sum of the singular
values of A^T B: symmetric, real, and defined for singular covariances, so no imaginary part is ever
discarded. Where a set has fewer samples than dimensions its centred features are the factor, and no
(dim, dim) matrix is made.

References:
    Dowson and Landau, The Frechet distance between multivariate normal distributions, 1982.
    Heusel et al., GANs trained by a two time-scale update rule, https://arxiv.org/abs/1706.08500
    Chong and Forsyth, Effectively unbiased FID, https://arxiv.org/abs/1911.07023
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from scipy.linalg import blas
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.metrics.checks import Features, feature_matrix, feature_pair

FewSamples = Literal["refuse", "allow"]

_ROWS = 2048  # of a block: small ones stay in the processor's cache
_COLUMNS = 256  # width of the strips of a covariance on a GPU
_RELATIVE_ERROR = 1e-8  # of the distance; above it the slower singular values are taken


@dataclass(frozen=True)
class Moments:
    """Mean and a factor of the covariance of a feature set.

    Args:
        n: number of samples.
        mean: shape (dim,), float64.
        factor: float64, shape (dim, rank): covariance = factor @ factor.T.
    """

    n: int
    mean: Tensor
    factor: Tensor

    @property
    def trace(self) -> float:
        """Trace of the covariance."""
        return float(self.factor.square().sum())


def _rows(dim: int, memory_budget: int) -> int:
    return max(64, min(_ROWS, memory_budget // (16 * dim)))


def mean_and_covariance(features: Features, *, memory_budget: int = 2**28) -> tuple[Tensor, Tensor]:
    """Mean and unbiased covariance in float64, in one pass over blocks of rows.

    Args:
        features: shape (n, dim), any floating type.
        memory_budget: bytes that a block of rows may take in float64.

    Returns:
        Mean of shape (dim,) and covariance of shape (dim, dim), divided by n - 1.
    """
    return _mean_and_covariance(feature_matrix(features, "features"), memory_budget)


def _mean_and_covariance(x: Tensor, memory_budget: int) -> tuple[Tensor, Tensor]:
    n, dim = x.shape
    # Shifted by nearly the mean, products lose no digits, and one pass does; rows from all over the set,
    # since sets may be ordered.
    shift = x[:: max(1, n // 256)].mean(0, dtype=torch.float64)
    lower = torch.zeros(dim, dim, dtype=torch.float64, device=x.device)
    total = torch.zeros(dim, dtype=torch.float64, device=x.device)
    for block in torch.split(x, _rows(dim, memory_budget)):
        shifted = block - shift
        total += shifted.sum(0)
        _add_gram(lower, shifted)
    offset = total / n
    covariance = torch.tril(lower)
    covariance += torch.tril(lower, -1).T
    covariance -= n * torch.outer(offset, offset)
    return shift + offset, covariance / (n - 1)


def _add_gram(lower: Tensor, centred: Tensor) -> None:
    """Add centred^T centred to the lower triangle of a matrix: the other half of the product is spared."""
    if lower.device.type == "cpu":
        # BLAS counts in columns: what is the lower triangle here is the upper one there.
        blas.dsyrk(1.0, centred.numpy().T, beta=1.0, c=lower.numpy().T, lower=0, overwrite_c=1)
        return
    for start in range(0, len(lower), _COLUMNS):
        stop = start + _COLUMNS
        lower[start:stop, :stop].addmm_(centred[:, start:stop].T, centred[:, :stop])


def moments(features: Features, *, memory_budget: int = 2**28) -> Moments:
    """Mean and covariance factor of a feature set; the factor is the centred features if n <= dim."""
    return _moments(feature_matrix(features, "features"), "features", memory_budget)


def _moments(x: Tensor, name: str, memory_budget: int) -> Moments:
    """Moments of features that were not checked for finite entries: a bad one shows in the mean."""
    n, dim = x.shape
    if n <= dim:
        double = x.to(torch.float64)
        mean = double.mean(0)
        factor = _without_mean(double - mean).T / math.sqrt(n - 1)
    else:
        mean, covariance = _mean_and_covariance(x, memory_budget)
    if not bool(torch.isfinite(mean).all()):
        feature_matrix(x, name)  # names the row
    return Moments(n, mean, factor if n <= dim else covariance_factor(covariance))


def covariance_factor(covariance: Tensor) -> Tensor:
    """A matrix F with F F^T = covariance: triangular if it is positive definite, else from its eigenvectors.

    Args:
        covariance: symmetric, shape (dim, dim), float64.

    Returns:
        Shape (dim, rank).
    """
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(covariance)
    diagonal = factor.diagonal()
    if int(info) == 0 and float(diagonal.min()) > 1e-7 * float(diagonal.max()):
        return factor
    values, vectors = torch.linalg.eigh(covariance)
    keep = values > 0
    factor = vectors[:, keep] * values[keep].sqrt()
    return factor


def frechet_from_moments(first: Moments, second: Moments) -> float:
    """Squared Frechet distance |m_a - m_b|^2 + tr(cov_a + cov_b - 2 sqrt(cov_a cov_b)).

    Never negative: rounding below zero is set to zero.
    """
    own = float((first.mean - second.mean).square().sum()) + first.trace + second.trace
    product = first.factor.T @ second.factor
    cross, error = _roots_of_gram(product)
    if 2.0 * error > _RELATIVE_ERROR * (own - 2.0 * cross):
        cross = float(torch.linalg.svdvals(product).sum())
    return max(own - 2.0 * cross, 0.0)


def frechet_from_covariances(
    mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor
) -> float:
    """Squared Frechet distance from means of shape (dim,) and covariances of shape (dim, dim)."""
    as_double = [tensor.detach().to(torch.float64) for tensor in (mean_a, covariance_a, mean_b, covariance_b)]
    return frechet_from_moments(
        Moments(0, as_double[0], covariance_factor(as_double[1])),
        Moments(0, as_double[2], covariance_factor(as_double[3])),
    )


def frechet_distance(
    generated: Features,
    reference: Features,
    *,
    few_samples: FewSamples = "refuse",
    memory_budget: int = 2**28,
) -> float:
    """Squared Frechet distance between the Gaussian fits of two feature sets (the "FID" of its features).

    Args:
        generated: shape (n, dim).
        reference: shape (m, dim).
        few_samples: "refuse" raises if n or m <= dim, where a covariance is singular and the value depends
            more on the sample size than on the samples; "allow" returns it nevertheless. Better answers are
            `frechet_in_components`, `extrapolated_frechet`, or the unbiased KID.
        memory_budget: bytes for temporary blocks.

    Returns:
        The squared distance, >= 0. Biased upwards by about c / n + c' / m; zero for identical sets.

    Raises:
        PrecfmError: unusable features, or too few of them under "refuse".
    """
    x, y = feature_pair(generated, reference, finite=False)
    for name, features in (("generated", x), ("reference", y)):
        if few_samples == "refuse" and len(features) <= features.shape[1]:
            raise PrecfmError(
                f"{name}: {len(features)} samples in {features.shape[1]} dimensions give a singular "
                "covariance and a Frechet distance that measures the sample size; take more samples, fewer "
                "components or the KID, or say few_samples='allow'"
            )
    return frechet_from_moments(
        _moments(x, "generated", memory_budget),
        _moments(y, "reference", memory_budget),
    )


def _roots_of_gram(product: Tensor) -> tuple[float, float]:
    """Sum of the singular values of a matrix by way of its Gram matrix, several times faster, and its error.

    An eigenvalue of the Gram matrix is known to about unit * largest, hence its root to
    min(sqrt(unit * largest), unit * largest / root): harmless unless many are tiny, or the distance is.
    """
    wide = product if product.shape[0] <= product.shape[1] else product.T
    if not wide.numel():
        return 0.0, 0.0
    squares = torch.linalg.eigvalsh(wide @ wide.T).clamp(min=0)
    roots = squares.sqrt()
    noise = 4 * torch.finfo(torch.float64).eps * float(squares[-1])
    errors = torch.minimum(torch.full_like(roots, math.sqrt(noise)), noise / roots.clamp(min=1e-300))
    return float(roots.sum()), float(errors.sum())


def _without_mean(centred: Tensor) -> Tensor:
    """The n - 1 rows that span n centred ones: a reflection sends their null direction to the first row.

    Dropping that row leaves no singular value that is zero by construction.
    """
    n = len(centred)
    normal = torch.full((n,), 1.0 / math.sqrt(n), dtype=centred.dtype, device=centred.device)
    normal[0] -= 1.0
    normal /= normal.norm()
    return (centred - 2.0 * torch.outer(normal, normal @ centred))[1:]
