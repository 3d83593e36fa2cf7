"""Checkpoints that survive a kill at any moment: written atomically, verified, the previous one kept.

One save is one safetensors file whose name carries the SHA-256 of its bytes,
`state-00001000-<sha256>.safetensors`: putting it in place is a single rename, and a truncated or altered file
gives itself away.
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from precfm.core.errors import PrecfmError

KEPT_STATES = 2
Tensors = Mapping[str, Tensor]


def write_verified(folder: Path, stem: str, tensors: Tensors, facts: Mapping[str, Any]) -> Path:
    """Write tensors and facts to one file, in place only once its bytes are on the disk.

    Args:
        folder: an existing folder.
        stem: beginning of the file's name; the checksum follows.
        tensors: what to save, by name.
        facts: plain values (JSON) for the file's header.

    Returns:
        The file. It has been read back and verified.
    """
    own = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    content = safetensors.torch.save(own, metadata={"facts": json.dumps(facts, sort_keys=True)})
    path = folder / f"{stem}-{hashlib.sha256(content).hexdigest()}.safetensors"
    part = folder / f"{stem}-{os.getpid()}.part"
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    _sync_folder(folder)
    if not is_intact(path):
        raise OSError(f"{path}: the file read back differs from what was written; check the disk")
    return path


def read_verified(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and facts of a file by `write_verified`.

    Raises:
        PrecfmError: the bytes are not those that were written.
    """
    content = path.read_bytes()
    if not _named_for(content, path):
        raise PrecfmError(f"{path}: the file is damaged, its checksum is not the one in its name; delete it")
    return safetensors.torch.load(content), _facts(path)


def is_intact(path: Path) -> bool:
    """Whether a file holds the bytes that were written, and is one of ours."""
    try:
        return _named_for(path.read_bytes(), path) and isinstance(_facts(path), dict)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError):
        return False


class Scratch:
    """The saves of one training: the last two states to resume from, and the weights at each checkpoint.

    Args:
        folder: where the saves lie; None keeps the checkpoints' weights in memory and no state.
        identity: what makes this training this one (plain values); the saves of another are refused.
        name: who asks, for messages.
        writes: whether this process saves; one that does not can read what another has saved.
    """

    def __init__(
        self, folder: Path | None, identity: Mapping[str, Any], name: str, *, writes: bool = True
    ) -> None:
        self._folder, self._name, self._writes = folder, name, writes
        self._identity: dict[str, Any] = json.loads(json.dumps(identity))
        self._in_memory: dict[int, dict[str, Tensor]] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for part in folder.glob("*.part"):
                part.unlink()

    def save_state(self, step: int, tensors: Tensors) -> None:
        """Save everything that the training needs to go on after `step`; drop all but the last two states."""
        if self._folder is None or not self._writes:
            return
        write_verified(self._folder, f"state-{step:08d}", tensors, self._identity)
        for old in self._files("state")[:-KEPT_STATES]:
            old.unlink()

    def latest_state(self, checkpoints: tuple[int, ...]) -> dict[str, Tensor] | None:
        """The newest state that is intact, as are the checkpoints before it; None if there is none.

        What is damaged is deleted, with a line on standard error: the training makes it again.

        Args:
            checkpoints: steps whose weights the training must have.

        Raises:
            PrecfmError: the state is of another training.
        """
        if self._folder is None:
            return None
        for path in [*self._files("state"), *self._files("checkpoint")]:
            if is_intact(path):
                self._refuse_other_training(path)
            else:
                self._drop(path, "is damaged")
        state: dict[str, Tensor] | None = None
        reached = 0
        for path in reversed(self._files("state")):
            if all(self._files("checkpoint", wanted) for wanted in checkpoints if wanted <= _step_of(path)):
                state, reached = read_verified(path)[0], _step_of(path)
                break
            self._drop(path, "lacks a checkpoint from before it")
        for path in self._files("checkpoint"):
            if _step_of(path) > reached:  # it will be written again, and there must be one file for a step
                path.unlink()
        return state

    def last_saved_step(self) -> int | None:
        """Step of the newest state; None if there is none."""
        states = self._files("state")
        return _step_of(states[-1]) if states else None

    def save_checkpoint(self, step: int, weights: Tensors) -> None:
        """Keep the weights at a checkpoint until the end of the training."""
        if not self._writes:
            return
        if self._folder is None:
            self._in_memory[step] = {name: tensor.detach().clone() for name, tensor in weights.items()}
        else:
            write_verified(self._folder, f"checkpoint-{step:08d}", weights, self._identity)

    def checkpoint(self, step: int) -> dict[str, Tensor]:
        """The weights at a checkpoint."""
        if self._folder is None:
            return self._in_memory[step]
        return read_verified(self._files("checkpoint", step)[0])[0]

    def _files(self, kind: str, step: int | None = None) -> list[Path]:
        if self._folder is None:
            return []
        wanted = "*" if step is None else f"{step:08d}"
        return sorted(self._folder.glob(f"{kind}-{wanted}-*.safetensors"))

    def _drop(self, path: Path, why: str) -> None:
        print(f"{self._name}: {path.name} {why}; going on without it", file=sys.stderr, flush=True)
        path.unlink()

    def _refuse_other_training(self, path: Path) -> None:
        theirs, ours = _facts(path), self._identity
        for field in sorted({*theirs, *ours}):
            if theirs.get(field) != ours.get(field):
                raise PrecfmError(
                    f"{path.parent}: this scratch folder is of another training, with {field} = "
                    f"{theirs.get(field)} where this one has {ours.get(field)}; delete it or choose another"
                )


def checksum(tensors: Mapping[str, Tensor] | tuple[Tensor, ...]) -> str:
    """SHA-256 over the shapes, types and bytes of tensors, in their order."""
    named = tensors if isinstance(tensors, Mapping) else {str(i): tensor for i, tensor in enumerate(tensors)}
    digest = hashlib.sha256()
    for name, tensor in named.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()


def _facts(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(path, framework="pt") as file:
        facts: dict[str, Any] = json.loads(file.metadata()["facts"])
    return facts


def _named_for(content: bytes, path: Path) -> bool:
    return path.stem.rpartition("-")[2] == hashlib.sha256(content).hexdigest()


def _step_of(path: Path) -> int:
    return int(path.name.split("-")[1])


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the system lets folders be opened."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
