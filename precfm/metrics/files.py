"""Metrics of folders of images and of files of features: what `precfm metrics REAL GENERATED` does."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn

from precfm.core.errors import PrecfmError
from precfm.core.registry import load
from precfm.latents.stored_tensors import SUFFIXES, stored_tensor
from precfm.metrics.checks import feature_matrix
from precfm.metrics.evaluate import METRICS, evaluate_features
from precfm.metrics.extractors.base import extract, weights_hash
from precfm.metrics.values import MetricValue

# As in precfm.datasets.image_names, beside which this stands in the layers.
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
FEATURES_FILE = "features.safetensors"


def compare(
    real: str | Path,
    generated: str | Path,
    *,
    extractor: str = "inception",
    weights: str | Path | None = None,
    tensor: str | None = None,
    generated_tensor: str | None = None,
    batch_size: int = 50,
    device: str = "cpu",
    refused: dict[str, str] | None = None,
    **options: Any,
) -> list[MetricValue]:
    """Measure a generated set against a real one.

    Args:
        real: a folder of images (searched recursively), a file of features (.npy, .npz, .safetensors, .pt), or a
            folder that holds one named features.safetensors.
        generated: the same for the generated set.
        extractor: a name of the registry's group `fixed_extractors`, for folders of images; files of features are used
            as they are.
        weights: file of the extractor's weights, where it needs one; searched for where None.
        tensor: which tensor of a file; may be left out if there is one only beside `labels`.
        generated_tensor: which one of the generated file, where it has another name.
        batch_size: images at a time.
        device: where the extractor and the metrics run.
        refused: gets, by metric, why it cannot be had of these sets; None raises instead.
        **options: those of `evaluate_features`; `metrics` and `few_samples` among them.

    Returns:
        One value per metric, in the pipeline's form; the reference is called by the name of its file or folder.

    Raises:
        PrecfmError: a path is missing or of a kind of its own, an image is unreadable or of another size, the
            features are unusable, the extractor has no weights; the error names the file, row or argument.
    """
    real, generated = Path(real), Path(generated)
    files = {path: _features_file(path) for path in (real, generated)}
    if (files[real] is None) != (files[generated] is None):
        raise PrecfmError(f"{generated} and {real}: one is a folder of images, the other a file of features")
    if (of_real := files[real]) is not None and (of_generated := files[generated]) is not None:
        name, hashed = "file", ""
        y = read_features(of_real, tensor)
        x = read_features(of_generated, generated_tensor or tensor)
    else:
        kind = load("fixed_extractors", extractor)
        if weights is not None and not hasattr(kind, "weights"):
            raise PrecfmError(f"weights: got {weights}, but '{extractor}' has no weights; none are needed")
        network = kind(*([] if weights is None else [Path(weights)]))
        name, hashed = network.name, ""
        if isinstance(network, nn.Module):
            network, hashed = network.to(device), weights_hash(network)
        y, x = (
            feature_matrix(extract(network, image_batches(path, batch_size), name=str(path)), str(path))
            for path in (real, generated)
        )
    if y.shape[1] != x.shape[1]:
        raise PrecfmError(f"{generated}: {x.shape[1]} features per row, but {real} has {y.shape[1]}")
    if name == "inception-v3-2048":
        options = {"kid_scale": "none", **options}  # as the KID is published
    metrics, found = options.pop("metrics", METRICS), list[MetricValue]()
    for together in [tuple(metrics)] if refused is None else _groups(metrics):
        try:
            found += evaluate_features(
                x.to(device),
                y.to(device),
                **options,
                metrics=together,
                extractor=name,
                extractor_hash=hashed,
                reference_name=(of_real or real).name,
            )
        except PrecfmError as error:
            if refused is None:
                raise
            refused |= dict.fromkeys(together, str(error))
    return found


def _groups(metrics: Sequence[str]) -> list[tuple[str, ...]]:
    """Metrics that are refused together: precision and recall look for the same neighbours, once."""
    neighbours = tuple(name for name in metrics if name in ("precision", "recall"))
    return [(name,) for name in metrics if name not in neighbours] + ([neighbours] if neighbours else [])


def image_batches(folder: Path, batch_size: int = 50) -> Iterator[Tensor]:
    """The images below a folder in the order of their paths, as uint8 batches (n, channels, height, width).

    Hidden files and files without an image's suffix are left aside, as by the data set `imagefolder`.

    Raises:
        PrecfmError: there is none, one cannot be read, or sizes or colour modes are mixed; names the file.
    """
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    files = [folder / path for path in paths if _is_image(path)]
    if not files:
        raise PrecfmError(f"{folder}: holds no images; images end in {', '.join(IMAGE_SUFFIXES)}")
    shape: torch.Size | None = None
    for start in range(0, len(files), batch_size):
        batch = []
        for file in files[start : start + batch_size]:
            batch.append(image := _read_image(file))
            shape = shape or image.shape
            if image.shape != shape:
                raise PrecfmError(
                    f"{file}: {_size(image.shape)}, but {files[0].name} is {_size(shape)}; all images must be alike"
                )
        yield torch.stack(batch)


def read_features(path: Path, tensor: str | None = None) -> Tensor:
    """A checked feature matrix out of a file, as `precfm.latents` reads it.

    Args:
        path: the file.
        tensor: which tensor; may be left out if there is one only beside `labels`.

    Raises:
        PrecfmError: the file or its features cannot be used; names the file.
    """
    stored = stored_tensor(path, tensor)
    if stored.kind not in "fi" or not stored.shape:
        raise PrecfmError(
            f"{path}: holds {stored.dtype} of shape {stored.shape}; a matrix of numbers is needed"
        )
    return feature_matrix(stored.read(0, stored.shape[0]), str(path))


def _features_file(path: Path) -> Path | None:
    """The file of features that a path names; None for a folder of images."""
    if path.is_dir():
        return path / FEATURES_FILE if (path / FEATURES_FILE).is_file() else None
    if not path.exists():
        raise PrecfmError(f"{path}: there is no such file or folder")
    if path.suffix not in SUFFIXES:
        raise PrecfmError(
            f"{path}: is neither a folder of images nor a file that ends in {', '.join(SUFFIXES)}"
        )
    return path


def _is_image(path: Path) -> bool:
    """Whether a path below a folder is that of an image, judged by its name."""
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden


def _read_image(file: Path) -> Tensor:
    """One image as uint8, shape (1 or 3, height, width)."""
    try:
        with Image.open(file) as image:
            mode, grey = image.mode, image.mode in ("1", "L")
            pixels = np.array(image.convert("L" if grey else "RGB"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise PrecfmError(f"{file}: cannot be read as an image ({error})") from error
    if mode.startswith(("I", "F")):
        raise PrecfmError(f"{file}: has mode {mode}; images of 8 bits per channel are needed")
    return torch.from_numpy(pixels[None] if grey else pixels.transpose(2, 0, 1).copy())


def _size(shape: torch.Size) -> str:
    return f"{shape[2]} x {shape[1]} {'grey' if shape[0] == 1 else 'colour'}"
