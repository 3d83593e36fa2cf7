"""Image autoencoders of diffusers: images to latents, scaled as flows see them, and back."""

import hashlib
import math
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.tensors import require_tensor

WEIGHTS = "diffusion_pytorch_model.safetensors"  # as diffusers calls them in a folder and on the hub
# By class, the latents in what `encode` returns; of a posterior its mean.
LATENTS_OF: dict[str, Callable[[Any], Tensor]] = {
    "AutoencoderKL": lambda encoded: encoded.latent_dist.mode(),
    "AutoencoderTiny": lambda encoded: encoded.latents,
    "AutoencoderDC": lambda encoded: encoded.latent,
}
WITH_POSTERIOR = frozenset({"AutoencoderKL"})
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
        has_posterior: whether an image has a distribution of latents.

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
        self.has_posterior = kinds[0] in WITH_POSTERIOR
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
    def encode(self, images: Tensor, *, noise: Tensor | None = None) -> Tensor:
        """Latents of images.

        Args:
            images: shape (n, channels, height, width), uint8.
            noise: standard normal, of the latents' shape, for samples of the posterior; None for its mean.

        Returns:
            Shape (n, latent channels, latent height, latent width), float32, on the device of `images`.

        Raises:
            PrecfmError: the images are of another shape or type, or of a size that the network does not take, or
                samples are wanted of an autoencoder without posterior.
        """
        require_tensor(images, "images")
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != self.channels:
            raise PrecfmError(
                f"images: {images.dtype} of shape {tuple(images.shape)}; uint8 of shape (n, {self.channels}, height, "
                "width) is needed"
            )
        if noise is not None and not self.has_posterior:
            raise PrecfmError(
                f"noise: got one, but {type(self._model).__name__} has no posterior to sample; leave it out"
            )
        latents: list[Tensor] = []
        for block in torch.split(images, max(1, NUMBERS // math.prod(images.shape[1:]))):
            pixels = block.to(self._anchor.device).to(self._anchor.dtype) / 127.5 - 1
            try:
                output = self._model.encode(pixels)
                encoded = self._latents_of(output).float()
            except RuntimeError as error:
                size = " x ".join(map(str, reversed(block.shape[2:])))
                raise PrecfmError(
                    f"images: are {size}, of which {type(self._model).__name__} makes no latents "
                    f"({str(error).splitlines()[0][:200]})"
                ) from error
            if noise is not None:
                done = sum(map(len, latents))
                encoded += output.latent_dist.std.float() * noise[done : done + len(block)].to(encoded)
            latents.append(((encoded - self._shift) * self._scale).to(images.device))
        return torch.cat(latents)

    @torch.no_grad()
    def decode(self, latents: Tensor, *, clamp: bool = True) -> Tensor:
        """Images of latents, clamped into [0, 1].

        Args:
            latents: shape (n, latent channels, latent height, latent width), floating point.
            clamp: False leaves what lies outside of [0, 1] as it is.

        Returns:
            Shape (n, channels, height, width), float32, on the device of `latents`.
        """
        require_tensor(latents, "latents", floating=True)
        images: list[Tensor] = []
        rows = 1  # of the first batch, which tells how large an image is
        while (done := sum(map(len, images))) < len(latents):
            block = latents[done : done + rows].to(self._anchor.device).float() / self._scale + self._shift
            decoded = self._model.decode(block.to(self._anchor.dtype)).sample.float()
            shown = decoded / 2 + 0.5
            images.append((shown.clamp(0, 1) if clamp else shown).to(latents.device))
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


def is_here(source: str, subfolder: str = "") -> bool:
    """Whether an autoencoder is on this machine: a folder, or in the cache of the Hugging Face Hub."""
    try:
        _folder(source, subfolder, network=False)
    except PrecfmError:
        return False
    return True


def weights_folder(source: str, sha256: str, subfolder: str = "") -> Path:
    """The folder of an autoencoder whose weights have a checksum; from the Hugging Face Hub if it is not here.

    Args:
        source: a folder that `save_pretrained` wrote, or a name on the hub, OWNER/NAME.
        sha256: of the file of its weights.
        subfolder: where in the source it lies.

    Raises:
        PrecfmError: it cannot be had, or its weights have another checksum.
    """
    folder = _folder(source, subfolder, network=True)
    file = folder / WEIGHTS
    if not file.is_file():
        raise PrecfmError(f"source: {folder} holds no {WEIGHTS}; one file of weights is needed")
    found = _sha256(file, file.stat().st_mtime_ns)
    if found != sha256:
        raise PrecfmError(
            f"sha256: got {sha256[:12]}..., but {WEIGHTS} of '{source}' has {found}; other weights, or that, are needed"
        )
    return folder


def _folder(source: str, subfolder: str, *, network: bool) -> Path:
    local = Path(source, subfolder)
    if local.is_dir():
        _require_files(local)
        return local
    if not HUB_NAME.fullmatch(source):
        raise PrecfmError(
            f"source: got '{source}'; there is no such folder, and names on the Hugging Face Hub are OWNER/NAME (an "
            "encoder in results/ keeps the path that it was made with until its folder there is removed)"
        )
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError:
        raise PrecfmError(
            f"source: '{source}' needs diffusers, which is not installed; pip install diffusers"
        ) from None
    files = []
    for name in ("config.json", WEIGHTS):
        asked: dict[str, Any] = {"filename": name, "subfolder": subfolder or None}
        try:
            try:
                files.append(hf_hub_download(source, **asked, local_files_only=True))
            except LocalEntryNotFoundError:
                if not network:
                    raise
                files.append(hf_hub_download(source, **asked))
        except Exception as error:  # the hub and what it calls have many
            reason = " ".join(str(error).split())[:200]
            raise PrecfmError(
                f"source: '{source}' cannot be had from the Hugging Face Hub ({reason}); a connection, or the path of "
                "a folder that holds it, is needed"
            ) from None
    return Path(files[-1]).parent


@lru_cache(maxsize=8)
def _sha256(file: Path, changed: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
