"""Latents for a diagnosis from a folder of images, by an autoencoder of diffusers."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from precfm.core.errors import PrecfmError
from precfm.core.options import Count, Natural, checked
from precfm.core.seeds import generator_for
from precfm.datasets.imagefolder import ImageFiles, open_images
from precfm.diagnosis.decoder import Decoder
from precfm.diagnosis.rows import most_rows
from precfm.encoders.diffusers_autoencoder import DiffusersAutoencoder
from precfm.latents.reading import read_labels

BATCH = 64  # images in memory at a time


class EncodedImages(NamedTuple):
    """What `precfm.diagnose` takes: `diagnose(encoded.latents, encoded.labels, decoder=encoded.decode)`.

    Attributes:
        latents: shape (rows, channels, height, width), float32.
        labels: class of each row, int64, shape (rows,), or None.
        decode: maps latents (batch, channels, height, width) to images.
    """

    latents: Tensor
    labels: Tensor | None
    decode: Decoder


@checked
def encode_images(
    folder: str | Path,
    autoencoder: str | Path | DiffusersAutoencoder,
    *,
    labels: str | Path | None = None,
    size: Count | None = None,
    rows: Count | None = None,
    seed: Natural = 0,
    device: str = "cpu",
) -> EncodedImages:
    """Encode as many images as a diagnosis reads, at random, a few at a time.

    Args:
        folder: of images, or of a single zip file of them; where they lie in subfolders, these are the classes.
        autoencoder: one, or what `DiffusersAutoencoder.load` takes.
        labels: file of one integer per image, in the order of their names; None takes the subfolders.
        size: height and width that images are resized and cropped to; None leaves them, and they have to be alike.
        rows: images, at most.
        seed: of their choice.
        device: where an autoencoder is loaded to.

    Raises:
        PrecfmError: the folder holds no images, one is corrupt or of another size, labels do not fit, or the
            autoencoder cannot be loaded or does not take images of that size.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "there is no such folder"
        raise PrecfmError(f"{folder}: {what}; an autoencoder encodes a folder of images")
    with open_images(folder) as files:
        known = _labels(files, labels)
        if not isinstance(autoencoder, DiffusersAutoencoder):
            autoencoder = DiffusersAutoencoder.load(autoencoder, device)
        first = files.read(0, autoencoder.channels, size)
        latent = autoencoder.encode(first[None])[0]
        most = min(rows or len(files.names), most_rows(latent.numel()))
        order = torch.randperm(len(files.names), generator=generator_for(seed, "images"))
        chosen = order[:most].sort().values
        latents = torch.empty(len(chosen), *latent.shape)
        with tqdm(total=len(chosen), desc="encoding images", leave=False, disable=None) as bar:
            for block in torch.split(torch.arange(len(chosen)), BATCH):
                images = []
                for row in chosen[block].tolist():
                    images.append(files.read(row, autoencoder.channels, size))
                    if images[-1].shape != first.shape:
                        raise PrecfmError(
                            f"{files.where}: image '{files.names[row]}' is {_size(images[-1])}, but '{files.names[0]}' "
                            f"is {_size(first)}; a size (--size) makes squares of all"
                        )
                latents[block] = autoencoder.encode(torch.stack(images))
                bar.update(len(block))
    return EncodedImages(latents, None if known is None else known[chosen], autoencoder.decode)


def _labels(files: ImageFiles, file: str | Path | None) -> Tensor | None:
    if file is None:
        labels, classes = files.labels()
        return labels if len(classes) > 1 else None
    labels = read_labels(file)
    if len(labels) != len(files.names):
        raise PrecfmError(
            f"{file}: holds {len(labels)} labels; {len(files.names)} are needed, one per image of {files.where}"
        )
    return labels


def _size(image: Tensor) -> str:
    return f"{image.shape[2]} x {image.shape[1]}"
