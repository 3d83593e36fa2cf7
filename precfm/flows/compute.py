"""Compute: parameters and floating point operations, counted, and the network or training that matches a count."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from precfm.core.errors import PrecfmError
from precfm.core.options import Count, Natural, checked
from precfm.core.seeds import generator_for
from precfm.training.draws import Objective

WIDEST = 2**20  # no search goes beyond: a network that does not grow with its width would search forever


def num_parameters(module: nn.Module) -> int:
    """Numbers in the parameters of a module, frozen or not; buffers do not count."""
    return sum(parameter.numel() for parameter in module.parameters())


def flops_of(call: Callable[[], object]) -> int:
    """Floating point operations of a call, as torch counts them: matrix products and convolutions.

    Element-wise operations, decompositions and triangular solves do not count. An operation counts wherever it
    runs: forward, backward, in the steps of an ODE solver.

    Args:
        call: what to count; it is called once.

    Returns:
        Operations, a multiplication and an addition being two.

    Example:
        >>> matrix = torch.ones(2, 3)
        >>> flops_of(lambda: matrix @ matrix.T)
        24
    """
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def flops_per_step(
    module: nn.Module,
    objective: Objective,
    data: tuple[Tensor, ...],
    batch_size: int,
) -> int:
    """Floating point operations of one training step, forward and backward, as torch counts them.

    Matrix products and convolutions count; element-wise operations, the optimizer and validation do not.

    Args:
        module: what is trained; it is left as it was.
        objective: what is minimised.
        data: the training data, from which one mini-batch is made.
        batch_size: rows of the mini-batch.
    """
    probe = copy.deepcopy(module).eval()  # so that no dropout takes from torch's global generator
    rows = torch.arange(batch_size, device=data[0].device) % len(data[0])
    draws = tuple(draw.to(rows.device) for draw in objective.draw(batch_size, generator_for(0, "flops")))

    def step() -> None:
        loss = objective.loss(probe, tuple(tensor[rows] for tensor in data), draws)
        loss.backward()  # type: ignore[no-untyped-call]

    return flops_of(step)


@checked
def matched_width(
    build: Callable[[int], nn.Module], width: Count, extra_parameters: Natural, *, multiple_of: Count = 1
) -> int:
    """The smallest width whose network has as many parameters as `build(width)`'s and `extra_parameters` together.

    Args:
        build: makes the network of a given width; its parameters must grow with the width. Torch's global
            generator, from which it may draw weights, is left as it was.
        width: width of the network to be matched.
        extra_parameters: parameters of what the network is helped by, at least 0.
        multiple_of: the widths that `build` takes beyond `width` are `width` plus multiples of this.

    Returns:
        A width, at least `width`.

    Raises:
        PrecfmError: an argument is out of its range, or no width has as many parameters.

    Example:
        >>> matched_width(lambda width: nn.Linear(width, 1, bias=False), 10, 25)
        35
    """

    def count(steps: int) -> int:
        with torch.random.fork_rng(devices=[]):
            return num_parameters(build(width + steps * multiple_of))

    goal = count(0) + extra_parameters
    high = 1 if extra_parameters else 0
    while count(high) < goal:
        if width + high * multiple_of > WIDEST:
            raise PrecfmError(
                f"build: makes networks of fewer than {goal} parameters at every width up to {WIDEST}; such that grow "
                "with the width are needed"
            )
        high *= 2
    low = high // 2 if high > 1 else 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < goal else (low, middle)
    return width + high * multiple_of


@checked
def matched_steps(steps: Natural, flops_per_step: Count, extra_flops: Natural) -> int:
    """The smallest number of steps that costs as many operations as `steps` and `extra_flops` together.

    Args:
        steps: optimizer steps of the training to be matched.
        flops_per_step: operations of one of them, at least 1.
        extra_flops: operations to match beside, at least 0.

    Raises:
        PrecfmError: an argument is out of its range.

    Example:
        >>> matched_steps(100, 10, 25)
        103
    """
    return steps + -(-extra_flops // flops_per_step)
