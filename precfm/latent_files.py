"""Latents in files: .npy, .npz, .safetensors, .pt, or a folder of them; opened without being read, never unpickled."""

import math
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from precfm.core.errors import PrecfmError

SUFFIXES = (".npy", ".npz", ".safetensors", ".pt")
LABELS = "labels"  # name of the tensor that is no latent where it stands beside others
LATENTS = "latents"  # name of the tensor in shards that are written
BATCH_BYTES = 2**26  # of rows that are held at a time, and of a shard that is written

Batches = Iterable[tuple[Tensor, Tensor | None]]
"""Rows (batch, *dim) and their labels (batch,), or None."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file; nothing of it is read yet.

    Attributes:
        file: where it is.
        name: its name there; empty where the file holds one tensor without a name.
        shape: its shape.
        dtype: its type in the file's words.
        kind: `f` floating point, `i` integers, or another letter for what is no plain number, as in numpy.
        read: gives rows `start` to `stop` as a tensor.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    read: Callable[[int, int], Tensor]

    def __str__(self) -> str:
        return f"{self.name or 'a tensor'} {self.shape}"

    @property
    def where(self) -> str:
        """The file, and the name if it has one, as the beginning of a sentence."""
        return f"{self.file}: {self.name}" if self.name else str(self.file)


def stored_tensors(file: Path) -> dict[str, StoredTensor]:
    """The tensors in a file by name; the name is empty where there is one without a name.

    Raises:
        PrecfmError: there is no such file, its ending is unknown, it is damaged, or it holds more than tensors.
    """
    readers = {".npy": _of_npy, ".npz": _of_npz, ".safetensors": _of_safetensors, ".pt": _of_pt}
    if not file.exists():
        raise PrecfmError(f"{file}: there is no such file or folder")
    if file.suffix not in readers:
        raise PrecfmError(f"{file}: ends in '{file.suffix}'; one of {', '.join(SUFFIXES)} is needed")
    try:
        return {each.name: each for each in readers[file.suffix](file)}
    except PrecfmError:
        raise
    except (
        Exception
    ) as error:  # each library has its own for a damaged file, and torch one for a forbidden pickle
        reason = " ".join(str(error).split())[:200]
        raise PrecfmError(f"{file}: cannot be read ({reason})") from error


def stored_tensor(file: Path, tensor: str | None = None) -> StoredTensor:
    """The tensor of that name, or the only one beside `labels`.

    Raises:
        PrecfmError: as `stored_tensors`, there are several and no name is given, or none of that name.
    """
    return _chosen(file, stored_tensors(file), tensor)


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


def open_latents(path: str | Path, *, tensor: str | None = None, labels: str | Path | None = None) -> Latents:
    """Look what a file or a folder of shards holds, without reading the latents.

    .npy, .safetensors and .pt are mapped; of .npz one tensor at a time is held. Of a .pt file only tensors are loaded,
    no pickled objects. In a folder the files with these endings count, in the order of their names.

    Args:
        path: the file or folder.
        tensor: which tensor, where a file holds several beside `labels`.
        labels: a file of one integer per row; None for the tensor `labels` beside the latents, if there is one.

    Returns:
        The latents, with their labels.

    Raises:
        PrecfmError: a file is missing, damaged or of an unknown ending, the tensor has to be named, it does not hold
            floating point numbers in rows, shards differ, or labels are not one integer per row.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/z.npy", np.zeros((5, 4, 2, 2), dtype=np.float32))
        ...     open_latents(f"{folder}/z.npy").shape
        (5, 4, 2, 2)
    """
    path = Path(path)
    held = [(file, stored_tensors(file)) for file in _files(path)]
    shards = [_rows_of(_chosen(file, tensors, tensor)) for file, tensors in held]
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
    return _integers(tensors[LABELS] if LABELS in tensors else _chosen(file, tensors, None))


def write_latents(out: str | Path, batches: Batches, rows: int, *, force: bool = False) -> Path:
    """Write rows as they come, in the memory of one batch; what is there under that name stays until all is written.

    Args:
        out: a name that ends in .npy (one file, without labels), or one without ending: a folder of .safetensors
            shards, one per batch, each with the tensors `latents` and, if there are any, `labels`.
        batches: rows with their labels.
        rows: how many there will be.
        force: replace what is there.

    Returns:
        The file or folder.

    Raises:
        PrecfmError: the ending is another, or something is there and `force` is not given.
    """
    out = Path(out)
    if out.suffix not in (".npy", ""):
        raise PrecfmError(
            f"{out}: ends in '{out.suffix}'; '.npy' (one file), or no ending (a folder of .safetensors) is needed"
        )
    with replacing(out, force=force) as part:
        if out.suffix == ".npy":
            _write_npy(part, batches, rows)
        else:
            part.mkdir()
            for index, (batch, labels) in enumerate(batches):
                named = {LATENTS: batch} if labels is None else {LATENTS: batch, LABELS: labels}
                tensors = {name: each.contiguous() for name, each in named.items()}
                save_file(tensors, part / f"{index:05d}.safetensors")
    return out


@contextmanager
def replacing(out: Path, *, force: bool) -> Iterator[Path]:
    """A name beside `out` to write to, with the same ending; at the end it becomes `out`, after an error it is removed.

    Raises:
        PrecfmError: something is there and `force` is not given.
    """
    if out.exists() and not force:
        raise PrecfmError(f"{out}: exists already; another name, or --force to replace it, is needed")
    out.parent.mkdir(parents=True, exist_ok=True)
    part, old = (out.with_name(f".{word}-{os.getpid()}-{out.name}") for word in ("part", "old"))
    try:
        yield part
        if out.is_dir():  # a folder that holds something cannot be replaced in one step
            out.replace(old)
        part.replace(out)
    finally:
        if old.exists() and not out.exists():  # it failed between the two
            old.replace(out)
        for rest in (part, old):
            if rest.is_dir():
                shutil.rmtree(rest)
            else:
                rest.unlink(missing_ok=True)


def _write_npy(part: Path, batches: Batches, rows: int) -> None:
    array: NDArray[np.generic] | None = None
    start = 0
    for batch, _ in batches:
        values = (batch.float() if batch.dtype == torch.bfloat16 else batch).numpy()  # numpy has no bfloat16
        if array is None:
            shape = (rows, *values.shape[1:])
            array = np.lib.format.open_memmap(part, mode="w+", dtype=values.dtype, shape=shape)
        array[start : start + len(values)] = values
        start += len(values)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.name[0] != ".")
    if not files:
        raise PrecfmError(f"{path}: holds no shards; files that end in {', '.join(SUFFIXES)} are needed")
    return files


def _chosen(file: Path, tensors: dict[str, StoredTensor], tensor: str | None) -> StoredTensor:
    if list(tensors) == [""]:
        return tensors[""]
    candidates = [name for name in tensors if name != LABELS] or list(tensors)
    name = candidates[0] if tensor is None and len(candidates) == 1 else tensor
    if name not in tensors:
        held = ", ".join(str(each) for each in tensors.values())
        raise PrecfmError(
            f"{file}: tensor: got {tensor!r}; one of {held or 'none, since it is empty,'} is needed"
        )
    return tensors[name]


def _rows_of(stored: StoredTensor) -> StoredTensor:
    """The tensor, if it holds rows of floating point numbers."""
    if stored.kind != "f":
        raise PrecfmError(f"{stored.where}: holds {stored.dtype}; floating point numbers are needed")
    if len(stored.shape) < 2 or 0 in stored.shape:
        raise PrecfmError(f"{stored.where}: has shape {stored.shape}; rows (n, *dim) are needed")
    return stored


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


def _of_array(
    file: Path, name: str, array: NDArray[np.generic], read: Callable[[int, int], Tensor]
) -> StoredTensor:
    kind = {"u": "i"}.get(array.dtype.kind, array.dtype.kind)
    return StoredTensor(file, name, array.shape, str(array.dtype), kind, read)


def _slice(array: NDArray[np.generic], start: int, stop: int) -> Tensor:
    """Rows in memory, in this machine's byte order."""
    return torch.from_numpy(np.array(array[start:stop], dtype=array.dtype.newbyteorder("=")))


