"""Training, validation and held-out images: disjoint, shuffled, with the classes in proportion."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.options import Natural, checked
from precfm.datasets.images import OFFICIAL_TEST, OFFICIAL_TRAIN

Indices = NDArray[np.int64]


@checked
def make_splits(
    labels: Tensor,
    *,
    train: Natural | None,
    validation: Natural,
    heldout: Natural,
    seed: Natural,
    official_split: Tensor | None = None,
) -> dict[str, Tensor]:
    """Divide a data set.

    Each split has the class proportions of the images that it is drawn from (largest remainders decide the
    rest) and comes in random order, so a prefix of it is a random subset. Held-out images are chosen first
    and validation images second: they stay the same whatever the size of the training set.

    The order comes from the raw bits of PCG64, which numpy guarantees to be the same in every version; the
    same arguments therefore always give the same splits.

    Args:
        labels: Tensor, shape (n,), int64.
        train: number of training images; None for all that remain.
        validation: number of validation images, on which all selection happens.
        heldout: number of held-out images, the reference of every metric; selection never sees them.
        seed: decides who goes where; not negative.
        official_split: Tensor, shape (n,): 0 for the publisher's training images, 1 for the test images. If
            given, held-out images are test images, all others are training images.

    Returns:
        Index tensors, int64, under "train", "validation" and "heldout".

    Raises:
        PrecfmError: a size is negative, there are too few images, or a class gets no training image.

    Example:
        >>> parts = make_splits(torch.tensor([0, 1] * 10), train=None, validation=4, heldout=6, seed=0)
        >>> {name: len(indices) for name, indices in parts.items()}
        {'train': 10, 'validation': 4, 'heldout': 6}
    """
    classes = labels.cpu().numpy()
    bits = np.random.PCG64(seed)
    order = np.argsort(bits.random_raw(len(classes)), kind="stable").astype(np.int64)
    if official_split is None:
        held_pool, rest_of = order, "all images"
        chosen_heldout = _stratified(classes, held_pool, heldout, "heldout", rest_of)
        pool = _without(order, chosen_heldout)
    else:
        membership = official_split.cpu().numpy()
        held_pool, rest_of = order[membership[order] == OFFICIAL_TEST], "the official training images"
        chosen_heldout = _stratified(classes, held_pool, heldout, "heldout", "the official test images")
        pool = order[membership[order] == OFFICIAL_TRAIN]
    chosen_validation = _stratified(classes, pool, validation, "validation", rest_of)
    pool = _without(pool, chosen_validation)
    chosen_train = pool if train is None else _stratified(classes, pool, train, "train", rest_of)
    missing = sorted(set(np.unique(classes)) - set(np.unique(classes[chosen_train])))
    if missing:
        n = len(chosen_train)
        raise PrecfmError(
            f"splits.train: {n} images hold none of class {missing[0]}; make the training set larger"
        )
    # Taking the first of each class leaves the pool ordered in part, so every split is shuffled once more.
    place = bits.random_raw(len(classes))
    chosen = {"train": chosen_train, "validation": chosen_validation, "heldout": chosen_heldout}
    return {
        name: torch.from_numpy(indices[np.argsort(place[indices], kind="stable")])
        for name, indices in chosen.items()
    }


def _without(pool: Indices, chosen: Indices) -> Indices:
    return pool[~np.isin(pool, chosen)]


def _stratified(classes: NDArray[np.int64], pool: Indices, size: int, name: str, source: str) -> Indices:
    """The first images of each class in the pool, as many as the class's share, in the order of the pool."""
    if size > len(pool):
        raise PrecfmError(
            f"splits.{name}: {size} images are wanted, but only {len(pool)} of {source} are left"
        )
    if size == 0:
        return pool[:0]
    _, member, counts = np.unique(classes[pool], return_inverse=True, return_counts=True)
    quotas = _shares(counts.astype(np.int64), size)
    rank = np.empty(len(pool), np.int64)  # the how-many-th image of its class
    for index, count in enumerate(counts):
        rank[member == index] = np.arange(count)
    return pool[rank < quotas[member]]


def _shares(counts: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Divide `size` in proportion to `counts` by largest remainders; the first of equals gets more."""
    whole, remainder = np.divmod(counts * size, counts.sum())
    most_owed = np.argsort(-remainder, kind="stable")[: size - int(whole.sum())]
    whole[most_owed] += 1
    return whole
