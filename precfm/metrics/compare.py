"""Compare two folders of images, or two files of features: what `precfm metrics REAL GENERATED` does."""

import hashlib
import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.metrics.checks import feature_matrix
from precfm.metrics.evaluate import METRICS, evaluate_features
from precfm.metrics.extractors.base import extract, fingerprint
from precfm.metrics.values import MetricValue

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
FEATURE_SUFFIXES = (".npy", ".safetensors")

EXTRACTORS = {
    "identity": "precfm.metrics.extractors.identity:Identity",
    "imagenet": "precfm.metrics.extractors.imagenet:ImageNet",
    "inception": "precfm.metrics.extractors.inception:Inception",
}
"""Extractors that need no training here, each one file, by import string."""


@dataclass(frozen=True)
class FeatureSet:
    """Features of a set with where they came from.

    Args:
        features: shape (n, dim).
        extractor: name of the extractor; "file" where features were read as they are.
        extractor_hash: its hash.
        source: what was read.
    """

    features: Tensor
    extractor: str
    extractor_hash: str
    source: Path


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
    cache: str | Path | None = None,
    reference_name: str | None = None,
    **options: Any,
) -> list[MetricValue]:
    """Measure a generated set against a real one.

    Args:
        real: a folder of images (searched recursively), a .npy or .safetensors file of features, or the
            folder of an artifact that holds one .safetensors file (or one called features.safetensors).
        generated: the same for the generated set.
        extractor: a name of `EXTRACTORS`, for folders; files of features are used as they are.
        weights: file of the extractor's weights, where it needs one; searched for where None.
        tensor: which tensor of a .safetensors file; may be left out if there is one only.
        generated_tensor: which one of the generated file, where it has another name.
        batch_size: images at a time.
        device: where the extractor and the metrics run.
        cache: folder in which features of image folders are kept, so that they are computed once per content
            and extractor; None keeps none.
        reference_name: how the protocol calls the real set; its file name where None.
        **options: those of `evaluate_features`; `metrics` and `few_samples` among them.

    Returns:
        One value per metric, in the pipeline's form.

    Raises:
        PrecfmError: a path is missing or of a kind of its own, an image is unreadable or of another size, the
            features are unusable; the error names the file or row.
    """
    real, generated = _inside_artifact(Path(real)), _inside_artifact(Path(generated))
    weights, cache = (None if path is None else Path(path) for path in (weights, cache))
    kinds = {path: _kind(path) for path in (real, generated)}
    if kinds[real] != kinds[generated]:
        raise PrecfmError(
            f"{generated}: {kinds[generated]}, but {real} is {kinds[real]}; both must be of one kind"
        )
    network = _network(extractor, weights, device) if kinds[real] == "a folder" else None
    sets = [
        load_features(path, network, tensor=name, batch_size=batch_size, cache=cache)
        for path, name in ((real, tensor), (generated, generated_tensor or tensor))
    ]
    widths = [each.features.shape[1] for each in sets]
    if widths[0] != widths[1]:
        raise PrecfmError(f"{generated}: {widths[1]} features per row, but {real} has {widths[0]}")
    if sets[0].extractor == "inception-v3-2048":
        options = {"kid_scale": "none", **options}  # as the KID is published
    return evaluate_features(
        sets[1].features.to(device),
        sets[0].features.to(device),
        metrics=options.pop("metrics", METRICS),
        extractor=sets[0].extractor,
        extractor_hash=sets[0].extractor_hash,
        reference_name=real.name if reference_name is None else reference_name,
        **options,
    )


def load_features(
    path: Path,
    network: Any | None = None,
    *,
    tensor: str | None = None,
    batch_size: int = 50,
    cache: Path | None = None,
) -> FeatureSet:
    """Features of a folder of images, or out of a file.

    Args:
        path: folder, .npy or .safetensors file.
        network: extractor for a folder; the identity where None.
        tensor: which tensor of a .safetensors file.
        batch_size: images at a time.
        cache: folder in which features of image folders are kept.

    Raises:
        PrecfmError: see `compare`.
    """
    if _kind(path) == "a file":
        return FeatureSet(feature_matrix(_read_file(path, tensor), str(path)), "file", "", path)
    extractor = _network("identity", None, "cpu") if network is None else network
    weights_hash = fingerprint(extractor) if isinstance(extractor, torch.nn.Module) else ""
    kept = None
    if cache is not None:
        kept = cache / f"{extractor.name}-{_content(path, weights_hash)}.safetensors"
    if kept is not None and kept.is_file():
        features = _read_file(kept, "features")
    else:
        features = extract(extractor, image_batches(path, batch_size), name=str(path))
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            part = kept.with_name(f"{kept.name}.part-{os.getpid()}")
            save_file({"features": features.contiguous()}, part)
            part.replace(kept)
    return FeatureSet(feature_matrix(features, str(path)), extractor.name, weights_hash, path)


