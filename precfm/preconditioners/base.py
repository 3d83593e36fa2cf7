"""The contract that every preconditioner keeps: fit to data, map to the space of the flow and back."""

import inspect
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from precfm.core.errors import PrecfmError
from precfm.core.options import parameters, readable
from precfm.geometry.moments import rows_per_block
from precfm.preconditioners.fit_data import FitData
from precfm.preconditioners.inputs import (
    Array,
    Data,
    as_tensor,
    batches_of,
    checked_labels,
    checked_rows,
    class_positions,
    plain_number,
    takes_arrays,
)

NO_FLOAT64 = ("mps",)  # types of devices
HALVES = (torch.float16, torch.bfloat16)
NOTED_LOSS = 0.1  # of the smallest standard deviation, in a round trip of half precision
LOOKED_AT = 2000  # rows for that
DIRECTIONS = (
    512  # at most so many features are looked at in every direction for that, which takes a tenth of a second
)
EXTRA_STATE = "_extra_state"  # key of a state dict under which torch, too, keeps what is no tensor
STATE = ("fitted", "event_shape", "classes", "flops_per_fit", "notes", "record")


class Preconditioner(nn.Module, ABC):
    """An invertible map `P` from data space to the space in which the main flow is trained.

    The flow learns and samples in the space of `z = forward(x)`; samples return through `x = inverse(z)`.

    Maps are evaluated in float64 and the result is cast back to the dtype of the input, so that a float32
    input comes back within `round_trip_tolerance` even where the data is ill-conditioned. `to(device)` moves
    a fitted preconditioner; `to(torch.float32)` makes the maps faster and less exact, and has to come first where a
    device has no float64.

    Wherever data and labels are taken, numpy arrays are, too, and answered with arrays. `state_dict` holds all that a
    fresh preconditioner of the same options needs to be fitted by `load_state_dict`, alone or inside another module.
    The maps compile as whole graphs and work under `torch.vmap` (with `validate=False`) where the class says nothing
    else.

    A subclass stores each argument of its `__init__` in an attribute of the same name, registers its buffers and
    modules in `_fit` and, with any values, in `_allocate`, and implements `_forward`, `_inverse`, `_log_abs_det` and
    `num_parameters` on matrices (batch, features).

    Attributes:
        needs_labels: whether the maps depend on labels; some do only where the fit gets labels.
        needs_metric: whether a fit needs a metric of the data space.
        uses_seed: whether a fit depends on its seed; the plan fits a map without randomness once for all seeds. It
            asks the class.
        has_log_det: whether `log_abs_det_jacobian` exists.
        round_trip_tolerance: bound on `|inverse(forward(x)) - x|` relative to the smallest standard deviation
            of the training data, for float32 input, a condition number up to 1e6 and a mean that is not much
            larger than the spread; also for the tails, `x = inverse(1.5 z)` with `z ~ N(0, I)`. For float64
            input the error of a closed-form map is smaller by the ratio of the two machine precisions.
        fitted: whether a fit or a load has succeeded.
        event_shape: shape of one datum, known after `fit`.
        classes: labels seen in `fit` in ascending order; empty where labels are not used.
        flops_per_fit: floating point operations of the fit; a multiplication and an addition count as two.
        notes: sentences on what a reader of the results should know, such as shrinkage that was applied.
        record: findings of the fit for programs, as plain JSON data; empty where `notes` say it all.
    """

    needs_labels: bool = False
    needs_metric: bool = False
    uses_seed: bool = False
    has_log_det: bool = True
    round_trip_tolerance: float = 1e-3

    anchor: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fitted = False
        self.event_shape: tuple[int, ...] = ()
        self.classes: tuple[int, ...] = ()
        self.flops_per_fit: int = 0
        self.notes: list[str] = []
        self.record: dict[str, Any] = {}
        # An empty tensor that follows `to`, so that every subclass knows its device and its dtype.
        self.register_buffer("anchor", torch.empty(0, dtype=torch.float64), persistent=False)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        shown = inspect.Signature(list(readable(parameters(cls)).values()))
        cls.__signature__ = shown  # type: ignore[attr-defined]

    def fit(
        self,
        x: Data,
        labels: Array | None = None,
        *,
        validation: tuple[Array, Array | None] | None = None,
        metric: Tensor | None = None,
        seed: int = 0,
        scratch: str | Path | None = None,
    ) -> Self:
        """Fit the map to data; a second fit forgets the first.

        Maps with a closed form read batches one by one in bounded memory; those that are learned, chosen or composed
        hold all rows.

        Args:
            x: training data, shape (rows, *dim), floating point, at least 2 rows, a tensor or a numpy array; or an
                iterable, such as a data loader, read once, of batches of such rows, or of pairs of a batch and its
                labels.
            labels: class indices, shape (rows,), integers; needed where `needs_labels`, and never beside batches.
            validation: held-out data and labels for early stopping of learned maps. Without it, they hold out
                a share of `x`. Closed-form maps ignore it.
            metric: metric of the data space, shape (features, features), such as
                `precfm.geometry.decoder.pull_back_metric`; needed where `needs_metric`, ignored elsewhere.
            seed: seed of everything random in the fit.
            scratch: folder where a learned map keeps its training state, so that a fit that was killed
                resumes.

        Returns:
            The preconditioner itself, fitted, on the device of `x`.

        Raises:
            PrecfmError: the data is no tensor, not finite, has too few rows or lacks labels, or no invertible
                map fits it.
        """
        self.fitted = False
        batches = batches_of(x, labels)
        first = next(batches)
        self._begin(first[0], labelled=first[1] is not None)
        device, home, dtype = first[0].device, self.anchor.device, first[0].dtype
        if validation is not None:
            if not isinstance(validation, tuple) or len(validation) != 2:
                raise PrecfmError(
                    f"validation: is of type {type(validation).__name__}; a pair is needed: (x, labels), or (x, None)"
                )
            rows, given = (_at(home, as_tensor(each)) for each in validation)
            held_out, known = self._checked(rows, given, "validation")
            validation = held_out.to(self.anchor.dtype), known
        data = FitData(
            batches=self._checked_batches(
                (_at(home, rows), _at(home, known)) for rows, known in chain([first], batches)
            ),
            validation=validation,
            metric=metric,
            seed=seed,
            scratch=None if scratch is None else Path(scratch),
        )
        self.flops_per_fit = self._fit(data)
        self.fitted = True
        self.to(home, torch.float32 if device.type in NO_FLOAT64 else torch.float64)
        self.to(device).requires_grad_(False).eval()
        if dtype in HALVES:
            self._note_loss(first[0][:LOOKED_AT], None if first[1] is None else first[1][:LOOKED_AT])
        return self

    @takes_arrays
    def forward(self, x: Tensor, labels: Tensor | None = None, *, validate: bool = True) -> Tensor:
        """Map data into the space of the flow.

        Args:
            x: data, shape (batch, *dim); batch may be 0.
            labels: class indices, shape (batch,); needed where `needs_labels`, ignored elsewhere.
            validate: whether to look for numbers that are not finite and for labels that are new; a compiled graph
                never does.

        Returns:
            `z = P(x)` in the shape and dtype of `x`.

        Raises:
            PrecfmError: not fitted, wrong dimension, non-finite data, or labels that are missing or new.
        """
        rows, classes = self._inputs(x, labels, "x", validate)
        z = self._forward(rows, classes) if len(rows) else rows
        return z.to(x.dtype).reshape(x.shape)

    @takes_arrays
    def inverse(self, z: Tensor, labels: Tensor | None = None, *, validate: bool = True) -> Tensor:
        """Map points of the flow's space back to data space.

        Args:
            z: points, shape (batch, *dim); batch may be 0.
            labels: class indices, shape (batch,); needed where `needs_labels`, ignored elsewhere.
            validate: as in `forward`.

        Returns:
            `x = P^-1(z)` in the shape and dtype of `z`.

        Raises:
            PrecfmError: as `forward`.
        """
        rows, classes = self._inputs(z, labels, "z", validate)
        x = self._inverse(rows, classes) if len(rows) else rows
        return x.to(z.dtype).reshape(z.shape)

    @takes_arrays
    def log_abs_det_jacobian(
        self, x: Tensor, labels: Tensor | None = None, *, validate: bool = True
    ) -> Tensor:
        """Log absolute determinant of the Jacobian of `forward` at `x`.

        Args:
            x: data, shape (batch, *dim).
            labels: class indices, shape (batch,); needed where `needs_labels`.
            validate: as in `forward`.

        Returns:
            `log |det dP/dx|` per row, shape (batch,), in the dtype of `x`.

        Raises:
            PrecfmError: as `forward`, or the map has no closed-form determinant (`has_log_det` is False).
        """
        if not self.has_log_det:
            raise PrecfmError(f"{self._name}: has no closed-form Jacobian determinant; ask has_log_det first")
        rows, classes = self._inputs(x, labels, "x", validate)
        log_det = self._log_abs_det(rows, classes) if len(rows) else rows.new_zeros(0)
        return log_det.to(x.dtype)

    @takes_arrays
    def log_abs_det_deviations(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """How the estimates deviate whose mean `log_abs_det_jacobian` is, where a map estimates it.

        Args:
            x: data, shape (batch, *dim).
            labels: class indices, shape (batch,); needed where `needs_labels`.

        Returns:
            Estimate minus mean in nats, a row for each random vector, shape (vectors, batch), float64; all rows of data
            share the vectors, and so their errors. No vectors, shape (0, batch), where the determinant is exact.

        Raises:
            PrecfmError: as `forward`.
        """
        rows, classes = self._inputs(x, labels, "x", True)
        return self._log_abs_det_deviations(rows, classes).double()

    def transform(self, x: Array, labels: Array | None = None) -> Any:
        """As `forward`, under the name that scikit-learn has for it."""
        return self.forward(x, labels)

    def inverse_transform(self, z: Array, labels: Array | None = None) -> Any:
        """As `inverse`, under the name that scikit-learn has for it."""
        return self.inverse(z, labels)

    def fit_transform(self, x: Array, labels: Array | None = None, **options: Any) -> Any:
        """`fit`, which takes the options, and then `forward`, of the same rows."""
        return self.fit(x, labels, **options).forward(x, labels)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The options, as scikit-learn asks for them."""
        return self.options

    def set_params(self, **changes: Any) -> Self:
        """Change options, as scikit-learn does before a fit; a fit that there was is forgotten."""
        type(self).__init__(self, **{**self.options, **changes})
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return self.fitted

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type="transformer",
            target_tags=TargetTags(required=self.needs_labels),
            transformer_tags=TransformerTags(preserves_dtype=["float64", "float32"]),
            input_tags=InputTags(three_d_array=True),
        )

    def save(self, path: str | Path) -> None:
        """Store the fitted map in a folder or file; see `precfm.preconditioners.save`."""
        from precfm.preconditioners.saving import save

        save(self, path)

    def allocate(self, event_shape: tuple[int, ...], classes: tuple[int, ...]) -> None:
        """Allocate what a file or an enclosing preconditioner will fill; users call `fit` or `load`.

        Args:
            event_shape: shape of one datum.
            classes: labels that the fit saw, ascending.
        """
        self.event_shape, self.classes = event_shape, classes
        self._expect_labels(bool(classes))
        self._allocate()

    @property
    def features(self) -> int:
        """Number of features of one datum, trailing dimensions flattened."""
        return math.prod(self.event_shape)

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of `__init__` that make an equal, unfitted preconditioner."""
        return {name: getattr(self, name) for name in parameters(type(self))}

    def _expect_labels(self, given: bool) -> None:
        """Told before a fit or an allocation: a map that can do without labels sets `needs_labels`."""

    @property
    @abstractmethod
    def num_parameters(self) -> int:
        """Free numbers of the fitted map in one direction; a symmetric matrix counts `d (d + 1) / 2`."""

    @abstractmethod
    def _allocate(self) -> None:
        """Register the buffers and modules of a map for `event_shape` and `classes`; a file gives their values."""

    @abstractmethod
    def _fit(self, data: FitData) -> int:
        """Read the data, register buffers and modules, and return the floating point operations that it took.

        `classes` is known once the data has been read.
        """

    @abstractmethod
    def _forward(self, x: Tensor, classes: Tensor | None) -> Tensor:
        """Map rows (batch, features); `classes` holds positions in `self.classes` where labels are needed."""

    @abstractmethod
    def _inverse(self, z: Tensor, classes: Tensor | None) -> Tensor:
        """Map rows (batch, features) back."""

    @abstractmethod
    def _log_abs_det(self, x: Tensor, classes: Tensor | None) -> Tensor:
        """Log absolute determinant of the Jacobian of `_forward`, shape (batch,)."""

    def _log_abs_det_deviations(self, x: Tensor, classes: Tensor | None) -> Tensor:
        """Of the estimates behind `_log_abs_det` from their mean, shape (vectors, batch); none where it is exact."""
        return x.new_zeros(0, len(x))

    @property
    def _name(self) -> str:
        return type(self).__name__

    def extra_repr(self) -> str:
        """Options, and what the map was fitted to."""
        options = [f"{name}={value!r}" for name, value in self.options.items()]
        try:
            shape = f"event_shape={self.event_shape}" if self.fitted else "not fitted"
        except PrecfmError:  # rows that `partial_fit` has gathered do not make a map yet
            shape = "not fitted"
        return ", ".join([*options, shape])

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        state = {
            "class": self._name,
            "options": self.options,
            **{name: getattr(self, name) for name in STATE},
        }
        text = json.dumps(state, allow_nan=False, default=plain_number).encode()
        destination[f"{prefix}{EXTRA_STATE}"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Before the tensors, which need their places; they stand alone where `saving.rebuild` made the places.
        state = state_dict.pop(f"{prefix}{EXTRA_STATE}", None)
        if state is not None:
            self._take(json.loads(bytes(state.tolist())), {name.removeprefix(prefix) for name in state_dict})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _take(self, state: dict[str, Any], tensors: Collection[str]) -> None:
        """Become what a state dict describes, as yet without values; the names of its tensors are given."""
        if state["class"] != self._name:
            raise PrecfmError(f"{self._name}: the state is of a {state['class']}")
        own = json.loads(json.dumps(self.options, default=plain_number))
        for name, value in state["options"].items():
            if own.get(name) != value:
                raise PrecfmError(
                    f"{self._name}: has {name} {own.get(name)!r}; the state is of one with {value!r}"
                )
        if state["fitted"]:
            shape, classes = tuple(state["event_shape"]), tuple(state["classes"])
            self._require(tensors, shape, classes)
            self.allocate(shape, classes)
        for name in STATE:
            value = state[name]
            setattr(self, name, tuple(value) if name in ("event_shape", "classes") else value)
        self.requires_grad_(False).eval()

    def _require(
        self, tensors: Collection[str], event_shape: tuple[int, ...], classes: tuple[int, ...]
    ) -> None:
        """Refuse a state that lacks tensors before anything is replaced."""
        like: Preconditioner = type(self)(**self.options)
        like.allocate(event_shape, classes)
        lacking = [
            name
            for name in nn.Module.state_dict(like)
            if name not in tensors and not name.endswith(EXTRA_STATE)
        ]
        if lacking:
            raise PrecfmError(f"{self._name}: the state lacks {', '.join(lacking)}")

    def _note_loss(self, x: Tensor, labels: Tensor | None) -> None:
        """Say what a round trip in half precision costs on these rows.

        Of many features, or few rows, the smallest standard deviation of a feature stands for that of a direction.
        """
        rows = self._checked(x, labels, "x")[0].to(self.anchor.dtype)
        if self.features <= min(len(rows) // 2, DIRECTIONS):
            variance = torch.linalg.eigvalsh(rows.T.cov().reshape(self.features, self.features))[0]
        else:
            variance = rows.var(dim=0).min()
        smallest = math.sqrt(max(float(variance), 0.0))
        loss = float(
            (self.inverse(self.forward(x, labels), labels).to(rows) - rows.reshape(x.shape)).abs().max()
        )
        if not loss <= NOTED_LOSS * smallest:
            self.notes.append(
                f"x is in {str(x.dtype).removeprefix('torch.')}: a round trip moves numbers by up to {loss:.2g}, and "
                f"the smallest standard deviation is {smallest:.2g}; keep x and z in float32"
            )

    def _begin(self, x: Tensor, *, labelled: bool) -> None:
        """Take device and shape of the first rows of a fit, and forget what an earlier one found."""
        if 0 in x.shape[1:]:
            raise PrecfmError(f"x: has shape {tuple(x.shape)}; at least one feature is needed")
        self.to("cpu" if x.device.type in NO_FLOAT64 else x.device, torch.float64)
        self.event_shape, self.classes = tuple(x.shape[1:]), ()
        self.notes, self.record = [], {}
        self._expect_labels(labelled)

    def _inputs(
        self, x: Tensor, labels: Tensor | None, name: str, validate: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Checked rows, and the positions of their labels where they are needed."""
        if not self.fitted:
            raise PrecfmError(f"{self._name}: used before fit; call fit(x), or load a fitted one")
        values = validate and not torch.compiler.is_compiling()
        rows, known = self._checked(x, labels, name, values=values)
        rows = rows.to(self.anchor.dtype)
        return rows, None if known is None else class_positions(known, self.classes, values=values)

    def _checked(
        self, x: Tensor, labels: Tensor | None, name: str, *, values: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        rows = checked_rows(x, name, self.event_shape, self.anchor.device, values=values)
        return rows, checked_labels(labels, len(rows), rows.device) if self.needs_labels else None

    def _checked_batches(
        self, batches: Iterable[tuple[Tensor, Tensor | None]]
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Checked batches of a fit, large ones in blocks; at their end `classes` is known."""
        count, seen = 0, set[int]()
        for x, labels in batches:
            rows, known = self._checked(x, labels, "x")
            count += len(rows)
            if known is not None:
                seen.update(torch.unique(known).tolist())
            yield from self._blocks(rows, known)
        if count < 2:
            raise PrecfmError(f"x: got {count} rows; a fit needs at least 2 rows")
        self.classes = tuple(sorted(seen))

    def _blocks(self, rows: Tensor, labels: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Checked rows in the dtype of the map, so few at once that the conversion takes little memory."""
        step = rows_per_block(self.features)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            yield rows[part].detach().to(self.anchor.dtype), None if labels is None else labels[part]


def _at(device: torch.device, value: Any) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
