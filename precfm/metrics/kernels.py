"""Unbiased maximum mean discrepancies (KID and RBF) between feature sets, exact in blocks or over subsets.

References:
    Gretton et al., A kernel two-sample test, JMLR 2012, equation 3.
    Binkowski et al., Demystifying MMD GANs, https://arxiv.org/abs/1801.01401 (KID: the cubic kernel).
    Sutherland et al., Generative models and model criticism via optimized MMD,
        https://arxiv.org/abs/1611.04488 (variance of the estimator).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.metrics.checks import Features, feature_matrix, feature_pair

Kernel = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Discrepancy:
    """A squared maximum mean discrepancy and its sampling error.

    Args:
        value: unbiased estimate; slightly negative values are right for sets that do not differ.
        standard_error: over resampling of both sets (or between subsets, of their mean).
        deviation: standard deviation between subsets; None for the exact estimate.
    """

    value: float
    standard_error: float
    deviation: float | None = None


def polynomial_kernel(degree: int = 3, gamma: float | None = None, offset: float = 1.0) -> Kernel:
    """k(x, y) = (gamma x.y + offset)^degree, gamma = 1 / dim where None; the defaults are the KID's."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        scale = 1.0 / x.shape[1] if gamma is None else gamma
        base = torch.addmm(x.new_full((1, 1), offset), x, y.T, alpha=scale)
        power = base.square() if degree > 1 else base
        for _ in range(degree - 2):
            power.mul_(base)
        return power

    return kernel


def rbf_kernel(bandwidth: float) -> Kernel:
    """k(x, y) = exp(-|x - y|^2 / (2 bandwidth^2))."""
    if not (math.isfinite(bandwidth) and bandwidth > 0):
        raise PrecfmError(f"bandwidth: {bandwidth} is not a positive number")

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        squares = x.square().sum(1)[:, None] + y.square().sum(1)[None, :]
        distances = squares.addmm_(x, y.T, alpha=-2.0).clamp_(min=0.0)
        return distances.mul_(-0.5 / bandwidth**2).exp_()

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
    distances = torch.nn.functional.pdist(x - x.mean(0))
    median = float(distances.median())
    if median == 0.0:
        raise PrecfmError("features: more than half of the pairs are equal; state a bandwidth")
    return median


def mmd(
    generated: Features, reference: Features, kernel: Kernel, *, memory_budget: int = 2**28
) -> Discrepancy:
    """Unbiased squared maximum mean discrepancy over all pairs, in float64 and in blocks.

    Args:
        generated: shape (n, dim).
        reference: shape (m, dim).
        kernel: maps (a, dim) and (b, dim) to (a, b) for instance `polynomial_kernel()`.
        memory_budget: bytes that the temporary blocks may take.

    Returns:
        Estimate and standard error; both use every pair once.
    """
    x, y = feature_pair(generated, reference)
    # Shifting is harmless for an RBF kernel but not for a polynomial one: features stay as they are.
    within_x, squares_x = _within(x, kernel, memory_budget)
    within_y, squares_y = _within(y, kernel, memory_budget)
    cross_x, cross_y, squares_xy = _across(x, y, kernel, memory_budget)
    n, m = len(x), len(y)
    value = float(within_x.mean() / (n - 1) + within_y.mean() / (m - 1) - 2.0 * cross_x.mean() / m)
    # First-order term (how the mean over the other samples varies from sample to sample) and the second-order
    # one (doubly centred kernel), which is all that is left where the sets do not differ. The means are noisy,
    # which adds twice the second-order term to the estimate of the first.
    first = 4.0 * float(
        (within_x / (n - 1) - cross_x / m).var() / n + (within_y / (m - 1) - cross_y / n).var() / m
    )
    second = (
        2.0 * _centred(squares_x / (n * (n - 1)), within_x / (n - 1), within_x / (n - 1)) / (n * (n - 1))
        + 2.0 * _centred(squares_y / (m * (m - 1)), within_y / (m - 1), within_y / (m - 1)) / (m * (m - 1))
        + 4.0 * _centred(squares_xy / (n * m), cross_x / m, cross_y / n) / (n * m)
    )
    return Discrepancy(value, math.sqrt(max(first - second, 0.5 * second, 0.0)))


def kid(generated: Features, reference: Features, *, memory_budget: int = 2**28) -> Discrepancy:
    """Discrepancy of the KID's cubic kernel over all pairs: less variance than subsets, no randomness."""
    return mmd(generated, reference, polynomial_kernel(), memory_budget=memory_budget)


