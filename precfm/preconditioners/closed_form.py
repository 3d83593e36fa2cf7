"""Maps that moments of the data determine: gathered batch by batch, at once or over time, or known beforehand."""

from abc import abstractmethod
from collections.abc import Mapping
from numbers import Integral
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.tensors import require_tensor
from precfm.geometry.moments import Moments
from precfm.preconditioners.base import Preconditioner
from precfm.preconditioners.fit_data import FitData
from precfm.preconditioners.inputs import Array, Data, as_tensor, batches_of

ByClass: TypeAlias = Mapping[int, Moments]
"""Moments of the rows of each label, labels ascending; of all rows, under 0, where labels are not needed."""


class ClosedForm(Preconditioner):
    """A map that moments of the data determine.

    A subclass says in `_empty` which moments it keeps, in `_coordinates` of what, and makes the map of them in
    `_solve`.
    """

    _gathered: dict[int, Moments] | None = None  # what `partial_fit` has seen
    _rows = 0  # how many rows those are
    _unsolved = False  # whether there are some that the map does not know yet
    _solved = False

    @property
    def fitted(self) -> bool:
        """Whether there is a map; solves the one of what `partial_fit` has gathered."""
        if self._unsolved:
            self._finish()
        return self._solved

    @fitted.setter
    def fitted(self, value: bool) -> None:
        self._solved, self._unsolved, self._gathered, self._rows = value, False, None, 0

    def partial_fit(self, x: Data, labels: Array | None = None) -> Self:
        """Add rows to those that the map is fitted to; in bounded memory, whatever their number.

        The map is solved when it is used next: mapped with, asked whether it is `fitted`, or stored. Until then `notes`
        and counts are those of the map before. The result is that of `fit` with all rows, beyond rounding, in float64:
        a cast, such as `float()`, comes after the last rows.

        Args:
            x: rows of one shape in all calls, shape (rows, *dim), or an iterable of batches, as in `fit`.
            labels: class indices, shape (rows,), integers; needed where `needs_labels`, and never beside batches.

        Returns:
            The preconditioner itself.

        Raises:
            PrecfmError: as `fit`, or the map comes from a `fit` or a file, which keep no moments. What is wrong with
                all rows together, such as too few of them, is said when the map is used.
        """
        if self._solved and self._gathered is None:
            raise PrecfmError(
                f"{self._name}: was fitted by fit or loaded, which keep no moments of the data; partial_fit is needed "
                "from the first rows on, or from_moments"
            )
        self.to(torch.float64)  # rows are not rounded before they are added up
        gathered, rows = dict[int, Moments](), 0
        for batch, given in batches_of(x, labels):
            if self._gathered is None and not rows:
                self._begin(batch, labelled=given is not None)
            part, known = self._checked(batch, given, "x")
            for block, block_labels in self._blocks(part, known):
                self._gather(gathered, block, block_labels)
            rows += len(part)
        for label, moments in (self._gathered or {}).items():
            gathered[label] = moments.merge(gathered[label]) if label in gathered else moments
        self._gathered, self._rows, self._unsolved = dict(sorted(gathered.items())), self._rows + rows, True
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As of any module; solves the map of what `partial_fit` has gathered."""
        if self._unsolved:
            self._finish()
        return super().state_dict(*args, **kwargs)

    def _fit(self, data: FitData) -> int:
        gathered = dict[int, Moments]()
        for rows, labels in data.batches:
            self._gather(gathered, rows, labels)
        return self._solve(dict(sorted(gathered.items())))

    def _gather(self, gathered: dict[int, Moments], rows: Tensor, labels: Tensor | None) -> None:
        present = [0] if labels is None else torch.unique(labels).tolist()
        for label in present:
            part = rows if labels is None else rows[labels == label]
            gathered.setdefault(label, self._empty()).update(self._coordinates(part))

    def _finish(self) -> None:
        """Solve the map of what has been gathered."""
        assert self._gathered is not None
        if self._rows < 2:
            raise PrecfmError(f"x: got {self._rows} rows; a fit needs at least 2 rows")
        device, dtype = self.anchor.device, self.anchor.dtype
        self.to(torch.float64)
        self.notes, self.record = [], {}
        if self.needs_labels:
            self.classes = tuple(self._gathered)
        self.flops_per_fit = self._solve(self._gathered)
        self._solved, self._unsolved = True, False
        self.to(device, dtype).requires_grad_(False).eval()

    def _empty(self) -> Moments:
        """The moments that the map needs, of no rows yet; of all second ones by default."""
        return Moments()

    def _coordinates(self, rows: Tensor) -> Tensor:
        """What the moments are of, for rows (batch, features); the rows themselves by default."""
        return rows

    @abstractmethod
    def _solve(self, moments: ByClass) -> int:
        """Register the map's buffers, and return the floating point operations of the whole fit."""


class OfMoments(ClosedForm):
    """A map that mean and covariance of the data determine, wherever they come from."""

    @classmethod
    def from_moments(cls, mean: Array, covariance: Array, n: int, **options: Any) -> Self:
        """The map for data of which the moments are known; `partial_fit` adds rows to them.

        Args:
            mean: shape (*dim) of one datum.
            covariance: of the flattened data, shape (features, features), with divisor `n - 1`.
            n: number of rows that they were taken of, at least 2.
            options: of the class.

        Returns:
            The fitted map, on the device of `mean`.

        Raises:
            PrecfmError: they are no tensors of these shapes, not finite, the covariance is not symmetric or `n` is
                below 2, an option is wrong, or no invertible map exists.

        Example:
            >>> from precfm.preconditioners.whitening import Whitening
            >>> mean, covariance = torch.zeros(2), torch.diag(torch.tensor([4.0, 100.0]))
            >>> Whitening.from_moments(mean, covariance, n=10**6).forward(torch.tensor([[2.0, 10.0]]))
            tensor([[1.0000, 1.0000]])
        """
        made = cls(**options)
        centre, cov = as_tensor(mean), as_tensor(covariance)
        for value, name in ((centre, "mean"), (cov, "covariance")):
            require_tensor(value, name, floating=True)
            if not bool(value.isfinite().all()):
                raise PrecfmError(f"{name}: holds a number that is not finite; every number must be finite")
        if isinstance(n, bool) or not isinstance(n, Integral) or n < 2:
            raise PrecfmError(f"n: got {n!r}; a number of rows, at least 2, is needed")
        made._begin(centre[None], labelled=False)
        if cov.shape != (made.features, made.features) or cov.device != centre.device:
            raise PrecfmError(
                f"covariance: has shape {tuple(cov.shape)} on {cov.device}; "
                f"{(made.features, made.features)} is needed for a mean of shape {tuple(centre.shape)} "
                f"on {centre.device}"
            )
        both = cov.detach().double()
        if not torch.allclose(both, both.T, rtol=1e-6, atol=1e-9 * float(both.abs().max())):
            raise PrecfmError("covariance: is not symmetric, but a covariance equals its transpose")
        made._gathered = {0: Moments.of(centre.detach().double().flatten().clone(), both, n)}
        made._rows, made._unsolved = int(n), True
        made._finish()
        return made
