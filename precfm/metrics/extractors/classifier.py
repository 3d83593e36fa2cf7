"""A small classifier of grey images, trained here and then frozen: its penultimate layer gives features."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from precfm.core.errors import PrecfmError
from precfm.core.options import Count, checked


class DigitClassifier(nn.Module):
    """Three convolutions and two linear layers; `features` is what stands before the last one.

    Args:
        num_classes: number of classes.
        channels: colour channels of the images.
        image_size: height and width of the images, a multiple of 4.
        width: channels of the first convolution; the second and third have twice as many.
        feature_dim: width of the penultimate layer.
    """

    @checked
    def __init__(
        self,
        num_classes: Count = 10,
        *,
        channels: Count = 1,
        image_size: int = 28,
        width: Count = 16,
        feature_dim: Count = 64,
    ) -> None:
        super().__init__()
        if image_size % 4:
            raise PrecfmError(f"image_size: got {image_size}; a multiple of 4 is needed")
        self.num_classes, self.image_size, self.feature_dim = num_classes, image_size, feature_dim
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, width, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.GELU(),
        )
        # GELU keeps every feature alive, so that their covariance is not singular as it is after ReLU.
        self.project = nn.Linear(2 * width * (image_size // 4) ** 2, feature_dim)
        self.head = nn.Linear(feature_dim, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Penultimate features, (batch, feature_dim), of images in [0, 1], (batch, channels, size, size)."""
        hidden = self.convolutions(2.0 * images - 1.0)
        features: Tensor = functional.gelu(self.project(hidden.flatten(1)))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (batch, num_classes), of images in [0, 1], shape (batch, channels, size, size)."""
        logits: Tensor = self.head(self.features(images))
        return logits


@torch.no_grad()
def accuracy(module: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = 1000) -> float:
    """Share of images, shape (n, channels, size, size), whose most likely class is their label."""
    was_training = module.training
    module.eval()
    batches = zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True)
    correct = torch.stack([(module(x).argmax(1) == y).sum() for x, y in batches])
    module.train(was_training)
    return float(correct.sum()) / len(images)
