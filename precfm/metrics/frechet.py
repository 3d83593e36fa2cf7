"""Frechet distance between the Gaussian fits of two feature sets, in float64 and in symmetric form.

With factors cov_a = A A^T and cov_b = B B^T the cross term tr sqrt(cov_a cov_b) is the sum of the singular values of
A^T B: symmetric, real, and defined for singular covariances, so no imaginary part is ever discarded. A factor comes
from a QR decomposition of the centred features; no covariance is formed, which would square their condition number.

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

from precfm.core.errors import PrecfmError
from precfm.metrics.checks import Features, feature_matrix, feature_pair

FewSamples = Literal["refuse", "allow"]


@dataclass(frozen=True)
class GaussianFit:
    """Mean and a factor of the covariance of a feature set.

    Attributes:
        mean: shape (dim,), float64.
        factor: float64, shape (dim, rank): covariance = factor @ factor.T.
    """

    mean: Tensor
    factor: Tensor


def gaussian_fit(features: Features) -> GaussianFit:
    """Mean and covariance factor of a feature set of shape (n, dim); the covariance is divided by n - 1."""
    x = feature_matrix(features, "features")
    mean = x.mean(0, dtype=torch.float64)
    triangle = torch.zeros(0, x.shape[1], dtype=torch.float64, device=x.device)
    for rows in torch.split(x, max(4096, 2 * x.shape[1])):  # the triangle of what came before stands for it
        triangle = torch.linalg.qr(torch.cat([triangle, rows - mean]), mode="r").R
    return GaussianFit(mean, triangle.T / math.sqrt(len(x) - 1))


def frechet_from_fits(first: GaussianFit, second: GaussianFit) -> float:
    """Squared Frechet distance |m_a - m_b|^2 + tr(cov_a + cov_b - 2 sqrt(cov_a cov_b)).

    Never negative: rounding below zero is set to zero.
    """
    own = sum(float(part.square().sum()) for part in (first.mean - second.mean, first.factor, second.factor))
    cross = float(torch.linalg.svdvals(first.factor.T @ second.factor).sum())
    return max(own - 2.0 * cross, 0.0)


def frechet_distance(
    generated: Features, reference: Features, *, few_samples: FewSamples = "refuse"
) -> float:
    """Squared Frechet distance between the Gaussian fits of two feature sets (the "FID" of its features).

    Args:
        generated: shape (n, dim).
        reference: shape (m, dim).
        few_samples: "refuse" raises if n or m <= dim, where a covariance is singular and the value depends more on the
            sample size than on the samples; "allow" returns it nevertheless.

    Returns:
        The squared distance, >= 0. Biased upwards by about c / n + c' / m; zero for identical sets.

    Raises:
        PrecfmError: unusable features, or too few of them under "refuse".
    """
    x, y = feature_pair(generated, reference)
    for name, features in (("generated", x), ("reference", y)):
        if few_samples == "refuse" and len(features) <= features.shape[1]:
            raise PrecfmError(
                f"{name}: {len(features)} samples in {features.shape[1]} dimensions give a singular covariance and a "
                "Frechet distance that measures the sample size; take more samples, fewer features or the KID, or set "
                "few_samples to 'allow'"
            )
    return frechet_from_fits(gaussian_fit(x), gaussian_fit(y))
