"""How a classifier of images is trained: by the cross entropy of images that are moved a little."""

import torch
from torch import Tensor, nn
from torch.nn import functional

SHIFT = 2  # pixels


class ShiftedCrossEntropy:
    """Cross entropy of a mini-batch that is moved by up to two pixels: exact positions must not matter."""

    def draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """How far down and to the right the mini-batch moves, int64, shape (2,)."""
        return (torch.randint(-SHIFT, SHIFT + 1, (2,), generator=generator),)

    def loss(self, module: nn.Module, batch: tuple[Tensor, ...], draws: tuple[Tensor, ...]) -> Tensor:
        """The loss of images in [0, 1], (batch, channels, size, size), and int64 labels, (batch,); a scalar."""
        images, labels = batch
        # As `torch.roll`, by numbers that stay on the device.
        height, width = (torch.arange(size, device=images.device) for size in images.shape[-2:])
        rows, columns = (height - draws[0][0]) % len(height), (width - draws[0][1]) % len(width)
        return functional.cross_entropy(module(images[..., rows, :][..., columns]), labels)
