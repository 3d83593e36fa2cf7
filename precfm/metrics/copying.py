"""Are generated samples nearer to what the model was trained on than to new data?

References:
    Meehan et al., A non-parametric test to detect data-copying in generative models,
        https://arxiv.org/abs/2004.05675
"""

from dataclasses import dataclass

from scipy import stats
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
        p: one-sided p-value of the sign test against 0.5, for independent generated samples; the scatter of the two
            data sets themselves is not in it.
        sources: training row nearest to each generated sample, int64, shape (n,).
    """

    nearer: float
    p: float
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
    to_seen, rows = nearest(x, seen, 1)
    difference = to_seen - nearest(x, unseen, 1)[0]
    nearer, ties = int((difference < 0).sum()), int((difference == 0).sum())
    test = stats.binomtest(nearer, max(1, len(x) - ties), 0.5, alternative="greater")
    return Copying((nearer + ties / 2) / len(x), float(test.pvalue), rows[:, 0])
