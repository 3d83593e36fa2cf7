"""The contract that every preconditioner keeps: fit to data, map to the space of the flow and back."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from precfm.core.errors import PrecfmError
from precfm.core.options import parameters
from precfm.geometry.moments import rows_per_block
from precfm.preconditioners.fit_data import FitData
from precfm.preconditioners.inputs import (
    Data,
    batches_of,
    checked_labels,
    checked_rows,
    class_positions,
)


class Preconditioner(nn.Module, ABC):
    """An invertible map `P` from data space to the space in which the main flow is trained.

    The flow learns and samples in the space of `z = forward(x)`; samples return through `x = inverse(z)`.

    Maps are evaluated in float64 and the result is cast back to the dtype of the input, so that a float32
    input comes back within `round_trip_tolerance` even where the data is ill-conditioned. `to(device)` moves
    a fitted preconditioner; `to(torch.float32)` makes the maps faster and less exact.

    A subclass stores each argument of its `__init__` in an attribute of the same name, registers its buffers and
    modules in `_fit` and, with any values, in `_allocate`, and implements `_forward`, `_inverse`, `_log_abs_det` and
    `num_parameters` on matrices (batch, features).

    Attributes:
        needs_labels: whether the maps depend on labels.
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

    def fit(
        self,
        x: Data,
        labels: Tensor | None = None,
        *,
        validation: tuple[Tensor, Tensor | None] | None = None,
        metric: Tensor | None = None,
        seed: int = 0,
        scratch: str | Path | None = None,
    ) -> Self:
        """Fit the map to data; a second fit forgets the first.

        Maps with a closed form read batches one by one in bounded memory; those that are learned, chosen or composed
        hold all rows.

        Args:
            x: training data, shape (rows, *dim), floating point, at least 2 rows; or an iterable, such as a data
                loader, read once, of batches of such rows, or of pairs of a batch and its labels.
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
        self._begin(first[0])
        device = self.anchor.device
        if validation is not None:
            if not isinstance(validation, tuple) or len(validation) != 2:
                raise PrecfmError(
                    f"validation: is of type {type(validation).__name__}; a pair is needed: (x, labels), or (x, None)"
                )
            held_out, known = self._checked(*validation, "validation")
            validation = held_out.to(self.anchor.dtype), known
        data = FitData(
            batches=self._checked_batches(chain([first], batches)),
            validation=validation,
            metric=metric,
            seed=seed,
            scratch=None if scratch is None else Path(scratch),
        )
        self.flops_per_fit = self._fit(data)
        self.fitted = True
        return self.to(device, torch.float64).requires_grad_(False).eval()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Map data into the space of the flow.

        Args:
            x: data, shape (batch, *dim); batch may be 0.
            labels: class indices, shape (batch,); needed where `needs_labels`, ignored elsewhere.

        Returns:
            `z = P(x)` in the shape and dtype of `x`.

        Raises:
            PrecfmError: not fitted, wrong dimension, non-finite data, or labels that are missing or new.
        """
        rows, classes = self._inputs(x, labels, "x")
        z = self._forward(rows, classes) if len(rows) else rows
        return z.to(x.dtype).reshape(x.shape)

    def inverse(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Map points of the flow's space back to data space.

        Args:
            z: points, shape (batch, *dim); batch may be 0.
            labels: class indices, shape (batch,); needed where `needs_labels`, ignored elsewhere.

        Returns:
            `x = P^-1(z)` in the shape and dtype of `z`.

        Raises:
            PrecfmError: as `forward`.
        """
        rows, classes = self._inputs(z, labels, "z")
        x = self._inverse(rows, classes) if len(rows) else rows
        return x.to(z.dtype).reshape(z.shape)

    def log_abs_det_jacobian(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Log absolute determinant of the Jacobian of `forward` at `x`.

        Args:
            x: data, shape (batch, *dim).
            labels: class indices, shape (batch,); needed where `needs_labels`.

        Returns:
            `log |det dP/dx|` per row, shape (batch,), in the dtype of `x`.

        Raises:
            PrecfmError: as `forward`, or the map has no closed-form determinant (`has_log_det` is False).
        """
        if not self.has_log_det:
            raise PrecfmError(f"{self._name}: has no closed-form Jacobian determinant; ask has_log_det first")
        rows, classes = self._inputs(x, labels, "x")
        log_det = self._log_abs_det(rows, classes) if len(rows) else rows.new_zeros(0)
        return log_det.to(x.dtype)

    def allocate(self, event_shape: tuple[int, ...], classes: tuple[int, ...]) -> None:
        """Allocate what a file or an enclosing preconditioner will fill; users call `fit` or `load`.

        Args:
            event_shape: shape of one datum.
            classes: labels that the fit saw, ascending.
        """
        self.event_shape, self.classes = event_shape, classes
        self._allocate()

    @property
    def features(self) -> int:
        """Number of features of one datum, trailing dimensions flattened."""
        return math.prod(self.event_shape)

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of `__init__` that make an equal, unfitted preconditioner."""
        return {name: getattr(self, name) for name in parameters(type(self))}

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

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _begin(self, x: Tensor) -> None:
        """Take device and shape of the first rows of a fit, and forget what an earlier one found."""
        if 0 in x.shape[1:]:
            raise PrecfmError(f"x: has shape {tuple(x.shape)}; at least one feature is needed")
        self.to(x.device, torch.float64)
        self.event_shape, self.classes = tuple(x.shape[1:]), ()
        self.notes, self.record = [], {}

    def _inputs(self, x: Tensor, labels: Tensor | None, name: str) -> tuple[Tensor, Tensor | None]:
        """Checked rows, and the positions of their labels where they are needed."""
        if not self.fitted:
            raise PrecfmError(f"{self._name}: used before fit; call fit(x), or load a fitted one")
        rows, known = self._checked(x, labels, name)
        rows = rows.to(self.anchor.dtype)
        return rows, None if known is None else class_positions(known, self.classes)

    def _checked(self, x: Tensor, labels: Tensor | None, name: str) -> tuple[Tensor, Tensor | None]:
        rows = checked_rows(x, name, self.event_shape, self.anchor.device)
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
