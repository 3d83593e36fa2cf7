"""What users hand to a preconditioner, checked once where it comes in: data, labels, and data in batches."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from typing import Any, Protocol, TypeAlias, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.tensors import require_tensor
from precfm.geometry.moments import rows_per_block

Array: TypeAlias = Tensor | NDArray[Any]

Batch: TypeAlias = Array | Sequence[Array | None]
"""Rows (batch, *dim), alone or in a pair with their labels (batch,), a tuple or a list as data loaders make them."""

Data: TypeAlias = Array | Iterable[Batch]
"""All rows in one tensor or array, or an iterable of batches, which is read once."""


class RowsToRows(Protocol):
    """A bound method of rows and labels: tensors are answered with a tensor, arrays with an array."""

    @overload
    def __call__(self, x: Tensor, labels: Array | None = None, *, validate: bool = True) -> Tensor: ...

    @overload
    def __call__(
        self, x: NDArray[Any], labels: Array | None = None, *, validate: bool = True
    ) -> NDArray[Any]: ...


def takes_arrays(method: Callable[..., Tensor]) -> RowsToRows:
    """Make a method of rows and labels take numpy arrays, too, and answer an array with an array."""

    @wraps(method)
    def wrapper(self: torch.nn.Module, x: Any, labels: Any = None, **kwargs: Any) -> Any:
        if not isinstance(x, np.ndarray):
            return method(self, x, as_tensor(labels), **kwargs)
        home = next(self.buffers()).device
        return method(self, as_tensor(x).to(home), as_tensor(labels), **kwargs).cpu().numpy()

    # A code object of its own: torch.compile counts the graphs of each, and stops at eight.
    wrapper.__code__ = wrapper.__code__.replace(co_name=method.__name__)  # type: ignore[attr-defined]
    return wrapper  # type: ignore[return-value]  # bound, it has no `self`


def as_tensor(value: Any) -> Any:
    """A numpy array of numbers as a tensor, which shares its memory if it can; anything else as it is."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiubc" or value.dtype.itemsize > 16:
        return value
    if value.dtype == np.longdouble:
        return value
    native = value.astype(value.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(np.require(native, requirements=["C", "W"]))


def plain_number(value: Any) -> Any:
    """A number of numpy as one of Python, for JSON."""
    return value.item()


def batches_of(x: Data, labels: Array | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Data as pairs of rows and labels, one pair per batch; a tensor or an array is one batch.

    Raises:
        PrecfmError: `x` is neither, there is no batch, or labels stand beside an iterable instead of in it.
    """
    x, known = as_tensor(x), as_tensor(labels)
    if isinstance(x, Tensor) or not isinstance(x, Iterable) or hasattr(x, "__array__"):
        require_tensor(x, "x")
        assert isinstance(x, Tensor)
        yield x, known
        return
    position = -1
    for position, batch in enumerate(x):
        several = isinstance(batch, tuple | list) and len(batch) in (1, 2)
        rows, given = map(as_tensor, (*batch, None)[:2] if several else (batch, None))
        require_tensor(rows, f"x: batch {position}")
        assert isinstance(rows, Tensor)
        if labels is not None:
            raise PrecfmError(
                "labels: got them beside batches; with an iterable each batch is a pair (rows, labels)"
            )
        yield rows, given
    if position < 0:
        raise PrecfmError("x: got no batches; rows to fit are needed")


def concatenated(x: Data, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """All rows of all batches, and their labels if every batch has some.

    Raises:
        PrecfmError: as `batches_of`, the batches differ in more than length, or only some have labels.
    """
    if isinstance(x, Tensor):
        return x, labels
    rows, given = zip(*batches_of(x, labels), strict=True)
    if len({(each.shape[1:], each.dtype, each.device) for each in rows}) > 1:
        raise PrecfmError("x: got batches that differ in shape, dtype or device; equal ones are needed")
    known = [each for each in given if each is not None]
    if known and len(known) < len(given):
        raise PrecfmError("labels: got them with some batches only; all or none are needed")
    for each in known:
        require_tensor(each, "labels")
    return torch.cat(rows), torch.cat(known) if known else None


def checked_rows(
    x: Tensor, name: str, event_shape: tuple[int, ...], device: torch.device, *, values: bool = True
) -> Tensor:
    """Rows (batch, features) as they were given, after all checks of data.

    Args:
        x: what was handed in, shape (batch, *event_shape).
        name: what to call it in messages.
        event_shape: shape of one datum.
        device: that of the map.
        values: whether to look at the numbers, too.

    Raises:
        PrecfmError: no tensor of floating point numbers, another shape or device, or a number is not finite.
    """
    require_tensor(x, name, floating=True)
    if tuple(x.shape) == event_shape and x.ndim:
        raise PrecfmError(
            f"{name}: has shape {event_shape}, that of one row; a batch is needed: {name}[None] is a batch of one"
        )
    if x.ndim < 1 or tuple(x.shape[1:]) != event_shape:
        raise PrecfmError(
            f"{name}: has shape {tuple(x.shape)}; a batch of rows of shape {event_shape} is needed"
        )
    if x.device != device:
        raise PrecfmError(f"{name}: is on {x.device}, but the map on {device}; use to(device)")
    rows = x.reshape(len(x), math.prod(event_shape))
    if not values:
        return rows
    first = 0
    for block in torch.split(rows.detach(), rows_per_block(rows.shape[1])):
        if math.isfinite(
            float(block.sum())
        ):  # a tenth of the time of looking at each, and finite only if all are
            first += len(block)
            continue
        finite = block.isfinite()
        if not bool(finite.all()):
            row, feature = (~finite).nonzero()[0].tolist()
            raise PrecfmError(
                f"{name}: holds {float(block[row, feature])} in row {first + row}, feature {feature}; "
                "every number must be finite"
            )
        first += len(block)
    return rows


def checked_labels(labels: Tensor | None, rows: int, device: torch.device) -> Tensor:
    """Labels (rows,) as int64 on a device, after all checks of labels.

    Raises:
        PrecfmError: missing, no tensor of integers, or not one per row.
    """
    if labels is None:
        raise PrecfmError("labels: are missing; this map depends on the class")
    require_tensor(labels, "labels")
    if labels.shape != (rows,) or labels.is_floating_point() or labels.is_complex():
        raise PrecfmError(
            f"labels: have shape {tuple(labels.shape)} and dtype {labels.dtype}; integers of shape ({rows},) are "
            "needed, one per row"
        )
    return labels.to(device, torch.int64).contiguous()


def class_positions(labels: Tensor, classes: Sequence[int], *, values: bool = True) -> Tensor:
    """Position of each label among the ascending classes of a fit, shape (rows,); a wrong one if not `values`.

    Raises:
        PrecfmError: a label is of a class that the fit has not seen.
    """
    known = torch.tensor(classes, dtype=torch.int64, device=labels.device)
    positions = torch.searchsorted(known, labels).clamp(max=len(known) - 1)
    if values and len(new := (known[positions] != labels).nonzero()):
        row = int(new[0])
        raise PrecfmError(
            f"labels: hold {int(labels[row])} in row {row}, a class new to the fit; known are {summary(classes)}"
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
