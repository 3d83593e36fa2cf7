"""The metric that a decoder pulls back to its latents, and how it reads in the space of a preconditioner."""

from collections.abc import Callable

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError

CHUNK = 64  # latents at once: the memory is chunk x pixels x dim numbers


@torch.no_grad()
def pull_back_metric(decode: Callable[[Tensor], Tensor], latents: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """The mean over latents of J^T J, with J the Jacobian of the decoder there.

    For a small step d of a latent, d^T G d is the mean change of the image, as a sum of squares over its numbers:
    pixel units, those of a squared reconstruction error. One forward-mode derivative per latent dimension.

    Args:
        decode: maps latents (batch, *dim) to images (batch, *image), each row on its own.
        latents: where to take the Jacobian, shape (n, *dim); a few hundred suffice for a mean.
        chunk: latents at once.

    Returns:
        G, shape (dim, dim), trailing dimensions flattened, symmetric, float64.

    Raises:
        PrecfmError: there are no latents, `chunk` is below 1, or a derivative is not finite.

    References:
        | Latent Space Oddity: on the Curvature of Deep Generative Models (Arvanitidis et al., 2018)
        | https://arxiv.org/abs/1710.11379

    Example:
        >>> pull_back_metric(lambda latents: latents @ torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.zeros(5, 2))
        tensor([[5., 6.],
                [6., 9.]], dtype=torch.float64)
    """
    features = latents[0].numel() if len(latents) else 0
    if not features:
        raise PrecfmError(f"latents have shape {tuple(latents.shape)}, but (n, *dim) with n > 0 is needed")
    if chunk < 1:
        raise PrecfmError(f"chunk is {chunk}, but at least 1 is needed")
    directions = torch.eye(features).to(latents).reshape(features, *latents.shape[1:])
    metric = torch.zeros(features, features, dtype=torch.float64, device=latents.device)
    for block in torch.split(latents, chunk):
        columns = [
            torch.func.jvp(decode, (block,), (direction.expand_as(block).clone(),))[1].flatten()
            for direction in directions
        ]
        jacobian = torch.stack(columns).double()
        metric += (jacobian @ jacobian.T).to(metric)
    if not bool(metric.isfinite().all()):
        raise PrecfmError("the decoder's derivative is not finite at some latent; check latents and decoder")
    return (metric + metric.T) / (2 * len(latents))


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
    over the numbers of an image. Compare it with the encoder's reconstruction error: a direction far
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
        >>> from precfm.geometry.spectra import eigen_spectrum
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
