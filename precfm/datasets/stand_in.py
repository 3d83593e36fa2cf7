"""Images in the shape of a source that is not on this machine: they show that a command works, and nothing else."""

from pathlib import Path
from typing import Literal

import torch

from precfm.core.options import Count, checked
from precfm.core.seeds import generator_for
from precfm.datasets.images import Images

DECAY = 1.0  # amplitudes fall with this power of the frequency, as those of photographs do


class StandIn:
    """Random fields with the spectrum of photographs, brighter from class to class.

    Args:
        stands_for: the source in whose place they stand.
        resolution: height and width in pixels.
        channels: 3 for colour, 1 for grey.
        images: how many.
        classes: how many classes.

    Attributes:
        kind: what a row is.
        counts: the number of images.
    """

    @checked
    def __init__(
        self,
        *,
        stands_for: str = "",
        resolution: Count = 28,
        channels: Literal[1, 3] = 1,
        images: Count = 1000,
        classes: Count = 10,
    ) -> None:
        self.stands_for = stands_for
        self.resolution, self.channels = resolution, channels
        self.images, self.classes = images, classes
        self.counts = (images,)

    def load(self, folder: Path) -> Images:
        """Draw the images; the folder is not looked at."""
        print(f"{self.stands_for}: is not on this machine; random images of its shape stand for it")
        generator = generator_for(0, "stand-in", self.resolution, self.channels)
        labels = torch.arange(self.images) % self.classes
        down, across = torch.fft.fftfreq(self.resolution), torch.fft.rfftfreq(self.resolution)
        frequency = (down[:, None] ** 2 + across**2).sqrt().clamp(min=1 / self.resolution)
        images = torch.empty(self.images, self.channels, self.resolution, self.resolution, dtype=torch.uint8)
        for row, label in enumerate(labels.tolist()):
            noise = torch.randn(self.channels, self.resolution, self.resolution, generator=generator)
            field = torch.fft.irfft2(torch.fft.rfft2(noise) / frequency**DECAY, s=noise.shape[1:])
            bright = 0.3 + 0.4 * label / self.classes
            images[row] = (255 * (bright + 0.15 * field / field.std())).round().clamp(0, 255).to(torch.uint8)
        return Images(images, labels, tuple(map(str, range(self.classes))))
