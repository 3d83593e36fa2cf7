"""Are generated samples nearer to what the model was trained on than to new data?

References:
    Meehan et al., A non-parametric test to detect data-copying in generative models,
        https://arxiv.org/abs/2004.05675
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.metrics.checks import Features, feature_pair
from precfm.metrics.distances import nearest


@dataclass(frozen=True)
class Copying:
    """How generated samples lie between training and held-out data.

    Attributes:
        nearer: share of the generated samples whose nearest training sample is nearer than their nearest held-out
            sample, ties counted half: 0.5 where nothing is copied, 1 where everything is.
        standard_error: of that share. Samples that share their nearest real sample count as one cluster, because it
            decides for all of them; so the scatter of the two data sets is in it, too.
        sources: training row nearest to each generated sample, int64, shape (n,).
    """

    nearer: float
    standard_error: float
    sources: Tensor


def copying_check(generated: Features, training: Features, held_out: Features) -> Copying:
    """Compare the distances of generated samples to training data and to held-out data of the same size.

    Args:
        generated: shape (n, dim).
        training: shape (m, dim), data that the model has seen.
        held_out: shape (m, dim), data of the same law that it has not seen.

    Raises:
        PrecfmError: unusable features, or sets of different sizes: the nearest sample of a larger set is nearer.

    Example:
        >>> import torch
        >>> training, held_out = torch.tensor([[0.0], [4.0]]), torch.tensor([[1.0], [9.0]])
        >>> copying_check(torch.tensor([[0.1], [3.9], [1.2], [8.0]]), training, held_out).nearer
        0.5
    """
    x, seen = feature_pair(generated, training, ("generated", "training"))
    _, unseen = feature_pair(generated, held_out, ("generated", "held_out"))
    if len(seen) != len(unseen):
        raise PrecfmError(
            f"held_out: {len(unseen)} rows, but training has {len(seen)}; both sets need the same size"
        )
    to_seen, seen_rows = (found[:, 0] for found in nearest(x, seen, 1))
    to_unseen, unseen_rows = (found[:, 0] for found in nearest(x, unseen, 1))
    nearer = 0.5 - 0.5 * (to_seen - to_unseen).sign()
    share = nearer.mean()
    m = len(seen)
    winner = torch.where(to_seen <= to_unseen, seen_rows, m + unseen_rows)
    of_rows = nearer.new_zeros(2 * m).scatter_add_(0, winner, nearer - share).reshape(2, m)
    # Of each set exactly m rows compete, so a row counts by what it wins beyond the mean of its set.
    error = of_rows.var(1).sum().mul(m).sqrt() / len(x)
    return Copying(float(share), float(error), seen_rows)
