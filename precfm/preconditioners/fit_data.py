"""What a preconditioner's fit receives: checked batches, to be read once as moments or as all rows."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.seeds import generator_for
from precfm.geometry.moments import Moments
from precfm.preconditioners.inputs import class_positions

LabelledRows: TypeAlias = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class FitRows:
    """All rows of a fit in memory.

    Attributes:
        x: training data, shape (rows, features), float64.
        classes: position of each row's label in `Preconditioner.classes`, shape (rows,), or None without labels.
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

    def as_given(
        self, event_shape: tuple[int, ...], classes: tuple[int, ...]
    ) -> tuple[LabelledRows, LabelledRows | None]:
        """Training and validation rows with their labels, as the fit of another map takes them.

        Args:
            event_shape: shape of one datum.
            classes: the labels that `self.classes` holds positions of.
        """

        def labelled(rows: Tensor, positions: Tensor | None) -> LabelledRows:
            labels = None if positions is None else torch.tensor(classes, device=positions.device)[positions]
            return rows.reshape(-1, *event_shape), labels

        validation = self.x_validation
        held_out = None if validation is None else labelled(validation, self.classes_validation)
        return labelled(self.x, self.classes), held_out

    def with_validation(self, share: float) -> "FitRows":
        """The rows with a validation part: the given one, or else a random share of the training rows.

        Args:
            share: part of the rows to hold out if no validation data was given, in (0, 1).

        Raises:
            PrecfmError: there are too few rows to hold one out and keep two.
        """
        if self.x_validation is not None:
            return self
        rows = len(self.x)
        held_out = max(1, round(share * rows))
        if rows - held_out < 2:
            raise PrecfmError(f"x: has {rows} rows; at least 3 are needed to hold one out for validation")
        order = torch.randperm(rows, generator=generator_for(self.seed, "validation rows")).to(self.x.device)
        return self.split(order[held_out:], order[:held_out])

    def split(self, training: Tensor, validation: Tensor) -> "FitRows":
        """Some rows to fit and others to validate, by index."""
        return replace(
            self,
            x=self.x[training],
            classes=None if self.classes is None else self.classes[training],
            x_validation=self.x[validation],
            classes_validation=None if self.classes is None else self.classes[validation],
        )


@dataclass(frozen=True)
class FitData:
    """What a fit receives. The batches can be read once, by one of the methods or by the fit itself.

    Attributes:
        batches: checked rows (rows, features) in float64, each with labels (rows,) if the map needs them.
        validation: held-out rows and their labels for early stopping, checked in the same way, or None.
        metric: a metric of the data space, shape (features, features), not checked, or None.
        seed: seed of everything random in the fit.
        scratch: folder for resumable training states, or None.
    """

    batches: Iterable[LabelledRows]
    validation: LabelledRows | None
    metric: Tensor | None
    seed: int
    scratch: Path | None

    def moments(self) -> Moments:
        """Moments of all rows, in bounded memory."""
        moments = Moments()
        for rows, _ in self.batches:
            moments.update(rows)
        return moments

    def rows(self) -> FitRows:
        """All rows at once.

        Raises:
            PrecfmError: the validation data has a class that the training data lacks.
        """
        rows, labels = zip(*self.batches, strict=True)
        known = [each for each in labels if each is not None]
        x_validation, labels_validation = self.validation or (None, None)
        classes = classes_validation = None
        if known:
            seen, classes = torch.unique(torch.cat(known), return_inverse=True)
            if labels_validation is not None:
                classes_validation = class_positions(labels_validation, seen.tolist())
        return FitRows(torch.cat(rows), classes, x_validation, classes_validation, self.seed, self.scratch)
