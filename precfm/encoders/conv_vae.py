"""A small convolutional variational autoencoder, trained here: images to latents and back."""

from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn

from precfm.core.options import Count, NotNegative, checked
from precfm.encoders.base import Encoder
from precfm.training.negative_elbo import NegativeELBO, train_autoencoder
from precfm.training.options import TrainingOptions


class ConvVAE(Encoder):
    """Two strided convolutions, one hidden layer, and the mirror image of both.

    The encoder gives the mean and the log-variance of a Gaussian posterior over latents; the decoder's
    sigmoid keeps images in [0, 1].

    Args:
        latent_dim: dimension L of the latents.
        channels: 1 for grey images, 3 for colour.
        image_size: height and width in pixels, a multiple of 4.
        width: channels after the first convolution; there are twice as many after the second.
        hidden: units of the dense layer between the convolutions and the latents.
        beta: weight of the divergence in the loss.

    Raises:
        PrecfmError: an argument is impossible.

    References:
        Kingma, Welling, "Auto-Encoding Variational Bayes", https://arxiv.org/abs/1312.6114
        Higgins et al., "beta-VAE", ICLR 2017, https://openreview.net/forum?id=Sy2fzU9gl

    Example:
        >>> vae = ConvVAE(latent_dim=8, image_size=32, channels=3)
        >>> latents = vae.encode(torch.zeros(5, 3, 32, 32, dtype=torch.uint8))
        >>> latents.shape, vae.decode(latents).shape
        (torch.Size([5, 8]), torch.Size([5, 3, 32, 32]))
    """

    trained = True
    has_posterior = True

    @checked
    def __init__(
        self,
        latent_dim: Count = 16,
        channels: Literal[1, 3] = 1,
        image_size: Annotated[int, Field(ge=4, multiple_of=4)] = 28,
        width: Count = 16,
        hidden: Count = 128,
        beta: NotNegative = 1e-3,
    ) -> None:
        super().__init__(channels, image_size, (latent_dim,))
        self.latent_dim, self.width, self.hidden, self.beta = latent_dim, width, hidden, beta
        small = image_size // 4
        flat = 2 * width * small * small
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(flat, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 2 * latent_dim),
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, hidden),
            nn.ReLU(),
            nn.Linear(hidden, flat),
            nn.ReLU(),
            nn.Unflatten(1, (2 * width, small, small)),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1),
            nn.Sigmoid(),
        )
        # PyTorch's own initial weights shrink the signal layer by layer; some latents then wake late, or never.
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.zeros_(parameter)

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, each (batch, latent_dim), of the latents of images in [0, 1]."""
        mean, log_variance = self.encoder(images).chunk(2, dim=1)
        return mean, log_variance

    def _fit(
        self,
        images: Tensor,
        seed: int,
        training: TrainingOptions | None,
        validation: Tensor | None,
        scratch: Path | None,
    ) -> pd.DataFrame:
        return train_autoencoder(
            self,
            NegativeELBO(self.latent_dim, self.beta),
            images.to(self.anchor.device),
            TrainingOptions() if training is None else training,
            seed=seed,
            validation=validation,
            scratch=scratch,
        )

    def _encode(self, images: Tensor, noise: Tensor | None) -> Tensor:
        mean, log_variance = self.posterior(images)
        return mean if noise is None else mean + torch.exp(0.5 * log_variance) * noise

    def _decode(self, latents: Tensor) -> Tensor:
        images: Tensor = self.decoder(latents)
        return images
