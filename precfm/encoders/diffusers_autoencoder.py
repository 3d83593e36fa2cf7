"""Image autoencoders of diffusers: images to latents, scaled as flows see them, and back."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.tensors import require_tensor

# By class, the latents in what `encode` returns; of a posterior its mean.
LATENTS_OF: dict[str, Callable[[Any], Tensor]] = {
    "AutoencoderKL": lambda encoded: encoded.latent_dist.mode(),
    "AutoencoderTiny": lambda encoded: encoded.latents,
    "AutoencoderDC": lambda encoded: encoded.latent,
}
NUMBERS = 2**20  # in the images of one batch: a layer of 128 channels at full size takes 180 MB
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class DiffusersAutoencoder:
    """Encodes images by the mean of the posterior and decodes latents, in batches of bounded memory.

    Latents are shifted and scaled as the model's config says, by `shift_factor` and `scaling_factor` or by
    `latents_mean` and `latents_std`: what diffusers' pipelines hand to a flow.

    Args:
        model: an `AutoencoderKL`, `AutoencoderTiny` or `AutoencoderDC` of diffusers, on any device.

    Attributes:
        channels: of its images: 1 or 3.

    Raises:
        PrecfmError: the model is of another class, or of images of other channels.

    References:
        | High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022), section G
        | https://arxiv.org/abs/2112.10752
    """

    def __init__(self, model: Any) -> None:
        kinds = [base.__name__ for base in type(model).__mro__ if base.__name__ in LATENTS_OF]
        if not kinds:
            raise PrecfmError(
                f"model: got a {type(model).__name__}; one of {', '.join(LATENTS_OF)} is needed"
            )
        config, anchor = model.config, next(model.parameters())
        self.channels: int = config.in_channels
        if self.channels not in (1, 3):
            raise PrecfmError(f"model: takes images of {self.channels} channels; 1 or 3 are needed")
        self._model, self._latents_of, self._anchor = model, LATENTS_OF[kinds[0]], anchor
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is None or std is None:  # diffusers, too, uses neither where one is missing
            mean, std = config.get("shift_factor") or 0.0, 1.0
        self._shift = torch.tensor(mean, dtype=torch.float32, device=anchor.device).reshape(-1, 1, 1)
        std = torch.tensor(std, dtype=torch.float32, device=anchor.device).reshape(-1, 1, 1)
        self._scale = (config.get("scaling_factor") or 1.0) / std

    @classmethod
    def load(cls, source: str | Path, device: str = "cpu") -> "DiffusersAutoencoder":
        """Read an autoencoder in float32, its weights from .safetensors, never from a pickle.

        Args:
            source: a folder that `save_pretrained` wrote, or a name on the Hugging Face Hub, OWNER/NAME.
            device: where it shall be.

        Raises:
            PrecfmError: diffusers is not installed, the folder or name does not give such a model with all its weights,
                or there is no such device.
        """
        try:
            import diffusers
        except ImportError:
            raise PrecfmError(
                f"{source}: needs diffusers, which is not installed; pip install diffusers"
            ) from None
        local = Path(source).is_dir()
        if local:
            _require_files(Path(source))
        elif not HUB_NAME.fullmatch(str(source)):
            raise PrecfmError(
                f"{source}: there is no such folder, and names on the Hugging Face Hub are OWNER/NAME"
            )
        try:
            kind = diffusers.AutoencoderKL.load_config(source).get("_class_name")
            if kind not in LATENTS_OF:
                raise PrecfmError(f"{source}: is a {kind}; one of {', '.join(LATENTS_OF)} is needed")
            model, weights = getattr(diffusers, kind).from_pretrained(
                source,
                torch_dtype=torch.float32,
                use_safetensors=True,
                low_cpu_mem_usage=False,  # else a package more, accelerate, is asked for
                output_loading_info=True,
            )
        except PrecfmError:
            raise
        except Exception as error:  # diffusers, the hub and safetensors each have their own
            what = "cannot be read" if local else "is no folder, and cannot be had from the Hugging Face Hub"
            raise PrecfmError(f"{source}: {what} ({' '.join(str(error).split())[:200]})") from error
        if weights["missing_keys"]:  # diffusers would draw them at random
            raise PrecfmError(
                f"{source}: lacks weights, {weights['missing_keys'][0]} among them; get it again"
            )
        try:
            return cls(model.to(device))
        except (RuntimeError, AssertionError) as error:
            raise PrecfmError(f"device: got '{device}' ({str(error).splitlines()[0][:200]})") from None

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Latents of images.

        Args:
            images: shape (n, channels, height, width), uint8.

        Returns:
            Shape (n, latent channels, latent height, latent width), float32, on the device of `images`.

        Raises:
            PrecfmError: the images are of another shape or type, or of a size that the network does not take.
        """
        require_tensor(images, "images")
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != self.channels:
            raise PrecfmError(
                f"images: {images.dtype} of shape {tuple(images.shape)}; uint8 of shape (n, {self.channels}, height, "
                "width) is needed"
            )
        latents = []
        for block in torch.split(images, max(1, NUMBERS // math.prod(images.shape[1:]))):
            pixels = block.to(self._anchor.device).to(self._anchor.dtype) / 127.5 - 1
            try:
                encoded = self._latents_of(self._model.encode(pixels)).float()
            except RuntimeError as error:
                size = " x ".join(map(str, reversed(block.shape[2:])))
                raise PrecfmError(
                    f"images: are {size}, of which {type(self._model).__name__} makes no latents "
                    f"({str(error).splitlines()[0][:200]})"
                ) from error
            latents.append(((encoded - self._shift) * self._scale).to(images.device))
        return torch.cat(latents)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images of latents, clamped into [0, 1].

        Args:
            latents: shape (n, latent channels, latent height, latent width), floating point.

        Returns:
            Shape (n, channels, height, width), float32, on the device of `latents`.
        """
        require_tensor(latents, "latents", floating=True)
        images: list[Tensor] = []
        rows = 1  # of the first batch, which tells how large an image is
        while (done := sum(map(len, images))) < len(latents):
            block = latents[done : done + rows].to(self._anchor.device).float() / self._scale + self._shift
            decoded = self._model.decode(block.to(self._anchor.dtype)).sample.float()
            images.append((decoded / 2 + 0.5).clamp(0, 1).to(latents.device))
            rows = max(1, NUMBERS // decoded[0].numel())
        return torch.cat(images)


def _require_files(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise PrecfmError(
            f"{folder}: holds no config.json; a folder that `save_pretrained` of an autoencoder wrote is needed, such "
            "as 'vae' in that of a pipeline"
        )
    if not any(folder.glob("*.safetensors")):
        raise PrecfmError(f"{folder}: holds no .safetensors, the only weights that are read")
