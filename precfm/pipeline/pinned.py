"""Pinned models: small trained parts that are data, in git, named by checksum.

`data/models/<name>.safetensors` holds the weights of an encoder or a classifier, `<name>.json` its record: what it is,
how it was trained, and on which images. A configuration names it as `<name>@<checksum>`. The key of its artifact holds
the checksum and not the code that trained it, so a machine on which a training ends elsewhere makes the same numbers.

No pinned model has seen an image of a split on which anything is evaluated or selected: its record names the hashes of
its training images (`precfm.datasets.image_hashes`), which are compared before the first job and again in the job.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError, model_validator

from precfm.core.errors import PrecfmError
from precfm.core.options import Count, Strict, sentence
from precfm.datasets.image_hashes import Hashes, image_hashes
from precfm.datasets.manifest import file_sha256
from precfm.pipeline.node import MODELS

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = 12  # digits of a checksum that a configuration gives
LONGEST_PROBLEM = 200  # characters

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Network(Strict):
    """What `precfm.core.serialization.load_network` builds: a registered class with all its options."""

    group: Literal["encoders", "extractors"]
    name: str
    options: dict[str, Any]

    @model_validator(mode="after")
    def _for_images(self) -> "Network":
        for name in ("channels", "image_size"):
            if not isinstance(self.options.get(name), int):
                raise PrecfmError(f"options.{name}: got {self.options.get(name)!r}; a whole number is needed")
        return self


class TrainingImages(Strict):
    """The images that a model was trained on: a file beside the record, with the sorted hashes of them all."""

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9._=+-]+\.npy$")]
    sha256: Sha256
    count: Count


class PinnedModel(Strict):
    """The record of a pinned model.

    Attributes:
        network: its class and options.
        sha256: of the weights.
        training: the options of the training.
        seed: of the training.
        data: which images it saw: data set, sizes of splits, checksum of the source.
        images: their hashes.
        made_by: revision, fingerprint of the code, machine.
    """

    network: Network
    sha256: Sha256
    training: dict[str, Any]
    seed: int
    data: dict[str, Any]
    images: TrainingImages
    made_by: dict[str, Any]

    @property
    def image_shape(self) -> tuple[int, int]:
        """Channels, and height and width, of the images that it takes."""
        return self.network.options["channels"], self.network.options["image_size"]

    @property
    def model(self) -> dict[str, Any]:
        """Name and options as a configuration gives them, without what the data fill in."""
        filled_in = ("channels", "image_size", "num_classes")
        options = {name: value for name, value in self.network.options.items() if name not in filled_in}
        return {"name": self.network.name, **options}


def weights_file(name: str) -> Path:
    """Where the weights of a pinned model lie."""
    return MODELS / f"{name}.safetensors"


def record_file(name: str) -> Path:
    """Where the record of a pinned model lies."""
    return MODELS / f"{name}.json"


def pinned_model(reference: str, group: Literal["encoders", "extractors"]) -> PinnedModel:
    """The record of a pinned model, once its weights are found to be those that a configuration names.

    Args:
        reference: `<name>@<the first 12 digits of the weights' SHA-256>`.
        group: of the registry; what the model has to be.

    Raises:
        PrecfmError: the reference is malformed, there is no such model, it is of another group or its weights have
            another checksum.
    """
    name, at, checksum = reference.partition("@")
    if not at or len(checksum) != SHOWN or "/" in name:
        raise PrecfmError(
            f"got {reference!r}; NAME@CHECKSUM is needed, with the first {SHOWN} digits of the SHA-256 of "
            f"{weights_file('NAME')}"
        )
    record = read_record(name)
    if record.network.group != group:
        raise PrecfmError(
            f"got '{name}', which is of the registry's {record.network.group}; {group} are needed"
        )
    if not record.sha256.startswith(checksum):
        raise PrecfmError(
            f"got '{reference}', but {record_file(name)} records the checksum {record.sha256[:SHOWN]}; "
            f"the configuration has to name the model that is there, or git has to bring back the other"
        )
    verified(weights_file(name), record.sha256)
    return record


def read_record(name: str) -> PinnedModel:
    """The record of a pinned model.

    Raises:
        PrecfmError: there is none, or it is damaged.
    """
    file = record_file(name)
    try:
        return PinnedModel.model_validate_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(each.stem for each in MODELS.glob("*.json")))
        raise PrecfmError(f"got '{name}'; {MODELS}/ holds {known or 'no pinned models'}") from None
    except ValidationError as error:
        problem = sentence(error)
    except (OSError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())
    raise PrecfmError(
        f"{file}: damaged ({problem[:LONGEST_PROBLEM]}); `git checkout -- {MODELS}` brings it back"
    )


def verified(file: Path, sha256: str) -> Path:
    """A file of a pinned model, once its checksum is found right.

    Raises:
        PrecfmError: it is missing or damaged.
    """
    found = file_sha256(file) if file.is_file() else "missing"
    if found != sha256:
        raise PrecfmError(
            f"{file}: checksum {found[:SHOWN]} instead of {sha256[:SHOWN]}; `git checkout -- {MODELS}` brings it back"
        )
    return file


def training_images(record: PinnedModel) -> Hashes:
    """The sorted hashes of the images that a model was trained on.

    Raises:
        PrecfmError: their file is missing, damaged, or no sorted list of so many hashes.
    """
    file = verified(MODELS / record.images.file, record.images.sha256)
    try:
        hashes: Hashes = np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError):
        hashes = np.zeros(0, np.uint64)
    whole = hashes.dtype == np.uint64 and hashes.shape == (record.images.count,)
    if not whole or not (hashes[1:] > hashes[:-1]).all():
        raise PrecfmError(
            f"{file}: is no sorted list of {record.images.count} hashes of 64 bits; `precfm pin` writes such a list"
        )
    return hashes


def refuse_overlap(name: str, record: PinnedModel, splits: Iterable[tuple[str, "Tensor"]]) -> None:
    """Refuse a model that was trained on an image of a split that evaluates or selects.

    Args:
        name: of the model.
        record: of the model.
        splits: names and images, uint8, shape (n, channels, height, width).

    Raises:
        PrecfmError: it was.
    """
    seen = training_images(record)
    for split, images in splits:
        shared = int(np.isin(image_hashes(images), seen).sum())
        if shared:
            raise PrecfmError(
                f"{split}: {shared} of {len(images)} images are among those that the pinned model '{name}' was trained "
                "on; other splits, or a model that has not seen them, are needed"
            )


def as_text(record: PinnedModel) -> str:
    """A record as it stands in its file."""
    return json.dumps(record.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"
