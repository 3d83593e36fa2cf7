"""Spectra of data: covariances, eigenvalues, condition numbers, effective ranks; all in float64.

Eigenvalues are always in ascending order and eigenvectors are the columns of a matrix, as in
`torch.linalg.eigh`.
"""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.tensors import require_tensor
from precfm.geometry.moments import Moments


class Spectrum(NamedTuple):
    """Eigen-decomposition of a covariance: `cov = eigenvectors @ diag(eigenvalues) @ eigenvectors.T`.

    Attributes:
        eigenvalues: ascending, shape (dim,), float64.
        eigenvectors: one column per eigenvalue, shape (dim, dim), float64.
    """

    eigenvalues: Tensor
    eigenvectors: Tensor


class ProbabilityPath(Protocol):
    """What a spectrum needs to know of a path `x_t = alpha_t x1 + sigma_t x0`, as in `precfm.flows.paths`."""

    def alpha(self, t: Tensor) -> Tensor:
        """Weight of the data at time `t`, in the shape of `t`."""

    def sigma(self, t: Tensor) -> Tensor:
        """Weight of the noise at time `t`, in the shape of `t`."""


def covariance(x: Tensor) -> Tensor:
    """Sample covariance with divisor `batch - 1`.

    Args:
        x: data, shape (batch, *dim), at least two rows; trailing dimensions are flattened.

    Returns:
        The covariance, shape (dim, dim), float64.

    Raises:
        PrecfmError: `x` is no tensor, has fewer than two rows or a number in it is not finite.

    Example:
        >>> covariance(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
        tensor([[2., 2.],
                [2., 2.]], dtype=torch.float64)
    """
    require_tensor(x, "x")
    if x.ndim < 1 or len(x) < 2:
        raise PrecfmError(f"x has shape {tuple(x.shape)}, but a covariance needs at least 2 rows")
    rows = x.detach().double().reshape(len(x), math.prod(x.shape[1:]))
    bad = (~rows.isfinite()).any(dim=1).nonzero()
    if len(bad):
        raise PrecfmError(
            f"x holds a non-finite number in row {int(bad[0])}, but every number must be finite"
        )
    return Moments().update(rows).covariance()


def class_covariances(x: Tensor, labels: Tensor) -> dict[int, Tensor]:
    """Sample covariance of each class.

    Args:
        x: data, shape (batch, *dim).
        labels: class indices, shape (batch,), integers.

    Returns:
        Covariance (dim, dim) in float64 by class, classes in ascending order.

    Raises:
        PrecfmError: the lengths differ, or a class has fewer than two rows.
    """
    return {label: covariance(rows) for label, rows in rows_by_class(x, labels).items()}


def rows_by_class(x: Tensor, labels: Tensor) -> dict[int, Tensor]:
    """The rows of each class, at least two, classes in ascending order; arguments and errors as `class_covariances`."""
    require_tensor(x, "x")
    require_tensor(labels, "labels")
    if labels.shape != (len(x),):
        raise PrecfmError(
            f"labels have shape {tuple(labels.shape)}, but x has {len(x)} rows: one label per row"
        )
    parts = {}
    for label in torch.unique(labels).tolist():
        rows = x[labels == label]
        if len(rows) < 2:
            raise PrecfmError(f"class {label} has {len(rows)} row, but a covariance needs at least 2 rows")
        parts[int(label)] = rows
    return parts


def eigen_spectrum(cov: Tensor) -> Spectrum:
    """Eigenvalues and eigenvectors of a covariance.

    Args:
        cov: symmetric matrix, shape (dim, dim).

    Returns:
        The spectrum in ascending order, float64.

    Raises:
        PrecfmError: `cov` is no tensor or not a square, symmetric, finite matrix.

    Example:
        >>> eigen_spectrum(torch.diag(torch.tensor([4.0, 1.0]))).eigenvalues
        tensor([1., 4.], dtype=torch.float64)
    """
    require_tensor(cov, "cov")
    matrix = cov.detach().double()
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise PrecfmError(f"cov has shape {tuple(cov.shape)}, but a covariance is a square matrix (dim, dim)")
    if not bool(matrix.isfinite().all()):
        raise PrecfmError("cov holds a non-finite number, but every number must be finite")
    if not torch.allclose(matrix, matrix.T, rtol=1e-6, atol=1e-9 * float(matrix.abs().max())):
        raise PrecfmError("cov is not symmetric, but a covariance equals its transpose")
    eigenvalues, eigenvectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return Spectrum(eigenvalues, eigenvectors)


def condition_number(cov: Tensor) -> float:
    """Condition number `kappa = lambda_max / lambda_min` of a covariance.

    Args:
        cov: symmetric positive definite matrix, shape (dim, dim).

    Returns:
        The largest eigenvalue over the smallest one, at least 1.

    Raises:
        PrecfmError: the smallest eigenvalue is not positive, or so only by rounding.

    Example:
        >>> condition_number(torch.diag(torch.tensor([1.0, 100.0])))
        100.0
    """
    eigenvalues = eigen_spectrum(cov).eigenvalues
    require_positive(eigenvalues)
    return float(eigenvalues[-1] / eigenvalues[0])


