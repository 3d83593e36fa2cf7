"""How a variational autoencoder is trained: by the negative evidence lower bound of its images."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor, nn

from precfm.core.seeds import generator_for
from precfm.training.options import TrainingOptions
from precfm.training.trainer import train

if TYPE_CHECKING:
    import pandas as pd

BATCH = 500  # validation images at once


class Autoencoder(Protocol):
    """What is trained: a Gaussian posterior of latents, and a decoder."""

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, each (batch, latent_dim), of the latents of images in [0, 1]."""

    def decoder(self, latents: Tensor) -> Tensor:
        """Images in [0, 1] of latents, (batch, latent_dim)."""


@dataclass(frozen=True)
class NegativeELBO:
    """Reconstruction and regularisation: SSE + beta KL(posterior || N(0, I)), one posterior sample per image.

    The squared error is summed over an image's pixels and channels, the divergence over its latents, and both are
    averaged over the batch.

    Attributes:
        latent_dim: dimension of the latents.
        beta: weight of the divergence.

    References:
        Higgins et al., "beta-VAE", ICLR 2017, equation 4, https://openreview.net/forum?id=Sy2fzU9gl
    """

    latent_dim: int
    beta: float

    def draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """The noise of the posterior samples, (batch, latent_dim)."""
        return (torch.randn(batch_size, self.latent_dim, generator=generator),)

    def loss(self, module: nn.Module, batch: tuple[Tensor, ...], draws: tuple[Tensor, ...]) -> Tensor:
        """The loss of an `Autoencoder` on images, (batch, channels, height, width), uint8."""
        autoencoder, (images,), (noise,) = cast(Autoencoder, module), batch, draws
        originals = images.float() / 255
        mean, log_variance = autoencoder.posterior(originals)
        latents = mean + torch.exp(0.5 * log_variance) * noise
        error = (autoencoder.decoder(latents) - originals).square().flatten(1).sum(dim=1).mean()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1).mean()
        return error + self.beta * divergence


def train_autoencoder(
    model: nn.Module,
    objective: NegativeELBO,
    images: Tensor,
    options: TrainingOptions,
    *,
    seed: int,
    validation: Tensor | None,
    scratch: Path | None,
) -> "pd.DataFrame":
    """Train an `Autoencoder` where it and the images lie.

    Args:
        model: the autoencoder, a module.
        objective: the loss.
        images: Tensor, shape (n, channels, height, width), uint8.
        options: how to train.
        seed: seed of all random draws.
        validation: other images, as `images`, for early stopping where the training validates.
        scratch: folder where the training keeps its state, so that one that was killed resumes.

    Returns:
        The history of the training, one row per step.

    Raises:
        DivergenceError: the loss is no longer finite.
    """

    def validation_loss(module: nn.Module) -> float:
        assert validation is not None
        generator = generator_for(seed, "validation")
        noise = torch.randn(len(validation), objective.latent_dim, generator=generator)
        total = 0.0
        for others, drawn in zip(torch.split(validation, BATCH), torch.split(noise, BATCH), strict=True):
            batch, draws = (others.to(images.device),), (drawn.to(images.device),)
            total += float(objective.loss(module, batch, draws)) * len(others)
        return total / len(validation)

    result = train(
        model,
        objective,
        (images,),
        options,
        seed=seed,
        validation_loss=None if validation is None else validation_loss,
        scratch=scratch,
        facts={"beta": objective.beta},
        name="encoder",
    )
    return result.history
