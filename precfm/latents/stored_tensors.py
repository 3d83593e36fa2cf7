"""Tensors in files, .npy, .npz, .safetensors or .pt: opened without being read, never unpickled."""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from textwrap import shorten

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.options import LISTED
from precfm.latents.mistaken import MAP_HEADER, are_weights, map_in_place_of_latents

SUFFIXES = (".npy", ".npz", ".safetensors", ".pt")
LABELS = "labels"  # name of the tensor that is no latent where it stands beside others


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
        if (
            type(error).__name__ == "UnpicklingError" or "pickle" in reason
        ):  # whose advice is to load it all the same
            reason = "it is damaged, or holds objects of Python; tensors alone, in a dictionary if several, are needed"
        raise PrecfmError(f"{file}: cannot be read ({reason})") from error


def stored_tensor(file: Path, tensor: str | None = None) -> StoredTensor:
    """The tensor of that name, or the only one beside `labels`.

    Raises:
        PrecfmError: as `stored_tensors`, there are several and no name is given, or none of that name.
    """
    return chosen(file, stored_tensors(file), tensor)


def chosen(file: Path, tensors: dict[str, StoredTensor], tensor: str | None) -> StoredTensor:
    """The tensor of that name among those of a file, or the only one beside `labels`.

    Raises:
        PrecfmError: there are several and no name is given, or none of that name.
    """
    if list(tensors) == [""]:
        return tensors[""]
    candidates = [name for name in tensors if name != LABELS] or list(tensors)
    name = candidates[0] if tensor is None and len(candidates) == 1 else tensor
    if name not in tensors:
        held = ", ".join(str(each) for each in tensors.values())
        if not held:
            raise PrecfmError(f"{file}: holds no tensor")
        if tensor is None and are_weights(candidates):
            raise PrecfmError(
                f"{file}: holds {len(candidates)} tensors such as '{candidates[0]}', the weights of a network as it "
                "seems; latents, rows (n, *dim), are needed (--tensor NAME takes one tensor all the same)"
            )
        asked = f"has no tensor '{tensor}'" if tensor else f"holds several tensors beside '{LABELS}'"
        raise PrecfmError(f"{file}: {asked}; --tensor (tensor=) takes one of {shorten(held, LISTED)}")
    return tensors[name]


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
        if MAP_HEADER in (opened.metadata() or {}):
            raise map_in_place_of_latents(file)
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
        kind = f"a {type(held).__name__}"
        if isinstance(held, dict):
            kind = shorten(f"a dictionary of {', '.join(map(repr, held))}", LISTED, placeholder=" ...")
            if any(isinstance(each, dict) for each in held.values()):
                kind += ", the checkpoint of a training as it seems"
        raise PrecfmError(f"{file}: holds {kind}; a tensor or a dictionary of tensors is needed")

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
