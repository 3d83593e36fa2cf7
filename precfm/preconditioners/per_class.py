"""One structured map for each class, of the moments of its rows; small classes lean on the pooled ones."""

import copy
from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import AfterValidator
from torch import Tensor, nn

from precfm.core.components import spec_of
from precfm.core.errors import PrecfmError
from precfm.core.options import NotNegative, checked
from precfm.geometry.moments import Moments
from precfm.preconditioners.base import Preconditioner
from precfm.preconditioners.closed_form import ByClass, ClosedForm
from precfm.preconditioners.nested import nested_map


def _of_moments(entry: Any) -> Any:
    named = isinstance(entry, str | Preconditioner) or (isinstance(entry, dict) and "name" in entry)
    made = nested_map("map", 0, entry) if named else None
    if not isinstance(made, ClosedForm) or made.needs_labels or made.fitted:
        raise PrecfmError(
            f"got {entry!r}; an unfitted map that moments determine and that needs no labels, such as 'per_frequency', "
            "'channel_whitening' or 'per_channel', is needed"
        )
    return entry


MapOfMoments = Annotated[Any, AfterValidator(_of_moments)]
"""A registered name, alone or in a mapping with options, or an unfitted map."""


class PerClass(ClosedForm):
    """Maps each class by a map of its own, all of one kind, such as `per_frequency`.

    A class with fewer than `rows_per_channel * channels` rows has too few for second moments of its own: they are mixed
    with those within classes, pooled over all of them, as in `ClassWhitening`, and the notes say so. Each class keeps
    its own mean. Of vectors, features are channels.

    Arguments:
        map: the kind of map, which moments determine: a registered name, alone or as the `name` in a mapping with
            options.
        rows_per_channel: rows per channel below which a class is mixed with the pooled moments; 0 never mixes.

    References:
        | Regularized Discriminant Analysis (Friedman, 1989), for mixing with the pooled covariance
        | https://doi.org/10.1080/01621459.1989.10478752

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> labels = torch.arange(200) % 2
        >>> x = torch.randn(200, 2, 4, 4, generator=generator) * (1 + 9 * labels[:, None, None, None])
        >>> z = PerClass("per_channel").fit(x, labels).forward(x, labels)
        >>> [round(float(z[labels == label].var()), 2) for label in (0, 1)]
        [1.0, 1.0]
    """

    needs_labels = True

    @checked
    def __init__(self, map: MapOfMoments = "per_frequency", rows_per_channel: NotNegative = 5.0) -> None:
        super().__init__()
        self.map = spec_of("preconditioners", map, Preconditioner) if isinstance(map, Preconditioner) else map
        self.rows_per_channel = rows_per_channel
        self.has_log_det = self._fresh().has_log_det
        self.maps = nn.ModuleList()

    @property
    def num_parameters(self) -> int:
        """Sum over the classes."""
        return sum(each.num_parameters for each in self._maps)

    @property
    def _maps(self) -> list[ClosedForm]:
        return [each for each in self.maps if isinstance(each, ClosedForm)]

    def _fresh(self) -> ClosedForm:
        """An unfitted map for data of this shape."""
        made = nested_map("map", 0, self.map)
        assert isinstance(made, ClosedForm)
        made.event_shape = self.event_shape
        return made.to(self.anchor)

    def _empty(self) -> Moments:
        return self._fresh()._empty()

    def _coordinates(self, rows: Tensor) -> Tensor:
        return self._fresh()._coordinates(rows)

    def _allocate(self) -> None:
        self.maps = nn.ModuleList(self._fresh() for _ in self.classes)
        for each in self._maps:
            each.allocate(self.event_shape, ())

    def _solve(self, moments: ByClass) -> int:
        # Where rows are gathered position by position, moments count positions.
        per_row = len(self._coordinates(self.anchor.new_zeros(1, self.features)))
        rows = sum(each.count for each in moments.values()) // per_row
        pooled = torch.stack([each.scatter for each in moments.values()]).sum(dim=0)
        pooled = pooled / max((rows - len(moments)) * per_row, 1)
        fitted = []
        for label, each in moments.items():
            one = self._fresh()
            one.flops_per_fit = one._solve({0: self._mixed(label, each, pooled, rows, per_row)})
            one.fitted = True
            self.notes.extend(f"class {label}: {note}" for note in one.notes)
            fitted.append(one)
        self.maps = nn.ModuleList(fitted)
        return sum(each.flops_per_fit for each in fitted)

    def _mixed(self, label: int, moments: Moments, pooled: Tensor, rows: int, per_row: int) -> Moments:
        """A class's moments, mixed with the pooled ones, of as many rows as their weights are worth."""
        own = moments.count // per_row
        channels = self.event_shape[0] if self.event_shape else 1
        enough = self.rows_per_channel * channels
        weight = max(0.0, 1 - own / enough) if enough else 0.0
        if not weight:
            return moments
        self.notes.append(
            f"class {label} has {own} rows of {channels} channels: its second moments are {weight:.2f} of the pooled "
            f"ones and {1 - weight:.2f} of its own"
        )
        others = weight / rows
        worth = round(1 / (own * (others + (1 - weight) / own) ** 2 + (rows - own) * others**2))
        mixed = copy.copy(moments)
        mixed.count = max(worth, 2) * per_row
        mixed.scatter = (mixed.count - 1) * (
            weight * pooled + (1 - weight) * moments.scatter / max(moments.count - 1, 1)
        )
        return mixed

    def _forward(self, x: Tensor, classes: Tensor | None) -> Tensor:
        return self._by_class(x, classes, lambda one, rows: one._forward(rows, None))

    def _inverse(self, z: Tensor, classes: Tensor | None) -> Tensor:
        return self._by_class(z, classes, lambda one, rows: one._inverse(rows, None))

    def _log_abs_det(self, x: Tensor, classes: Tensor | None) -> Tensor:
        return self._by_class(x, classes, lambda one, rows: one._log_abs_det(rows, None))

    def _by_class(
        self, rows: Tensor, classes: Tensor | None, mapped: Callable[[ClosedForm, Tensor], Tensor]
    ) -> Tensor:
        """What each row's own map makes of it; a compiled graph, and the one row that `torch.vmap` sees, asks all."""
        assert classes is not None
        if torch.compiler.is_compiling() or len(rows) == 1:
            every = torch.stack([mapped(one, rows) for one in self._maps])
            return every[classes, torch.arange(len(rows), device=rows.device)]
        found: Tensor | None = None
        for position in torch.unique(classes).tolist():
            chosen = (classes == position).nonzero().flatten()
            part = mapped(self._maps[position], rows[chosen])
            found = part.new_zeros(len(rows), *part.shape[1:]) if found is None else found
            found[chosen] = part
        assert found is not None
        return found
