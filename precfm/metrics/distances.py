"""Nearest neighbours in blocks: fast float32 products find the candidates, exact distances decide.

The distance of two rows is, everywhere in this module, the float64 sum of the squares of their difference.
Matrix products only propose; wherever rounding could change an answer the rows are examined again in
float64, so results do not depend on the order of rows, on block sizes or on the device.
"""

import math

import torch
from torch import Tensor

from precfm.metrics.checks import column_means

_FOLDS = 16  # columns of a block that are compared at once before any is looked at singly
_BLOCK = 2048
_SPARE = 2  # candidates beyond the k wanted, so that a gap to the next one can certify them
_FAR = 1e30
TOGETHER = 64  # doubtful rows examined at once
_ENTRIES = 2**18  # differences at a time: they stay in the processor's cache


class Blocks:
    """Rows of a feature set as factors of squared distances, block by block.

    A left block times a right block (transposed) is the matrix of squared distances: the norms travel as two
    extra columns, so no pass over the matrix adds them. Blocks are padded with points that are far from all.

    Args:
        features: shape (n, dim).
        centre: shape (dim,), subtracted from every row: small norms, small rounding errors.
        keep: hold the blocks in memory, float32, instead of making each anew.
        size: rows of a block, a multiple of the number of folds.
    """

    def __init__(self, features: Tensor, centre: Tensor, *, keep: bool, size: int = _BLOCK) -> None:
        self.features, self.centre, self.size = features, centre.to(features.dtype), size
        self.starts = range(0, len(features), size)
        self.norms = torch.empty(len(features), device=features.device)
        for start in self.starts:
            rows = self._centred(start)
            self.norms[start : start + size] = rows.square().sum(1)
        self._kept = [self._make(start) for start in self.starts] if keep else None

    def _centred(self, start: int) -> Tensor:
        return (self.features[start : start + self.size] - self.centre).to(torch.float32)

    def _make(self, start: int) -> Tensor:
        rows = self._centred(start)
        padded = math.ceil(len(rows) / _FOLDS) * _FOLDS
        block = torch.zeros(padded, rows.shape[1] + 2, device=rows.device)
        block[: len(rows), :-2] = rows
        block[:, -2] = 1.0
        block[: len(rows), -1] = self.norms[start : start + self.size]
        block[len(rows) :, -1] = _FAR
        return block

    def right(self, start: int) -> Tensor:
        """Columns (c, 1, |c|^2) of the block that begins at a row."""
        return self._make(start) if self._kept is None else self._kept[start // self.size]

    def left(self, start: int) -> Tensor:
        """Columns (-2 c, |c|^2, 1) of the block that begins at a row."""
        block = self._make(start)
        norms = block[:, -1].clone()
        block[:, :-2] *= -2.0
        block[:, -1] = 1.0
        block[:, -2] = norms
        return block


class Products:
    """Products of a left and a right block, each written over the one before: fresh memory is slow."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._buffer = torch.empty((size + _FOLDS) ** 2, device=device)

    def __call__(self, left: Tensor, right: Tensor) -> Tensor:
        """left @ right.T, valid until the next call."""
        rows, columns = len(left), len(right)
        return torch.mm(left, right.T, out=self._buffer[: rows * columns].view(rows, columns))


def rounding(dim: int, device: torch.device) -> float:
    """Error of a squared distance out of a matrix product, relative to the sum of the two squared norms.

    Eight times the random walk of dim rounding errors, in the precision that products are set to.
    """
    precision = torch.get_float32_matmul_precision()
    unit = {"highest": 2.0**-24, "high": 2.0**-11}.get(precision, 2.0**-8)
    if device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32:
        unit = max(unit, 2.0**-11)
    return 8.0 * math.sqrt(dim + 2) * unit


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Float64 squared distances of rows of y to rows of x, which is broadcast: shape (..., dim) -> (...)."""
    return y.to(torch.float64, copy=True).sub_(x).square_().sum(-1)


class _Best:
    """The smallest values seen so far for each of n rows, with their columns."""

    def __init__(self, n: int, count: int, device: torch.device) -> None:
        self.values = torch.full((n, count), math.inf, device=device)
        self.columns = torch.zeros((n, count), dtype=torch.int64, device=device)

    def offer(self, start: int, block: Tensor, offset: int, *, by_column: bool = False) -> None:
        """Take a block of distances: its rows (or columns) begin at `start`, the others at `offset`."""
        count = self.values.shape[1]
        others = block.shape[0 if by_column else 1]
        stride = others // _FOLDS
        # Group g holds the entries g, g + stride, g + 2 stride, ...; the `count` smallest entries of a row
        # lie in the `count` groups with the smallest minima.
        folded = block.view(_FOLDS, stride, -1) if by_column else block.view(-1, _FOLDS, stride)
        groups = folded.amin(0).T if by_column else folded.amin(1)
        n = min(len(groups), len(self.values) - start)
        rows = (groups[:n].amin(1) < self.values[start : start + n, -1]).nonzero()[:, 0]
        if not len(rows):
            return
        chosen = groups[rows].topk(min(count, stride), largest=False, sorted=False).indices
        folds = stride * torch.arange(_FOLDS, device=block.device)
        members = (chosen[:, :, None] + folds).flatten(1)
        values = block[members, rows[:, None]] if by_column else block[rows[:, None], members]
        merged = torch.cat([self.values[start + rows], values], dim=1)
        columns = torch.cat([self.columns[start + rows], members + offset], dim=1)
        best = merged.topk(count, largest=False)
        self.values[start + rows] = best.values
        self.columns[start + rows] = columns.gather(1, best.indices)


def nearest(
    queries: Tensor, base: Tensor | None, k: int, *, memory_budget: int = 2**30
) -> tuple[Tensor, Tensor]:
    """The k nearest rows of a base for each query.

    Args:
        queries: shape (n, dim).
        base: shape (m, dim), m >= k; None for the queries themselves, each without itself.
        k: number of neighbours.
        memory_budget: bytes that may be taken beside the features.

    Returns:
        Squared distances in increasing order, float64, and rows of the base, int64; both of shape (n, k).
    """
    other = queries if base is None else base
    centre = column_means(other)
    count = min(k + _SPARE, len(other) - (base is None))
    best = _Best(len(queries), count, queries.device)
    right = Blocks(other, centre, keep=fits(other, memory_budget))
    left = right if base is None else Blocks(queries, centre, keep=False)
    multiply = Products(left.size, queries.device)
    for i in left.starts:
        rows = left.left(i)
        for j in right.starts:
            if base is None and j < i:
                continue
            block = multiply(rows, right.right(j))
            if base is None and i == j:
                block.fill_diagonal_(_FAR)
            best.offer(i, block, j)
            if base is None and i != j:
                best.offer(j, block, i, by_column=True)
    return _settled(queries, base, other, left, right, best, k, memory_budget)


def _settled(
    queries: Tensor,
    base: Tensor | None,
    other: Tensor,
    left: Blocks,
    right: Blocks,
    best: _Best,
    k: int,
    budget: int,
) -> tuple[Tensor, Tensor]:
    """Exact distances of the candidates; rows whose candidates are not certain are searched in float64."""
    n, dim = queries.shape
    count = best.values.shape[1]
    distances = torch.empty((n, count), dtype=torch.float64, device=queries.device)
    step = _step(count * dim, budget)
    for start in range(0, n, step):
        part = slice(start, start + step)
        distances[part] = squared_distances(queries[part, None, :], other[best.columns[part]])
    order = _by_distance_then_row(distances, best.columns)
    distances, columns = distances.gather(1, order), best.columns.gather(1, order)
    if count == len(other) - (base is None):
        return distances[:, :k], columns[:, :k]
    # A row that is no candidate lies at least at the last candidate's approximate distance, less the rounding
    # error; rows with a norm above |x| + d are farther than d whatever rounding does.
    norm = left.norms.to(torch.float64).sqrt()
    reach = norm.square() + (norm + distances[:, k - 1].sqrt()).square()
    error = rounding(dim, queries.device) * reach
    doubtful = (best.values[:, -1].to(torch.float64) - error <= distances[:, k - 1]).nonzero()[:, 0]
    for rows in torch.split(doubtful, TOGETHER):
        distances[rows, :k], columns[rows, :k] = _nearest_exactly(
            queries, other, rows, k, base is None, budget
        )
    return distances[:, :k], columns[:, :k]


def _nearest_exactly(
    queries: Tensor, other: Tensor, rows: Tensor, k: int, same: bool, budget: int
) -> tuple[Tensor, Tensor]:
    """The k nearest rows of a few queries: products in float64 screen, exact distances of what is left decide."""
    values, errors = double_products(queries[rows], other)
    if same:
        values[torch.arange(len(rows), device=values.device), rows] = math.inf
    reach = (values + errors).kthvalue(k, dim=1, keepdim=True).values
    numbers, columns = (values - errors <= reach).nonzero(as_tuple=True)
    distances = exact_pairs(queries, rows[numbers], other, columns, budget)
    order = distances.argsort(stable=True)  # pairs come by row and column, which settles ties
    order = order[numbers[order].argsort(stable=True)]
    counts = torch.bincount(numbers, minlength=len(rows))
    first = (counts.cumsum(0) - counts)[:, None] + torch.arange(k, device=counts.device)
    return distances[order][first], columns[order][first]


def double_products(queries: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances of a few queries to a base by products in float64, and bounds of their errors.

    Args:
        queries: shape (q, dim).
        base: shape (m, dim).

    Returns:
        Two float64 tensors of shape (q, m).
    """
    centre = column_means(base)
    left = queries.to(torch.float64) - centre
    norms = left.square().sum(1)[:, None]
    values = torch.empty(len(left), len(base), dtype=torch.float64, device=base.device)
    errors = torch.empty_like(values)
    relative = 8.0 * math.sqrt(left.shape[1] + 2) * 2.0**-53
    for start in range(0, len(base), _BLOCK):
        right = base[start : start + _BLOCK] - centre
        sums = norms + right.square().sum(1)
        values[:, start : start + _BLOCK] = torch.addmm(sums, left, right.T, alpha=-2.0)
        errors[:, start : start + _BLOCK] = relative * sums
    return values, errors


def exact_pairs(queries: Tensor, rows: Tensor, base: Tensor, columns: Tensor, budget: int) -> Tensor:
    """Squared distances of chosen pairs, float64, shape (pairs,)."""
    step = _step(queries.shape[1], budget)
    parts = zip(torch.split(rows, step), torch.split(columns, step), strict=True)
    return torch.cat([squared_distances(queries[i], base[j]) for i, j in parts])


def _step(entries: int, budget: int) -> int:
    """Rows at a time where each takes a number of differences."""
    return max(1, min(_ENTRIES, budget // 16) // entries)


def _by_distance_then_row(distances: Tensor, rows: Tensor) -> Tensor:
    """Order that sorts by distance and, among equal ones, by row, however they were found."""
    by_row = rows.argsort(dim=1, stable=True)
    return by_row.gather(1, distances.gather(1, by_row).argsort(dim=1, stable=True))


def fits(features: Tensor, memory_budget: int) -> bool:
    """Whether a float32 copy of the features takes at most half of a budget of bytes."""
    return 4 * len(features) * (features.shape[1] + 2) <= memory_budget // 2
