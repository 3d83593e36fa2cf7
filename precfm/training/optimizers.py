"""The optimizers of a training and their learning rate."""

import math

import torch
from torch import nn

from precfm.core.errors import PrecfmError
from precfm.training.options import TrainingOptions


def learning_rate_at(step: int, options: TrainingOptions) -> float:
    """Learning rate of the update number `step`, counted from 0: linear warm-up, then constant or cosine.

    Example:
        >>> options = TrainingOptions(steps=10, learning_rate=1.0, warmup_steps=2, schedule="cosine")
        >>> [round(learning_rate_at(step, options), 2) for step in (0, 1, 2, 6, 9)]
        [0.5, 1.0, 1.0, 0.5, 0.04]
    """
    if step < options.warmup_steps:
        return options.learning_rate * (step + 1) / options.warmup_steps
    if options.schedule == "constant":
        return options.learning_rate
    progress = (step - options.warmup_steps) / (options.steps - options.warmup_steps)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def optimizers_of(
    module: nn.Module, options: TrainingOptions, device: torch.device, name: str
) -> dict[str, torch.optim.Optimizer]:
    """The optimizers by a name for their saved state; fused (one kernel for all parameters) where torch has it.

    Raises:
        PrecfmError: `muon` was asked for, and the module has no hidden matrices.
    """
    named = {key: weight for key, weight in module.named_parameters() if weight.requires_grad}
    hidden = []
    if options.optimizer == "muon":
        hidden = [key for key, weight in named.items() if weight.ndim == 2 and "hidden" in key.split(".")]
        if not hidden:
            raise PrecfmError(
                f"{name}: optimizer: got 'muon', but the module has no matrix in a part called 'hidden'; "
                "'adam', or a network with hidden layers, is needed"
            )
    rate, decay, fused = options.learning_rate, options.weight_decay, device.type in ("cpu", "cuda")
    optimizers: dict[str, torch.optim.Optimizer] = {}
    rest = [weight for key, weight in named.items() if key not in hidden]
    if rest:
        kind = torch.optim.SGD if options.optimizer == "sgd" else torch.optim.AdamW
        optimizers["optimizer"] = kind(rest, lr=rate, weight_decay=decay, fused=fused)
    if hidden:
        matrices = [named[key] for key in hidden]
        optimizers["muon"] = torch.optim.Muon(
            matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
        )
    return optimizers
