"""The metric that a decoder pulls back to its latents, and how it reads in the space of a preconditioner."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from precfm.errors import PrecfmError
from precfm.preconditioners.base import Preconditioner
from precfm.seeds import generator_for

if TYPE_CHECKING:
    from precfm.artifacts import Artifact

CHUNK = 64  # latents at once: the memory is chunk x pixels x dim numbers
PROBES = 32  # random points at which an inverse is asked whether it is affine
TOLERANCE = 1e-5  # how far it may bend, relative to how far it moves


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
def inverse_jacobian(preconditioner: Preconditioner, dim: int, labels: Tensor | None = None) -> Tensor:
    """The constant Jacobian dx/dz of an affine preconditioner's inverse, x = J z + b.

    A step of the flow's space has the length of J d in data space, so a metric G of the data space reads
    J^T G J there. The offset b may depend on the class; J may not.

    Args:
        preconditioner: a fitted preconditioner.
        dim: number of features of one datum.
        labels: classes to check, shape (n,), where the inverse depends on them; all that the fit saw where None.

    Returns:
        J, shape (dim, dim), float64: column i is the move of x for a unit move of feature i of z.

    Raises:
        PrecfmError: the inverse bends, its Jacobian differs between classes, it is not fitted, or it is of
            another dimension.

    Example:
        >>> from precfm.preconditioners.scalar import Scalar
        >>> inverse_jacobian(Scalar().fit(torch.tensor([[0.0, 3.0], [4.0, 1.0]])), 2).diagonal()
        tensor([2.2361, 2.2361], dtype=torch.float64)
    """
    name = type(preconditioner).__name__
    if preconditioner.fitted and preconditioner.features != dim:
        raise PrecfmError(f"{name}: has {preconditioner.features} features, but dim is {dim}")
    classes: list[int | None] = [None]
    if preconditioner.needs_labels:
        classes = list(preconditioner.classes) if labels is None else torch.unique(labels).tolist()
    probes = 3 * torch.randn(PROBES, dim, generator=generator_for(0, "affine probes"), dtype=torch.float64)
    points = torch.cat(
        [torch.zeros(1, dim, dtype=torch.float64), torch.eye(dim, dtype=torch.float64), probes]
    )
    points = points.to(preconditioner.anchor.device)
    jacobian = None
    for label in classes:
        images = _inverse(preconditioner, points, label)
        moves = images[1:] - images[0]
        jacobian = moves[:dim].T if jacobian is None else jacobian
        straight = points[1:] @ jacobian.T
        bend = (moves - straight).norm(dim=1) - TOLERANCE * straight.norm(dim=1)
        if float(bend.max()) > 0:
            raise PrecfmError(
                f"{name}: its inverse is not one affine map for all points and classes, but the loss metrics "
                "'latent' and 'decoder' need one; use the loss metric 'flow', or a preconditioner such as whitening"
            )
    assert jacobian is not None  # a fit saw at least one class
    return jacobian


def _inverse(preconditioner: Preconditioner, points: Tensor, label: int | None) -> Tensor:
    labels = None if label is None else torch.full((len(points),), label, device=points.device)
    shaped = points.reshape(len(points), *preconditioner.event_shape) if preconditioner.fitted else points
    return preconditioner.inverse(shaped, labels).flatten(1)


def metric_of(artifacts: Sequence["Artifact"]) -> Tensor | None:
    """The metric (dim, dim) that an artifact of kind `decoder_metrics` holds; None where the plan gives none."""
    return artifacts[0].tensors("metric.safetensors")["metric"] if artifacts else None
