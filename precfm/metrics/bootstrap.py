"""The bootstrap of what all methods share: how far a value hangs on the real rows that happened to be held out.

The held-out rows are resampled with replacement, once for all methods, so that the difference of two methods can be
taken in each replicate: what both owe to the rows cancels. A resample is kept as counts, how often each row occurs,
because every statistic here (and `precfm.geometry.recovery.recovery_replicates`) is one of weighted moments.

Resamples repeat rows, so that distances are biased upwards: use the spread of replicates, not their percentiles.

References:
    Efron and Tibshirani, An Introduction to the Bootstrap (1993).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.options import Count, checked
from precfm.core.seeds import generator_for
from precfm.metrics.checks import Features, feature_matrix
from precfm.metrics.frechet import gaussian_fit


@dataclass(frozen=True)
class GaussianFits:
    """Mean and a factor of the covariance of one feature set in each replicate.

    Attributes:
        means: shape (replicates, dim), float64.
        factors: float64, shape (replicates, dim, dim): covariance = factor @ factor.T.
    """

    means: Tensor
    factors: Tensor


@checked
def reference_resamples(n: Count, replicates: Count = 100, seed: int = 0) -> Tensor:
    """How often each of n rows occurs in each resample, drawn with replacement.

    Args:
        n: number of rows.
        replicates: number of resamples.
        seed: of the draws.

    Returns:
        Counts, int64, shape (replicates, n), each row with sum n; a pure function of the arguments.

    Raises:
        PrecfmError: a number is below 1.
    """
    rows = torch.randint(n, (replicates, n), generator=generator_for(seed, "bootstrap"))
    return torch.zeros_like(rows).scatter_add_(1, rows, torch.ones_like(rows))


def resampled_means(values: Tensor, resamples: Tensor) -> Tensor:
    """The mean over rows in each replicate, for example of negative log-likelihoods.

    Args:
        values: a number for each row, shape (n,).
        resamples: counts, shape (replicates, n).

    Returns:
        Shape (replicates,), float64.

    Raises:
        PrecfmError: the resamples are of another number of rows.
    """
    return _weights(resamples, len(values)) @ values.to(torch.float64)


def shared_deviations(deviations: Tensor, resamples: Tensor) -> Tensor:
    """What an estimate from random vectors, which all rows share, adds to the mean over rows in each replicate.

    The vectors are resampled beside the rows, by the same draws for all methods, so that what two methods owe to the
    same vectors cancels in their difference. Their spread is that of an unbiased variance, since they are few.

    Args:
        deviations: of each vector's estimate from their mean, shape (vectors, n), at least two vectors.
        resamples: counts of the rows, shape (replicates, n).

    Returns:
        Shape (replicates,), float64.

    Raises:
        PrecfmError: the resamples are of another number of rows.
    """
    vectors, n = deviations.shape
    drawn = reference_resamples(
        vectors, len(resamples), seed=1
    )  # of vectors and not of rows, which have seed 0
    means = _weights(resamples, n) @ deviations.to(torch.float64).T
    found: Tensor = (_weights(drawn, vectors) * means).sum(1)
    return found * math.sqrt(vectors / (vectors - 1))


def reference_fits(features: Features, resamples: Tensor) -> GaussianFits:
    """Gaussian fits to each resample of a feature set; few rows give singular covariances, and no error.

    Args:
        features: shape (n, dim).
        resamples: counts, shape (replicates, n).

    Raises:
        PrecfmError: unusable features, or resamples of another number of rows.
    """
    x = feature_matrix(features, "features")
    shares = _weights(resamples, len(x)).to(x.device)
    centre = x.mean(0, dtype=torch.float64)
    centred = x - centre
    shifts = shares @ centred
    factors = torch.empty(len(shares), x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for replicate, (share, shift) in enumerate(zip(shares, shifts, strict=True)):
        weighted = centred * share.sqrt()[:, None]
        cov = (weighted.T @ weighted - torch.outer(shift, shift)) * (len(x) / (len(x) - 1))
        eigenvalues, eigenvectors = torch.linalg.eigh(cov)
        factors[replicate] = eigenvectors * eigenvalues.clamp(min=0.0).sqrt()
    return GaussianFits(centre + shifts, factors)


def frechet_against_fits(generated: Features, fits: GaussianFits) -> Tensor:
    """Squared Frechet distance of a generated set to the reference in each replicate.

    Args:
        generated: shape (n, dim); kept as it is, since seeds give its scatter.
        fits: of the reference.

    Returns:
        Shape (replicates,), float64, on the CPU. Where all counts are 1 it is `frechet_distance`.

    Raises:
        PrecfmError: unusable features, or of another width than the reference's.
    """
    x = feature_matrix(generated, "generated")
    if x.shape[1] != fits.means.shape[1]:
        raise PrecfmError(
            f"generated: got {x.shape[1]} features per row; {fits.means.shape[1]} are needed, as in the fits"
        )
    own = gaussian_fit(x)
    means, factors = fits.means.to(x.device), fits.factors.to(x.device)
    apart = (means - own.mean).square().sum(1) + own.factor.square().sum() + factors.square().sum((1, 2))
    cross: Tensor = torch.linalg.svdvals(own.factor.T @ factors).sum(1)
    return (apart - 2.0 * cross).clamp(min=0.0).cpu()


def _weights(resamples: Tensor, n: int) -> Tensor:
    """Shares of the rows in each replicate, float64, summing to one."""
    if resamples.ndim != 2 or resamples.shape[1] != n:
        raise PrecfmError(f"resamples: got shape {tuple(resamples.shape)}; (replicates, {n}) is needed")
    return resamples.to(torch.float64) / n


def replicates_text(values: Tensor) -> str:
    """Replicates as one field of a table, seven digits each: what float32 holds, in a tenth of the space of rows."""
    return " ".join(f"{value:.7g}" for value in values.tolist())
