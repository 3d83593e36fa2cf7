"""Data whose law is known: Gaussians with a given spectrum, and mixtures of them; all in float64.

Scale is fixed by construction: a spectrum has mean one, because kappa(Sigma_t) depends on the scale of the
data (the noise of the path has unit variance). Only a mixture's components may be given other scales, to tell
what the scale does from what the condition number does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.options import Count, NotNegative, Positive, checked
from precfm.core.seeds import derived_seed, generator_for

ConditionNumber = Annotated[float, Field(ge=1, allow_inf_nan=False)]


@checked
def spectrum(dim: Count, condition_number: ConditionNumber) -> Tensor:
    """Eigenvalues in geometric progression with a given condition number and mean one.

    Args:
        dim: number of eigenvalues.
        condition_number: largest over smallest eigenvalue, at least 1.

    Returns:
        Eigenvalues, ascending, shape (dim,), float64.

    Raises:
        PrecfmError: `dim` is below 1, the condition number is below 1 or infinite, or is not 1 although there
            is only one eigenvalue.

    Example:
        >>> values = spectrum(3, 100.0)
        >>> round(float(values[-1] / values[0]), 9), round(float(values.mean()), 9)
        (100.0, 1.0)
    """
    if dim == 1 and condition_number != 1:
        raise PrecfmError(f"condition_number: got {condition_number}; in dimension 1 it can only be 1")
    values = torch.logspace(-math.log10(condition_number), 0, dim, dtype=torch.float64)
    return values / values.mean()


def rotation(dim: int, seed: int) -> Tensor:
    """A random orthogonal matrix, uniform (Haar) over all of them.

    Args:
        dim: size of the matrix.
        seed: a pure function of it.

    Returns:
        Orthogonal matrix, shape (dim, dim), float64.

    References:
        How to generate random matrices from the classical compact groups (Mezzadri, 2006), section 5,
        https://arxiv.org/abs/math-ph/0609050
    """
    normal = torch.randn(dim, dim, generator=generator_for(seed, "rotation", dim), dtype=torch.float64)
    q, r = torch.linalg.qr(normal)
    # QR alone is not uniform; fixing the signs of R's diagonal makes the decomposition unique and Q uniform.
    orthogonal: Tensor = q * torch.where(r.diagonal() < 0, -1.0, 1.0).to(q)
    return orthogonal


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian N(mean, basis diag(eigenvalues) basis^T).

    A zero eigenvalue is allowed: such data lie in a subspace, can be sampled, and have an invertible Sigma_t
    for t < 1; their condition number is infinite, and what divides by Sigma_1 (or Sigma_t at t = 1) refuses
    them.

    Args:
        eigenvalues: variances along the columns of `basis`, none negative, shape (dim,).
        basis: orthogonal matrix whose columns are the eigenvectors, shape (dim, dim).
        mean: shape (dim,).

    Raises:
        PrecfmError: shapes disagree, an eigenvalue is negative or not finite, or `basis` is not orthogonal.
    """

    eigenvalues: Tensor
    basis: Tensor
    mean: Tensor

    def __post_init__(self) -> None:
        dim = len(self.eigenvalues)
        if self.basis.shape != (dim, dim) or self.mean.shape != (dim,):
            raise PrecfmError(
                f"basis, mean: got shapes {tuple(self.basis.shape)} and {tuple(self.mean.shape)}; "
                f"{(dim, dim)} and {(dim,)} are needed with {dim} eigenvalues"
            )
        if not bool((self.eigenvalues.isfinite() & (self.eigenvalues >= 0)).all()):
            raise PrecfmError(
                f"eigenvalues: got {self.eigenvalues.tolist()}; finite ones, none negative, are needed"
            )
        identity = torch.eye(dim, dtype=self.basis.dtype)
        if not torch.allclose(self.basis.T @ self.basis, identity, atol=1e-8):
            raise PrecfmError("basis: its columns are not orthonormal; an orthogonal matrix is needed")

    @property
    def dim(self) -> int:
        """Dimension of the data."""
        return len(self.eigenvalues)

    @property
    def cov(self) -> Tensor:
        """Sigma_1, shape (dim, dim)."""
        return (self.basis * self.eigenvalues) @ self.basis.T

    @property
    def condition_number(self) -> float:
        """Largest over smallest eigenvalue; infinite when the smallest is zero."""
        low, high = float(self.eigenvalues.min()), float(self.eigenvalues.max())
        return math.inf if low == 0 else high / low

    def sample(self, n: int, seed: int) -> Tensor:
        """Independent draws, shape (n, dim), float64; a pure function of the arguments."""
        generator = generator_for(seed, "gaussian sample")
        normal = torch.randn(n, self.dim, generator=generator, dtype=torch.float64)
        return self.mean + (normal * self.eigenvalues.sqrt()) @ self.basis.T


