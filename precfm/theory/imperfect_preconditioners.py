"""How good a preconditioner has to be: steps against the residual condition number, and imperfect maps.

Let S = P Sigma_t P^T be the covariance that descent sees after an imperfect preconditioner, and kappa_r its
condition number. With eta = rate / lambda_max(S) the error obeys E_k S^(1/2) = E_0 S^(1/2) (I - 2 eta S)^k,
so the total excess risk || E_k S^(1/2) ||^2 satisfies, from any start,

    R_k / R_0 <= (1 - 2 rate / kappa_r)^(2k)        for rate <= 1/2,

with equality if the start errs only along the slowest direction. Hence k(f) <= log(1/f) / (-2 log(1 - 2 rate
/ kappa_r)) <= kappa_r log(1/f) / (4 rate). The paper gives the exact case (kappa_r = 1) and no bound.

If P acts on the data, x1 -> P x1, then Sigma_t = alpha_t^2 P Sigma_1 P^T + sigma_t^2 I, whose condition
number is at most max(1, kappa(P Sigma_1 P^T)): adding a multiple of the identity only brings eigenvalues
together.
"""

import math
from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.options import Fraction, Share, checked
from precfm.core.seeds import generator_for
from precfm.theory.linear_regression import symmetric

Rate = Annotated[float, Field(gt=0, le=0.5)]
"""Step size times the largest eigenvalue, for which the bound holds."""


@checked
def steps_bound(residual_kappa: Tensor | float, fraction: Fraction, rate: Rate = 0.5) -> Tensor:
    """Steps that suffice, whatever the start: log(1/f) / (-2 log(1 - 2 rate / kappa_r)), at least one.

    Args:
        residual_kappa: condition number after the preconditioner, at least 1, any shape.
        fraction: accuracy of the total excess risk, relative to the start, in (0, 1).
        rate: step size times the largest eigenvalue, in (0, 1/2].

    Returns:
        The bound, in the shape of `residual_kappa`, float64.

    Raises:
        PrecfmError: an argument is out of its range.

    Example:
        >>> steps_bound(100.0, 0.1).round()
        tensor(115., dtype=torch.float64)
    """
    kappa = torch.as_tensor(residual_kappa, dtype=torch.float64)
    if not bool((kappa >= 1 - 1e-12).all()):
        raise PrecfmError(f"residual_kappa: got {float(kappa.min()):.3g}; a condition number is at least 1")
    shrink = (2 * rate / kappa).clamp(max=1)
    return (math.log(1 / fraction) / (-2 * torch.log1p(-shrink))).clamp(min=1)


@checked
def power(cov: Tensor, exponent: Share) -> Tensor:
    """Sigma^(-exponent / 2), exponent in [0, 1]: leaves the condition number kappa^(1 - exponent)."""
    return _function(cov, lambda values: values ** (-exponent / 2))


@checked
def shrunk(cov: Tensor, shrinkage: Share) -> Tensor:
    """((1 - s) Sigma + s m I)^(-1/2), m the mean variance: kappa_r <= 1 + s m / ((1 - s) lambda_min).

    An eigenvalue l becomes l / ((1 - s) l + s m), at most 1 / (1 - s), which increases with l. So the
    shrinkage has to stay below the smallest variance's share of the mean one, or little is gained.
    """
    return _function(cov, lambda values: ((1 - shrinkage) * values + shrinkage * values.mean()).rsqrt())


def per_channel(cov: Tensor) -> Tensor:
    """diag(Sigma)^(-1/2): leaves the correlation matrix, and so does nothing for rotated directions."""
    return torch.diag(cov.diagonal().rsqrt())


def from_samples(cov: Tensor, n: int, seed: int) -> Tensor:
    """Whitening estimated from n Gaussian samples: S^(-1/2) of their covariance S.

    Args:
        cov: the true covariance, shape (dim, dim).
        n: number of samples, more than `dim`.
        seed: seed of the samples.

    Returns:
        The map, shape (dim, dim).

    Raises:
        PrecfmError: there are too few samples for an invertible estimate.
    """
    dim = len(cov)
    if n <= dim:
        raise PrecfmError(f"n: got {n}; whitening in dimension {dim} needs at least {dim + 1} samples")
    normal = torch.randn(n, dim, generator=generator_for(seed, "whitening"), dtype=torch.float64)
    values, vectors = torch.linalg.eigh(cov)
    x = (normal * values.clamp(min=0).sqrt()) @ vectors.T
    return _function(x.T @ x / n, lambda found: found.rsqrt())


def samples_kappa_bound(n: int, dim: int, confidence: float = 0.95) -> float:
    """Bound on the residual condition number of whitening from n Gaussian samples, free of kappa.

    The whitened covariance S^(-1/2) Sigma S^(-1/2) has the inverse eigenvalues of W / n, W white Wishart. The
    singular values of n x dim normal draws lie in sqrt(n) (1 -+ s), s = sqrt(dim / n) + sqrt(2 log(2 / delta)
    / n), with probability 1 - delta, so that kappa_r <= ((1 + s) / (1 - s))^2.

    Args:
        n: number of samples.
        dim: dimension.
        confidence: 1 - delta.

    Returns:
        The bound; infinite if n is too small for one.

    References:
        Local operator theory, random matrices and Banach spaces (Davidson and Szarek, 2001), theorem II.13.
    """
    s = math.sqrt(dim / n) + math.sqrt(2 * math.log(2 / (1 - confidence)) / n)
    return math.inf if s >= 1 else ((1 + s) / (1 - s)) ** 2


def residual_covariance(cov: Tensor, transform: Tensor) -> Tensor:
    """P Sigma P^T divided by its mean variance, so that the scale stays fixed; shape (dim, dim)."""
    moved = transform @ cov @ transform.mT
    moved = (moved + moved.mT) / 2
    return moved / moved.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]


def _function(cov: Tensor, scalar: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of a covariance: applied to its eigenvalues."""
    values, vectors = torch.linalg.eigh(cov.to(torch.float64))
    if not float(values[0]) > 0:
        raise PrecfmError(
            f"cov: got the smallest eigenvalue {float(values[0]):.3g}; a positive one is needed"
        )
    return symmetric(scalar(values), vectors)
