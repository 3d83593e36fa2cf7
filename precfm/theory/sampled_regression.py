"""Regressions along the path given by samples: draws, inputs and targets, and the excess risk over them.

Nothing here knows the closed forms that it is compared with. A batch of problems (over condition number, time, target,
path and seed) is one tensor.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from precfm.core.seeds import generator_for
from precfm.theory.linear_regression import Target

PathName: TypeAlias = Literal["linear", "variance_preserving"]


@dataclass(frozen=True)
class GaussianRegressions:
    """A batch of regressions whose data are drawn from a Gaussian, each with its own path weights.

    Attributes:
        eigenvalues: spectrum of the data, shape (problems, dim).
        basis: eigenvectors of the data as columns, shape (problems, dim, dim).
        weights: (alpha, sigma, c1, c0): inputs are alpha x1 + sigma x0, targets c1 x1 + c0 x0; shape
            (problems, 4).
        transform: applied to the inputs, a preconditioner of the regression, shape (problems, dim, dim), or
            None.
    """

    eigenvalues: Tensor
    basis: Tensor
    weights: Tensor
    transform: Tensor | None = None

    def __len__(self) -> int:
        return len(self.weights)

    def part(self, index: slice | Tensor) -> "GaussianRegressions":
        """Some of the problems."""
        transform = None if self.transform is None else self.transform[index]
        return GaussianRegressions(self.eigenvalues[index], self.basis[index], self.weights[index], transform)

    def samples(self, normal0: Tensor, normal1: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets made of standard normal draws.

        Args:
            normal0: draws for the noise, shape (problems or 1, n, dim).
            normal1: draws for the data, shape (problems or 1, n, dim).

        Returns:
            Inputs and targets, shape (problems, n, dim).
        """
        # Isotropic noise needs no turning: only the data are given the basis.
        alpha, sigma, c1, c0 = (w[:, None, None] for w in self.weights.unbind(1))
        x1 = normal1 @ (self.basis * self.eigenvalues.sqrt()[:, None, :]).mT
        x_t = alpha * x1 + sigma * normal0
        return (x_t if self.transform is None else x_t @ self.transform.mT), c1 * x1 + c0 * normal0


def path_weights(path: PathName, target: Target, t: float) -> tuple[float, float, float, float]:
    """(alpha, sigma, c1, c0) written out for the two paths and the two targets.

    Args:
        path: `linear` or `variance_preserving`.
        target: `velocity` or `score`.
        t: time; the score needs t < 1.

    Returns:
        Weights of data and noise in the input, then of data and noise in the target.
    """
    if path == "linear":
        alpha, sigma, velocity = t, 1 - t, (1.0, -1.0)
    else:
        angle = math.pi * t / 2
        alpha, sigma = math.sin(angle), math.cos(angle)
        velocity = (math.pi / 2 * math.cos(angle), -math.pi / 2 * math.sin(angle))
    return (alpha, sigma, *velocity) if target == "velocity" else (alpha, sigma, 0.0, -1 / sigma)


def matched_normals(seeds: Sequence[int], dim: int) -> tuple[Tensor, Tensor]:
    """Draws whose second moments are exactly those of (x0, x1): 2 dim samples, whitened among themselves.

    With them a loss over samples equals the expected loss for every linear field, so that gradient descent on
    samples can be compared with theory to rounding, without sampling error.

    Args:
        seeds: one for each problem.
        dim: dimension of the data.

    Returns:
        Draws for noise and data, each (len(seeds), 2 dim, dim), float64.
    """
    n = 2 * dim
    pairs = []
    for seed in seeds:
        raw = torch.randn(n, n, generator=generator_for(seed, "matched", dim), dtype=torch.float64)
        pairs.append(torch.linalg.qr(raw)[0] * math.sqrt(n))
    joint = torch.stack(pairs)
    return joint[..., :dim], joint[..., dim:]


def independent_normals(seeds: Sequence[int], n: int, dim: int) -> tuple[Tensor, Tensor]:
    """Independent standard normal draws for noise and data, each (len(seeds), n, dim), float64."""
    draws = torch.stack(
        [
            torch.randn(2, n, dim, generator=generator_for(s, "independent"), dtype=torch.float64)
            for s in seeds
        ]
    )
    return draws[:, 0], draws[:, 1]


def random_field(dim: int, seed: int) -> Tensor:
    """A field to start from: entries N(0, 1 / dim), shape (dim, dim), float64."""
    normal = torch.randn(dim, dim, generator=generator_for(seed, "start"), dtype=torch.float64)
    return normal / math.sqrt(dim)


@dataclass(frozen=True)
class EmpiricalExcess:
    """How far fields are from the best one over samples: their excess risk, split by direction.

    Attributes:
        best: the least-squares field of the samples, shape (problems, dim_out, dim).
        directions: directions as columns along which the inputs are uncorrelated, (problems, dim, dim).
        variances: the inputs' mean square along them, shape (problems, dim).
    """

    best: Tensor
    directions: Tensor
    variances: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor, directions: Tensor | None = None) -> "EmpiricalExcess":
        """Fit the best field to samples.

        Args:
            x: inputs, shape (problems, n, dim).
            y: targets, shape (problems, n, dim_out).
            directions: the principal directions of `x`, lowest variance first, when None.
        """
        best = torch.linalg.lstsq(x, y).solution.mT
        if directions is None:
            directions = torch.linalg.svd(x, full_matrices=False)[2].mT.flip(-1)
        return cls(best, directions, (x @ directions).square().mean(-2))

    def __call__(self, field: Tensor) -> Tensor:
        """Excess risk of fields, (problems, dim_out, dim), by direction, shape (problems, dim)."""
        return self.variances * ((field - self.best) @ self.directions).square().sum(-2)

    def part(self, index: slice | Tensor) -> "EmpiricalExcess":
        """Some of the problems."""
        return EmpiricalExcess(self.best[index], self.directions[index], self.variances[index])
