"""Raw pixels or latents as features, and their whitened variant."""

import torch
from torch import Tensor

from precfm.metrics.checks import Features, feature_pair


class Identity:
    """Every image (or latent) flattened to a vector."""

    name = "identity"

    def features(self, images: Tensor) -> Tensor:
        """Flattened images, shape (batch, product of the rest)."""
        return images.flatten(1)


class Pixels(Identity):
    """Whole images as vectors: a judge that needs no weights, and sees no more than a distance of pixels."""

    name = "pixels"


def whitened(features: Features, reference: Features, *, shrinkage: float = 1e-6) -> Tensor:
    """Features in coordinates in which the reference has covariance I: low-variance directions weigh as much.

    Args:
        features: shape (n, dim).
        reference: shape (m, dim), usually the training split; fits mean and covariance.
        shrinkage: share of the mean variance that is added to every direction, so that a constant feature (or
            m <= dim) is no division by zero.

    Returns:
        Float64, shape (n, dim), along the reference's eigenvectors by increasing variance.
    """
    x, y = feature_pair(features, reference, ("features", "reference"))
    y = y.to(torch.float64)
    values, vectors = torch.linalg.eigh(torch.cov(y.T).reshape(y.shape[1], -1))
    values = values.clamp(min=0)
    floor = shrinkage * values.mean().clamp(min=torch.finfo(torch.float64).tiny)
    coordinates: Tensor = (x - y.mean(0)) @ vectors / (values + floor).sqrt()
    return coordinates
