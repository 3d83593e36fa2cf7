"""A velocity network of another library, or one that a user has written, in the place of ours."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from precfm.core.errors import PrecfmError
from precfm.flows.models.base import VelocityNetwork

TIME = ("t", "time", "times", "timestep", "timesteps")
TIME_SCALES = {"timestep": 1000}  # what networks of diffusers call the time runs to 1,000
LABELS = ("y", "label", "labels", "class_labels", "classes")


class AdaptedNetwork(VelocityNetwork):
    """Calls any module by the names of its arguments, in whatever order they are.

    The module's `forward` takes points and times, `(x, t)` or `(t, x)`, and labels if it likes: `t`, `time` or
    `timestep(s)` is the time, `y`, `label(s)`, `class_labels` or `classes` are the labels, and the first other argument
    is the points; further ones need defaults. A module with one argument gets vectors with the time as their last
    number. A `timestep` runs from 0 to 1,000, as in diffusers, any other time from 0 to 1. It answers with a tensor,
    with a tuple whose first entry is one, or with an object that has a `sample`. So the networks of torchcfm,
    flow_matching and diffusers fit as they are.

    Args:
        module: the network.
        shape: of one sample.
        num_classes: how many classes the data have; 0 without labels.

    Raises:
        PrecfmError: the arguments cannot be told apart, or the module refuses points of this shape.
    """

    def __init__(self, module: nn.Module, shape: tuple[int, ...], num_classes: int = 0) -> None:
        super().__init__()
        self._points, self._time, self._labels = roles(module)
        self.module, self.shape = module, shape
        self.num_classes = num_classes if self._labels else 0
        self._try()

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The velocity at `x_t`; see `VelocityNetwork.forward`."""
        if self._time is None:
            found = self.module(torch.cat([x_t, t[:, None].to(x_t)], dim=1))
        else:
            arguments = {self._points: x_t, self._time: t * TIME_SCALES.get(self._time, 1)}
            if self._labels and self.num_classes:
                arguments[self._labels] = self.checked_labels(labels, len(x_t))
            found = self.module(**arguments)
        found = getattr(found, "sample", found)
        velocity: Tensor = found[0] if isinstance(found, tuple) else found
        return velocity * self.gate if hasattr(self, "gate") else velocity

    def zero_output(self) -> None:
        """Multiply the output by a weight that starts at zero, since nobody knows which layer is the last.

        References:
            ReZero is All You Need (Bachlechner et al., 2020), https://arxiv.org/abs/2003.04887
        """
        weight = next(self.module.parameters())
        self.gate = nn.Parameter(torch.zeros((), dtype=weight.dtype, device=weight.device))

    def _try(self) -> None:
        """Call the module once, on zeros, so that what does not fit is said before a training."""
        weight = next(self.module.parameters(), None)
        if weight is None:
            raise PrecfmError(
                f"model: {type(self.module).__name__} has no parameters; there is nothing to train"
            )
        rows = next(each for each in range(2, len(self.shape) + 3) if each not in self.shape)
        points = torch.zeros(rows, *self.shape, dtype=weight.dtype, device=weight.device)
        labels = torch.zeros(rows, dtype=torch.int64, device=weight.device) if self.num_classes else None
        modes = [(module, module.training) for module in self.module.modules()]
        self.module.eval()
        try:
            with torch.no_grad():
                found: Any = self(points, torch.linspace(0, 1, rows).to(points), labels)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise PrecfmError(
                f"model: {type(self.module).__name__} refuses points of shape {tuple(points.shape)} and times of shape "
                f"({rows},): {type(error).__name__}: {reason}"
            ) from error
        finally:
            for module, mode in modes:
                module.training = mode
        if not isinstance(found, Tensor) or found.shape != points.shape:
            what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise PrecfmError(
                f"model: {type(self.module).__name__} answers points of shape {tuple(points.shape)} with {what}; a "
                "velocity of the same shape is needed"
            )


def roles(module: nn.Module) -> tuple[str, str | None, str | None]:
    """Names of the arguments for points, time and labels; no time where there is but one argument.

    Raises:
        PrecfmError: they cannot be told apart, or an argument more is needed.
    """
    found = inspect.signature(module.forward).parameters.values()
    named = [each for each in found if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    names = [each.name for each in named]
    time = next((name for name in names if name in TIME), None)
    labels = next((name for name in names if name in LABELS), None)
    others = [each for each in named if each.name not in (time, labels)]
    needed = [each.name for each in others if each.default is each.empty]
    if len(needed) == 1 and (time is not None or len(names) == 1):
        return needed[0], time, labels
    raise PrecfmError(
        f"model: {type(module).__name__}.forward takes ({', '.join(names)}); points and times are needed, as (x, t) or "
        f"(x, t, y): the time is told by one of the names {', '.join(TIME)}, labels by one of {', '.join(LABELS)}"
    )
