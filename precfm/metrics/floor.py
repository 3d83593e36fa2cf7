"""Real samples in the place of generated ones: what a perfect generator would score."""

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.options import Natural, checked
from precfm.core.seeds import generator_for


@checked
def floor_rows(asked: Tensor, labels: Tensor, draw: Natural, seed: int = 0) -> Tensor:
    """Rows of the train split that stand for generated samples, drawn without replacement.

    The rows of a class are shuffled and dealt out: as many draws as its size allows share no row, then it is shuffled
    anew. So draws overlap only where the class has too few rows for all of them.

    Args:
        asked: class of each sample, integers, shape (n,).
        labels: classes of the train split, integers, shape (m,).
        draw: which of the independent draws.
        seed: of all draws.

    Returns:
        Rows, int64, shape (n,), with `labels[rows] == asked`; a pure function of the arguments.

    Raises:
        PrecfmError: a class is asked for more often than it has rows.

    Example:
        >>> labels = torch.tensor([0, 1, 0, 1])
        >>> draws = [floor_rows(torch.tensor([1]), labels, draw) for draw in range(2)]
        >>> sorted(torch.cat(draws).tolist())
        [1, 3]
    """
    rows = torch.empty(len(asked), dtype=torch.int64)
    for label in sorted(set(asked.tolist())):
        places, found = (asked == label).nonzero()[:, 0], (labels == label).nonzero()[:, 0]
        needed = len(places)
        if len(found) < needed:
            raise PrecfmError(
                f"asked: got class {label} {needed} times; the train split has {len(found)} rows of it"
            )
        shuffle, place = divmod(draw, len(found) // needed)
        order = torch.randperm(len(found), generator=generator_for(seed, "floor", label, shuffle))
        rows[places] = found[order[place * needed : (place + 1) * needed]]
    return rows
