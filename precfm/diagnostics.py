"""Diagnostics of maps and samples: round trips, recovered variances, and what a decoder sees of a direction.

Spectra and condition numbers live in `precfm.spectra`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from precfm.errors import PrecfmError
from precfm.preconditioners.base import Preconditioner
from precfm.seeds import generator_for
from precfm.spectra import covariance, eigen_spectrum, require_positive

TAIL = 1.5  # standard deviations of the noise that stands for the tails


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
        return self.ratios[: -(-len(self.ratios) // 4)]

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
        PrecfmError: the dimensions differ, the reference is rank-deficient, or the generated samples do not
            vary at all along a direction.

    References:
        | Preconditioned (Score and) Flow Matching (Ahamed et al., 2026), low-eigenvalue recovery
        | https://arxiv.org/abs/2603.02337

    Example:
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
    eigenvalues, eigenvectors = eigen_spectrum(reference_cov)
    require_positive(eigenvalues)
    if directions is not None:
        if directions.shape != eigenvectors.shape:
            needed = tuple(eigenvectors.shape)
            raise PrecfmError(f"directions have shape {tuple(directions.shape)}, but {needed} is needed")
        eigenvectors = directions.to(eigenvectors)
        eigenvalues = _variances_along(reference_cov, eigenvectors)
    variances = _variances_along(covariance(generated), eigenvectors)
    ratios = variances / eigenvalues
    empty = (variances <= 0).nonzero()
    if len(empty):
        raise PrecfmError(
            f"generated has no variance along eigendirection {int(empty[0])} of the reference (from 0); "
            "a ratio needs some: are the samples all equal?"
        )
    return EigenvalueRecovery(eigenvalues, ratios)


def smallest_std(x: Tensor) -> float:
    """Standard deviation of the data along its lowest-variance direction.

    Args:
        x: data, shape (batch, *dim).

    Returns:
        The square root of the smallest eigenvalue of the covariance.

    Raises:
        PrecfmError: the covariance is rank-deficient.
    """
    eigenvalues = eigen_spectrum(covariance(x)).eigenvalues
    require_positive(eigenvalues)
    return float(eigenvalues[0].sqrt())


def round_trip_error(preconditioner: Preconditioner, x: Tensor, labels: Tensor | None = None) -> float:
    """Largest `|inverse(forward(x)) - x|` of all numbers, relative to the smallest standard deviation of `x`.

    Args:
        preconditioner: a fitted preconditioner.
        x: data, shape (batch, *dim).
        labels: class indices, shape (batch,), where the preconditioner needs them.

    Returns:
        The relative error; see `Preconditioner.round_trip_tolerance`.

    Raises:
        PrecfmError: the covariance of `x` is rank-deficient, or the preconditioner refuses the input.
    """
    return _largest_difference(preconditioner, x, labels) / smallest_std(x)


def tail_round_trip_error(
    preconditioner: Preconditioner, x: Tensor, labels: Tensor | None = None, *, seed: int = 0
) -> float:
    """As `round_trip_error`, at points of the tails: `inverse(1.5 z)` with `z ~ N(0, I)`, one per row of `x`.

    Args:
        preconditioner: a fitted preconditioner.
        x: data, shape (batch, *dim); gives the number of points, their labels and the scale of the error.
        labels: class indices, shape (batch,), where the preconditioner needs them.
        seed: seed of `z`.

    Returns:
        The error relative to the smallest standard deviation of `x`.

    Raises:
        PrecfmError: the covariance of `x` is rank-deficient, or the preconditioner refuses the input.
    """
    noise = torch.randn(x.shape, generator=generator_for(seed, "tail round trip"), dtype=torch.float64)
    tail = preconditioner.inverse(TAIL * noise.to(x), labels)
    return _largest_difference(preconditioner, tail, labels) / smallest_std(x)


@torch.no_grad()
def decoder_sensitivity(
    decode: Callable[[Tensor], Tensor],
    latents: Tensor,
    eigenvectors: Tensor,
    eigenvalues: Tensor,
    *,
    batch_size: int = 512,
) -> Tensor:
    """How much the decoded image changes when the latent moves one standard deviation along each eigenvector.

    For direction i it is the mean over latents of `|decode(l + sqrt(lambda_i) u_i) - decode(l)|^2`, summed
    over the numbers of an image. Compare it with the autoencoder's reconstruction error: a direction far
    below it cannot be rewarded by any metric on images.

    Args:
        decode: maps latents (batch, *dim) to images (batch, *image).
        latents: where to start from, shape (n, *dim).
        eigenvectors: columns are directions, shape (dim, dim), as from `eigen_spectrum`.
        eigenvalues: variance along each direction, shape (dim,).
        batch_size: latents decoded at once.

    Returns:
        Mean sum of squares per direction, shape (dim,), float64, in the order of `eigenvalues`.

    Raises:
        PrecfmError: there are no latents, or the shapes do not fit.

    Example:
        >>> latents, spectrum = torch.zeros(3, 2), eigen_spectrum(torch.diag(torch.tensor([1.0, 4.0])))
        >>> decoder_sensitivity(lambda x: 3 * x, latents, spectrum.eigenvectors, spectrum.eigenvalues)
        tensor([ 9., 36.], dtype=torch.float64)
    """
    features = latents[0].numel() if len(latents) else 0
    if not features or eigenvectors.shape != (features, len(eigenvalues)):
        raise PrecfmError(
            f"latents have shape {tuple(latents.shape)} and eigenvectors {tuple(eigenvectors.shape)}, "
            f"but (n, *dim) with n > 0 and (dim, {len(eigenvalues)}) are needed"
        )
    moves = (eigenvectors * eigenvalues.clamp(min=0).sqrt()).T.to(latents).reshape(-1, *latents.shape[1:])
    sums = torch.zeros(len(moves), dtype=torch.float64)
    for block in torch.split(latents, batch_size):
        images = decode(block)
        for index, move in enumerate(moves):
            sums[index] += (decode(block + move) - images).double().square().sum().cpu()
    return sums / len(latents)


def _variances_along(cov: Tensor, directions: Tensor) -> Tensor:
    """`u_i^T cov u_i` for each column `u_i` of `directions`."""
    return ((cov @ directions) * directions).sum(dim=0)


def _largest_difference(preconditioner: Preconditioner, x: Tensor, labels: Tensor | None) -> float:
    back = preconditioner.inverse(preconditioner.forward(x, labels), labels)
    return float((back - x).abs().max()) if x.numel() else 0.0