def mmd_rbf(
    generated: Features, reference: Features, *, bandwidth: float | None = None, memory_budget: int = 2**28
) -> Discrepancy:
    """Squared RBF discrepancy; the bandwidth is the reference's median distance where None is given."""
    width = median_distance(reference) if bandwidth is None else bandwidth
    return mmd(generated, reference, rbf_kernel(width), memory_budget=memory_budget)


def draw_subsets(
    n_generated: int, n_reference: int, *, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Row numbers of the subsets of a KID, drawn as torch-fidelity draws them from the same seed.

    Returns:
        Pairs of int64 arrays of shape (subset_size,), rows of the generated and of the reference features.

    Raises:
        PrecfmError: a set is smaller than a subset.
    """
    for name, n in (("generated", n_generated), ("reference", n_reference)):
        if n < subset_size:
            raise PrecfmError(
                f"{name}: {n} rows; a subset of {subset_size} needs as many, or choose a smaller one"
            )
    random = np.random.RandomState(seed)
    return [
        (
            random.choice(n_generated, subset_size, replace=False),
            random.choice(n_reference, subset_size, replace=False),
        )
        for _ in range(subsets)
    ]


def kid_over_subsets(
    generated: Features,
    reference: Features,
    rows: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    kernel: Kernel | None = None,
) -> Discrepancy:
    """Mean of the discrepancies of subsets: the KID as it is usually published.

    Args:
        generated: shape (n, dim).
        reference: shape (m, dim).
        rows: the subsets, see `draw_subsets`.
        kernel: the cubic kernel of the KID where None.

    Returns:
        Mean, standard deviation between subsets (of the population, as published), and the standard error of
        the mean if subsets were disjoint; they overlap, so it is a lower bound.
    """
    x, y = feature_pair(generated, reference)
    function = polynomial_kernel() if kernel is None else kernel
    values = []
    for first, second in rows:
        a = x[torch.as_tensor(first, device=x.device)].to(torch.float64)
        b = y[torch.as_tensor(second, device=y.device)].to(torch.float64)
        within = [function(c, c) for c in (a, b)]
        means = [float((k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1))) for k in within]
        values.append(means[0] + means[1] - 2.0 * float(function(a, b).mean()))
    deviation = float(np.std(values))
    return Discrepancy(float(np.mean(values)), deviation / math.sqrt(len(values)), deviation)


def _centred(mean_square: Tensor, row_means: Tensor, column_means: Tensor) -> float:
    """Mean square of a doubly centred kernel matrix from its mean square and its row and column means."""
    grand = row_means.mean()
    return float(mean_square - row_means.square().mean() - column_means.square().mean() + grand.square())


def _block_size(memory_budget: int) -> int:
    # A kernel holds at most three blocks at a time; small blocks stay in the processor's cache.
    return max(128, min(1024, math.isqrt(memory_budget // 24)))


def _within(x: Tensor, kernel: Kernel, memory_budget: int) -> tuple[Tensor, Tensor]:
    """Row sums (n,) and sum of squares of a kernel matrix without its diagonal; each pair once."""
    size = _block_size(memory_budget)
    rows = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    squares = torch.zeros((), dtype=torch.float64, device=x.device)
    for i in range(0, len(x), size):
        a = x[i : i + size].to(torch.float64)
        for j in range(i, len(x), size):
            block = kernel(a, x[j : j + size].to(torch.float64))
            if i == j:
                block.fill_diagonal_(0.0)
            rows[i : i + size] += block.sum(1)
            if i != j:
                rows[j : j + size] += block.sum(0)
            squares += (1.0 if i == j else 2.0) * block.flatten().dot(block.flatten())
    return rows, squares


def _across(x: Tensor, y: Tensor, kernel: Kernel, memory_budget: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row sums (n,), column sums (m,) and sum of squares of the kernel matrix between two sets."""
    size = _block_size(memory_budget)
    rows = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    columns = torch.zeros(len(y), dtype=torch.float64, device=x.device)
    squares = torch.zeros((), dtype=torch.float64, device=x.device)
    for i in range(0, len(x), size):
        a = x[i : i + size].to(torch.float64)
        for j in range(0, len(y), size):
            block = kernel(a, y[j : j + size].to(torch.float64))
            rows[i : i + size] += block.sum(1)
            columns[j : j + size] += block.sum(0)
            squares += block.flatten().dot(block.flatten())
    return rows, columns, squares
