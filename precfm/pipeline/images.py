"""What a plan knows of a data set's images before the first job; it refuses splits and models that do not fit them.

Whether a pinned model has seen an image of a split that evaluates can be told here where the raw files are on this
machine; its job (`workflow_scripts/pinned.py`) looks in any case.
"""

import json
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.options import shortened
from precfm.core.registry import build
from precfm.datasets.image_names import class_name, image_names
from precfm.datasets.manifest import SourceManifest, source_manifest
from precfm.datasets.sources import SOURCES, fetch_raw, place_here
from precfm.datasets.splits import make_splits
from precfm.pipeline.components import plain
from precfm.pipeline.pinned import PinnedModel, pinned_model, refuse_overlap
from precfm.pipeline.schema import Dataset, Encoder, Setting

LARGEST_PIXELS = 2**28  # numbers of all images at once: 1 GB
CLASS_FOLDERS = "imagefolder"  # the data set whose classes are the folders that its images lie in
FEWEST_HELDOUT = 2  # rows of a class, of which the diagnostics take a covariance


def check_counts(name: str, spec: Dataset, manifest: SourceManifest) -> None:
    """Refuse splits that are larger than the source, where its size is known without reading it."""
    listed = len(image_names(file.name for file in manifest.files))  # 0 where they are inside a zip file
    images = spec.source.constant("counts") or ((listed,) if listed else ())
    pools: list[tuple[tuple[str, ...], str]] = [(("train", "validation", "heldout"), "images")]
    if len(images) > 1:
        pools = [
            (("train", "validation"), "official training images"),
            (("heldout",), "official test images"),
        ]
    for (splits, what), there in zip(pools, images, strict=False):
        wanted = sum(getattr(spec, split) for split in splits)
        if wanted > there:
            raise PrecfmError(
                f"datasets.{name}: {' + '.join(splits)}: got {wanted}, but '{manifest.name}' has {there} {what}"
            )


def check_classes(name: str, spec: Dataset, manifest: SourceManifest, *, judged: bool) -> None:
    """Refuse classes that are too rare for the splits, where the manifest lists the images of each.

    Args:
        name: of the data set.
        spec: how large its splits are.
        manifest: of its source.
        judged: whether flows are compared with its held-out split.

    Raises:
        PrecfmError: a class has a single image, none to train with, or fewer than two held-out ones; names the class.
    """
    of_images = [class_name(image) for image in image_names(file.name for file in manifest.files)]
    if spec.source.name != CLASS_FOLDERS or not of_images:
        return
    counts = Counter(of_images)
    classes = {label: index for index, label in enumerate(sorted(counts))}
    rarest = min(classes, key=lambda label: counts[label])
    if counts[rarest] == 1:
        raise PrecfmError(
            f"datasets.{name}.source: class '{rarest}' of '{manifest.name}' has one image; more, or a source without "
            "that class, are needed, since every split takes its share of each class"
        )
    labels = torch.tensor([classes[label] for label in of_images])
    sizes = {split: getattr(spec, split) for split in ("train", "validation", "heldout")}
    try:
        heldout = make_splits(labels, **sizes, seed=spec.seed)["heldout"]
    except PrecfmError:  # the sizes are possible, so a class has no share
        raise PrecfmError(
            f"datasets.{name}.train: got {spec.train}, of which a class gets none; class '{rarest}' has "
            f"{counts[rarest]} of {len(labels)} images, so more, or a source without that class, are needed"
        ) from None
    shares = torch.bincount(labels[heldout], minlength=len(classes)).tolist()
    if judged and (fewest := min(shares)) < FEWEST_HELDOUT:
        rare = [*classes][shares.index(fewest)]
        raise PrecfmError(
            f"datasets.{name}.heldout: got {spec.heldout}, of which class '{rare}', {counts[rare]} of {len(labels)} "
            f"images, gets {fewest}; at least {FEWEST_HELDOUT} of each class are needed, so a larger heldout, or a "
            "source without that class"
        )


