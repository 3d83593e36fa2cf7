"""Unbiased maximum mean discrepancies (KID and RBF) between feature sets over all pairs, in float64 and in chunks.

References:
    Gretton et al., A kernel two-sample test, JMLR 2012, equation 3.
    Binkowski et al., Demystifying MMD GANs, https://arxiv.org/abs/1801.01401 (KID: the cubic kernel).
    Sutherland et al., Generative models and model criticism via optimized MMD,
        https://arxiv.org/abs/1611.04488 (variance of the estimator).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.metrics.checks import Features, feature_matrix, feature_pair

Kernel = Callable[[Tensor, Tensor], Tensor]
_CHUNK = 2**19  # entries of a kernel matrix at a time: 4 MiB


@dataclass(frozen=True)
class Discrepancy:
    """A squared maximum mean discrepancy and its sampling error.

    Attributes:
        value: unbiased estimate; slightly negative values are right for sets that do not differ.
        standard_error: over resampling of both sets.
    """

    value: float
    standard_error: float


def cubic_kernel(x: Tensor, y: Tensor) -> Tensor:
    """k(x, y) = (x.y / dim + 1)^3, the kernel of the KID; shapes (a, dim) and (b, dim) to (a, b)."""
    return torch.addmm(x.new_ones(1), x / x.shape[1], y.T).pow_(3)


def rbf_kernel(bandwidth: float) -> Kernel:
    """k(x, y) = exp(-|x - y|^2 / (2 bandwidth^2))."""
    if not (math.isfinite(bandwidth) and bandwidth > 0):
        raise PrecfmError(f"bandwidth: got {bandwidth}; a positive number is needed")

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        x, y = (features / (bandwidth * math.sqrt(2.0)) for features in (x, y))
        squares = x.square().sum(1)[:, None] + y.square().sum(1)
        return torch.addmm(squares, x, y.T, beta=-1.0, alpha=2.0).clamp_(max=0.0).exp_()

    return kernel


def median_distance(features: Features, *, at_most: int = 2000) -> float:
    """Median distance between two samples: the usual bandwidth of an RBF kernel.

    Args:
        features: shape (n, dim).
        at_most: number of rows used, spread evenly over the set, so that ordered sets are no problem.

    Raises:
        PrecfmError: the median is zero because most samples are equal.
    """
    x = feature_matrix(features, "features").cpu().to(torch.float64)
    if len(x) > at_most:
        x = x[torch.linspace(0, len(x) - 1, at_most).long()]
    median = float(torch.nn.functional.pdist(x - x.mean(0)).median())
    if median == 0.0:
        raise PrecfmError("features: more than half of the pairs are equal; give a bandwidth")
    return median


def mmd(generated: Features, reference: Features, kernel: Kernel) -> Discrepancy:
    """Unbiased squared maximum mean discrepancy over all pairs.

    Args:
        generated: shape (n, dim).
        reference: shape (m, dim).
        kernel: maps (a, dim) and (b, dim) to (a, b), float64.

    Returns:
        Estimate and standard error.
    """
    x, y = (features.to(torch.float64) for features in feature_pair(generated, reference))
    n, m = len(x), len(y)
    within_x, _, squares_x = _sums(x, x, kernel)
    within_y, _, squares_y = _sums(y, y, kernel)
    cross_x, cross_y, squares_xy = _sums(x, y, kernel)
    within_x, within_y, cross_x, cross_y = within_x / (n - 1), within_y / (m - 1), cross_x / m, cross_y / n
    value = float(within_x.mean() + within_y.mean() - 2.0 * cross_x.mean())
    # First-order term (how the mean over the other samples varies from sample to sample) and the second-order one
    # (doubly centred kernel), which is all that is left where the sets do not differ. The means are noisy, which adds
    # twice the second-order term to the estimate of the first.
    first = 4.0 * float((within_x - cross_x).var() / n + (within_y - cross_y).var() / m)
    second = (
        2.0 * _centred(squares_x / (n * (n - 1)), within_x, within_x) / (n * (n - 1))
        + 2.0 * _centred(squares_y / (m * (m - 1)), within_y, within_y) / (m * (m - 1))
        + 4.0 * _centred(squares_xy / (n * m), cross_x, cross_y) / (n * m)
    )
    return Discrepancy(value, math.sqrt(max(first - second, 0.5 * second, 0.0)))


def kid(generated: Features, reference: Features) -> Discrepancy:
    """Discrepancy of the KID's cubic kernel over all pairs: less variance than subsets, no randomness."""
    return mmd(generated, reference, cubic_kernel)


