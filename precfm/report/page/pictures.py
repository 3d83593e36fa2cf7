"""Pictures as part of the page: PNG files in fewer bytes, and samples as they were drawn."""

import base64
import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HELD_OUT = "held-out"  # among the methods of `grids`
GAP = 2  # pixels between images


def data_uri(image: bytes, kind: str) -> str:
    """Bytes of an image as the address of an `img`."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def figure_uri(png: bytes) -> str:
    """A figure's PNG file, pixel for pixel, as WebP, which is half as large."""
    return _webp(Image.open(io.BytesIO(png)).convert("RGB"))


def strip_uris(grids: Mapping[str, NDArray[np.uint8]], count: int, columns: int) -> dict[str, str]:
    """The first images of every method as one picture each, the same ones at the same place.

    Args:
        grids: by method, uint8, shape (n, channels, height, width), channels 1 or 3; grey ones are dark on light.
        count: how many images at most.
        columns: how many of them stand in a row.
    """
    return {name: _webp(_strip(images[:count], columns)) for name, images in grids.items()}


def _strip(images: NDArray[np.uint8], columns: int) -> Image.Image:
    light = 255 - images if images.shape[1] == 1 else images
    padded = np.pad(light, ((0, 0), (0, 0), (0, GAP), (0, GAP)), constant_values=255)
    missing = -len(padded) % columns
    padded = np.concatenate([padded, np.full_like(padded[:1], 255).repeat(missing, 0)])
    n, channels, height, width = padded.shape
    rows = padded.reshape(n // columns, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    picture = rows.reshape(n // columns * height, columns * width, channels)[:-GAP, :-GAP]
    return Image.fromarray(picture[..., 0] if channels == 1 else picture)


def _webp(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True, quality=60, method=4)
    return data_uri(buffer.getvalue(), "webp")
