"""The Jacobian of an affine preconditioner's inverse, which carries a metric of data space to the flow's space."""

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.seeds import generator_for
from precfm.preconditioners.base import Preconditioner

PROBES = 32  # random points at which an inverse is asked whether it is affine
TOLERANCE = 1e-5  # how far it may bend, relative to how far it moves


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
        raise PrecfmError(f"dim: got {dim}; {name} has {preconditioner.features} features")
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
                f"{name}: its inverse is not one affine map for all points and classes, as the loss metrics 'latent' "
                "and 'decoder' need; use the loss metric 'flow', or a preconditioner such as whitening"
            )
    assert jacobian is not None  # a fit saw at least one class
    return jacobian


def _inverse(preconditioner: Preconditioner, points: Tensor, label: int | None) -> Tensor:
    labels = None if label is None else torch.full((len(points),), label, device=points.device)
    shaped = points.reshape(len(points), *preconditioner.event_shape) if preconditioner.fitted else points
    return preconditioner.inverse(shaped, labels).flatten(1)
