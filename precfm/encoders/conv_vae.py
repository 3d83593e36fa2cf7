"""A small convolutional variational autoencoder, trained here: images to latents and back."""

import torch
from torch import Tensor, nn

from precfm.core.errors import PrecfmError
from precfm.core.options import Count, checked

BLOCK = 500  # images that pass through the network at once


class ConvVAE(nn.Module):
    """Two strided convolutions, one hidden layer, and the mirror image of both.

    The encoder gives the mean and the log-variance of a Gaussian posterior over latents; the decoder's
    sigmoid keeps images in [0, 1].

    Args:
        latent_dim: dimension L of the latents.
        channels: 1 for grey images, 3 for colour.
        image_size: height and width in pixels, a multiple of 4.
        width: channels after the first convolution; there are twice as many after the second.
        hidden: units of the dense layer between the convolutions and the latents.

    Raises:
        PrecfmError: an argument is impossible.

    References:
        Kingma, Welling, "Auto-Encoding Variational Bayes", https://arxiv.org/abs/1312.6114
        Higgins et al., "beta-VAE", ICLR 2017, https://openreview.net/forum?id=Sy2fzU9gl

    Example:
        >>> vae = ConvVAE(latent_dim=8, image_size=32, channels=3)
        >>> mean, log_variance = vae.encode(torch.rand(5, 3, 32, 32))
        >>> mean.shape, vae.decode(mean).shape
        (torch.Size([5, 8]), torch.Size([5, 3, 32, 32]))
    """

    @checked
    def __init__(
        self,
        latent_dim: Count = 16,
        channels: int = 1,
        image_size: int = 28,
        width: Count = 16,
        hidden: Count = 128,
    ) -> None:
        super().__init__()
        if image_size < 4 or image_size % 4:
            raise PrecfmError(
                f"encoder.image_size: {image_size} is not a positive multiple of 4, such as 28 or 32"
            )
        if channels not in (1, 3):
            raise PrecfmError(f"encoder.channels: {channels} should be 1 (grey) or 3 (colour)")
        self.latent_dim = latent_dim
        self.image_shape = (channels, image_size, image_size)
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

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The posterior over latents.

        Args:
            images: Tensor, shape (batch, channels, image_size, image_size), values in [0, 1].

        Returns:
            Mean and log-variance, each of shape (batch, latent_dim).

        Raises:
            PrecfmError: the images have another shape than the encoder was made for.
        """
        if images.shape[1:] != self.image_shape:
            found = tuple(images.shape[1:])
            raise PrecfmError(f"images: have shape {found}, but the encoder was made for {self.image_shape}")
        mean, log_variance = self.encoder(images).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, latents: Tensor) -> Tensor:
        """Images of latents.

        Args:
            latents: Tensor, shape (batch, latent_dim).

        Returns:
            Tensor, shape (batch, channels, image_size, image_size), values in [0, 1].
        """
        images: Tensor = self.decoder(latents)
        return images


def vae_loss(
    model: nn.Module, batch: tuple[Tensor, ...], generator: torch.Generator, beta: float = 1e-3
) -> Tensor:
    """Reconstruction and regularisation: SSE + beta KL(posterior || N(0, I)), one posterior sample per image.

    The squared error is summed over an image's pixels and channels, the divergence over its latents, and both
    are averaged over the batch. Bind `beta` with `functools.partial` to make it the trainer's loss.

    Args:
        model: the encoder.
        batch: images first, shape (batch, channels, height, width), uint8 or float in [0, 1]; the rest is
            ignored.
        generator: source of the posterior samples.
        beta: weight of the divergence.

    Returns:
        Scalar.

    References:
        Higgins et al., "beta-VAE", ICLR 2017, equation 4.
    """
    assert isinstance(model, ConvVAE)
    images = unit_range(batch[0])
    mean, log_variance = model.encode(images)
    noise = torch.randn(mean.shape, generator=generator, device=generator.device).to(mean)
    latents = mean + torch.exp(0.5 * log_variance) * noise
    error = squared_error(model.decode(latents), images).mean()
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1).mean()
    return error + beta * divergence


def squared_error(images: Tensor, others: Tensor) -> Tensor:
    """The squared error of each image, summed over its pixels and channels.

    Args:
        images: Tensor, shape (batch, channels, height, width).
        others: Tensor of the same shape.

    Returns:
        Tensor, shape (batch,).
    """
    return (images - others).square().flatten(1).sum(dim=1)


def unit_range(images: Tensor) -> Tensor:
    """Bytes as float32 in [0, 1]; images that are floats already pass unchanged."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


@torch.no_grad()
def encode_images(model: ConvVAE, images: Tensor, batch: int = BLOCK) -> tuple[Tensor, Tensor]:
    """Encode a whole data set, block by block.

    Args:
        model: the encoder.
        images: Tensor, shape (n, channels, height, width), uint8 or float in [0, 1].
        batch: images per block; it bounds the memory.

    Returns:
        Mean and log-variance of the posteriors, each of shape (n, latent_dim), on the device of `images`.
    """
    device = next(model.parameters()).device
    blocks = [model.encode(unit_range(block.to(device))) for block in torch.split(images, batch)]
    means, log_variances = zip(*blocks, strict=True)
    return torch.cat(means).to(images.device), torch.cat(log_variances).to(images.device)


@torch.no_grad()
def decode_latents(model: ConvVAE, latents: Tensor, batch: int = BLOCK) -> Tensor:
    """Decode many latents, block by block.

    Args:
        model: the encoder.
        latents: Tensor, shape (n, latent_dim).
        batch: latents per block; it bounds the memory.

    Returns:
        Tensor, shape (n, channels, height, width), values in [0, 1], on the device of `latents`.
    """
    parameter = next(model.parameters())
    return torch.cat(
        [model.decode(block.to(parameter)).to(latents.device) for block in torch.split(latents, batch)]
    )


@torch.no_grad()
def reconstruction_errors(model: ConvVAE, images: Tensor, batch: int = BLOCK) -> Tensor:
    """The squared error between each image and the decoded mean of its posterior.

    Args:
        model: the encoder.
        images: Tensor, shape (n, channels, height, width), uint8 or float in [0, 1].
        batch: images per block.

    Returns:
        Tensor, shape (n,), on the device of `images`.
    """
    errors = []
    for block in torch.split(images, batch):
        mean, _ = encode_images(model, block, batch)
        errors.append(squared_error(decode_latents(model, mean, batch), unit_range(block)))
    return torch.cat(errors)
