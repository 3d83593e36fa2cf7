"""GPUs for each job: several jobs on one machine take different ones, or take turns."""

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

LOOK_EVERY = 0.5  # seconds


@contextmanager
def held_gpus(locks: Path, count: int = 1) -> Iterator[tuple[int, ...]]:
    """Hold free GPUs for the time of the block, the first of them torch's current one (what the device `cuda` means).

    Args:
        locks: an existing folder for lock files, shared by all jobs that must not collide.
        count: how many; there are as many.

    Yields:
        Their indices.
    """
    import torch

    # By its identity, since indices count what CUDA_VISIBLE_DEVICES, or Slurm through it, lets a process see.
    names = [str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count())]
    with first_free(locks, names, count) as indices, torch.cuda.device(indices[0]):
        yield indices


@contextmanager
def first_free(locks: Path, names: Sequence[str], count: int = 1) -> Iterator[tuple[int, ...]]:
    """Hold the locks of the first names that nobody holds, once there are enough; a killed process holds nothing.

    Who does not get all gives back what it got, so that two that wait do not wait for each other.

    Args:
        locks: an existing folder for lock files.
        names: what can be held, by one at a time each.
        count: how many are needed.

    Yields:
        The names' indices.
    """
    while True:
        with ExitStack() as stack:
            taken: list[int] = []
            for index, name in enumerate(names):
                if len(taken) < count:
                    with suppress(Timeout):
                        stack.enter_context(FileLock(locks / f"gpu-{name}.lock", timeout=0))
                        taken.append(index)
            if len(taken) == count:
                yield tuple(taken)
                return
        time.sleep(LOOK_EVERY * random.uniform(0.5, 1.5))