def image_shape(spec: Dataset) -> tuple[int, int] | None:
    """Channels, and height and width, of a data set's images; None where its class does not say."""
    made = spec.source.made()
    resolution = getattr(made, "resolution", None)
    return None if resolution is None else (made.channels, resolution)


def latent_shape(field: str, encoder: Encoder, dataset: str, spec: Dataset) -> tuple[int, ...] | None:
    """The shape of a latent of a data set's images; None where that of the images is not known yet.

    Raises:
        PrecfmError: the encoder cannot take these images, cannot be fitted to so few, or is larger than memory; names
            the field and the data set.
    """
    pinned = None if encoder.pinned is None else pinned_model(encoder.pinned, "encoders")
    shape = image_shape(spec) if pinned is None else pinned.image_shape
    if shape is None:
        return None
    channels, image_size = shape
    network = plain(encoder.network)
    must_be_fetched = encoder.network.constant("must_be_fetched")
    if must_be_fetched and must_be_fetched(**network):  # its job says what is wrong with it
        return None
    try:
        made = build("encoders", network, channels=channels, image_size=image_size)
        if pinned is None:
            made.check_rows(spec.train)
        if (
            encoder.encode == "sample" and not made.has_posterior
        ):  # which of some classes the weights alone tell
            raise PrecfmError(
                "encode: got 'sample'; 'mean' is needed, since the encoder gives one latent per image"
            )
    except PrecfmError as error:
        raise PrecfmError(f"{field}: {error} (data set {dataset})") from None
    except (MemoryError, RuntimeError, TypeError):  # torch's, of tensors that are too large
        raise PrecfmError(
            f"{field}.model: got {shortened(network)}, which torch cannot make in this machine's memory for images of "
            f"{channels} x {image_size} x {image_size}; smaller numbers are needed"
        ) from None
    return tuple(made.latent_shape)


def check_pixels(field: str, dataset: str, spec: Dataset, settings: Mapping[str, Setting]) -> None:
    """Refuse images whose pixels, as features of all rows at once, are larger than memory.

    Raises:
        PrecfmError: names the field, the data set, and what is possible.
    """
    shape = image_shape(spec)
    rows = max([spec.heldout, *(setting.sampling.n for setting in settings.values())])
    if shape is not None and (size := shape[0] * shape[1] ** 2 * rows) > LARGEST_PIXELS:
        raise PrecfmError(
            f"{field}: got 'pixels', of {dataset} {size:,} numbers of {rows:,} images; at most {LARGEST_PIXELS:,} are "
            "possible, so fewer or smaller images, or another judge, are needed"
        )


def check_pinned(field: str, name: str, record: PinnedModel, dataset: str, spec: Dataset) -> None:
    """Refuse a pinned model for other images, or one that has seen images of the splits that evaluate.

    Raises:
        PrecfmError: names the field, the model and the data set.
    """
    shape = image_shape(spec)
    if shape is not None and shape != record.image_shape:
        wanted, found = (
            f"{size} x {size}, {channels} channels" for channels, size in (record.image_shape, shape)
        )
        raise PrecfmError(f"{field}: '{name}' takes images of {wanted}; those of {dataset} have {found}")
    if not place_here(source_manifest(spec.source_name, SOURCES)):
        return
    try:
        refuse_overlap(name, record, _evaluating(json.dumps(plain(spec))).items())
    except PrecfmError as error:
        raise PrecfmError(f"{field}: {dataset}, {error}") from None


@lru_cache(maxsize=4)  # the same for all models of a data set
def _evaluating(text: str) -> dict[str, Tensor]:
    """The validation and held-out images of a data set whose files are here; none where these are wrong."""
    spec = Dataset.model_validate_json(text)
    try:
        images = build("datasets", plain(spec.source)).load(fetch_raw(spec.source_name)[0])
        sizes = {split: getattr(spec, split) for split in ("train", "validation", "heldout")}
        splits = make_splits(images.labels, **sizes, seed=spec.seed, official_split=images.official_split)
    except PrecfmError:  # what is wrong with the files, the job that splits them says
        return {}
    return {split: images.images[splits[split]] for split in ("validation", "heldout")}
