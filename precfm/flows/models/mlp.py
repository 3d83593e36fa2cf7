"""A multilayer perceptron as velocity network; it sees a sample of any shape as a vector."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from precfm.core.errors import PrecfmError
from precfm.core.options import Count, Natural, Neutral, Shape, checked
from precfm.core.tensors import require_tensor
from precfm.flows.models.base import LabelDropout, VelocityNetwork

# Radians per unit of time; near t = 1 the field of ill-conditioned data turns fast.
SLOWEST, FASTEST = 1.0, 100.0


class MLPVelocity(VelocityNetwork):
    """Velocity v(x_t, t, y) by a plain MLP with SiLU; time and class enter by addition before the first SiLU.

    Args:
        shape: of one sample; a number is the dimension of a vector.
        num_classes: number of classes of the condition; 0 makes the network unconditional, blind to labels.
        width: units of each hidden layer.
        depth: number of hidden layers.
        time_features: number of Fourier features of the time, even.
        label_dropout: see `VelocityNetwork`.

    Raises:
        PrecfmError: an argument is out of its range.

    Example:
        >>> model = MLPVelocity(2, num_classes=10)
        >>> model(torch.zeros(5, 2), torch.zeros(5), torch.arange(5)).shape
        torch.Size([5, 2])
    """

    angular_frequencies: Tensor

    @checked
    def __init__(
        self,
        shape: Shape,
        num_classes: Natural = 0,
        *,
        width: Count = 256,
        depth: Count = 3,
        time_features: Annotated[int, Field(ge=2, multiple_of=2)] = 32,
        label_dropout: Annotated[LabelDropout, Neutral(0.0)] = 0.0,
    ) -> None:
        super().__init__()
        self.shape = (shape,) if isinstance(shape, int) else shape
        self.num_classes, self.label_dropout = num_classes, label_dropout
        self.width, self.depth, self.time_features = width, depth, time_features
        frequencies = torch.logspace(0, 1, time_features // 2, base=FASTEST / SLOWEST) * SLOWEST
        self.register_buffer("angular_frequencies", frequencies, persistent=False)
        self.embed_x = nn.Linear(self.dim, width)
        self.embed_time = nn.Linear(time_features, width, bias=False)
        if num_classes:
            self.embed_label = nn.Embedding(self.num_labels, width)
            # The spread that a linear layer gives to inputs of unit variance: no term drowns the others.
            nn.init.normal_(self.embed_label.weight, std=3**-0.5)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.head = nn.Linear(width, self.dim)
        self.activation = nn.SiLU()

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The velocity at `x_t`, as `VelocityNetwork.forward`; it must be of the network's dtype."""
        require_tensor(x_t, "x_t")
        takes = self.shape if self.embed_x.in_features == self.dim else (self.embed_x.in_features,)
        if x_t.shape[1:] != takes:
            needed = ", ".join(map(str, takes))
            raise PrecfmError(f"x_t: got shape {tuple(x_t.shape)}; (batch, {needed}) is needed")
        if x_t.dtype != self.embed_x.weight.dtype and not torch.is_autocast_enabled(x_t.device.type):
            raise PrecfmError(
                f"x_t: got dtype {x_t.dtype}, but the network has {self.embed_x.weight.dtype}; use to(dtype) on one "
                "of them"
            )
        angles = t.to(x_t.dtype)[:, None] * self.angular_frequencies
        hidden = self.embed_x(x_t.flatten(1)) + self.embed_time(
            torch.cat([angles.cos(), angles.sin()], dim=1)
        )
        if self.num_classes:
            hidden = hidden + self.embed_label(self.checked_labels(labels, len(x_t)))
        for layer in self.hidden:
            hidden = layer(self.activation(hidden))
        velocity: Tensor = self.head(self.activation(hidden))
        return velocity.reshape(-1, *self.shape)

    def extend_input(self, extra: int) -> None:
        """Take `extra` numbers behind those of a point, as `VelocityNetwork.extend_input`, by a fresh first layer."""
        self.embed_x = nn.Linear(self.embed_x.in_features + extra, self.width)

    def zero_output(self) -> None:
        """Set the last layer to zero."""
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
