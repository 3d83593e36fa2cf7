"""Improved precision and recall from k-nearest-neighbour balls, in blocks of bounded memory.

References:
    Kynkaanniemi et al., Improved precision and recall metric for assessing generative models,
        https://arxiv.org/abs/1904.06991
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.metrics.checks import Features, column_means, feature_matrix, feature_pair
from precfm.metrics.distances import (
    TOGETHER,
    Blocks,
    Products,
    double_products,
    exact_pairs,
    fits,
    nearest,
    rounding,
)


@dataclass(frozen=True)
class PrecisionRecall:
    """Share of samples of one set that lie in a ball of the other.

    Args:
        precision: share of generated samples inside a ball around a real one.
        recall: share of real samples inside a ball around a generated one.
        generated_inside: which generated samples count for precision, bool, shape (n,).
        reference_inside: which real samples count for recall, bool, shape (m,).
    """

    precision: float
    recall: float
    generated_inside: Tensor
    reference_inside: Tensor


def squared_radii(features: Features, k: int = 3, *, memory_budget: int = 2**30) -> Tensor:
    """Squared distance of each row to its k-th nearest other row, float64, shape (n,).

    Raises:
        PrecfmError: k is not positive, or the set has no k other rows.
    """
    x = _enough(features, "features", k)
    return nearest(x, None, k, memory_budget=memory_budget)[0][:, -1]


def precision_recall(
    generated: Features,
    reference: Features,
    k: int = 3,
    *,
    reference_radii: Tensor | None = None,
    memory_budget: int = 2**30,
) -> PrecisionRecall:
    """Precision and recall of a generated set against a reference set.

    Args:
        generated: shape (n, dim).
        reference: shape (m, dim).
        k: a sample's ball reaches to its k-th nearest neighbour in its own set (itself not counted).
        reference_radii: `squared_radii(reference, k)` if known from before, shape (m,).
        memory_budget: bytes that may be taken beside the features.

    Returns:
        Both shares and the samples behind them. A point on a ball's surface is inside.

    Raises:
        PrecfmError: unusable features, or fewer than k + 1 of them.
    """
    x, y = feature_pair(generated, reference)
    _enough(x, "generated", k)
    _enough(y, "reference", k)
    radii_x = nearest(x, None, k, memory_budget=memory_budget)[0][:, -1]
    if reference_radii is None:
        radii_y = nearest(y, None, k, memory_budget=memory_budget)[0][:, -1]
    elif reference_radii.shape == (len(y),):
        radii_y = reference_radii.to(device=y.device, dtype=torch.float64)
    else:
        raise PrecfmError(f"reference_radii: shape {tuple(reference_radii.shape)}; ({len(y)},) is needed")
    margin_x, margin_y, error_x, error_y = _margins(x, y, radii_x, radii_y, memory_budget)
    inside_x = _decided(margin_x, error_x, x, y, radii_y, memory_budget)
    inside_y = _decided(margin_y, error_y, y, x, radii_x, memory_budget)
    return PrecisionRecall(
        precision=float(inside_x.to(torch.float64).mean()),
        recall=float(inside_y.to(torch.float64).mean()),
        generated_inside=inside_x,
        reference_inside=inside_y,
    )


def _margins(
    x: Tensor, y: Tensor, radii_x: Tensor, radii_y: Tensor, memory_budget: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each sample min(distance^2 - radius^2) over the other set's balls, and the rounding error of that.

    One product of the two sets serves both directions.
    """
    centre = column_means(y)
    left = Blocks(x, centre, keep=False)
    right = Blocks(y, centre, keep=fits(y, memory_budget))
    margin_x = torch.full((len(x),), torch.inf, device=x.device)
    margin_y = torch.full((len(y),), torch.inf, device=y.device)
    float_x, float_y = radii_x.to(torch.float32), radii_y.to(torch.float32)
    multiply = Products(left.size, x.device)
    for i in left.starts:
        rows = left.left(i)[: min(left.size, len(x) - i)]
        part_x = margin_x[i : i + left.size]
        for j in right.starts:
            columns = right.right(j)[: min(right.size, len(y) - j)].clone()
            columns[:, -1] -= float_y[j : j + right.size]
            block = multiply(rows, columns)  # distance^2 less the squared radius of the column
            torch.minimum(part_x, block.amin(1), out=part_x)
            part_y = margin_y[j : j + right.size]
            torch.minimum(part_y, block.sub_(float_x[i : i + left.size, None]).amin(0), out=part_y)
    margin_y += float_y
    relative = rounding(x.shape[1], x.device)
    scale_x = left.norms + float_x
    scale_y = right.norms + float_y
    return margin_x, margin_y, relative * (scale_x + scale_y.max()), relative * (scale_y + scale_x.max())


def _decided(
    margin: Tensor, error: Tensor, x: Tensor, y: Tensor, radii: Tensor, memory_budget: int
) -> Tensor:
    """Which rows of x lie in a ball around a row of y; where rounding leaves a doubt, by exact distances."""
    inside = margin <= 0
    for rows in torch.split((margin.abs() <= error).nonzero()[:, 0], TOGETHER):
        values, errors = double_products(x[rows], y)
        excess = values - radii
        errors += 1e-15 * radii
        found = (excess < -errors).any(1)
        numbers, columns = ((excess.abs() <= errors) & ~found[:, None]).nonzero(as_tuple=True)
        if len(numbers):
            touching = exact_pairs(x, rows[numbers], y, columns, memory_budget) <= radii[columns]
            found[numbers[touching]] = True
        inside[rows] = found
    return inside


def _enough(features: Features, name: str, k: int) -> Tensor:
    if k < 1:
        raise PrecfmError(f"k: {k} neighbours; at least 1 is needed")
    x = feature_matrix(features, name)
    if len(x) <= k:
        raise PrecfmError(f"{name}: {len(x)} rows; k = {k} neighbours need at least {k + 1}")
    return x
