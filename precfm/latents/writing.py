"""Latents into a file or a folder of shards, as they come; what was there stays until all is written."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.latents.stored_tensors import LABELS

LATENTS = "latents"  # name of the tensor in shards that are written

Batches = Iterable[tuple[Tensor, Tensor | None]]
"""Rows (batch, *dim) and their labels (batch,), or None."""


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
                (part / f"{index:05d}.safetensors").write_bytes(save(tensors))
    return out


@contextmanager
def replacing(out: Path, *, force: bool) -> Iterator[Path]:
    """A name beside `out` to write to, with the same ending; at the end it becomes `out`, after an error it is removed.

    Raises:
        PrecfmError: something is there and `force` is not given.
    """
    if out.exists() and not force:
        raise PrecfmError(f"{out}: exists already; another name, or --force to replace it, is needed")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise PrecfmError(f"{out}: {error.filename} is a file; a folder is needed there") from None
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
