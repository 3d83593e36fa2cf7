"""Velocity networks, and wrappers around them that are fitted on the data before training."""

import math
from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from precfm.core.errors import PrecfmError
from precfm.core.options import options_in
from precfm.core.tensors import require_tensor

# Arguments that a flow knows, and nobody configures.
FILLED_IN = frozenset({"shape", "num_classes", "network", "path"})


class VelocityNetwork(nn.Module, ABC):
    """A network v(x_t, t, y).

    A subclass takes `shape` and `num_classes` first, stores each argument of its `__init__` in an attribute of the same
    name, and gives every other argument a default, so that `options` makes it again.

    Attributes:
        shape: of one sample: `(dim,)` for vectors, `(channels, height, width)` for images.
        num_classes: number of classes of the condition; 0 makes the network blind to labels.
        notes: sentences on what a reader of the results should know.
    """

    shape: tuple[int, ...]
    num_classes: int

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The velocity at `x_t`.

        Args:
            x_t: points on the path, shape (batch, *shape).
            t: times in [0, 1], shape (batch,).
            labels: classes, int64, shape (batch,); needed if `num_classes` > 0.

        Returns:
            The velocity, shape (batch, *shape).

        Raises:
            PrecfmError: `x_t` has another shape, or labels are missing or wrong.
        """

    @abstractmethod
    def zero_output(self) -> None:
        """Set the last layer to zero: a wrapper that adds to the network's output asks for it, before training."""

    @property
    def dim(self) -> int:
        """Numbers in one sample."""
        return math.prod(self.shape)

    @property
    def options(self) -> dict[str, Any]:
        """The arguments that make an equal network, without `FILLED_IN`."""
        return options_in(self, without=FILLED_IN)

    def checked_labels(self, labels: Tensor | None, batch: int) -> Tensor:
        """The classes of a batch.

        Raises:
            PrecfmError: they are missing, no integers, of another length, or out of range. While training on an
                accelerator the range is left to the device's own assertion, since asking would stall it.
        """
        if labels is None:
            raise PrecfmError(f"labels: missing; a network of {self.num_classes} classes needs them")
        require_tensor(labels, "labels")
        if labels.shape != (batch,) or labels.is_floating_point() or labels.is_complex():
            raise PrecfmError(
                f"labels: got shape {tuple(labels.shape)} and dtype {labels.dtype}; integers of shape ({batch},) "
                "are needed"
            )
        if batch and (labels.device.type == "cpu" or not self.training):
            low, high = (int(bound) for bound in labels.aminmax())
            if low < 0 or high >= self.num_classes:
                wrong = low if low < 0 else high
                raise PrecfmError(f"labels: got {wrong}; classes in 0..{self.num_classes - 1} are needed")
        return labels


class Wrapper(VelocityNetwork):
    """A velocity field around a network, which knows something of the data that the network need not learn.

    A subclass takes the network and the probability path first and gives every other argument a default.

    Attributes:
        network: what is wrapped; a wrapper, too, perhaps.
    """

    def __init__(self, network: VelocityNetwork) -> None:
        super().__init__()
        self.network = network
        self.shape, self.num_classes = network.shape, network.num_classes

    @abstractmethod
    def fit(self, z1: Tensor, labels: Tensor | None, *, seed: int = 0) -> None:
        """Fill what the wrapper knows from the training data, once, before training.

        Args:
            z1: training data in the space of the flow, shape (n, *shape).
            labels: classes, int64, shape (n,); ignored without classes.
            seed: seed of everything random in the fit.

        Raises:
            PrecfmError: the data do not fit the network, or do not vary.
        """

    def zero_output(self) -> None:
        """Set the last layer of the wrapped network to zero."""
        self.network.zero_output()
