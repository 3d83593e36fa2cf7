"""Several processes that train one module together, each on its share of every mini-batch.

Whoever starts them sets up torch.distributed, as accelerate and torchrun do; without it there is one process. All
processes draw the same numbers and hold the same weights. The gradient's mean is taken here and not by a wrapper around
the module, so that an objective sees the module as it is, and weights keep their names.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


def rank_and_size() -> tuple[int, int]:
    """This process, counted from 0, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def average(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their means over all processes."""
    _, size = rank_and_size()
    if size > 1 and tensors:
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        flat /= size
        means = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.copy_(mean.view(tensor.shape))


def of_first(value: float, device: torch.device) -> float:
    """The number that the first process has."""
    _, size = rank_and_size()
    if size > 1:
        shared = torch.tensor(value, dtype=torch.float64, device=device)
        dist.broadcast(shared, src=0)
        return float(shared)
    return value


@contextmanager
def first_before_others() -> Iterator[None]:
    """Let the first process go through the block before the others do."""
    rank, size = rank_and_size()
    if rank > 0:
        dist.barrier()
    yield
    if rank == 0 and size > 1:
        dist.barrier()
