"""One GPU for each job: several jobs on one machine take different ones, or take turns."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOOK_EVERY = 0.5  # seconds


@contextmanager
def one_gpu(locks: Path) -> Iterator[None]:
    """Make a free GPU torch's current one (what the device `cuda` means) and hold it for the time of the block.

    Args:
        locks: an existing folder for lock files, shared by all jobs that must not collide.
    """
    import torch

    # By its identity, since indices count what CUDA_VISIBLE_DEVICES, or Slurm through it, lets a process see.
    names = [str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count())]
    with first_free(locks, names) as index, torch.cuda.device(index):
        yield


@contextmanager
def first_free(locks: Path, names: Sequence[str]) -> Iterator[int]:
    """Hold the lock of the first name that nobody holds, once there is one; a killed process holds nothing.

    Args:
        locks: an existing folder for lock files.
        names: what can be held, by one at a time each.

    Yields:
        The name's index.
    """
    while True:
        for index, name in enumerate(names):
            lock = FileLock(locks / f"gpu-{name}.lock", timeout=0)
            try:
                lock.acquire()
            except Timeout:
                continue
            try:
                yield index
            finally:
                lock.release()
            return
        time.sleep(LOOK_EVERY)
