"""A grid of linear regressions in both descriptions: as the closed forms and as the measurement need them."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
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


class Cell(NamedTuple):
    """What defines a linear regression, up to its rotation and its draws; the spectrum is geometric with mean one."""

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
        spectra = [spectrum(bases.shape[-1], cell.condition_number) for cell in cells]
        closed = [
            linear_problem(values, cell.t, PATHS[cell.path], cell.target)
            for cell, values in zip(cells, spectra, strict=True)
        ]
        weights = [path_weights(cell.path, cell.target, cell.t) for cell in cells]
        columns = zip(*((each.variance, each.optimum, each.residual) for each in closed), strict=True)
        return cls(
            GaussianRegressions(torch.stack(spectra), bases, torch.tensor(weights, dtype=torch.float64)),
            LinearProblem(*map(torch.stack, columns)),
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


def grid(
    paths: Sequence[PathName],
    targets: Sequence[Target],
    times: Sequence[float],
    condition_numbers: Sequence[float],
    bases: Tensor,
) -> tuple[pd.DataFrame, Regressions]:
    """All combinations, each with every basis.

    Args:
        paths: probability paths.
        targets: what is regressed.
        times: times t.
        condition_numbers: of the data.
        bases: of each seed the eigenvectors as columns, shape (seeds, dim, dim).

    Returns:
        The regressions, cell by cell and seed by seed, and what each is: columns path, target, t,
        condition_number, seed, condition_number_t.
    """
    combined = itertools.product(paths, targets, times, condition_numbers, range(len(bases)))
    rows = pd.DataFrame(combined, columns=[*Cell._fields, "seed"])
    cells = [Cell(*values) for values in rows[list(Cell._fields)].itertuples(index=False)]
    problems = Regressions.of(cells, bases.repeat(len(rows) // len(bases), 1, 1))
    variance = problems.closed.variance
    return rows.assign(condition_number_t=(variance[:, -1] / variance[:, 0]).numpy()), problems
