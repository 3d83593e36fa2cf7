"""The rows of a diagnosis: drawn, checked, and split into those that maps are fitted to and those held out."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.seeds import generator_for
from precfm.core.tensors import require_tensor
from precfm.geometry.moments import Moments
from precfm.latents.reading import Latents
from precfm.preconditioners.fit_data import LabelledRows
from precfm.preconditioners.inputs import as_tensor, checked_labels, summary

MOST_ROWS = 60_000  # a covariance of 512 features from so many takes a second on one core; more would change no verdict
MOST_NUMBERS = 2**26  # in the rows that are read: a quarter of a gigabyte of float32
FEWEST_ROWS = 8  # two in each part that needs a covariance
DENSE_FEATURES = 1024  # a dense eigen-decomposition of so many features takes seconds, of 4,096 a minute
HELD_OUT_ROWS = 512  # in each half of the held-out rows, where only the span of these rows is looked at
BATCH = 4096


@dataclass(frozen=True)
class Parts:
    """The rows of a diagnosis, float32 or float64: half of each class to fit maps, two quarters that are held out.

    Attributes:
        fit: maps are fitted to these.
        first: held out; gives directions.
        second: held out; gives the variances along them.
        total: rows that there are.
        event_shape: of one datum.
        dtype: as it came.
        dense_features: up to which eigen-decompositions are dense.
    """

    fit: LabelledRows
    first: LabelledRows
    second: LabelledRows
    total: int
    event_shape: tuple[int, ...]
    dtype: str
    dense_features: int

    @property
    def features(self) -> int:
        """Numbers in one row."""
        return math.prod(self.event_shape)

    @property
    def held_out(self) -> int:
        """Rows that no map was fitted to."""
        return len(self.first[0]) + len(self.second[0])

    @property
    def dense(self) -> bool:
        """Whether the held-out rows have a covariance of full rank, of a size that is decomposed."""
        return self.features <= self.dense_features and self.held_out > self.features

    def training_rows(self) -> LabelledRows:
        """All but the second part, which can judge what is trained on these."""
        parts = (self.fit, self.first)
        known = [labels for _, labels in parts if labels is not None]
        return torch.cat([rows for rows, _ in parts]), torch.cat(known) if known else None

    def held_out_covariance(self) -> Tensor:
        """Covariance of both held-out parts, shape (features, features), float64."""
        return Moments().update(self.first[0]).update(self.second[0]).covariance()


def array_of(frame: Any) -> Any:
    """The numbers of a data frame or a series (pandas, polars) as an array; anything else as it is."""
    return frame.to_numpy() if hasattr(frame, "to_numpy") else frame


def most_rows(features: int) -> int:
    """How many rows of so many features are read."""
    return max(FEWEST_ROWS, min(MOST_ROWS, MOST_NUMBERS // features))


def draw(
    x: Tensor | np.ndarray | Latents, labels: Tensor | np.ndarray | None, seed: int, dense_features: int
) -> Parts:
    """Read a sample of the rows, and split it.

    Raises:
        PrecfmError: the rows are too few, no floating point numbers, not finite or constant in a feature, or the labels
            are not one integer per row.
    """
    if isinstance(x, Latents):
        labels = x.labels if labels is None else labels
    elif isinstance(x, str | Path):
        raise PrecfmError(f"x: got the path {str(x)!r}; precfm.open_latents({str(x)!r}) opens it")
    elif isinstance(x, np.ma.MaskedArray):
        raise PrecfmError("x: is a masked array; rows without gaps are needed, such as x.filled(0)")
    elif isinstance(x, np.ndarray):
        if x.dtype.kind != "f" or x.dtype.itemsize > 8:
            raise PrecfmError(f"x: holds {x.dtype}; floating point numbers of at most 64 bits are needed")
    elif not isinstance(x, Tensor):
        raise PrecfmError(
            f"x: got a {type(x).__name__}; rows in a tensor, an array, a data frame or precfm.open_latents(FILE) are "
            "needed"
        )
    else:
        require_tensor(x, "x", floating=True)
        if x.layout is not torch.strided or x.is_meta:
            what = "has no data (meta)" if x.is_meta else "is sparse"
            raise PrecfmError(f"x: {what}; a dense tensor is needed, such as x.to_dense() gives")
    event_shape = tuple(x.shape[1:])
    if not event_shape or 0 in event_shape:
        raise PrecfmError(f"x: has shape {tuple(x.shape)}; rows (n, *dim) are needed")
    total = len(x)
    if total < FEWEST_ROWS:
        raise PrecfmError(f"x: has {total} rows; at least {FEWEST_ROWS} are needed for a diagnosis")
    known = None
    if labels is not None:
        known = checked_labels(as_tensor(labels), total, torch.device("cpu"))
    features = math.prod(event_shape)
    generator = generator_for(seed, "diagnosis")
    rows = torch.randperm(total, generator=generator)[: most_rows(features)].sort().values
    taken = _taken(x, rows)
    flat = taken.flatten(1)
    constant = (flat == flat[0]).all(dim=0).nonzero().flatten().tolist()
    if constant:
        raise PrecfmError(f"x: is constant in feature {summary(constant)}; drop it before a diagnosis")
    classes = torch.zeros(len(rows), dtype=torch.int64) if known is None else known[rows]
    order = torch.randperm(len(rows), generator=generator)
    order = order[classes[order].argsort(stable=True)]  # class by class, so that each is in every part

    def part(chosen: Tensor) -> LabelledRows:
        return taken[chosen], None if known is None else classes[chosen]

    fit, first, second = order[::2], order[1::4], order[3::4]
    fitted = torch.unique(classes[fit])
    first, second = (each[torch.isin(classes[each], fitted)] for each in (first, second))
    if features > dense_features:
        first, second = (
            each[torch.randperm(len(each), generator=generator)[:HELD_OUT_ROWS]] for each in (first, second)
        )
    if min(len(first), len(second)) < 2:
        raise PrecfmError(
            f"labels: hold {len(torch.unique(classes))} classes in {len(rows)} rows, so that too few are left to look "
            "at; classes of several rows, or no labels, are needed"
        )
    return Parts(part(fit), part(first), part(second), total, event_shape, _dtype(x), dense_features)


def batches(part: LabelledRows) -> Iterator[LabelledRows]:
    """Rows with their labels, some thousands at a time."""
    rows, labels = part
    for start in range(0, len(rows), BATCH):
        yield rows[start : start + BATCH], None if labels is None else labels[start : start + BATCH]


def _taken(x: Tensor | np.ndarray | Latents, rows: Tensor) -> Tensor:
    """Chosen rows on the CPU, at least float32, finite."""
    if isinstance(x, Latents):
        taken = x.take(rows)
    elif isinstance(x, np.ndarray):
        taken = torch.from_numpy(np.array(x[rows.numpy()], dtype=x.dtype.newbyteorder("=")))
    else:
        taken = x.detach()[rows.to(x.device)].cpu()
    if taken.dtype != torch.float64:
        taken = taken.float()
    bad = (~taken.flatten(1).isfinite()).nonzero()
    if len(bad):
        row, feature = bad[0].tolist()
        value = float(taken.flatten(1)[row, feature])
        raise PrecfmError(
            f"x: holds {value} in row {int(rows[row])}, feature {feature}; every number must be finite"
        )
    return taken


def _dtype(x: Tensor | np.ndarray | Latents) -> str:
    return str(x.dtype).removeprefix("torch.")
