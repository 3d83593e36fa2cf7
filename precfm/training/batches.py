"""The mini-batches of a training: the parts of each step, on the device before they are needed.

A step's rows and draws are a function of (seed, step), so that a thread can make those of the next steps while an
accelerator computes.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from torch import Tensor

from precfm.training.checkpoints import checksum
from precfm.training.draws import Objective, draws_of_step

AHEAD = 4  # steps whose batches are made before they are needed, on an accelerator

Part: TypeAlias = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
"""Rows of the data, and the draws of their loss."""

Made = TypeVar("Made")


@runtime_checkable
class Rows(Protocol):
    """Training data that need not lie in the memory of the device."""

    def __len__(self) -> int:
        """Number of rows."""

    def gather(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Chosen rows of each tensor of the data.

        Args:
            rows: int64, shape (batch,), on the CPU.

        Returns:
            Tensors (batch, *dim), on the device of the training or on the CPU, from where they are moved.
        """

    def checksum(self) -> str:
        """SHA-256 of the data."""


@dataclass(frozen=True)
class TensorRows:
    """Rows in memory.

    Attributes:
        tensors: of equal length, all on one device or on the CPU.
    """

    tensors: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.tensors[0])

    def gather(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Chosen rows of each tensor, where it lies."""
        where = moved(rows, self.tensors[0].device)
        return tuple(tensor[where] for tensor in self.tensors)

    def checksum(self) -> str:
        """SHA-256 of the tensors."""
        return checksum(self.tensors)


def parts_of_step(
    objective: Objective,
    data: Rows,
    batch_size: int,
    seed: int,
    step: int,
    device: torch.device,
    *,
    parts: int = 1,
    share: tuple[int, int] = (0, 1),
) -> list[Part]:
    """What one process computes in a step: its share of the mini-batch, cut into parts.

    Args:
        objective: says what to draw.
        data: the training data.
        batch_size: rows of the whole mini-batch.
        seed: of the training.
        step: counted from 0.
        device: where the parts are needed.
        parts: how many; they are equally large.
        share: the process, and how many there are.

    Returns:
        The parts in order, on the device.
    """
    rows, draws = draws_of_step(objective, len(data), batch_size, seed, step)
    rank, processes = share
    size, made = batch_size // (processes * parts), []
    for start in range(rank * parts * size, (rank + 1) * parts * size, size):
        part = slice(start, start + size)
        own = (each[part] if each.shape[:1] == (batch_size,) else each for each in draws)
        batch = tuple(moved(each, device) for each in data.gather(rows[part]))
        made.append((batch, tuple(moved(each, device) for each in own)))
    return made


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; from the CPU to a GPU without making the host wait."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def batches_of_steps(
    make: Callable[[int], list[Part]], steps: range, device: torch.device
) -> Iterator[list[Part]]:
    """What `make` makes of each step, in order; for a GPU ahead of time, by a thread and on a stream of its own."""
    if device.type != "cuda":
        yield from map(make, steps)
        return
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream(device))

    def prepared(step: int) -> tuple[list[Part], torch.cuda.Event]:
        with torch.cuda.stream(side):
            return make(step), side.record_event()

    for parts, ready in ahead(prepared, steps):
        current = torch.cuda.current_stream(device)
        current.wait_event(ready)
        for tensor in (each for part in parts for tensors in part for each in tensors):
            tensor.record_stream(current)  # so that its memory is not given away before the step has read it
        yield parts


def ahead(make: Callable[[int], Made], steps: range) -> Iterator[Made]:
    """What `make` makes of each step, in order, by a thread that is up to `AHEAD` steps ahead."""
    pool = ThreadPoolExecutor(1)
    try:
        waiting = deque(pool.submit(make, step) for step in steps[:AHEAD])
        for step in steps:
            if step + AHEAD < steps.stop:
                waiting.append(pool.submit(make, step + AHEAD))
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
