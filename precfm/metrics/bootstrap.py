"""The bootstrap of the Frechet distance: how far it hangs on the images that happened to be drawn.

References:
    Efron and Tibshirani, An Introduction to the Bootstrap (1993).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from precfm.metrics.checks import Features, feature_matrix, feature_pair
from precfm.metrics.frechet import frechet_from_fits, gaussian_fit


def frechet_replicates(
    generated: Sequence[Features],
    reference: Features,
    *,
    replicates: int = 100,
    seed: int = 0,
    reference_only: bool = False,
) -> Tensor:
    """Frechet distances of several sets to one reference, over resamples drawn with replacement.

    The standard deviation of a column is the standard error of that set's distance; that of the difference of two
    columns is the error of the difference, paired: all sets meet the same resampled reference, and sets of the same
    size are resampled by the same rows, which pairs sets made of the same labels and noise. Resamples repeat rows, so
    that every distance is biased upwards: use the spread, not the percentiles.

    Args:
        generated: sets of shape (n, dim), each of its own n.
        reference: shape (m, dim).
        replicates: number of resamples.
        seed: of the resamples.
        reference_only: keep the generated sets as they are, where training seeds give their scatter already.

    Returns:
        Shape (replicates, number of sets), float64, on the CPU.

    Raises:
        PrecfmError: unusable features.
    """
    real = feature_matrix(reference, "reference")
    sets = [feature_pair(features, real)[0] for features in generated]
    as_they_are = [gaussian_fit(x) for x in sets] if reference_only else []
    generator = torch.Generator().manual_seed(seed)

    def drawn(n: int) -> Tensor:
        return torch.randint(n, (n,), generator=generator).to(real.device)

    values = torch.empty(replicates, len(sets), dtype=torch.float64)
    for replicate in range(replicates):
        of_reference = gaussian_fit(real[drawn(len(real))])
        rows = {n: drawn(n) for n in sorted({len(x) for x in sets})}
        of_sets = as_they_are or [gaussian_fit(x[rows[len(x)]]) for x in sets]
        for column, of_set in enumerate(of_sets):
            values[replicate, column] = frechet_from_fits(of_set, of_reference)
    return values
