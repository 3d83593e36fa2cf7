"""Improved precision and recall from k-nearest-neighbour balls.

References:
    Kynkaanniemi et al., Improved precision and recall metric for assessing generative models,
        https://arxiv.org/abs/1904.06991
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.metrics.checks import Features, feature_pair
from precfm.metrics.distances import distance_chunks, nearest


@dataclass(frozen=True)
class PrecisionRecall:
    """Share of samples of one set that lie in a ball of the other.

    Attributes:
        precision: share of generated samples inside a ball around a real one.
        recall: share of real samples inside a ball around a generated one.
        generated_inside: which generated samples count for precision, bool, shape (n,).
        reference_inside: which real samples count for recall, bool, shape (m,).
    """

    precision: float
    recall: float
    generated_inside: Tensor
    reference_inside: Tensor


def precision_recall(generated: Features, reference: Features, k: int = 3) -> PrecisionRecall:
    """Precision and recall of a generated set against a reference set.

    Args:
        generated: shape (n, dim).
        reference: shape (m, dim).
        k: a sample's ball reaches to its k-th nearest neighbour in its own set (itself not counted).

    Returns:
        Both shares and the samples behind them. A point on a ball's surface is inside.

    Raises:
        PrecfmError: unusable features, or fewer than k + 1 of them.
    """
    x, y = feature_pair(generated, reference)
    if k < 1:
        raise PrecfmError(f"k: got {k}; at least 1 neighbour is needed")
    for name, features in (("generated", x), ("reference", y)):
        if len(features) <= k:
            raise PrecfmError(f"{name}: {len(features)} rows; k = {k} neighbours need at least {k + 1}")
    radii_x, radii_y = (nearest(features, None, k)[0][:, -1] for features in (x, y))
    inside_x = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    inside_y = torch.zeros(len(y), dtype=torch.bool, device=y.device)
    for rows, distances, errors in distance_chunks(x, y):
        distances -= errors
        inside_x[rows] = (distances <= radii_y).any(1)
        inside_y |= (distances <= radii_x[rows, None]).any(0)
    return PrecisionRecall(
        float(inside_x.double().mean()), float(inside_y.double().mean()), inside_x, inside_y
    )