def image_batches(folder: Path, batch_size: int = 50) -> Iterator[Tensor]:
    """The images below a folder in the order of their paths, as uint8 batches (n, channels, height, width).

    Raises:
        PrecfmError: there is none, one cannot be read, or sizes or colour modes are mixed; names the file.
    """
    files = image_files(folder)
    first: tuple[tuple[int, ...], Path] | None = None
    batch: list[Tensor] = []
    for file in files:
        image = _read_image(file)
        shape = tuple(image.shape)
        if first is None:
            first = (shape, file)
        elif shape != first[0]:
            raise PrecfmError(
                f"{file}: {_size(shape)}, but {first[1].name} is {_size(first[0])}; all images must be alike"
            )
        batch.append(image)
        if len(batch) == batch_size:
            yield torch.stack(batch)
            batch = []
    if batch:
        yield torch.stack(batch)


def image_files(folder: Path) -> list[Path]:
    """The image files below a folder, sorted by path; files whose names begin with a dot are left out.

    Raises:
        PrecfmError: there is no image, or a file that is none.
    """
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    for path in files:
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise PrecfmError(f"{path}: is no image; images end in {', '.join(IMAGE_SUFFIXES)}")
    if not files:
        raise PrecfmError(f"{folder}: holds no images; images end in {', '.join(IMAGE_SUFFIXES)}")
    return files


def _read_image(file: Path) -> Tensor:
    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise PrecfmError(f"{file}: has mode {image.mode}; images of 8 bits per channel are needed")
            grey = image.mode in ("1", "L")
            pixels = np.array(image.convert("L" if grey else "RGB"))
    except PrecfmError:
        raise
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise PrecfmError(f"{file}: cannot be read as an image ({error})") from error
    return torch.from_numpy(pixels[None] if grey else pixels.transpose(2, 0, 1).copy())


def _read_file(path: Path, tensor: str | None) -> Tensor:
    try:
        if path.suffix == ".npy":
            array = np.load(path, allow_pickle=False)
            if array.dtype.kind not in "fiu":
                raise PrecfmError(f"{path}: holds {array.dtype}; numbers are needed")
            return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
        with safe_open(path, framework="pt") as file:
            names = sorted(file.keys())
            if tensor is None and len(names) != 1:
                raise PrecfmError(f"{path}: holds the tensors {', '.join(names)}; say which one")
            name = names[0] if tensor is None else tensor
            if name not in names:
                raise PrecfmError(f"{path}: has no tensor '{name}'; there are {', '.join(names)}")
            loaded: Tensor = file.get_tensor(name)
            return loaded
    except (ValueError, OSError, EOFError, SafetensorError) as error:
        if isinstance(error, PrecfmError):
            raise
        raise PrecfmError(f"{path}: cannot be read ({error})") from error


def _network(name: str, weights: Path | None, device: str) -> Any:
    if name not in EXTRACTORS:
        raise PrecfmError(f"extractor: '{name}' is unknown; known are {', '.join(EXTRACTORS)}")
    module, attribute = EXTRACTORS[name].split(":")
    factory: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    network = factory() if name == "identity" else factory(weights)
    return network.to(device) if isinstance(network, torch.nn.Module) else network


def _content(folder: Path, weights_hash: str) -> str:
    """Hash of the images' bytes, in their order, and of the extractor."""
    digest = hashlib.sha256(weights_hash.encode())
    for file in image_files(folder):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:20]


def _inside_artifact(path: Path) -> Path:
    """The file of features of an artifact's folder; any other path as it is."""
    if not (path / "artifact.json").is_file():
        return path
    files = sorted(path.glob("*.safetensors"))
    named = [file for file in files if file.name == "features.safetensors"]
    if len(named or files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise PrecfmError(f"{path}: the artifact's .safetensors files are {names}; name one of them")
    return (named or files)[0]


def _kind(path: Path) -> str:
    if path.is_dir():
        return "a folder"
    if not path.exists():
        raise PrecfmError(f"{path}: there is no such file or folder")
    if path.suffix not in FEATURE_SUFFIXES:
        raise PrecfmError(f"{path}: is neither a folder nor a {' or '.join(FEATURE_SUFFIXES)} file")
    return "a file"


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[2]} x {shape[1]} {'grey' if shape[0] == 1 else 'colour'}"
