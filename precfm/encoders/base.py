"""What every encoder offers: fit to images, encode them to latents, decode latents to images, one format on disk."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from precfm.core.errors import PrecfmError
from precfm.core.options import parameters
from precfm.core.registry import name_of
from precfm.core.seeds import generator_for
from precfm.core.serialization import load_network, save_network
from precfm.core.tensors import require_tensor
from precfm.training.options import TrainingOptions

if TYPE_CHECKING:
    import pandas as pd

# Images or latents at once, and of large images as many as have this many numbers: the memory is that times the width
# of a network.
BATCH, NUMBERS = 500, 2**23
GREY_LEVEL = 1 / 255


class Encoder(nn.Module, ABC):
    """A map from images to latents and back.

    A subclass stores each argument of its `__init__` in an attribute of the same name, allocates its buffers and
    modules there (so that `load` can fill them), and implements `_fit`, `_encode` and `_decode`. One that cannot be
    fitted to few images overrides `check_rows`.

    Args:
        channels: 1 for grey images, 3 for colour.
        image_size: height and width in pixels.
        latent_shape: shape of one latent.

    Attributes:
        trained: whether `fit` trains by gradient descent, and so takes training options.
        has_posterior: whether an image has a distribution of latents, of which `encode` can draw samples.
        image_shape: shape of one image, (channels, height, width).
        latent_shape: shape of one latent.
    """

    trained: bool = False
    has_posterior: bool = False

    anchor: Tensor

    def __init__(self, channels: int, image_size: int, latent_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.channels, self.image_size = channels, image_size
        self.image_shape = (channels, image_size, image_size)
        self.latent_shape = latent_shape
        # An empty tensor that follows `to`, so that an encoder without weights knows its device, too.
        self.register_buffer("anchor", torch.empty(0), persistent=False)

    def fit(
        self,
        images: Tensor,
        *,
        seed: int = 0,
        training: TrainingOptions | None = None,
        validation: Tensor | None = None,
        scratch: Path | None = None,
    ) -> "pd.DataFrame | None":
        """Fit to images, where the encoder lies; its initial weights are the caller's.

        Args:
            images: Tensor, shape (n, channels, height, width), uint8.
            seed: seed of everything random in the fit.
            training: how to train, where the encoder is trained.
            validation: other images, as `images`, for early stopping where the training validates.
            scratch: folder where a training keeps its state, so that a fit that was killed resumes.

        Returns:
            The history of the training, one row per step; None where nothing is trained.

        Raises:
            PrecfmError: the images are of another shape or type or too few, or training options meet an encoder without
                training.
            DivergenceError: the loss is no longer finite.
        """
        if training is not None and not self.trained:
            raise PrecfmError(
                f"training: got options, but {type(self).__name__} is not trained; leave them out"
            )
        self._check_images(images, "images")
        if validation is not None:
            self._check_images(validation, "validation")
        self.check_rows(len(images))
        history = self._fit(images, seed, training, validation, scratch)
        self.eval()
        return history

    def check_rows(self, rows: int) -> None:
        """Refuse a number of images to fit to that is too small; also for a plan, before any image is read.

        Args:
            rows: how many images there are to fit to.

        Raises:
            PrecfmError: they are too few; names the option that asks for more.
        """

    @torch.no_grad()
    def encode(self, images: Tensor, *, sample_seed: int | None = None) -> Tensor:
        """Latents of images, in batches.

        Args:
            images: Tensor, shape (n, channels, height, width), uint8.
            sample_seed: seed of one sample of each image's posterior; None for the posterior's mean.

        Returns:
            Tensor, shape (n, *latent_shape), float32, on the device of `images`.

        Raises:
            PrecfmError: the images are of another shape or type, or samples are wanted of an encoder without posterior.
        """
        self._check_images(images, "images")
        if sample_seed is not None and not self.has_posterior:
            raise PrecfmError(
                f"sample_seed: got {sample_seed}, but {type(self).__name__} has no posterior to sample"
            )
        blocks = torch.split(images, self._batch_size)
        noises: tuple[Tensor | None, ...] = (None,) * len(blocks)
        if sample_seed is not None:
            generator = generator_for(sample_seed, "encode")
            noise = torch.randn(len(images), *self.latent_shape, generator=generator)
            noises = torch.split(noise.to(self.anchor), self._batch_size)
        pairs = zip(blocks, noises, strict=True)
        latents = [self._encode(unit_range(block.to(self.anchor.device)), noise) for block, noise in pairs]
        return torch.cat(latents).to(images.device)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images of latents, in batches; what the decoder puts outside [0, 1] is clamped.

        Args:
            latents: Tensor, shape (n, *latent_shape).

        Returns:
            Tensor, shape (n, channels, height, width), float32 in [0, 1], on the device of `latents`.

        Raises:
            PrecfmError: the latents have another shape.
        """
        return torch.cat([block.clamp(0, 1).to(latents.device) for block in self._decoded(latents)])

    @torch.no_grad()
    def clamped_shares(self, latents: Tensor) -> Tensor:
        """The share of each decoded image's numbers that `decode` clamps by more than half a grey level, in batches.

        What is clamped by less comes out as the same byte.

        Args:
            latents: Tensor, shape (n, *latent_shape).

        Returns:
            Tensor, shape (n,), float32 in [0, 1], on the device of `latents`.

        Raises:
            PrecfmError: the latents have another shape.
        """
        shares = [
            ((block - 0.5).abs() > (1 + GREY_LEVEL) / 2).float().flatten(1).mean(dim=1)
            for block in self._decoded(latents)
        ]
        return torch.cat(shares).to(latents.device)

    def reconstruction_errors(self, images: Tensor, latents: Tensor) -> Tensor:
        """The squared error of each decoded latent, summed over pixels and channels, in batches.

        Args:
            images: the originals, shape (n, channels, height, width), uint8.
            latents: their latents, shape (n, *latent_shape).

        Returns:
            Tensor, shape (n,), on the device of `images`.
        """
        size = self._batch_size
        pairs = zip(torch.split(images, size), torch.split(latents, size), strict=True)
        return torch.cat([squared_error(self.decode(block), unit_range(image)) for image, block in pairs])

    @property
    def _batch_size(self) -> int:
        return min(BATCH, max(1, NUMBERS // math.prod(self.image_shape)))

    def _decoded(self, latents: Tensor) -> Iterator[Tensor]:
        """Images of latents before they are clamped, batch by batch, where the encoder lies."""
        require_tensor(latents, "latents", floating=True)
        if latents.shape[1:] != self.latent_shape:
            raise PrecfmError(
                f"latents: have shape {tuple(latents.shape)}; (n, {', '.join(map(str, self.latent_shape))}) is needed"
            )
        return map(self._decode, torch.split(latents.to(self.anchor), self._batch_size))

    def _check_images(self, images: Tensor, name: str) -> None:
        require_tensor(images, name)
        if images.dtype != torch.uint8 or images.shape[1:] != self.image_shape:
            raise PrecfmError(
                f"{name}: {images.dtype} of shape {tuple(images.shape)}; "
                f"uint8 of shape (n, {', '.join(map(str, self.image_shape))}) is needed"
            )

    @abstractmethod
    def _fit(
        self,
        images: Tensor,
        seed: int,
        training: TrainingOptions | None,
        validation: Tensor | None,
        scratch: Path | None,
    ) -> "pd.DataFrame | None":
        """Fit; what `fit` receives, checked."""

    @abstractmethod
    def _encode(self, images: Tensor, noise: Tensor | None) -> Tensor:
        """Latents of one batch of images, bytes / 255; with `noise` (batch, *latent_shape) samples of the posterior."""

    @abstractmethod
    def _decode(self, latents: Tensor) -> Tensor:
        """Images of one batch of latents; `decode` clamps them into [0, 1]."""


def save(encoder: Encoder, folder: Path) -> None:
    """Store an encoder as `model.safetensors` and `model.json`, for `load`.

    Args:
        encoder: the encoder.
        folder: where the two files go.
    """
    options = {name: getattr(encoder, name) for name in parameters(type(encoder))}
    description = {"group": "encoders", "name": name_of("encoders", type(encoder)), "options": options}
    save_network(encoder, description, folder)


def load(folder: Path, device: str = "cpu") -> Encoder:
    """Read an encoder back, frozen and in evaluation mode.

    Args:
        folder: where `save` wrote.
        device: where the encoder shall be.

    Raises:
        PrecfmError: the folder holds no encoder, or one of a package that is not imported yet.
    """
    encoder = load_network(folder, device)
    if not isinstance(encoder, Encoder):
        raise PrecfmError(f"{folder}: holds a {type(encoder).__name__}, but an encoder is needed")
    return encoder


def unit_range(images: Tensor) -> Tensor:
    """Bytes as float32 in [0, 1]."""
    return images.float() / 255


def squared_error(images: Tensor, others: Tensor) -> Tensor:
    """The squared error of each image, summed over its pixels and channels.

    Args:
        images: Tensor, shape (batch, channels, height, width).
        others: Tensor of the same shape.

    Returns:
        Tensor, shape (batch,).
    """
    return (images - others).square().flatten(1).sum(dim=1)
