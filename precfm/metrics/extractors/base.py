"""What every feature extractor offers, how features are extracted in batches, and the hash of its weights.

An extractor is a module with `features(images)`; adding one is one new file beside this one.
"""

import hashlib
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from precfm.core.errors import PrecfmError


@runtime_checkable
class Extractor(Protocol):
    """Turns images into the vectors that metrics compare."""

    def features(self, images: Tensor) -> Tensor:
        """Features, (batch, dim), of float images in [0, 1], (batch, channels, height, width)."""


@torch.no_grad()
def extract(
    extractor: Extractor, images: Tensor | Iterable[Tensor], *, batch_size: int = 500, name: str = "images"
) -> Tensor:
    """Features of many images, in batches, in evaluation mode, on the extractor's device.

    Args:
        extractor: the network (or the identity).
        images: uint8 in 0..255 or float in [0, 1], shape (n, channels, height, width); or batches of such.
        batch_size: images at a time; ignored where batches are given.
        name: what to call the images in an error.

    Returns:
        Features on the CPU, float32, shape (n, dim).

    Raises:
        PrecfmError: no images, a wrong shape, or an image that has a value outside [0, 1] or not finite.
    """
    module = extractor if isinstance(extractor, nn.Module) else None
    was_training = module is not None and module.training
    device = next((p.device for p in module.parameters()), None) if module is not None else None
    if module is not None:
        module.eval()
    rows, parts = 0, []
    try:
        for batch in torch.split(images, batch_size) if isinstance(images, Tensor) else images:
            floats = _in_unit_interval(batch, rows, name)
            part = extractor.features(floats if device is None else floats.to(device))
            parts.append(part.to("cpu", torch.float32))
            rows += len(batch)
    finally:
        if module is not None:
            module.train(was_training)
    if not parts:
        raise PrecfmError(f"{name}: no images; at least one is needed")
    return torch.cat(parts)


def weights_hash(module: nn.Module) -> str:
    """SHA-256 (first 16 digits) of an extractor's class and weights: parameters and buffers, in full."""
    digest = hashlib.sha256(type(module).__name__.encode())
    for name, tensor in sorted(module.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _in_unit_interval(images: Tensor, first: int, name: str) -> Tensor:
    if images.ndim != 4:
        raise PrecfmError(f"{name}: shape {tuple(images.shape)}; (n, channels, height, width) is needed")
    if images.dtype == torch.uint8:
        return images.to(torch.float32) / 255
    if not images.is_floating_point():
        raise PrecfmError(f"{name}: type {images.dtype}; uint8 in 0..255 or floats in [0, 1] are needed")
    # Decoders overshoot by rounding; whatever is further out was not meant to be an image in [0, 1].
    inside = ((images >= -1e-3) & (images <= 1 + 1e-3)).flatten(1)
    if not bool(inside.all()):
        row = int((~inside).any(1).nonzero()[0, 0])
        worst = float(images[row].flatten()[~inside[row]][0])
        raise PrecfmError(f"{name}: image {first + row} has the value {worst:.4g}; floats must be in [0, 1]")
    return images.clamp(0.0, 1.0).to(torch.float32)
