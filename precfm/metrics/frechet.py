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
from torch import Tensor

from precfm.errors import PrecfmError
from precfm.metrics.checks import Features, feature_matrix, feature_pair

FewSamples = Literal["refuse", "allow"]

_COLUMNS = 512  # width of the panels of a covariance: half of its products are spared by symmetry
_RELATIVE_ERROR = 1e-10  # of the cross term; above it the slower singular values are taken


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
    return max(64, min(16384, memory_budget // (8 * dim)))


def mean_and_covariance(features: Features, *, memory_budget: int = 2**28) -> tuple[Tensor, Tensor]:
    """Mean and unbiased covariance in float64, in two passes over blocks of rows.

    Args:
        features: shape (n, dim), any floating type.
        memory_budget: bytes that a block of rows may take in float64.

    Returns:
        Mean of shape (dim,) and covariance of shape (dim, dim), divided by n - 1.
    """
    x = _double_device(feature_matrix(features, "features"))
    n, dim = x.shape
    rows = _rows(dim, memory_budget)
    mean = _mean(x, rows)
    covariance = torch.zeros(dim, dim, dtype=torch.float64, device=x.device)
    starts = range(0, dim, _COLUMNS)
    for block in torch.split(x, rows):
        centred = block.to(torch.float64) - mean
        panels = {start: centred[:, start : start + _COLUMNS].contiguous() for start in starts}
        for i in starts:
            for j in starts[: i // _COLUMNS + 1]:
                covariance[i : i + _COLUMNS, j : j + _COLUMNS].addmm_(panels[i].T, panels[j])
    covariance = torch.tril(covariance)
    covariance += torch.tril(covariance, -1).T
    return mean, covariance / (n - 1)


def moments(features: Features, *, memory_budget: int = 2**28) -> Moments:
    """Mean and covariance factor of a feature set; the factor is the centred features if n <= dim."""
    x = _double_device(feature_matrix(features, "features"))
    n, dim = x.shape
    if n <= dim:
        mean = _mean(x, _rows(dim, memory_budget))
        return Moments(n, mean, _without_mean(x.to(torch.float64) - mean).T / math.sqrt(n - 1))
    mean, covariance = mean_and_covariance(x, memory_budget=memory_budget)
    return Moments(n, mean, covariance_factor(covariance))


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
    mean_term = float((first.mean - second.mean).square().sum())
    return max(mean_term + first.trace + second.trace - 2.0 * _cross_term(first.factor, second.factor), 0.0)


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
    x, y = feature_pair(generated, reference)
    for name, features in (("generated", x), ("reference", y)):
        if few_samples == "refuse" and len(features) <= features.shape[1]:
            raise PrecfmError(
                f"{name}: {len(features)} samples in {features.shape[1]} dimensions give a singular "
                "covariance and a Frechet distance that measures the sample size; take more samples, fewer "
                "components or the KID, or say few_samples='allow'"
            )
    return frechet_from_moments(
        moments(x, memory_budget=memory_budget), moments(y, memory_budget=memory_budget)
    )


def _cross_term(first: Tensor, second: Tensor) -> float:
    """Sum of the singular values of first^T second: tr sqrt(cov_a cov_b)."""
    product = first.T @ second
    if product.shape[0] > product.shape[1]:
        product = product.T
    squares = torch.linalg.eigvalsh(product @ product.T)
    # An eigenvalue of the Gram matrix is known to about unit * largest, hence its root to
    # min(sqrt(unit * largest), unit * largest / root): harmless unless many of them are tiny.
    noise = 4 * torch.finfo(torch.float64).eps * float(squares[-1].clamp(min=0))
    roots = squares.clamp(min=0).sqrt()
    total = float(roots.sum())
    error = float(
        torch.minimum(torch.full_like(roots, math.sqrt(noise)), noise / roots.clamp(min=1e-300)).sum()
    )
    if error <= _RELATIVE_ERROR * total:
        return total
    return float(torch.linalg.svdvals(product).sum())


def _without_mean(centred: Tensor) -> Tensor:
    """The n - 1 rows that span n centred ones: a reflection sends their null direction to the first row.

    Dropping that row leaves no singular value that is zero by construction.
    """
    n = len(centred)
    normal = torch.full((n,), 1.0 / math.sqrt(n), dtype=centred.dtype, device=centred.device)
    normal[0] -= 1.0
    normal /= normal.norm()
    return (centred - 2.0 * torch.outer(normal, normal @ centred))[1:]


def _mean(x: Tensor, rows: int) -> Tensor:
    total = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    for block in torch.split(x, rows):
        total += block.sum(dim=0, dtype=torch.float64)
    return total / len(x)


def _double_device(x: Tensor) -> Tensor:
    """The tensor itself, or its copy on the CPU where its device has no float64."""
    return x.cpu() if x.device.type == "mps" else x
