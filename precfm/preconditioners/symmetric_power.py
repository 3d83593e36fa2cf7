"""The linear algebra of whitening: powers of a covariance, shrunk on request, refused if not invertible."""

import math
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import torch
from pydantic import Field, PlainValidator
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.options import shortened
from precfm.geometry.shrinkage import LARGEST_CONDITION_NUMBER, fresh_variances
from precfm.geometry.spectra import eigen_spectrum
from precfm.preconditioners.inputs import summary

FEW_ROWS_PER_FEATURE = 10  # below which the condition number on fresh rows is noted: from 3.7 upwards

Exponent: TypeAlias = Annotated[float, Field(ge=-0.5, le=1)]


def _share_or_auto(value: Any) -> float | str:
    if value == "auto":
        return "auto"
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"got {shortened(value)}; a number from 0 to 1, or 'auto', is needed")
    return float(value)


Shrinkage: TypeAlias = Annotated[float | Literal["auto"], PlainValidator(_share_or_auto)]
"""Weight of the isotropic covariance, from 0 to 1, or `auto`: `precfm.geometry.shrinkage.fresh_variances`."""


class SymmetricMap(NamedTuple):
    """A symmetric linear map and its inverse.

    Attributes:
        matrix: shape (dim, dim).
        inverse_matrix: its inverse, shape (dim, dim).
        log_det: log determinant of `matrix`, shape ().
    """

    matrix: Tensor
    inverse_matrix: Tensor
    log_det: Tensor


def symmetric_power(
    cov: Tensor, exponent: float, shrinkage: float | Literal["auto"], what: str, rows: float
) -> SymmetricMap:
    """The map `c Sigma_s^(-exponent)`, with `Sigma_s = (1 - s) Sigma + s (trace(Sigma) / dim) I`.

    The factor `c` gives the mapped data a mean variance of one, so that the exponent changes the shape of the
    spectrum and not its scale. For full whitening (exponent 0.5, no shrinkage) `c` is 1. With shrinkage `auto`,
    `Sigma_s` has the eigenvectors of `Sigma` and, as eigenvalues, the variances that fresh rows have along them, and
    `c` is that of fresh rows.

    Args:
        cov: covariance of the data, shape (dim, dim), float64.
        exponent: 0.5 whitens, 0.25 takes the square root of the condition number, 0 leaves the shape, below 0 spreads
            it further.
        shrinkage: weight `s` of the isotropic covariance, in [0, 1], or `auto`.
        what: the data, as the beginning of a sentence: `x:`, or `x: class 3`.
        rows: number of rows behind the covariance, for `auto`; an effective number where rows weigh differently.

    Returns:
        The map, its inverse and its log determinant, float64.

    Raises:
        PrecfmError: the shrunk covariance is rank-deficient, for `auto` beyond what a lack of rows explains; the
            sentence names the features or the direction.

    References:
        | Optimal Whitening and Decorrelation (Kessy et al., 2018), where `Sigma^(-1/2)` is called ZCA
        | https://arxiv.org/abs/1512.00809

        | A well-conditioned estimator for large-dimensional covariance matrices (Ledoit & Wolf, 2004)
        | https://doi.org/10.1016/S0047-259X(03)00096-4
    """
    eigenvalues, eigenvectors = eigen_spectrum(cov)
    eigenvalues = eigenvalues.clamp(min=0)
    mean_variance = eigenvalues.mean()
    if not float(mean_variance) > 0:
        raise PrecfmError(f"{what} has variance 0 in every feature; a scale needs rows that differ")
    if shrinkage == "auto":
        shrunk = fresh = fresh_variances(eigenvalues, rows)
        lost = int((eigenvalues * LARGEST_CONDITION_NUMBER < eigenvalues[-1]).sum())
        constant = cov.diagonal() * LARGEST_CONDITION_NUMBER <= cov.diagonal().max()
        deficient = bool(constant.any()) or lost > max(0, math.ceil(len(cov) - rows + 1))
    else:
        shrunk, fresh = (1 - shrinkage) * eigenvalues + shrinkage * mean_variance, eigenvalues
        deficient = False
    if deficient or float(shrunk.min()) * LARGEST_CONDITION_NUMBER < float(shrunk.max()):
        raise PrecfmError(
            f"{what} {_deficiency(cov, eigenvalues, eigenvectors)}; drop it or set shrinkage to a number above 0"
        )
    scale = (fresh * shrunk.pow(-2 * exponent)).mean().rsqrt()
    return symmetric_map(scale * shrunk.pow(-exponent), eigenvectors)


