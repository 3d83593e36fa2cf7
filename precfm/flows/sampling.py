"""Sampling: solve the flow's ODE from noise to data; the noise and labels that a comparison shares."""

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torchdiffeq import odeint

from precfm.core.errors import PrecfmError
from precfm.core.options import Count, Natural, Positive, checked
from precfm.core.seeds import generator_for
from precfm.core.tensors import require_tensor
from precfm.flows.objectives import Network

Solver: TypeAlias = Literal["euler", "midpoint", "rk4", "dopri5"]


@checked
@torch.no_grad()
def integrate(
    model: Network,
    z0: Tensor,
    labels: Tensor | None = None,
    *,
    solver: Solver = "midpoint",
    steps: Count = 50,
    t0: float = 0.0,
    t1: float = 1.0,
    batch_size: Count = 4096,
    tolerance: Positive = 1e-5,
) -> Tensor:
    """Carry samples along dx/dt = model(x, t, labels) from time `t0` to `t1`; backwards if `t1` < `t0`.

    Args:
        model: velocity network, in evaluation mode.
        z0: where the samples are at `t0`, shape (n, *dim).
        labels: classes, int64, shape (n,), or None.
        solver: a fixed-step method (`euler`, `midpoint`, `rk4`: 1, 2, 4 evaluations a step) or the adaptive
            `dopri5`, whose step is common to a block, so that its error (not its tolerance) depends on
            `batch_size`.
        steps: number of equal steps; `dopri5` chooses its own and ignores it.
        t0: start time.
        t1: end time.
        batch_size: samples solved at once, which bounds the memory.
        tolerance: absolute and relative tolerance of `dopri5`.

    Returns:
        Where the samples are at `t1`, shape (n, *dim), without gradient.

    Raises:
        PrecfmError: an argument is of the wrong type or out of its range, or samples leave the finite numbers.
    """
    require_tensor(z0, "z0", floating=True)
    if labels is not None and len(labels) != len(z0):
        raise PrecfmError(f"labels: got {len(labels)} rows; {len(z0)} are needed, one for each sample")
    if t0 == t1:
        return z0.clone()

    times = torch.tensor([t0, t1], dtype=z0.dtype, device=z0.device)
    options = {} if solver == "dopri5" else equal_steps(steps)
    z1 = torch.empty_like(z0)
    for start in range(0, len(z0), batch_size):
        block = slice(start, start + batch_size)
        block_labels = None if labels is None else labels[block]

        def field(t: Tensor, z: Tensor, y: Tensor | None = block_labels) -> Tensor:
            return model(z, t.expand(len(z)), y)

        path = odeint(field, z0[block], times, method=solver, rtol=tolerance, atol=tolerance, options=options)
        z1[block] = path[-1]
    finite = z1.flatten(1).isfinite().all(1)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise PrecfmError(
            f"sample {row} is not finite at t = {t1} ({solver}); take more steps or check the model"
        )
    return z1


def equal_steps(steps: int) -> dict[str, Callable[[object, object, Tensor], Tensor]]:
    """Options of torchdiffeq's fixed-step solvers for a number of steps; by a step size it may take one more."""

    def grid(_field: object, _state: object, ends: Tensor) -> Tensor:
        return torch.linspace(ends[0], ends[-1], steps + 1, dtype=ends.dtype, device=ends.device)

    return {"grid_constructor": grid}


@checked
def evaluation_noise(n: Natural, dim: int | tuple[int, ...], seed: int) -> Tensor:
    """Standard normal noise that all methods of a comparison start from.

    Args:
        n: number of samples.
        dim: dimension or shape of one sample.
        seed: evaluation seed.

    Returns:
        Noise in float32 on the CPU, shape (n, *dim); a pure function of the arguments.
    """
    shape = (dim,) if isinstance(dim, int) else dim
    return torch.randn(n, *shape, generator=generator_for(seed, "evaluation noise"))


@checked
def evaluation_labels(n: Natural, labels: Tensor, seed: int) -> Tensor:
    """Labels that all methods of a comparison are asked for, in the reference's proportions.

    Class counts are n times the class frequencies, rounded by largest remainders (ties: the lower class), so
    that they sum to n and each is off by less than one. The order is shuffled.

    Args:
        n: number of labels.
        labels: of the reference, int64, shape (m,).
        seed: evaluation seed, for the order.

    Returns:
        Labels, int64, on the CPU, shape (n,); a pure function of the arguments.

    Raises:
        PrecfmError: the reference has no labels.

    Example:
        >>> evaluation_labels(4, torch.tensor([0, 1, 1, 1]), seed=0).bincount().tolist()
        [1, 3]
    """
    if not len(labels):
        raise PrecfmError("labels: got none; those of the reference are needed")
    frequencies = labels.detach().cpu().bincount()
    total = int(frequencies.sum())
    counts, remainders = n * frequencies // total, n * frequencies % total  # in integers: no rounding decides
    missing = n - int(counts.sum())
    counts[remainders.argsort(descending=True, stable=True)[:missing]] += 1
    ordered = torch.arange(len(counts)).repeat_interleave(counts)
    return ordered[torch.randperm(n, generator=generator_for(seed, "evaluation labels"))]


def rows_with_labels(wanted: Tensor, available: Tensor) -> Tensor:
    """Rows of a data set whose labels are the wanted ones, each row used once, earlier rows first.

    Args:
        wanted: labels asked for, int64, shape (n,).
        available: labels of the data set, int64, shape (m,).

    Returns:
        Row indices, int64, shape (n,), with `available[rows] == wanted`.

    Raises:
        PrecfmError: a class is asked for more often than it is there.

    Example:
        >>> rows_with_labels(torch.tensor([1, 0, 1]), torch.tensor([0, 1, 0, 1])).tolist()
        [1, 0, 3]
    """
    rows = torch.empty_like(wanted)
    for label in sorted(set(wanted.tolist())):
        places, found = (wanted == label).nonzero()[:, 0], (available == label).nonzero()[:, 0]
        if len(found) < len(places):
            raise PrecfmError(
                f"wanted: got class {label} {len(places)} times; at most {len(found)} are available"
            )
        rows[places] = found[: len(places)]
    return rows
