"""Low-variance recovery: whether generated samples vary as much as the data, direction by direction."""

from dataclasses import dataclass

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.geometry.large_spectra import known_spectrum
from precfm.geometry.spectra import covariance, eigen_spectrum, require_positive


@dataclass(frozen=True)
class EigenvalueRecovery:
    """How well generated samples recover the variances of the data, direction by direction.

    Attributes:
        eigenvalues: variances of the reference along the directions, shape (dim,), float64.
        ratios: variance of the generated samples over that of the reference along each direction, shape
            (dim,).
    """

    eigenvalues: Tensor
    ratios: Tensor

    @property
    def low(self) -> Tensor:
        """Ratios of the lowest quartile of eigenvalues: the first `ceil(dim / 4)`."""
        return lowest_quartile(self.ratios)

    @property
    def ratio_low(self) -> float:
        """Geometric mean of the ratios over the lowest quartile; 1 is perfect, above is too much variance."""
        return float(self.low.log().mean().exp())

    @property
    def log_error(self) -> float:
        """Mean of `|log ratio|` over all directions; 0 is perfect. Unlike the ratio, errors do not cancel."""
        return float(self.ratios.log().abs().mean())

    @property
    def log_error_low(self) -> float:
        """Mean of `|log ratio|` over the lowest quartile."""
        return float(self.low.log().abs().mean())


@dataclass(frozen=True)
class RecoveryReplicates:
    """Low-variance recovery against resamples of the reference.

    Attributes:
        ratios: as in `EigenvalueRecovery`, for each replicate, shape (replicates, dim), float64.
    """

    ratios: Tensor

    @property
    def log_error(self) -> Tensor:
        """Mean of `|log ratio|` over all directions, shape (replicates,)."""
        return self.ratios.log().abs().mean(1)

    @property
    def log_error_low(self) -> Tensor:
        """Mean of `|log ratio|` over the lowest quartile, shape (replicates,)."""
        return lowest_quartile(self.ratios).log().abs().mean(1)


def eigenvalue_recovery(
    generated: Tensor, reference: Tensor, directions: Tensor | None = None
) -> EigenvalueRecovery:
    """Compare variances along given directions, or along the eigenvectors of the reference covariance.

    The ratio of direction i is `u_i^T Sigma_gen u_i / u_i^T Sigma_ref u_i`. Directions that were fitted to the
    reference itself make its low variances too small, and all ratios of a perfect generator too large by the order
    of dim / m; so take them from a third sample, such as the train split.

    Args:
        generated: samples, shape (n, *dim).
        reference: held-out data, shape (m, *dim).
        directions: one unit vector per column, lowest variance first, shape (dim, dim); the eigenvectors of the
            reference's covariance where None.

    Returns:
        Ratios per direction, in the order of the directions, with summaries.

    Raises:
        PrecfmError: the dimensions differ, the reference is rank-deficient or does not vary along a given direction,
            or the generated samples do not.

    References:
        | Preconditioned (Score and) Flow Matching (Ahamed et al., 2026), low-eigenvalue recovery
        | https://arxiv.org/abs/2603.02337

    Example:
        >>> import torch
        >>> reference = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
        >>> round(eigenvalue_recovery(2 * reference, reference).ratio_low, 6)
        4.0
    """
    if generated.shape[1:] != reference.shape[1:]:
        raise PrecfmError(
            f"generated has shape {tuple(generated.shape)}, but the reference has {tuple(reference.shape)}: "
            "all but the first number must agree"
        )
    reference_cov = covariance(reference)
    if directions is None:
        eigenvalues, eigenvectors = eigen_spectrum(reference_cov)
        require_positive(eigenvalues)
    else:
        if directions.shape != reference_cov.shape:
            needed = tuple(reference_cov.shape)
            raise PrecfmError(f"directions have shape {tuple(directions.shape)}, but {needed} is needed")
        eigenvectors = directions.to(reference_cov)
        eigenvalues = _variances_along(reference_cov, eigenvectors)
        if not bool((eigenvalues > 0).all()):
            at = int((eigenvalues <= 0).nonzero()[0])
            raise PrecfmError(f"reference has no variance along direction {at} (from 0); a ratio needs some")
    variances = _variances_along(covariance(generated), eigenvectors)
    ratios = variances / eigenvalues
    empty = (variances <= 0).nonzero()
    if len(empty):
        raise PrecfmError(
            f"generated has no variance along eigendirection {int(empty[0])} of the reference (from 0); "
            "a ratio needs some: are the samples all equal?"
        )
    return EigenvalueRecovery(eigenvalues, ratios)


def recovery_replicates(
    generated: Tensor, reference: Tensor, directions: Tensor, resamples: Tensor
) -> RecoveryReplicates:
    """Compare variances along given directions with those of each resample of the reference.

    Args:
        generated: samples, shape (n, *dim); kept as they are.
        reference: held-out data, shape (m, *dim).
        directions: one unit vector per column, lowest variance first, shape (dim, dim), of a third sample.
        resamples: how often each row of the reference occurs in each replicate, integers, shape (replicates, m).

    Returns:
        The ratios of each replicate. Where all counts are 1 they are those of `eigenvalue_recovery`.

    Raises:
        PrecfmError: the resamples are of another number of rows.
    """
    x, y = (rows.flatten(1).to(torch.float64) for rows in (generated, reference))
    m, along = len(y), directions.to(y)
    if resamples.ndim != 2 or resamples.shape[1] != m:
        raise PrecfmError(f"resamples: got shape {tuple(resamples.shape)}; (replicates, {m}) is needed")
    projected = (y - y.mean(0)) @ along
    shares = resamples.to(y) / m
    variances = (shares @ projected.square() - (shares @ projected).square()) * (m / (m - 1))
    return RecoveryReplicates((x @ along).var(0) / variances)


def smallest_std(x: Tensor) -> float:
    """Standard deviation of the data along its lowest-variance direction.

    Args:
        x: data, shape (batch, *dim).

    Returns:
        The square root of the smallest eigenvalue of the covariance; of the smallest variance that
        `precfm.geometry.large_spectra.known_spectrum` finds, where features are too many for one.

    Raises:
        PrecfmError: the covariance is rank-deficient.
    """
    eigenvalues = known_spectrum(x).eigenvalues
    require_positive(eigenvalues)
    return float(eigenvalues[0].sqrt())


def lowest_quartile(ratios: Tensor) -> Tensor:
    """The first `ceil(dim / 4)` of the last axis, which are those of lowest variance; shape (..., dim)."""
    return ratios[..., : -(-ratios.shape[-1] // 4)]


def _variances_along(cov: Tensor, directions: Tensor) -> Tensor:
    """`u_i^T cov u_i` for each column `u_i` of `directions`."""
    return ((cov @ directions) * directions).sum(dim=0)
