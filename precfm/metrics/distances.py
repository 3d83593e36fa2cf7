"""Squared distances between feature sets in float64, in chunks of rows, and the nearest neighbours out of them."""

from collections.abc import Iterator

import torch
from torch import Tensor

# Error of a squared distance out of a matrix product, relative to the sum of the two squared norms.
ROUNDING = 64 * torch.finfo(torch.float64).eps
_CHUNK = 2**20  # distances at a time: 8 MiB


def distance_chunks(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Squared distances of all rows of x to all rows of y, some rows of x at a time.

    Args:
        x: shape (n, dim).
        y: shape (m, dim).

    Yields:
        The rows of x, their squared distances, float64 of shape (rows, m), and bounds of the rounding errors of these:
        distances that differ by less count as equal.
    """
    centre = y.mean(0, dtype=torch.float64)  # small norms have small rounding errors
    right = y - centre
    norms = right.square().sum(1)
    for start in range(0, len(x), step := max(1, _CHUNK // len(y))):
        left = x[start : start + step] - centre
        sums = left.square().sum(1)[:, None] + norms
        yield slice(start, start + len(left)), torch.addmm(sums, left, right.T, alpha=-2.0), ROUNDING * sums


def nearest(queries: Tensor, base: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest rows of a base for each query.

    Args:
        queries: shape (n, dim).
        base: shape (m, dim), m >= k; None for the queries themselves, each without itself.
        k: number of neighbours.

    Returns:
        Squared distances in increasing order, float64, and rows of the base, int64; both of shape (n, k).
    """
    # Allocated once: small results kept between the chunks would keep the memory of all chunks from being used again.
    squares = torch.empty(len(queries), k, dtype=torch.float64, device=queries.device)
    rows = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
    for chunk, distances, _ in distance_chunks(queries, queries if base is None else base):
        if base is None:
            distances[:, chunk].fill_diagonal_(torch.inf)
        squares[chunk], rows[chunk] = distances.clamp(min=0.0).topk(k, largest=False)
    return squares, rows
