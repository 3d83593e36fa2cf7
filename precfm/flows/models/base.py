"""Velocity networks, and wrappers around them that are fitted on the data before training."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from precfm.core.errors import PrecfmError
from precfm.core.options import options_in
from precfm.core.tensors import require_tensor

# Arguments that a flow knows, and nobody configures.
FILLED_IN = frozenset({"shape", "num_classes", "network", "path"})


LabelDropout = Annotated[float, Field(ge=0, lt=1)]


class VelocityNetwork(nn.Module, ABC):
    """A network v(x_t, t, y).

    A subclass takes `shape` and `num_classes` first, stores each argument of its `__init__` in an attribute of the same
    name, and gives every other argument a default, so that `options` makes it again.

    Attributes:
        shape: of one sample: `(dim,)` for vectors, `(channels, height, width)` for images.
        num_classes: number of classes of the condition; 0 makes the network blind to labels.
        label_dropout: share of the training rows whose label is replaced by the null class, `num_classes`; above 0 the
            network can be guided (`precfm.flows.guidance`).
        width_multiple: what a network of another width must be wider by a multiple of.
        notes: sentences on what a reader of the results should know.
    """

    shape: tuple[int, ...]
    num_classes: int
    label_dropout: float = 0.0
    width_multiple: int = 1

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The velocity at `x_t`.

        Args:
            x_t: points on the path, shape (batch, *shape).
            t: times in [0, 1], shape (batch,).
            labels: classes, int64, shape (batch,); needed if `num_classes` > 0. Where `label_dropout` is above 0,
                `num_classes` stands for no class.

        Returns:
            The velocity, shape (batch, *shape).

        Raises:
            PrecfmError: `x_t` has another shape, or labels are missing or wrong.
        """

    @abstractmethod
    def zero_output(self) -> None:
        """Set the last layer to zero: a wrapper that adds to the network's output asks for it, before training."""

    def extend_input(self, extra: int) -> None:
        """Let `x_t` come as vectors of `dim` + `extra` numbers: a wrapper that knows more of a point asks for it.

        Raises:
            PrecfmError: the network takes nothing but points.
        """
        raise PrecfmError(
            f"model: got a {type(self).__name__}, which takes no further inputs; an MLPVelocity does"
        )

    @property
    def dim(self) -> int:
        """Numbers in one sample."""
        return math.prod(self.shape)

    @property
    def num_labels(self) -> int:
        """Values that a label may have: the classes, and the null class where there is one."""
        return self.num_classes + (1 if self.num_classes and self.label_dropout > 0 else 0)

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
        # Inside torch.vmap, as where seeds train side by side, there is no number to ask for.
        several = torch._C._functorch.is_batchedtensor(labels)
        if batch and not several and (labels.device.type == "cpu" or not self.training):
            low, high = (int(bound) for bound in labels.aminmax())
            if low < 0 or high >= self.num_labels:
                wrong = low if low < 0 else high
                raise PrecfmError(f"labels: got {wrong}; classes in 0..{self.num_labels - 1} are needed")
        return labels