def gaussian(dim: int, condition_number: float, *, rotated: bool = True, seed: int = 0) -> Gaussian:
    """A centred Gaussian with a geometric spectrum of mean one, rotated or along the axes.

    Args:
        dim: dimension.
        condition_number: largest over smallest variance.
        rotated: turn the eigenvectors by a random rotation; else they are the axes.
        seed: seed of the rotation.

    Returns:
        The Gaussian.

    Example:
        >>> round(gaussian(4, 100.0).condition_number, 9)
        100.0
    """
    basis = rotation(dim, seed) if rotated else torch.eye(dim, dtype=torch.float64)
    return Gaussian(spectrum(dim, condition_number), basis, torch.zeros(dim, dtype=torch.float64))


@dataclass(frozen=True)
class Mixture:
    """A mixture of Gaussians; the label of a sample is the index of its component.

    Args:
        weights: probability of each component, positive, summing to one, shape (components,).
        components: at least one Gaussian, all of one dimension.

    Raises:
        PrecfmError: the weights do not sum to one (within 1e-9), one is not positive, or numbers or
            dimensions disagree.
    """

    weights: Tensor
    components: tuple[Gaussian, ...]

    def __post_init__(self) -> None:
        if not self.components or self.weights.shape != (len(self.components),):
            raise PrecfmError(
                f"weights: got {self.weights.tolist()}; one for each of the {len(self.components)} components is needed"
            )
        if not bool((self.weights > 0).all()) or abs(float(self.weights.sum()) - 1) > 1e-9:
            raise PrecfmError(
                f"weights: got {self.weights.tolist()}; positive ones with the sum 1 are needed"
            )
        dims = sorted({component.dim for component in self.components})
        if len(dims) > 1:
            raise PrecfmError(f"components: got dimensions {dims}; equal ones are needed")

    @property
    def dim(self) -> int:
        """Dimension of the data."""
        return self.components[0].dim

    @property
    def mean(self) -> Tensor:
        """Mean of the whole mixture, shape (dim,)."""
        return self.weights @ torch.stack([component.mean for component in self.components])

    @property
    def cov(self) -> Tensor:
        """Covariance of the whole mixture: within plus between components, shape (dim, dim)."""
        means = torch.stack([component.mean for component in self.components]) - self.mean
        within = torch.einsum("k,kij->ij", self.weights, torch.stack([c.cov for c in self.components]))
        return within + torch.einsum("k,ki,kj->ij", self.weights, means, means)

    def sample(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Independent draws and their components; a pure function of the arguments.

        Returns:
            Samples (n, dim) in float64 and labels (n,) in int64.
        """
        generator = generator_for(seed, "mixture labels")
        labels = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        x = torch.empty(n, self.dim, dtype=torch.float64)
        for k, component in enumerate(self.components):
            rows = labels == k
            x[rows] = component.sample(int(rows.sum()), derived_seed(seed, "mixture component", k))
        return x, labels


@checked
def mixture(
    dim: Count,
    condition_numbers: Annotated[Sequence[ConditionNumber], Field(min_length=1)],
    weights: Sequence[Positive] | None = None,
    *,
    scales: Sequence[Positive] | None = None,
    separation: NotNegative = 4.0,
    seed: int = 0,
) -> Mixture:
    """A mixture whose components differ in conditioning, each with a rotation of its own.

    Every component has mean variance one, times its scale; the means are drawn on a sphere and then shifted
    together so that the mixture is centred. Nothing else is rescaled, so that an ablation changes only what it
    says (other weights move all means by one common vector).

    Args:
        dim: dimension.
        condition_numbers: one for each component.
        weights: probabilities; equal when None.
        scales: mean variance of each component, positive; one when None.
        separation: radius of the sphere of the means, in units of the root mean variance of scale one.
        seed: seed of the rotations and means.

    Returns:
        The mixture.

    Raises:
        PrecfmError: the numbers of weights or scales and components differ, the weights do not sum to one, or a
            scale is not positive and finite.

    Example:
        >>> [round(c.condition_number) for c in mixture(4, [1, 10, 100]).components]
        [1, 10, 100]
    """
    count = len(condition_numbers)
    factors = [1.0] * count if scales is None else list(scales)
    shares = [1 / count] * count if weights is None else list(weights)
    for name, numbers in (("weights", shares), ("scales", factors)):
        if len(numbers) != count:
            raise PrecfmError(f"{name}: got {numbers}; {count} are needed, one for each component")
    w = torch.tensor(shares, dtype=torch.float64)
    generator = generator_for(seed, "mixture means", dim)
    means = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    means = separation * means / means.norm(dim=1, keepdim=True)
    means = means - w @ means
    components = tuple(
        Gaussian(
            factors[k] * spectrum(dim, kappa),
            rotation(dim, derived_seed(seed, "mixture component", k)),
            means[k],
        )
        for k, kappa in enumerate(condition_numbers)
    )
    return Mixture(w, components)
