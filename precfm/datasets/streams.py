"""Data sets whose rows are read when they are asked for, so that they may be larger than memory.

A data set's class has `open(folder)`, a context that gives a `RowStream`, or `load(folder)`, which gives `Images` or
`LatentRows` in memory.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.datasets.images import Images


@dataclass(frozen=True)
class LatentRows:
    """Your own latents in memory.

    Attributes:
        latents: Tensor, shape (n, *shape), float32.
        labels: Tensor, shape (n,), int64; class indices into `class_names`, zeros where there are no classes.
        class_names: the name of each class.

    Raises:
        PrecfmError: the parts do not fit each other.
    """

    latents: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    official_split: Tensor | None = None

    def __post_init__(self) -> None:
        n = len(self.latents)
        if self.latents.dtype != torch.float32 or self.latents.ndim < 2:
            found = f"{self.latents.dtype} of shape {tuple(self.latents.shape)}"
            raise PrecfmError(f"latents: expected float32 of shape (n, *shape), found {found}")
        check_labels(self.labels, n, self.class_names)

    def __len__(self) -> int:
        return len(self.latents)


@dataclass(frozen=True)
class RowStream:
    """A data set of which only labels are in memory.

    Attributes:
        kind: what a row is, `images` (uint8, (channels, height, width)) or `latents` (float32).
        shape: of a row.
        labels: Tensor, shape (n,), int64.
        class_names: the name of each class.
        read: gives the rows of these indices (m,), in their order, as a tensor (m, *shape).
        official_split: as in `Images`.
    """

    kind: str
    shape: tuple[int, ...]
    labels: Tensor
    class_names: tuple[str, ...]
    read: Callable[[Tensor], Tensor]
    official_split: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)


@contextmanager
def opened(dataset: Any, folder: Path) -> Iterator[RowStream]:
    """The rows of a data set, read as they are asked for where its class can, else from memory.

    Args:
        dataset: of the registry's group `datasets`.
        folder: where its files lie.
    """
    if hasattr(dataset, "open"):
        with dataset.open(folder) as stream:
            yield stream
        return
    loaded: Images | LatentRows = dataset.load(folder)
    kind, rows = ("images", loaded.images) if isinstance(loaded, Images) else ("latents", loaded.latents)
    yield RowStream(
        kind,
        tuple(rows.shape[1:]),
        loaded.labels,
        loaded.class_names,
        rows.__getitem__,
        loaded.official_split,
    )


def check_labels(labels: Tensor, n: int, class_names: tuple[str, ...]) -> None:
    """Refuse labels that are not one class index per row.

    Raises:
        PrecfmError: they are not.
    """
    if labels.dtype != torch.int64 or labels.shape != (n,):
        found = f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise PrecfmError(f"labels: expected int64 of shape ({n},), one per row, found {found}")
    if n and not 0 <= int(labels.min()) <= int(labels.max()) < len(class_names):
        found = f"{int(labels.min())} to {int(labels.max())}"
        raise PrecfmError(f"labels: {found}, but there are {len(class_names)} classes")
