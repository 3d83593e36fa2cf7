"""Whether generated samples lie closer to training samples than new real samples do.

References:
    Meehan et al., A non-parametric test to detect data-copying in generative models,
        https://arxiv.org/abs/2004.05675
"""

import math
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.metrics.checks import Features, feature_pair
from precfm.metrics.distances import nearest


@dataclass(frozen=True)
class Memorisation:
    """Distances to the nearest training sample, of generated samples against those of held-out ones.

    Args:
        closer: probability that a generated sample is closer to the training set than a held-out one (ties
            count half): 0.5 where nothing is copied, 1 where everything is.
        z: how many standard errors `closer` is above 0.5 (Mann-Whitney); large positive values mean copying.
        p: one-sided p-value against "not closer than held-out samples".
        near_share: share of generated samples nearer than the nearest `quantile` of the held-out ones.
        quantile: share of held-out samples that is called near.
        ratio: median distance of the generated samples over that of the held-out ones.
        distances: of the generated samples, float64, shape (n,).
        neighbours: training row nearest to each generated sample, int64, shape (n,).
    """

    closer: float
    z: float
    p: float
    near_share: float
    quantile: float
    ratio: float
    distances: Tensor
    neighbours: Tensor


def memorisation(
    generated: Features,
    training: Features,
    held_out: Features,
    *,
    quantile: float = 0.01,
    memory_budget: int = 2**30,
) -> Memorisation:
    """Compare the nearest-training-sample distances of a generated set with those of a held-out set.

    Args:
        generated: shape (n, dim).
        training: shape (m, dim), what the model has seen.
        held_out: shape (h, dim), real samples that it has not seen, from the same law.
        quantile: share of held-out samples that is called near; the expected `near_share` without copying.
        memory_budget: bytes that may be taken beside the features.

    Raises:
        PrecfmError: unusable features, or a quantile outside (0, 1).
    """
    if not 0 < quantile < 1:
        raise PrecfmError(f"quantile: {quantile} is not between 0 and 1")
    x, base = feature_pair(generated, training, names=("generated", "training"))
    other, _ = feature_pair(held_out, training, names=("held_out", "training"))
    squares, rows = nearest(x, base, 1, memory_budget=memory_budget)
    distances = squares[:, 0].sqrt()
    expected = nearest(other, base, 1, memory_budget=memory_budget)[0][:, 0].sqrt()
    first, second = distances.cpu().numpy(), expected.cpu().numpy()
    test = stats.mannwhitneyu(first, second, alternative="less", method="asymptotic")
    closer = 1.0 - float(test.statistic) / (len(first) * len(second))
    near = float((distances <= torch.quantile(expected, quantile)).to(torch.float64).mean())
    middle = float(expected.median())
    return Memorisation(
        closer=closer,
        z=float(stats.norm.isf(test.pvalue))
        if 0 < test.pvalue < 1
        else math.copysign(math.inf, closer - 0.5),
        p=float(test.pvalue),
        near_share=near,
        quantile=quantile,
        ratio=float(distances.median()) / middle if middle > 0 else math.inf,
        distances=distances,
        neighbours=rows[:, 0],
    )
