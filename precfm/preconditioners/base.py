"""The contract that every preconditioner keeps, and the folder format in which a fitted one is stored."""

import inspect
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from precfm.core import registry
from precfm.core.errors import PrecfmError
from precfm.core.seeds import generator_for
from precfm.core.tensors import require_tensor

TENSORS_FILE = "preconditioner.safetensors"
JSON_FILE = "preconditioner.json"
FORMAT = 1
ROUND_TRIP_POINTS = 2000  # rows on which a fit measures its round trip, and as many in the tails


@dataclass(frozen=True)
class FitData:
    """What a fit receives: checked, flattened, float64.

    Attributes:
        x: training data, shape (rows, features).
        classes: position of each row's label in `Preconditioner.classes`, shape (rows,), or None without
            labels.
        x_validation: held-out data for early stopping, shape (rows, features), or None.
        classes_validation: as `classes`, for the held-out data.
        seed: seed of everything random in the fit.
        scratch: folder for resumable training states, or None.
    """

    x: Tensor
    classes: Tensor | None
    x_validation: Tensor | None
    classes_validation: Tensor | None
    seed: int
    scratch: Path | None


class Preconditioner(nn.Module, ABC):
    """An invertible map `P` from data space to the space in which the main flow is trained.

    The flow learns and samples in the space of `z = forward(x)`; samples return through `x = inverse(z)`.

    Maps are evaluated in float64 and the result is cast back to the dtype of the input, so that a float32
    input comes back within `round_trip_tolerance` even where the data is ill-conditioned. `to(device)` moves
    a fitted preconditioner; `to(torch.float32)` makes the maps faster and less exact.

    A subclass stores each argument of its `__init__` in an attribute of the same name, allocates its buffers
    and modules in `_allocate`, and implements `_fit`, `_forward`, `_inverse`, `_log_abs_det` and
    `num_parameters` on matrices (batch, features).

    Attributes:
        needs_labels: whether the maps depend on labels.
        uses_seed: whether a fit depends on its seed; the plan fits a map without randomness once for all
            seeds. It reads this from the source, so a subclass sets it as a class attribute.
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
        x: Tensor,
        labels: Tensor | None = None,
        *,
        validation: tuple[Tensor, Tensor | None] | None = None,
        seed: int = 0,
        scratch: str | Path | None = None,
    ) -> Self:
        """Fit the map to data; a second fit forgets the first.

        Args:
            x: training data, shape (rows, *dim), floating point, at least 2 rows.
            labels: class indices, shape (rows,), integers; needed where `needs_labels`.
            validation: held-out data and labels for early stopping of learned maps. Without it, they hold out
                a share of `x`. Closed-form maps ignore it.
            seed: seed of everything random in the fit.
            scratch: folder where a learned map keeps its training state, so that a fit that was killed
                resumes.

        Returns:
            The preconditioner itself, fitted, on the device of `x`.

        Raises:
            PrecfmError: the data is no tensor, not finite, has too few rows or lacks labels, or no invertible
                map fits it.
        """
        require_tensor(x, f"{self._name}: x")
        if x.ndim < 1 or len(x) < 2:
            raise PrecfmError(f"{self._name}: x has shape {tuple(x.shape)}, but a fit needs at least 2 rows")
        self.fitted = False
        self.notes, self.record = [], {}
        self.to(x.device, torch.float64)
        self.event_shape, self.classes = tuple(x.shape[1:]), ()
        rows = self._rows(x, "x").detach()
        if self.needs_labels:
            self.classes = tuple(torch.unique(self._integers(labels, len(x))).tolist())
        classes = self._positions(labels, len(x))
        x_validation = classes_validation = None
        if validation is not None:
            if not isinstance(validation, tuple) or len(validation) != 2:
                raise PrecfmError(
                    f"{self._name}: validation is of type {type(validation).__name__}, but a pair is needed: "
                    "(x, labels), or (x, None)"
                )
            x_validation = self._rows(validation[0], "the validation data").detach()
            classes_validation = self._positions(validation[1], len(x_validation))
        self._allocate()
        folder = None if scratch is None else Path(scratch)
        data = FitData(rows, classes, x_validation, classes_validation, seed, folder)
        self.flops_per_fit = self._fit(data)
        self.fitted = True
        return self.to(x.device, torch.float64).requires_grad_(False).eval()

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
            raise PrecfmError(
                f"{self._name}: this map has no closed-form Jacobian determinant; ask has_log_det first"
            )
        rows, classes = self._inputs(x, labels, "x")
        log_det = self._log_abs_det(rows, classes) if len(rows) else rows.new_zeros(0)
        return log_det.to(x.dtype)

    def prepare(self, event_shape: tuple[int, ...], classes: tuple[int, ...]) -> None:
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
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    @property
    @abstractmethod
    def num_parameters(self) -> int:
        """Free numbers of the fitted map in one direction; a symmetric matrix counts `d (d + 1) / 2`."""

    @abstractmethod
    def _allocate(self) -> None:
        """Create buffers and modules for `event_shape` and `classes`; a fit or a file gives their values."""

    @abstractmethod
    def _fit(self, data: FitData) -> int:
        """Fill what `_allocate` made, and return the floating point operations that it took."""

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

    def _round_trip(self, data: FitData, smallest_std: float) -> float:
        """What a fit checks: the largest `|inverse(forward(x)) - x|` on the data and on its tails.

        Args:
            data: what the fit received; at most `ROUND_TRIP_POINTS` rows are used.
            smallest_std: the unit of the error.

        Returns:
            The error in that unit; infinite where a point does not come back as finite numbers.
        """
        every = -(-len(data.x) // ROUND_TRIP_POINTS)
        x, classes = data.x[::every], None if data.classes is None else data.classes[::every]
        noise = torch.randn(x.shape, generator=generator_for(data.seed, "tails"), dtype=torch.float64)
        error = 0.0
        for points in (x, self._inverse(1.5 * noise.to(x), classes)):
            back = self._inverse(self._forward(points, classes), classes)
            largest = float((back - points).abs().max() / smallest_std)
            error = max(error, largest) if math.isfinite(largest) else math.inf
        return error

    def _inputs(self, x: Tensor, labels: Tensor | None, name: str) -> tuple[Tensor, Tensor | None]:
        if not self.fitted:
            raise PrecfmError(f"{self._name}: used before fit; call fit(x), or load a fitted one")
        return self._rows(x, name), self._positions(labels, len(x))

    def _rows(self, x: Tensor, name: str) -> Tensor:
        """Rows (batch, features) in the dtype of the map, after all checks."""
        require_tensor(x, f"{self._name}: {name}", floating=True)
        if x.ndim < 1 or tuple(x.shape[1:]) != self.event_shape:
            raise PrecfmError(
                f"{self._name}: {name} has shape {tuple(x.shape)}, but the fit saw rows of {self.event_shape}"
            )
        if x.device != self.anchor.device:
            raise PrecfmError(
                f"{self._name}: {name} is on {x.device}, but the map on {self.anchor.device}; use to(device)"
            )
        rows = x.reshape(len(x), self.features).to(self.anchor.dtype)
        finite = rows.detach().isfinite()
        if not bool(finite.all()):
            row, feature = (~finite).nonzero()[0].tolist()
            raise PrecfmError(
                f"{self._name}: {name} holds {float(rows[row, feature])} in row {row}, feature {feature}, "
                "but every number must be finite"
            )
        return rows

    def _integers(self, labels: Tensor | None, rows: int) -> Tensor:
        """Labels (rows,) as int64, after all checks."""
        if labels is None:
            raise PrecfmError(
                f"{self._name}: labels are missing, but this map depends on the class: pass labels"
            )
        require_tensor(labels, f"{self._name}: labels")
        if labels.shape != (rows,) or labels.is_floating_point() or labels.is_complex():
            raise PrecfmError(
                f"{self._name}: labels have shape {tuple(labels.shape)} and dtype {labels.dtype}, "
                f"but integers of shape ({rows},) are needed, one per row"
            )
        return labels.to(self.anchor.device, torch.int64).contiguous()

    def _positions(self, labels: Tensor | None, rows: int) -> Tensor | None:
        """Position of each label in `self.classes`, shape (rows,), or None where labels are not needed."""
        if not self.needs_labels:
            return None
        checked = self._integers(labels, rows)
        known = torch.tensor(self.classes, dtype=torch.int64, device=checked.device)
        positions = torch.searchsorted(known, checked).clamp(max=len(known) - 1)
        new = (known[positions] != checked).nonzero()
        if len(new):
            row = int(new[0])
            raise PrecfmError(
                f"{self._name}: labels hold {int(checked[row])} in row {row}, a class new to the fit; "
                f"known are {summary(self.classes)}"
            )
        return positions


def summary(values: Sequence[int], most: int = 10) -> str:
    """A list of numbers for a message, cut after `most` of them.

    Example:
        >>> summary([1, 2, 3], most=2)
        '1, 2, ... (3 in all)'
    """
    shown = ", ".join(str(value) for value in values[:most])
    return shown if len(values) <= most else f"{shown}, ... ({len(values)} in all)"


def save(preconditioner: Preconditioner, folder: str | Path) -> None:
    """Store a fitted preconditioner as `preconditioner.safetensors` and `preconditioner.json`.

    The JSON file holds the registered name, from which `load` finds the class.

    Args:
        preconditioner: the fitted preconditioner.
        folder: where the two files go; made if it does not exist.

    Raises:
        PrecfmError: not fitted, the class is not registered, or `folder` is a file.
    """
    if not isinstance(preconditioner, Preconditioner) or not preconditioner.fitted:
        raise PrecfmError(
            f"{type(preconditioner).__name__}: only a fitted preconditioner can be saved; call fit"
        )
    name = _registered_name(type(preconditioner))
    folder = Path(folder)
    if folder.is_file():
        raise PrecfmError(f"{folder}: is a file, but a folder is needed")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu().contiguous() for key, value in preconditioner.state_dict().items()}
    save_file(tensors, folder / TENSORS_FILE)
    description = {
        "format": FORMAT,
        "name": name,
        "options": preconditioner.options,
        "event_shape": list(preconditioner.event_shape),
        "classes": list(preconditioner.classes),
        "dtype": str(preconditioner.anchor.dtype).removeprefix("torch."),
        "num_parameters": preconditioner.num_parameters,
        "flops_per_fit": preconditioner.flops_per_fit,
        "notes": preconditioner.notes,
    }
    if preconditioner.record:
        description["record"] = preconditioner.record
    text = json.dumps(description, indent=2, sort_keys=True, allow_nan=False)
    (folder / JSON_FILE).write_text(text + "\n", encoding="utf-8")


def load(folder: str | Path) -> Preconditioner:
    """Load a fitted preconditioner; its maps are bit-equal to those that were saved, nothing is fitted again.

    Args:
        folder: where `save` put the two files.

    Returns:
        The fitted preconditioner on the CPU.

    Raises:
        PrecfmError: a file is missing or not of this format, or the name is not registered.
    """
    folder = Path(folder)
    try:
        description = json.loads((folder / JSON_FILE).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSORS_FILE)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PrecfmError(
            f"{error.filename or folder}: no such file; a saved preconditioner is needed"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PrecfmError(
            f"{folder / JSON_FILE}: not JSON ({error}); save the preconditioner again"
        ) from None
    except SafetensorError as error:
        raise PrecfmError(
            f"{folder / TENSORS_FILE}: damaged ({error}); save the preconditioner again"
        ) from None
    found = description.get("format") if isinstance(description, dict) else None
    if found != FORMAT:
        raise PrecfmError(f"{folder / JSON_FILE}: format is {found!r}, but {FORMAT} is needed")
    try:
        cls = registry.load("preconditioners", description["name"])
        preconditioner: Preconditioner = cls(**description["options"])
        preconditioner.record = description.get("record", {})
        preconditioner.prepare(tuple(description["event_shape"]), tuple(description["classes"]))
        preconditioner.flops_per_fit = description["flops_per_fit"]
        preconditioner.notes = description["notes"]
        preconditioner.to(getattr(torch, description["dtype"]))
        preconditioner.load_state_dict(tensors)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise PrecfmError(
            f"{folder}: is no saved preconditioner of this version ({error}); fit it again"
        ) from error
    for module in preconditioner.modules():
        if isinstance(module, Preconditioner):
            module.fitted = True
    return preconditioner.requires_grad_(False).eval()


def _registered_name(cls: type[Preconditioner]) -> str:
    target = f"{cls.__module__}:{cls.__qualname__}"
    for name, import_string in registry.REGISTRY["preconditioners"].items():
        if import_string == target:
            return name
    raise PrecfmError(
        f"{target} is not registered; add it to the registry's preconditioners to save and load it"
    )