def scaled_by_reference(generated: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Both feature sets, centred and scaled so that the reference has mean zero and mean variance one."""
    centre = reference.double().mean(0)
    scale = float((reference - centre).square().mean().sqrt()) or 1.0
    return (generated - centre) / scale, (reference - centre) / scale


def kid_replicates(generated: Features, reference: Features, resamples: Tensor) -> Tensor:
    """The KID against each resample of the reference, scaled by the whole reference, as in `evaluate_features`.

    Pairs of a row with its own copy are left out, so that resamples are as unbiased as the KID itself.

    Args:
        generated: shape (n, dim).
        reference: shape (m, dim).
        resamples: how often each row of the reference occurs in each replicate, integers, shape (replicates, m).

    Returns:
        Shape (replicates,), float64, on the CPU. Where all counts are 1 it is `kid` of the scaled sets.

    Raises:
        PrecfmError: unusable features, or resamples of another number of rows.
    """
    x, y = scaled_by_reference(*feature_pair(generated, reference))
    if resamples.ndim != 2 or resamples.shape[1] != len(y):
        raise PrecfmError(f"resamples: got shape {tuple(resamples.shape)}; (replicates, {len(y)}) is needed")
    counts = resamples.to(y)
    total, n = counts.sum(1), len(x)
    within_generated = _sums(x, x, cubic_kernel)[0].sum() / (n * (n - 1))
    cross = counts @ (_sums(x, y, cubic_kernel)[1] / n) / total
    pairs = cubic_kernel(y, y).fill_diagonal_(0.0)
    within = ((counts @ pairs) * counts).sum(1) / (total.square() - counts.square().sum(1))
    return (within_generated + within - 2.0 * cross).cpu()


def mmd_rbf(generated: Features, reference: Features, *, bandwidth: float | None = None) -> Discrepancy:
    """Squared RBF discrepancy; the bandwidth is the reference's median distance where None is given."""
    return mmd(
        generated, reference, rbf_kernel(median_distance(reference) if bandwidth is None else bandwidth)
    )


def _sums(x: Tensor, y: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor, float]:
    """Row sums, column sums and the sum of squares of a kernel matrix; of a set with itself without the diagonal."""
    rows, columns = (torch.zeros(len(z), dtype=torch.float64, device=z.device) for z in (x, y))
    squares, start = 0.0, 0
    while start < len(x):
        first = (
            start if x is y else 0
        )  # the matrix is symmetric then: what lies left of the diagonal is known
        stop = min(len(x), start + max(1, _CHUNK // (len(y) - first)))
        block = kernel(x[start:stop], y[first:])
        if x is y:
            square, beside = block[:, : stop - start].fill_diagonal_(0.0), block[:, stop - start :]
            squares += 2.0 * float(block.flatten() @ block.flatten()) - float(square.square().sum())
            rows[stop:] += beside.sum(0)
        else:
            squares += float(block.flatten() @ block.flatten())
            columns += block.sum(0)
        rows[start:stop] += block.sum(1)
        start = stop
    return rows, rows if x is y else columns, squares


def _centred(mean_square: float, row_means: Tensor, column_means: Tensor) -> float:
    """Mean square of a doubly centred kernel matrix from its mean square and its row and column means."""
    means = row_means.square().mean() + column_means.square().mean() - row_means.mean().square()
    return mean_square - float(means)