class Wrapper(VelocityNetwork):
    """A velocity field around a network, which knows something of the data that the network need not learn.

    A subclass takes the network and the probability path first and gives every other argument a default. What it learns
    in `fit` it keeps in buffers of its own, so that weights and `fitted_state` carry it. Where `forward` needs them it
    calls `declare_fit` when it is made, `mark_fitted` at the end of `fit`, and `checked_points` in `forward`.

    Attributes:
        network: what is wrapped; a wrapper, too, perhaps.
        uses_seed: whether a fit depends on its seed.
        costly_fit: whether a fit is worth keeping apart from the flow.
        flops_per_fit: floating point operations of the fit; 0 before, and where they are too few to count.
        num_fitted_numbers: free numbers that the wrapper took from the data; they are no parameters of the network.
        flops_per_sample: floating point operations for one point and evaluation that torch does not count, since they
            are element-wise.
        adds_velocity: whether it is a flow by itself, if the network says zero.
    """

    uses_seed: ClassVar[bool] = False
    costly_fit: ClassVar[bool] = False

    fitted: Tensor

    def __init__(self, network: VelocityNetwork) -> None:
        super().__init__()
        self.network = network
        self.shape, self.num_classes = network.shape, network.num_classes
        self.label_dropout = network.label_dropout
        self._ready = True

    @property
    def flops_per_fit(self) -> int:
        """Floating point operations of the fit."""
        return 0

    @property
    def num_fitted_numbers(self) -> int:
        """Free numbers taken from the data."""
        return 0

    @property
    def flops_per_sample(self) -> int:
        """Element-wise operations for one point and evaluation."""
        return 0

    @property
    def adds_velocity(self) -> bool:
        """Whether the wrapper alone is a flow."""
        return False

    @abstractmethod
    def fit(
        self,
        z1: Tensor,
        labels: Tensor | None,
        *,
        seed: int = 0,
        validation: tuple[Tensor, Tensor | None] | None = None,
    ) -> None:
        """Fill what the wrapper knows from the training data, once, before training.

        Args:
            z1: training data in the space of the flow, shape (n, *shape).
            labels: classes, int64, shape (n,); ignored without classes.
            seed: seed of everything random in the fit.
            validation: held-out data and labels, where something is chosen by them.

        Raises:
            PrecfmError: the data do not fit the network, or do not vary.
        """

    def fitted_state(self) -> dict[str, Tensor]:
        """What `fit` filled: the wrapper's own buffers by name, without the network's."""
        own = {name for name, _ in self.named_buffers() if not name.startswith("network.")}
        return {name: value for name, value in self.state_dict().items() if name in own}

    def load_fitted_state(self, state: Mapping[str, Tensor]) -> None:
        """Take what another wrapper of the same kind has fitted, instead of a fit.

        Raises:
            PrecfmError: names or shapes differ.
        """
        mine = self.fitted_state()
        shapes, needed = ({name: tuple(each.shape) for name, each in d.items()} for d in (state, mine))
        if shapes != needed:
            raise PrecfmError(f"fitted_wrappers: got {shapes} for {type(self).__name__}; {needed} are needed")
        self.load_state_dict(dict(state), strict=False)

    def zero_output(self) -> None:
        """Set the last layer of the wrapped network to zero."""
        self.network.zero_output()

    def declare_fit(self) -> None:
        """Refuse `checked_points` until `mark_fitted`, or until weights are loaded that say so: the buffer `fitted`."""
        self.register_buffer("fitted", torch.tensor(False))
        self._ready = False
        self.register_load_state_dict_post_hook(_note_loaded_fit)  # type: ignore[no-untyped-call]

    def mark_fitted(self) -> None:
        """Say that `fit` is done."""
        self.fitted.fill_(True)
        self._ready = True

    def checked_points(self, x_t: Tensor) -> None:
        """Refuse points of another shape than the network's, and any before `fit`.

        Raises:
            PrecfmError: they are not, or the wrapper is not fitted.
        """
        if not self._ready:
            raise PrecfmError(
                f"{type(self).__name__}: used before fit; call fit(z1, labels) with the training data first"
            )
        if x_t.shape[1:] != self.shape:
            needed = ", ".join(map(str, self.shape))
            raise PrecfmError(f"x_t: got shape {tuple(x_t.shape)}; (batch, {needed}) is needed")

    def checked_rows(self, z1: Tensor) -> None:
        """Refuse training data that are not finite or of another shape than the network's.

        Raises:
            PrecfmError: they are not.
        """
        if z1.shape[1:] != self.shape or len(z1) < 2:
            needed = ", ".join(map(str, self.shape))
            raise PrecfmError(
                f"z1: got shape {tuple(z1.shape)}; (n, {needed}) with n of at least 2 is needed"
            )
        if not bool(z1.isfinite().all()):
            row = int((~z1.isfinite()).flatten(1).any(dim=1).nonzero()[0])
            raise PrecfmError(f"z1: got a number in row {row} that is not finite; all must be")

    def classes_of(self, labels: Tensor | None, rows: Tensor) -> Tensor:
        """The class of each row; zeros without classes."""
        if not self.num_classes:
            return torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        return self.checked_labels(labels, len(rows))


def _note_loaded_fit(module: Any, _incompatible_keys: Any) -> None:
    """Make a loaded wrapper know whether it was fitted, without asking the device at each call."""
    module._ready = bool(module.fitted)
