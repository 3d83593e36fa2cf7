"""Training data on disk: shards of safetensors files, mapped into memory, so that only rows of a batch are read."""

import hashlib
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from precfm.core.errors import PrecfmError


class ShardedRows:
    """Rows of safetensors files, in the order of the files; see `precfm.training.batches.Rows`.

    Numbers that are not finite are not looked for: a loss that is not finite stops the training.

    Args:
        paths: files that hold the same tensors.
        names: of the tensors; one that no file has is left out.

    Attributes:
        shapes: of a row, by the tensor's name.

    Raises:
        PrecfmError: there is no file, one is damaged, or the files do not fit together.
    """

    def __init__(self, paths: Sequence[str | Path], *, names: Sequence[str] = ("latents", "labels")) -> None:
        self._paths = [Path(path) for path in paths]
        if not self._paths:
            raise PrecfmError("paths: got none; at least one safetensors file is needed")
        self._shards = [_mapped(path, names) for path in self._paths]
        alike = [
            {name: (each.shape[1:], each.dtype) for name, each in shard.items()} for shard in self._shards
        ]
        for path, shard, found in zip(self._paths, self._shards, alike, strict=True):
            if not found or found != alike[0] or len({len(each) for each in shard.values()}) > 1:
                held = {name: tuple(each.shape) for name, each in shard.items()}
                raise PrecfmError(
                    f"{path}: holds {held}; tensors {', '.join(names)} of equal length are needed, with rows as those "
                    f"of {self._paths[0].name}"
                )
        self.shapes = {name: tuple(shape) for name, (shape, _) in alike[0].items()}
        self._ends = list(accumulate(len(next(iter(shard.values()))) for shard in self._shards))

    def __len__(self) -> int:
        return self._ends[-1]

    def gather(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Chosen rows of each tensor, on the CPU; they are read in the order in which they lie on the disk."""
        ordered, order = rows.sort()
        ends = torch.searchsorted(ordered, torch.tensor(self._ends)).tolist()
        found: list[list[Tensor]] = [[] for _ in self.shapes]
        for shard, first, start, stop in zip(self._shards, [0, *self._ends], [0, *ends], ends, strict=False):
            here = ordered[start:stop] - first
            for parts, tensor in zip(found, shard.values(), strict=True):
                parts.append(tensor[here])
        back = order.argsort()
        return tuple(torch.cat(parts)[back] for parts in found)

    def checksum(self) -> str:
        """SHA-256 of the files."""
        digest = hashlib.sha256()
        for path in self._paths:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


def _mapped(path: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Tensors whose pages the system reads when they are asked for."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in names if name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise PrecfmError(f"{path}: no safetensors file ({' '.join(str(error).split())})") from None
