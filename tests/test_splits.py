"""Splits: disjoint, stratified, shuffled, reproducible, obedient to the official division."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from precfm.core.errors import PrecfmError
from precfm.datasets.splits import make_splits

ORDERED = torch.arange(5000) // 500  # as MNIST-5k is


@st.composite
def division(draw: st.DrawFn) -> tuple[list[int], int | None, int, int, int]:
    counts = draw(st.lists(st.integers(6, 40), min_size=1, max_size=5))
    n = sum(counts)
    heldout, validation = draw(st.integers(0, n // 4)), draw(st.integers(0, n // 4))
    train = draw(st.one_of(st.none(), st.integers(n // 3, n - heldout - validation)))
    return counts, train, validation, heldout, draw(st.integers(0, 2**40))


@given(division())
def test_splits_are_disjoint_stratified_and_reproducible(
    case: tuple[list[int], int | None, int, int, int],
) -> None:
    counts, train, validation, heldout, seed = case
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    splits = make_splits(labels, train=train, validation=validation, heldout=heldout, seed=seed)
    sizes = {"train": train, "validation": validation, "heldout": heldout}
    sizes["train"] = sum(counts) - validation - heldout if train is None else train
    assert {name: len(indices) for name, indices in splits.items()} == sizes
    everything = torch.cat(list(splits.values()))
    assert everything.dtype == torch.int64
    assert len(everything.unique()) == len(everything)
    for name in ("heldout", "validation"):
        share = torch.tensor(counts) / sum(counts) * len(splits[name])
        found = torch.bincount(labels[splits[name]], minlength=len(counts))
        assert (found - share).abs().max() < 2, "validation is in proportion to what held-out leaves"
    again = make_splits(labels, train=train, validation=validation, heldout=heldout, seed=seed)
    assert all(torch.equal(splits[name], again[name]) for name in splits)


def test_proportions_are_exact_where_they_can_be() -> None:
    splits = make_splits(ORDERED, train=3500, validation=500, heldout=1000, seed=3)
    for name, per_class in (("train", 350), ("validation", 50), ("heldout", 100)):
        assert torch.bincount(ORDERED[splits[name]]).tolist() == [per_class] * 10


def test_splits_are_shuffled_and_depend_on_the_seed() -> None:
    """MNIST-5k and the MNIST test set are ordered by class: a prefix of a split must not be."""
    first = make_splits(ORDERED, train=None, validation=500, heldout=1000, seed=0)
    second = make_splits(ORDERED, train=None, validation=500, heldout=1000, seed=1)
    for name, indices in first.items():
        assert len(ORDERED[indices[:100]].unique()) == 10
        assert not torch.equal(indices, second[name])


def test_held_out_and_validation_do_not_move_with_the_training_size() -> None:
    small = make_splits(ORDERED, train=500, validation=500, heldout=1000, seed=0)
    large = make_splits(ORDERED, train=None, validation=500, heldout=1000, seed=0)
    assert torch.equal(small["heldout"], large["heldout"])
    assert torch.equal(small["validation"], large["validation"])
    assert set(small["train"].tolist()) < set(large["train"].tolist())


def test_splits_are_pinned() -> None:
    """The same in every version of numpy and torch: a change would change every number of the project."""
    splits = make_splits(torch.arange(12) % 3, train=None, validation=3, heldout=3, seed=0)
    assert {name: indices.tolist() for name, indices in splits.items()} == PINNED


PINNED = {"train": [8, 9, 5, 10, 0, 4], "validation": [6, 7, 2], "heldout": [1, 3, 11]}


def test_official_split_is_obeyed() -> None:
    labels, official = torch.arange(40) % 2, (torch.arange(40) >= 30).long()
    splits = make_splits(labels, train=None, validation=6, heldout=10, seed=0, official_split=official)
    assert sorted(splits["heldout"].tolist()) == list(range(30, 40))
    assert sorted([*splits["train"].tolist(), *splits["validation"].tolist()]) == list(range(30))


@pytest.mark.parametrize(
    ("sizes", "official", "message"),
    [
        ((10, 5, 6), False, r"^splits.train: 10 .*9 "),
        ((None, 5, 21), False, r"^splits.heldout: 21 .*20 "),
        ((None, 1, 11), True, r"^splits.heldout: 11 .*10 .*test"),
        ((10, 1, 1), True, r"^splits.train: 10 .*9 .*training"),
        ((None, 20, 0), False, r"^splits.train: 0 .*class 0"),
        ((None, -1, 0), False, r"validation: got -1"),
        ((-3, 1, 0), False, r"train: got -3"),
    ],
)
def test_too_few_images_are_told(sizes: tuple[int | None, int, int], official: bool, message: str) -> None:
    labels = torch.arange(20) % 2
    membership = (torch.arange(20) >= 10).long() if official else None
    train, validation, heldout = sizes
    with pytest.raises(PrecfmError, match=message):
        make_splits(
            labels, train=train, validation=validation, heldout=heldout, seed=0, official_split=membership
        )
