"""Tensors that are too large for one file: shards of a split, read in slices of rows."""

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from precfm.core.errors import PrecfmError

if TYPE_CHECKING:
    from torch import Tensor

SHARD_BYTES = 2**28  # of the rows in one file; what is not larger is one file without a number
NUMBERED = "{stem}-{index:05d}-of-{count:05d}{suffix}"


def shard_names(name: str, rows: int, row_bytes: int) -> list[tuple[str, int, int]]:
    """The files that rows go to, each with its first row and the one after its last.

    Args:
        name: of the file if one is enough, such as `train.safetensors`.
        rows: how many there are.
        row_bytes: bytes of one.

    Example:
        >>> shard_names("train.safetensors", 10, 4)
        [('train.safetensors', 0, 10)]
        >>> shard_names("train.safetensors", 5, 2**27)[1]
        ('train-00001-of-00003.safetensors', 2, 4)
    """
    each = max(1, SHARD_BYTES // row_bytes)
    if rows <= each:
        return [(name, 0, rows)]
    starts = range(0, rows, each)
    stem, suffix = Path(name).stem, Path(name).suffix
    return [
        (
            NUMBERED.format(stem=stem, index=index, count=len(starts), suffix=suffix),
            start,
            min(start + each, rows),
        )
        for index, start in enumerate(starts)
    ]


def float32_bytes(shape: Sequence[int]) -> int:
    """Bytes of one row of a shape, in float32."""
    return 4 * math.prod(shape)


def require_finite(latents: "Tensor", split: str, start: int, remedy: str) -> None:
    """Refuse latents of which a number is not finite.

    Args:
        latents: shape (n, *latent_shape).
        split: to which they belong.
        start: the first of them in it.
        remedy: what to do.

    Raises:
        PrecfmError: one is not; names its row.
    """
    bad = (~latents.flatten(1).isfinite()).any(1).nonzero()
    if len(bad):
        raise PrecfmError(f"{split} latents: row {start + int(bad[0])} is not finite; {remedy}")


def shards_of(name: str, files: Mapping[str, object] | Sequence[str]) -> list[str]:
    """The names of a file's shards among others, in the order of their rows; itself where it is one file."""
    if name in files:
        return [name]
    stem, suffix = Path(name).stem, Path(name).suffix
    return sorted(file for file in files if file.startswith(f"{stem}-") and Path(file).suffix == suffix)


class StoredRows:
    """Tensors of equally many rows in one or several safetensors files, of which slices are read.

    Args:
        paths: the files, in the order of their rows.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        from safetensors import safe_open

        self.paths = tuple(paths)
        self.names: tuple[str, ...] = ()
        counts = []
        for path in paths:
            with safe_open(path, framework="pt") as opened:
                self.names = tuple(sorted(opened.keys()))
                counts.append(opened.get_slice(self.names[0]).get_shape()[0])
        self._ends = tuple(accumulate(counts))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batches(self, name: str, size: int) -> "Iterator[Tensor]":
        """One of the tensors, so many rows at a time."""
        for start in range(0, len(self), size):
            yield self.read(start, start + size, [name])[name]

    def take(self, rows: "Tensor", name: str) -> "Tensor":
        """Some rows of one of the tensors, in the order given; no others are read."""
        import torch

        return torch.cat([self.read(row, row + 1, [name])[name] for row in rows.tolist()])

    def read(self, start: int, stop: int, names: Sequence[str] | None = None) -> dict[str, "Tensor"]:
        """Rows `start` to `stop`, as tensors of their own in memory.

        Args:
            start: the first row.
            stop: the one after the last; at most as many as there are.
            names: of the tensors; None for all.
        """
        import torch
        from safetensors import safe_open

        stop, names = min(stop, len(self)), self.names if names is None else names
        parts: dict[str, list[Tensor]] = {name: [] for name in names}
        place, row = bisect_right(self._ends, start), start
        while row < stop or not all(parts.values()):
            first = self._ends[place - 1] if place else 0
            last = min(stop, self._ends[place])
            with safe_open(self.paths[place], framework="pt") as opened:
                for name in names:
                    parts[name].append(opened.get_slice(name)[row - first : last - first])
            row, place = last, place + 1
        return {name: part[0] if len(part) == 1 else torch.cat(part) for name, part in parts.items()}
