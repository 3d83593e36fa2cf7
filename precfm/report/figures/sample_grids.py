"""Figure: samples of every method from the same noise and labels, column by column, under held-out images."""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from precfm.core.errors import PrecfmError
from precfm.report.figures.axes import panels
from precfm.report.figures.shown import MAX_METHODS
from precfm.report.figures.style import WIDTH, Drawing
from precfm.report.frames import GRIDS, NEIGHBOURS
from precfm.report.reads import LeftOutError, reads
from precfm.report.vocabulary import FLOOR, in_order, is_flow, method_label, split_matched

Images: TypeAlias = Mapping[str, NDArray[np.uint8]]

HELD_OUT = "held-out"
COLUMNS = {1: 16, 3: 10}  # images in a row, by channels: digits are small, photographs are not
LABELS = 1.15  # inches for the names of the rows
GAP = 2  # pixels of white between images
# What stands above the methods: how a row is called, and what it is in the caption.
_REAL = {
    HELD_OUT: ("held-out images", "held-out images"),
    f"{HELD_OUT}, decoded": ("held-out, decoded", "the same behind encoder and decoder"),
    FLOOR: ("train, decoded", "images of the train split behind encoder and decoder"),
}


@reads(GRIDS)
def draw(frames: Mapping[str, Images]) -> Drawing:
    """One row of images per method; the images of one column share their label and their noise.

    Args:
        frames: needs `grids`: images by method, and "held-out"; uint8, shape (n, channels, height, width), channels
            1 or 3.

    Raises:
        LeftOutError: there are no images of any trained flow.
        PrecfmError: an array is not of that type and shape.
    """
    images = frames.get(GRIDS, {})
    drawn = [name for name in images if name not in _REAL and not name.startswith(NEIGHBOURS)]
    methods = [name for name in in_order(drawn) if is_flow(name)]
    methods = [name for name in methods if not split_matched(name)[1]][:MAX_METHODS]
    if not methods:
        raise LeftOutError("this experiment has no sample images")
    shown = [each for name in methods for each in (name, NEIGHBOURS + name)]
    names = [name for name in (*_REAL, *shown) if name in images]
    for name in names:
        _check(name, images[name])
    count = min(COLUMNS[images[methods[0]].shape[1]], *(len(images[name]) for name in names))
    strips = [_strip(images[name][:count]) for name in names]
    row_height = (WIDTH - LABELS) * strips[0].shape[0] / strips[0].shape[1] + 0.03
    figure, axes = panels(len(names), columns=1, height=row_height, arranged=False)
    figure.subplots_adjust(left=LABELS / WIDTH, right=1, top=1, bottom=0, hspace=0)
    for ax, name, strip in zip(axes, names, strips, strict=True):
        ax.imshow(
            strip, cmap="gray_r" if strip.ndim == 2 else None, vmin=0, vmax=255, interpolation="nearest"
        )
        ax.set_axis_off()
        label = _REAL[name][0] if name in _REAL else method_label(name)
        if name.startswith(NEIGHBOURS):
            label = "nearest in train"
        ax.annotate(label, (0, 0.5), (-5, 0), "axes fraction", "offset points", ha="right", va="center")
    above = " and ".join(text for name, (_, text) in _REAL.items() if name in names)
    nearest = any(name.startswith(NEIGHBOURS) for name in names)
    caption = (
        f"Decoded samples of {len(methods)} methods from the same noise and labels, column by column, at the final "
        f"checkpoint of one training seed: the first {count} of the evaluation set, not selected."
        + f" Above them {above} with the same labels." * bool(above)
        + " Below each sample its nearest image of the train split, in the eyes of the first fixed judge."
        * nearest
        + " Grey images are drawn dark on light." * (strips[0].ndim == 2)
        + " The numbers of matched baselines and of maps alone are in the tables."
    )
    return Drawing(figure, caption)


def _check(name: str, array: NDArray[np.uint8]) -> None:
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] not in COLUMNS or not len(array):
        raise PrecfmError(
            f"images of '{name}': {array.dtype} of shape {array.shape}; uint8 of shape (n, 1 or 3, height, "
            "width) is needed"
        )


def _strip(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images side by side, shape (height, width) or (height, width, 3), white between them."""
    white = 255 if images.shape[1] == 3 else 0  # one channel is drawn dark on light
    padded = np.pad(images, ((0, 0), (0, 0), (0, 0), (0, GAP)), constant_values=white)
    row = np.concatenate(list(padded), axis=2)[:, :, :-GAP]
    return row[0] if len(row) == 1 else np.moveaxis(row, 0, 2)
