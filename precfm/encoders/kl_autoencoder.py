"""A small autoencoder of diffusers' AutoencoderKL class, trained here: photographs to feature maps and back."""

import math
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.options import Count, NotNegative, checked
from precfm.encoders.base import Encoder
from precfm.training.negative_elbo import NegativeELBO, train_autoencoder
from precfm.training.options import TrainingOptions

LARGEST_MULTIPLE = 4  # of the first level's channels
GROUPS = 2  # of group normalization: a group of one channel would lose the level of what is even


class KLAutoencoder(Encoder):
    """Residual blocks that halve the image down to a map of latents, and double it back; a Gaussian posterior.

    The loss is that of `conv_vae`: squared error, summed over the image, plus beta times the divergence of the
    posterior from N(0, I). There is no adversarial or perceptual loss, so what cannot be kept comes out blurred.

    Args:
        channels: 1 for grey images, 3 for colour.
        image_size: height and width in pixels, a multiple of `factor`.
        latent_channels: channels of the latents.
        factor: how many times smaller than the image the map of latents is, along each side.
        width: channels of the first level, an even number; the next ones have 2, then 4 times as many.
        layers: residual blocks per level of the encoder; the decoder has one more.
        beta: weight of the divergence in the loss.

    Raises:
        PrecfmError: an argument is impossible, or diffusers is not installed.

    References:
        | High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022), section G
        | https://arxiv.org/abs/2112.10752
    """

    trained = True
    has_posterior = True

    @checked
    def __init__(
        self,
        channels: Literal[1, 3] = 3,
        image_size: Count = 64,
        latent_channels: Count = 4,
        factor: Literal[2, 4, 8, 16] = 8,
        width: Count = 16,
        layers: Count = 1,
        beta: NotNegative = 1e-2,
    ) -> None:
        if image_size % factor:
            raise PrecfmError(
                f"factor: got {factor}, but image_size is {image_size}; a factor that divides it is needed"
            )
        if width % GROUPS:
            raise PrecfmError(f"width: got {width}; a multiple of {GROUPS} is needed")
        try:
            import diffusers
        except ImportError:
            raise PrecfmError(
                "kl_autoencoder: needs diffusers, which is not installed; pip install 'precfm[images]'"
            ) from None
        side, levels = image_size // factor, int(math.log2(factor)) + 1
        super().__init__(channels, image_size, (latent_channels, side, side))
        self.latent_channels, self.factor, self.width = latent_channels, factor, width
        self.layers, self.beta = layers, beta
        autoencoder: Any = diffusers.AutoencoderKL
        self.model: Any = autoencoder(
            in_channels=channels,
            out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(width * min(2**level, LARGEST_MULTIPLE) for level in range(levels)),
            layers_per_block=layers,
            latent_channels=latent_channels,
            norm_num_groups=GROUPS,
            sample_size=image_size,
        )

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, each (batch, latent numbers), of the latents of images in [0, 1]."""
        distribution = self.model.encode(images * 2 - 1).latent_dist
        return distribution.mean.flatten(1), distribution.logvar.flatten(1)

    def decoder(self, latents: Tensor) -> Tensor:
        """Images of latents, (batch, latent numbers)."""
        images: Tensor = self.model.decode(latents.reshape(-1, *self.latent_shape)).sample
        return images / 2 + 0.5

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
            NegativeELBO(math.prod(self.latent_shape), self.beta),
            images.to(self.anchor.device),
            TrainingOptions() if training is None else training,
            seed=seed,
            validation=validation,
            scratch=scratch,
        )

    def _encode(self, images: Tensor, noise: Tensor | None) -> Tensor:
        mean, log_variance = (each.reshape(-1, *self.latent_shape) for each in self.posterior(images))
        return mean if noise is None else mean + torch.exp(0.5 * log_variance) * noise

    def _decode(self, latents: Tensor) -> Tensor:
        return self.decoder(latents)
