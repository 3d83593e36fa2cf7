"""What users hand to a preconditioner, checked once where it comes in: data, labels, and data in batches."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.tensors import require_tensor
from precfm.geometry.moments import rows_per_block

Batch: TypeAlias = Tensor | Sequence[Tensor | None]
"""Rows (batch, *dim), alone or in a pair with their labels (batch,), a tuple or a list as data loaders make them."""

Data: TypeAlias = Tensor | Iterable[Batch]
"""All rows in one tensor, or an iterable of batches, which is read once."""


def batches_of(x: Data, labels: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Data as pairs of rows and labels, one pair per batch; a tensor is one batch.

    Raises:
        PrecfmError: `x` is neither, there is no batch, or labels stand beside an iterable instead of in it.
    """
    if isinstance(x, Tensor) or not isinstance(x, Iterable) or hasattr(x, "__array__"):
        require_tensor(x, "x")
        assert isinstance(x, Tensor)
        yield x, labels
        return
    position = -1
    for position, batch in enumerate(x):
        several = isinstance(batch, tuple | list) and len(batch) in (1, 2)
        rows, given = (*batch, None)[:2] if several else (batch, None)
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


def checked_rows(x: Tensor, name: str, event_shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Rows (batch, features) as they were given, after all checks of data.

    Args:
        x: what was handed in, shape (batch, *event_shape).
        name: what to call it in messages.
        event_shape: shape of one datum.
        device: that of the map.

    Raises:
        PrecfmError: no tensor of floating point numbers, another shape or device, or a number is not finite.
    """
    require_tensor(x, name, floating=True)
    if x.ndim < 1 or tuple(x.shape[1:]) != event_shape:
        raise PrecfmError(f"{name}: has shape {tuple(x.shape)}; rows of shape {event_shape} are needed")
    if x.device != device:
        raise PrecfmError(f"{name}: is on {x.device}, but the map on {device}; use to(device)")
    rows = x.reshape(len(x), math.prod(event_shape))
    first = 0
    for block in torch.split(rows.detach(), rows_per_block(rows.shape[1])):
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


def class_positions(labels: Tensor, classes: Sequence[int]) -> Tensor:
    """Position of each label among the ascending classes of a fit, shape (rows,).

    Raises:
        PrecfmError: a label is of a class that the fit has not seen.
    """
    known = torch.tensor(classes, dtype=torch.int64, device=labels.device)
    positions = torch.searchsorted(known, labels).clamp(max=len(known) - 1)
    new = (known[positions] != labels).nonzero()
    if len(new):
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
