"""The frozen judges of image quality as artifacts hold them: trained classifiers, and fixed extractors by checksum.

A fixed extractor, such as a network of ImageNet, is of published weights that every machine finds for itself; its
artifact records which, and not the weights.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from precfm.core.errors import PrecfmError
from precfm.core.registry import load
from precfm.core.serialization import load_network
from precfm.metrics.extractors.base import Extractor, extract

FIXED = "extractor.json"
NUMBERS = 2**25  # of decoded images at a time: 128 MiB
AT_ONCE = 500  # images, unless they are larger or a judge takes fewer


def checksum(name: str) -> str:
    """SHA-256 of the weights that a fixed extractor loads; empty where it has none, as raw pixels."""
    weights = getattr(load("fixed_extractors", name, imported=True), "weights", None)
    return "" if weights is None else str(weights.sha256)


def save_fixed(name: str, sha256: str, folder: Path) -> None:
    """Record a fixed extractor, once its weights are found.

    Args:
        name: of the registry's group `fixed_extractors`.
        sha256: of its weights, as `checksum` gives it.
        folder: where the record goes.

    Raises:
        PrecfmError: the weights cannot be had.
    """
    _fixed({"name": name, "sha256": sha256})
    text = json.dumps({"name": name, "sha256": sha256}, indent=1, sort_keys=True) + "\n"
    (folder / FIXED).write_text(text, encoding="utf-8")


def load_judges(folders: Sequence[Path], device: str = "cpu") -> dict[str, Extractor]:
    """Judges by the names of the spaces that their features make.

    A fixed extractor is called by its name, `imagenet`; classifiers are counted, `classifier-0`.

    Args:
        folders: of their artifacts, verified.
        device: where networks shall be.

    Raises:
        PrecfmError: weights cannot be had, or are others than those that the artifact records.
    """
    judges: dict[str, Extractor] = {}
    classifiers = 0
    for folder in folders:
        if (folder / FIXED).is_file():
            recorded = json.loads((folder / FIXED).read_text(encoding="utf-8"))
            judge = _fixed(recorded)
            judges[recorded["name"]] = judge.to(device) if isinstance(judge, nn.Module) else judge
        else:
            judges[f"classifier-{classifiers}"] = load_network(folder, device)  # type: ignore[assignment]
            classifiers += 1
    return judges


def judged(judges: Mapping[str, Extractor], images: Tensor | Iterable[Tensor]) -> dict[str, Tensor]:
    """Features of images in the eyes of every judge; of batches, one is in memory at a time.

    Args:
        judges: by name.
        images: as in `extract`, or batches of such.

    Returns:
        By judge, shape (n, dim), float32.
    """
    batches = torch.split(images, AT_ONCE) if isinstance(images, Tensor) else images
    parts: dict[str, list[Tensor]] = {name: [] for name in judges}
    for batch in batches:
        for name, judge in judges.items():
            parts[name].append(extract(judge, batch, batch_size=getattr(judge, "batch_size", AT_ONCE)))
    return {name: torch.cat(several) for name, several in parts.items()}


def batches_of(latents: Tensor, numbers: int) -> tuple[Tensor, ...]:
    """Latents in batches, of which each decodes to at most `NUMBERS` numbers, and to at most `AT_ONCE` images.

    Args:
        latents: shape (n, *dim).
        numbers: of one decoded image.
    """
    return torch.split(latents, max(1, min(AT_ONCE, NUMBERS // numbers)))


def fixed_judges(judges: Mapping[str, Extractor]) -> list[str]:
    """The names of those that are fixed extractors with weights."""
    return [name for name, judge in judges.items() if getattr(judge, "weights", None) is not None]


def _fixed(recorded: Mapping[str, Any]) -> Extractor:
    name = recorded["name"]
    if checksum(name) != recorded["sha256"]:
        raise PrecfmError(
            f"{name}: the artifact records weights with the SHA-256 {recorded['sha256'] or 'none'}, this version loads "
            f"{checksum(name) or 'none'}; the version that made it is needed"
        )
    judge: Extractor = load("fixed_extractors", name, imported=True)()
    return judge
