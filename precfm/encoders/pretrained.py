"""Autoencoders that others have trained, with the weights named by checksum: AutoencoderKL, -Tiny, -DC of diffusers."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.options import Count, Place, checked
from precfm.encoders.base import Encoder
from precfm.encoders.diffusers_autoencoder import (
    HUB_NAME,
    LATENTS_OF,
    WITH_POSTERIOR,
    DiffusersAutoencoder,
    is_here,
    weights_folder,
)
from precfm.training.options import TrainingOptions

CHECKSUM = r"^([0-9a-f]{64})?$"
# How configs call the channels of the levels, each of which but the last halves the image.
WIDTHS = ("block_out_channels", "encoder_block_out_channels")


class Pretrained(Encoder):
    """A pretrained autoencoder; latents are shifted and scaled as its config says.

    The weights stay where they are: what is saved of this encoder names them, and whoever loads it finds a file with
    that checksum or a sentence.

    Args:
        channels: 3 for colour, 1 for grey: what the autoencoder takes.
        image_size: height and width in pixels, a multiple of what the autoencoder divides them by.
        source: a folder that `save_pretrained` wrote, or a name on the Hugging Face Hub, OWNER/NAME.
        sha256: of its weight file, diffusion_pytorch_model.safetensors.
        config_sha256: of its config.json, which says how latents are shifted and scaled.
        subfolder: where in the source the autoencoder lies, such as `vae` in that of a pipeline.

    Raises:
        PrecfmError: the source cannot be had, its weights have another checksum, or it takes other images.

    References:
        | High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022)
        | https://arxiv.org/abs/2112.10752
    """

    has_posterior = True  # of AutoencoderKL; of the others an object says what its config says

    @checked
    def __init__(
        self,
        channels: Literal[1, 3] = 3,
        image_size: Count = 256,
        source: Annotated[str, Place()] = "",
        sha256: Annotated[str, Field(pattern=CHECKSUM)] = "",
        config_sha256: Annotated[str, Field(pattern=CHECKSUM)] = "",
        subfolder: Annotated[str, Place()] = "",
    ) -> None:
        for name, value in (("source", source), ("sha256", sha256), ("config_sha256", config_sha256)):
            if not value:
                raise PrecfmError(
                    f"{name}: missing; a pretrained autoencoder is named by source, sha256 and config_sha256"
                )
        self.source, self.sha256, self.subfolder = source, sha256, subfolder
        self.config_sha256 = config_sha256
        folder = weights_folder(source, sha256, subfolder)
        config = checked_config(folder, config_sha256, source)
        super().__init__(channels, image_size, latent_shape(config, channels, image_size, source))
        self.has_posterior = config["_class_name"] in WITH_POSTERIOR

    @staticmethod
    def must_be_fetched(source: str = "", subfolder: str = "", **others: Any) -> bool:
        """Whether the autoencoder with these options is on a hub, and not on this machine yet."""
        return bool(HUB_NAME.fullmatch(source)) and not is_here(source, subfolder)

    @property
    def autoencoder(self) -> DiffusersAutoencoder:
        """The autoencoder where this encoder lies."""
        folder = weights_folder(self.source, self.sha256, self.subfolder)
        return _loaded(folder, str(self.anchor.device))

    def _fit(
        self,
        images: Tensor,
        seed: int,
        training: TrainingOptions | None,
        validation: Tensor | None,
        scratch: Path | None,
    ) -> None:
        """Nothing: it is trained already."""

    def _encode(self, images: Tensor, noise: Tensor | None) -> Tensor:
        pixels = (images * 255).round().to(torch.uint8)
        return self.autoencoder.encode(pixels, noise=noise)

    def _decode(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode(latents, clamp=False)


@lru_cache(maxsize=1)
def _loaded(folder: Path, device: str) -> DiffusersAutoencoder:
    return DiffusersAutoencoder.load(folder, device)


def checked_config(folder: Path, sha256: str, source: str) -> dict[str, Any]:
    """The config of an autoencoder.

    Raises:
        PrecfmError: it is missing, has another checksum, or is that of something else.
    """
    try:
        content = (folder / "config.json").read_bytes()
        config = json.loads(content)
        kind = config["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        kind = None
    if kind not in LATENTS_OF or "latent_channels" not in config:
        raise PrecfmError(
            f"source: '{source}' holds no config.json of an autoencoder; that of one of {', '.join(LATENTS_OF)} is "
            "needed"
        )
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise PrecfmError(
            f"config_sha256: got {sha256[:12]}..., but config.json of '{source}' has {found}; another config, or that, "
            "is needed"
        )
    return dict(config)


def latent_shape(config: dict[str, Any], channels: int, image_size: int, source: str) -> tuple[int, int, int]:
    """Shape of a latent, from the config of an autoencoder.

    Raises:
        PrecfmError: it takes images of other channels or of another size.
    """
    if config.get("in_channels", 3) != channels:
        raise PrecfmError(
            f"source: '{source}' takes images of {config.get('in_channels', 3)} channels; those of the data have "
            f"{channels}"
        )
    widths = next((config[key] for key in WIDTHS if key in config), ())
    factor = 2 ** (len(widths) - 1)
    if not widths or image_size % factor:
        raise PrecfmError(
            f"source: '{source}' takes images whose side is a multiple of {factor}; got {image_size}"
        )
    side = image_size // factor
    return (int(config["latent_channels"]), side, side)
