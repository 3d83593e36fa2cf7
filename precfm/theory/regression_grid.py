"""A grid of linear regressions in both descriptions: as the closed forms and as the measurement need them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from precfm.datasets.synthetic import spectrum
from precfm.flows.paths import LinearPath, ProbabilityPath, VariancePreservingPath
from precfm.theory.linear_regression import LinearProblem, Target, linear_problem
from precfm.theory.sampled_regression import GaussianRegressions, PathName, path_weights

PATHS: dict[PathName, ProbabilityPath] = {
    "linear": LinearPath(),
    "variance_preserving": VariancePreservingPath(),
}


@dataclass(frozen=True)
class Cell:
    """What defines a linear regression, up to its rotation and its draws.

    Attributes:
        path: name of the probability path.
        target: what is regressed.
        t: time.
        condition_number: condition number of the data, whose spectrum is geometric with mean one.
    """

    path: PathName
    target: Target
    t: float
    condition_number: float


@dataclass(frozen=True)
class Regressions:
    """A batch of linear regressions, described twice.

    Attributes:
        sampled: how to draw their data.
        closed: the same problems in the eigenbasis.
    """

    sampled: GaussianRegressions
    closed: LinearProblem

    @classmethod
    def of(cls, cells: Sequence[Cell], bases: Tensor) -> "Regressions":
        """One problem for each cell.

        Args:
            cells: the cells.
            bases: eigenvectors of the data of each, as columns, shape (len(cells), dim, dim).
        """
        dim = bases.shape[-1]
        # Cells repeat over seeds, and a closed form is cheap to look up.
        spectra = {cell: spectrum(dim, cell.condition_number) for cell in set(cells)}
        closed = {
            cell: linear_problem(values, cell.t, PATHS[cell.path], cell.target)
            for cell, values in spectra.items()
        }
        weights = [path_weights(cell.path, cell.target, cell.t) for cell in cells]
        return cls(
            GaussianRegressions(
                torch.stack([spectra[cell] for cell in cells]),
                bases,
                torch.tensor(weights, dtype=torch.float64),
            ),
            LinearProblem(
                torch.stack([closed[cell].variance for cell in cells]),
                torch.stack([closed[cell].optimum for cell in cells]),
                torch.stack([closed[cell].residual for cell in cells]),
            ),
        )

    def part(self, index: slice | Tensor) -> "Regressions":
        """Some of the problems."""
        return Regressions(self.sampled.part(index), self.closed.part(index))

    def preconditioned(self) -> "Regressions":
        """The same problems on z = Sigma_t^(-1/2) x."""
        basis, root = self.sampled.basis, self.closed.variance.sqrt()
        transform = (basis / root[:, None, :]) @ basis.mT
        sampled = GaussianRegressions(self.sampled.eigenvalues, basis, self.sampled.weights, transform)
        return Regressions(sampled, self.closed.preconditioned())