def _of_npy(file: Path) -> list[StoredTensor]:
    array = np.load(file, mmap_mode="r", allow_pickle=False)
    return [_of_array(file, "", array, partial(_slice, array))]


def _of_npz(file: Path) -> list[StoredTensor]:
    with zipfile.ZipFile(file) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]

    def read(name: str, start: int, stop: int) -> Tensor:
        return _slice(_member(file, changed, name), start, stop)

    changed = file.stat().st_mtime_ns
    return [_of_array(file, name, _member(file, changed, name), partial(read, name)) for name in names]


@lru_cache(maxsize=1)
def _member(file: Path, changed: int, name: str) -> NDArray[np.generic]:
    """A tensor of a .npz file, which cannot be mapped; the last one is kept for the next batch."""
    with np.load(file, allow_pickle=False) as archive:
        array: NDArray[np.generic] = archive[name]
    return array


def _of_safetensors(file: Path) -> list[StoredTensor]:
    def read(name: str, start: int, stop: int) -> Tensor:
        with safe_open(file, framework="pt") as opened:
            rows: Tensor = opened.get_slice(name)[start:stop]
        return rows

    found = []
    with safe_open(file, framework="pt") as opened:
        for name in sorted(opened.keys()):
            part = opened.get_slice(name)
            dtype = part.get_dtype()  # such as F32, BF16, I64, U8
            kind = {"F": "f", "B": "f" if dtype == "BF16" else "b", "I": "i", "U": "i"}.get(dtype[0], dtype)
            found.append(StoredTensor(file, name, tuple(part.get_shape()), dtype, kind, partial(read, name)))
    return found


def _of_pt(file: Path) -> list[StoredTensor]:
    held = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    named = {"": held} if isinstance(held, Tensor) else held
    if not isinstance(named, dict) or not all(isinstance(each, Tensor) for each in named.values()):
        raise PrecfmError(
            f"{file}: holds a {type(held).__name__}; a tensor or a dictionary of tensors is needed"
        )

    def read(tensor: Tensor, start: int, stop: int) -> Tensor:
        return tensor[start:stop].detach()

    found = []
    for name, each in named.items():
        kind = (
            "f"
            if each.is_floating_point()
            else "i"
            if not each.is_complex() and each.dtype != torch.bool
            else "b"
        )
        dtype = str(each.dtype).removeprefix("torch.")
        found.append(StoredTensor(file, str(name), tuple(each.shape), dtype, kind, partial(read, each)))
    return found