def require_rows(rows: int, features: int, shrinkage: float | Literal["auto"], what: str) -> None:
    """Refuse to whiten without shrinkage from fewer rows than features, before anything large is computed.

    Raises:
        PrecfmError: some direction has no variance because rows lack.
    """
    if shrinkage == 0 and rows < features:
        raise PrecfmError(
            f"{what} has fewer rows ({rows}) than features ({features}), so that some direction has no variance; more "
            "rows, or the shrinkage 'auto', are needed"
        )


def few_rows(rows: int, features: int, shrinkage: float | Literal["auto"], what: str) -> list[str]:
    """What to expect on fresh rows, as a note, where rows are few for the features.

    Args:
        rows: number of rows of the fit.
        features: number of features.
        shrinkage: that was applied.
        what: the data, as the beginning of a sentence: `x`, or `class 3 of x`.

    References:
        | Distribution of eigenvalues for some sets of random matrices (Marchenko & Pastur, 1967), for the edges of the
        | spectrum of fresh rows behind a whitening without shrinkage, `(1 +- sqrt(dim / rows))^2`
        | https://doi.org/10.1070/SM1967v001n04ABEH001994

    Example:
        >>> few_rows(512, 256, 0, "x")
        ['x has 2.0 rows per feature: on fresh rows a condition number near 34 is left']
    """
    if rows < features:
        return [
            f"{what} has fewer rows ({rows}) than features ({features}): only the shrinkage makes the map invertible, "
            "and the variances of directions without rows are guessed"
        ]
    if rows >= FEW_ROWS_PER_FEATURE * features:
        return []
    edge = math.sqrt(features / rows)
    left = f"{((1 + edge) / (1 - edge)) ** 2:.3g}" if edge < 1 else "infinity"
    shrunk = ", without the shrinkage; less with it" if shrinkage else " is left"
    return [
        f"{what} has {rows / features:.1f} rows per feature: on fresh rows a condition number near {left}{shrunk}"
    ]


def deficiency(cov: Tensor) -> str | None:
    """What makes a covariance rank-deficient, for a note where shrinkage alone makes it invertible.

    Args:
        cov: covariance of the data, shape (dim, dim), float64.

    Returns:
        The features that are constant or the direction that has no variance, as the end of a sentence; None
        where the covariance is invertible.
    """
    eigenvalues, eigenvectors = eigen_spectrum(cov)
    if float(eigenvalues[0]) * LARGEST_CONDITION_NUMBER >= float(eigenvalues[-1]):
        return None
    return _deficiency(cov, eigenvalues.clamp(min=0), eigenvectors)


def symmetric_map(factors: Tensor, eigenvectors: Tensor) -> SymmetricMap:
    """The symmetric matrix with the given eigenvalues and eigenvectors, and its inverse.

    Args:
        factors: positive eigenvalues, shape (dim,).
        eigenvectors: one column per eigenvalue, orthonormal, shape (dim, dim).

    Returns:
        The map, its inverse and its log determinant.
    """
    return SymmetricMap(
        matrix=(eigenvectors * factors) @ eigenvectors.T,
        inverse_matrix=(eigenvectors / factors) @ eigenvectors.T,
        log_det=factors.log().sum(),
    )


def power_flops(rows: int, features: int) -> int:
    """Floating point operations of a covariance from `rows` and one symmetric power.

    The mean and centring take `2 n d`, the covariance `2 n d^2`, the symmetric eigen-decomposition about `9
    d^3` and the two matrices `4 d^3`.

    References:
        Matrix Computations (Golub & Van Loan, 4th edition, 2013), section 8.3, for the `9 d^3`.
    """
    return 2 * rows * features + 2 * rows * features**2 + 13 * features**3


def _deficiency(cov: Tensor, eigenvalues: Tensor, eigenvectors: Tensor) -> str:
    variances = cov.diagonal()
    constant = (variances <= variances.max() / LARGEST_CONDITION_NUMBER).nonzero().flatten().tolist()
    if constant:
        return f"is constant in feature {summary(constant)} (variance {float(variances[constant[0]]):.3g})"
    direction = eigenvectors[:, 0]
    leaders = direction.abs().argsort(descending=True, stable=True)[:3].sort().values.tolist()
    weights = ", ".join(f"feature {i} by {float(direction[i]):+.2f}" for i in leaders)
    lost = int(torch.count_nonzero(eigenvalues * LARGEST_CONDITION_NUMBER < eigenvalues[-1]))
    return (
        f"is rank-deficient in {lost} of {len(eigenvalues)} directions: the smallest eigenvalue is "
        f"{float(eigenvalues[0]):.3g}, the largest {float(eigenvalues[-1]):.3g}, and the direction of the "
        f"smallest weighs {weights}"
    )
