"""What trained preconditioners have in common: held-out data, class contexts, counted operations."""

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from precfm.errors import PrecfmError
from precfm.preconditioners.base import FitData
from precfm.seeds import generator_for
from precfm.training import LossFunction


def check_open_share(name: str, value: float) -> float:
    """The value of an option that must lie strictly between 0 and 1.

    Raises:
        PrecfmError: it does not.
    """
    if not 0 < value < 1:
        raise PrecfmError(f"{name}: got {value!r}, but a number between 0 and 1, both excluded, is needed")
    return value


def with_validation(data: FitData, share: float, what: str) -> FitData:
    """The data with a validation part: the given one, or else a random share of the training rows.

    Args:
        data: what the fit received.
        share: part of the rows to hold out if no validation data was given, in (0, 1).
        what: name of the preconditioner, for messages.

    Returns:
        Data whose validation part is not None.

    Raises:
        PrecfmError: there are too few rows to hold one out and keep two.
    """
    if data.x_validation is not None:
        return data
    rows = len(data.x)
    held_out = max(1, round(share * rows))
    if rows - held_out < 2:
        raise PrecfmError(
            f"{what}: x has {rows} rows, but at least 3 are needed to hold one out for validation"
        )
    order = torch.randperm(rows, generator=generator_for(data.seed, "validation rows")).to(data.x.device)
    validation, training = order[:held_out], order[held_out:]
    return replace(
        data,
        x=data.x[training],
        classes=None if data.classes is None else data.classes[training],
        x_validation=data.x[validation],
        classes_validation=None if data.classes is None else data.classes[validation],
    )


def one_hot(classes: Tensor | None, count: int, dtype: torch.dtype) -> Tensor | None:
    """One-hot rows (batch, count) of class positions (batch,); None for None.

    Example:
        >>> one_hot(torch.tensor([1, 0]), 2, torch.float32)
        tensor([[0., 1.],
                [1., 0.]])
    """
    return None if classes is None else nn.functional.one_hot(classes, count).to(dtype)


def flops_per_step(
    module: nn.Module, loss_function: LossFunction, data: tuple[Tensor, ...], batch_size: int
) -> int:
    """Floating point operations of one training step, forward and backward, as torch counts them.

    Matrix products and convolutions count; element-wise operations, the optimizer and validation do not.

    Args:
        module: what is trained; it is left as it was.
        loss_function: the training loss.
        data: the training data, from which one mini-batch is made.
        batch_size: rows of the mini-batch.
    """
    probe = copy.deepcopy(module)
    rows = torch.arange(batch_size, device=data[0].device) % len(data[0])
    generator = generator_for(0, "flops", device=data[0].device)
    with FlopCounterMode(display=False) as counter:
        loss = loss_function(probe, tuple(tensor[rows] for tensor in data), generator)
        loss.backward()  # type: ignore[no-untyped-call]
    return int(counter.get_total_flops())