def effective_rank(cov: Tensor) -> float:
    """Effective rank: the exponential of the entropy of the normalised eigenvalues.

    It is `dim` for an isotropic covariance and 1 when one direction holds all the variance.

    Args:
        cov: symmetric positive semi-definite matrix, shape (dim, dim).

    Returns:
        `exp(-sum_i p_i log p_i)` with `p_i = lambda_i / sum_j lambda_j`, between 1 and dim.

    Raises:
        PrecfmError: the trace is not positive, or an eigenvalue is negative beyond rounding.

    References:
        | The effective rank: a measure of effective dimensionality (Roy & Vetterli, 2007), definition 1
        | https://www.eurasip.org/Proceedings/Eusipco/Eusipco2007/Papers/a5p-h05.pdf

    Example:
        >>> round(effective_rank(torch.eye(3)), 6)
        3.0
    """
    eigenvalues = eigen_spectrum(cov).eigenvalues
    total = float(eigenvalues.sum())
    if not total > 0:
        raise PrecfmError(
            f"cov has trace {total:.3g}, but an effective rank needs some variance: a positive trace"
        )
    if float(eigenvalues[0]) < -1e-9 * float(eigenvalues[-1]):
        raise PrecfmError(
            f"cov has the negative eigenvalue {float(eigenvalues[0]):.3g}, but a covariance has none below 0"
        )
    shares = eigenvalues.clamp(min=0) / total
    return float(torch.special.entr(shares).sum().exp())


def normalise_scale(cov: Tensor) -> Tensor:
    """The covariance of the data divided by one scalar, so that the mean variance is one.

    `kappa(Sigma_t)` depends on the overall scale of the data, because the noise has unit variance: fix the
    scale before comparing two spaces.

    Args:
        cov: covariance, shape (dim, dim).

    Returns:
        `cov * dim / trace(cov)`, shape (dim, dim), float64.

    Raises:
        PrecfmError: the trace is not positive.
    """
    matrix = cov.detach().double()
    mean_variance = float(matrix.diagonal().mean())
    if not mean_variance > 0:
        raise PrecfmError(f"cov has the mean variance {mean_variance:.3g}, but a scale needs a positive one")
    return matrix / mean_variance


def path_condition_numbers(cov: Tensor, path: ProbabilityPath, times: Tensor) -> Tensor:
    """Condition number of `Sigma_t`, the covariance of `x_t`, along a probability path.

    With independent coupling `Sigma_t = alpha_t^2 Sigma_1 + sigma_t^2 I`, so its eigenvalues are
    `alpha_t^2 lambda_i + sigma_t^2` in closed form.

    Args:
        cov: covariance of the data, shape (dim, dim), positive definite; see `normalise_scale`.
        path: the probability path.
        times: shape (n,), each in [0, 1].

    Returns:
        `kappa(Sigma_t)` for each time, shape (n,), float64.

    Raises:
        PrecfmError: the smallest eigenvalue of `cov` is not positive, or a time lies outside [0, 1].

    References:
        | Preconditioned (Score and) Flow Matching (Ahamed et al., 2026), section 3
        | https://arxiv.org/abs/2603.02337
    """
    t = times.detach().double()
    if not bool(((t >= 0) & (t <= 1)).all()):
        raise PrecfmError(f"times span {float(t.min()):.3g} to {float(t.max()):.3g}, but must lie in [0, 1]")
    eigenvalues = eigen_spectrum(cov).eigenvalues
    require_positive(eigenvalues)
    data, noise = path.alpha(t).square(), path.sigma(t).square()
    return (data * eigenvalues[-1] + noise) / (data * eigenvalues[0] + noise)


def require_positive(eigenvalues: Tensor) -> None:
    """Refuse ascending eigenvalues whose smallest is not positive beyond the rounding error of the largest.

    Raises:
        PrecfmError: it is not; the sentence names it.
    """
    smallest, largest = float(eigenvalues[0]), float(eigenvalues[-1])
    if not smallest > len(eigenvalues) * torch.finfo(torch.float64).eps * largest:
        raise PrecfmError(
            f"cov has the smallest eigenvalue {smallest:.3g} beside the largest {largest:.3g}, but a "
            "positive one is needed: drop constant or dependent features"
        )


def floored_spectrum(cov: Tensor, floor: float = 1e-6) -> Spectrum:
    """Spectrum of a covariance with no eigenvalue below `floor` times the largest.

    Raises:
        PrecfmError: no eigenvalue is positive.
    """
    eigenvalues, eigenvectors = eigen_spectrum(cov)
    floored = eigenvalues.clamp(min=floor * max(float(eigenvalues[-1]), 0.0))
    require_positive(floored)
    return Spectrum(floored, eigenvectors)
