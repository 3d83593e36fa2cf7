"""Latents in a file or a folder of shards: looked at without being read, then read in batches of bounded memory."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.options import checked
from precfm.latents.mistaken import require_no_other_kind
from precfm.latents.stored_tensors import LABELS, SUFFIXES, StoredTensor, chosen, stored_tensors

BATCH_BYTES = 2**26  # of rows that are held at a time, and so of a shard that is written


@dataclass(frozen=True)
class Latents:
    """Latents on disk, read in batches of bounded memory.

    Attributes:
        path: the file or folder.
        shape: of all of them, (rows, *dim).
        dtype: as they are stored.
        labels: one class per row, int64, shape (rows,), in memory; or None.
        shards: the files' tensors, in the order of their rows.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: str
    labels: Tensor | None
    shards: tuple[StoredTensor, ...]

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def features(self) -> int:
        """Numbers in one row."""
        return math.prod(self.shape[1:])

    def batches(self, rows: int | None = None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """All rows in order, each batch from one file, with their labels.

        Args:
            rows: in a batch, at most; None for as many as 64 MiB of float32 hold.

        Raises:
            PrecfmError: a number is not finite; the sentence names file, row (within the file) and feature.
        """
        most = max(1, BATCH_BYTES // (4 * self.features)) if rows is None else rows
        first = 0
        for shard in self.shards:
            for start in range(0, shard.shape[0], most):
                batch = _finite(shard, start, shard.read(start, min(start + most, shard.shape[0])))
                labels = None if self.labels is None else self.labels[first : first + len(batch)]
                first += len(batch)
                yield batch, labels

    def take(self, rows: Tensor) -> Tensor:
        """Chosen rows in memory; every file is read once, in batches.

        Args:
            rows: their positions, ascending, int64, shape (n,).

        Returns:
            Shape (n, *dim), in the stored type.
        """
        found, first = [], 0
        for batch, _ in self.batches():
            here = rows[(rows >= first) & (rows < first + len(batch))] - first
            found.append(batch[here])
            first += len(batch)
        return torch.cat(found)


@checked
def open_latents(
    path: str | Path,
    *,
    tensor: str | None = None,
    labels: str | Path | None = None,
    channels_last: bool = False,
) -> Latents:
    """Look what a file or a folder of shards holds, without reading the latents.

    .npy, .safetensors and .pt are mapped; of .npz one tensor at a time is held. Of a .pt file only tensors are loaded,
    no pickled objects. In a folder the files with these endings count, in the order of their names.

    Args:
        path: the file or folder.
        tensor: which tensor, where a file holds several beside `labels`.
        labels: a file of one integer per row; None for the tensor `labels` beside the latents, if there is one.
        channels_last: the rows are stored as (height, width, channels), and are read as (channels, height, width).

    Returns:
        The latents, with their labels.

    Raises:
        PrecfmError: a file is missing, damaged or of an unknown ending, the tensor has to be named, it does not hold
            floating point numbers in rows, shards differ, or labels are not one integer per row.

    Example:
        >>> import numpy as np
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/z.npy", np.zeros((5, 4, 2, 2), dtype=np.float32))
        ...     open_latents(f"{folder}/z.npy").shape
        (5, 4, 2, 2)
    """
    path = Path(path)
    if tensor is not None and path.suffix == ".npy":
        raise PrecfmError(f"{path}: holds one tensor without a name; --tensor (tensor=) is not needed")
    held = [(file, stored_tensors(file)) for file in _files(path)]
    shards = [_rows_of(chosen(file, tensors, tensor)) for file, tensors in held]
    if channels_last:
        shards = [_channels_first(shard) for shard in shards]
    first = shards[0]
    for shard in shards[1:]:
        if (shard.shape[1:], shard.dtype) != (first.shape[1:], first.dtype):
            raise PrecfmError(
                f"{shard.where}: has rows of shape {shard.shape[1:]} in {shard.dtype}, but {first.file.name} has "
                f"{first.shape[1:]} in {first.dtype}; shards that are alike are needed, and labels in a file elsewhere"
            )
    count = sum(shard.shape[0] for shard in shards)
    found = None
    if labels is not None:
        found = read_labels(labels)
        if len(found) != count:
            raise PrecfmError(
                f"{labels}: holds {len(found)} labels; {count} are needed, one per row of {path}"
            )
    elif any(LABELS in tensors and len(tensors) > 1 for _, tensors in held):
        beside = [(shard, tensors.get(LABELS)) for shard, (_, tensors) in zip(shards, held, strict=True)]
        for shard, label in beside:
            if label is None or label.shape[:1] != shard.shape[:1]:
                raise PrecfmError(
                    f"{shard.where}: has shape {shard.shape} beside {label or 'no labels'}; one label per row is needed"
                )
        found = torch.cat([_integers(label) for _, label in beside if label is not None])
    return Latents(path, (count, *first.shape[1:]), first.dtype, found, tuple(shards))


def read_labels(file: str | Path) -> Tensor:
    """The labels in a file: its only tensor, or the one called `labels`; int64, shape (n,).

    Raises:
        PrecfmError: as `stored_tensor`, or it does not hold integers of shape (n,).
    """
    file = Path(file)
    tensors = stored_tensors(file)
    return _integers(tensors[LABELS] if LABELS in tensors else chosen(file, tensors, None))


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    require_no_other_kind(path)
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.name[0] != ".")
    if not files:
        raise PrecfmError(f"{path}: holds no shards; files that end in {', '.join(SUFFIXES)} are needed")
    return files


def _rows_of(stored: StoredTensor) -> StoredTensor:
    """The tensor, if it holds rows of floating point numbers."""
    if stored.kind != "f":
        raise PrecfmError(f"{stored.where}: holds {stored.dtype}; floating point numbers are needed")
    if len(stored.shape) < 2 or 0 in stored.shape:
        raise PrecfmError(f"{stored.where}: has shape {stored.shape}; rows (n, *dim) are needed")
    return stored


def _channels_first(stored: StoredTensor) -> StoredTensor:
    if len(stored.shape) != 4:
        raise PrecfmError(
            f"{stored.where}: has shape {stored.shape}; with channels_last (rows, height, width, channels) is needed"
        )
    rows, height, width, channels = stored.shape
    return replace(
        stored,
        shape=(rows, channels, height, width),
        read=lambda start, stop: stored.read(start, stop).movedim(-1, 1).contiguous(),
    )


def _integers(stored: StoredTensor) -> Tensor:
    if len(stored.shape) != 1 or stored.kind != "i":
        raise PrecfmError(
            f"{stored.where}: has shape {stored.shape} and holds {stored.dtype}; labels are integers of shape (n,)"
        )
    return stored.read(0, stored.shape[0]).to(torch.int64)


def _finite(stored: StoredTensor, start: int, batch: Tensor) -> Tensor:
    # A sum is finite only if all of its terms are: one pass, no mask of the batch's size.
    if not bool(torch.isfinite(batch.sum(dtype=torch.float64))):
        bad = (~torch.isfinite(batch.flatten(1))).nonzero()
        if len(bad):
            row, feature = bad[0].tolist()
            raise PrecfmError(
                f"{stored.where}: holds {float(batch.flatten(1)[row, feature])} in row {start + row}, feature "
                f"{feature}; every number must be finite"
            )
    return batch
