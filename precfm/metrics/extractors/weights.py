"""Published weights of extractors: from a path, mirror, package or download, checked by checksum."""

import hashlib
import os
import urllib.error
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.hub import download_url_to_file

from precfm.core.errors import PrecfmError


@dataclass(frozen=True)
class Weights:
    """A published file of weights.

    Attributes:
        file: its name.
        sha256: its checksum.
        url: where it can be downloaded; None where it comes with a package only.
        package: importable package that contains it, as (package, path inside), or None.
        install: what to say to someone who lacks it.
    """

    file: str
    sha256: str
    url: str | None = None
    package: tuple[str, str] | None = None
    install: str = ""


def find_weights(weights: Weights, path: Path | None = None) -> Path:
    """The verified file: the given path, below PRECFM_MIRROR, an installed package, the cache, or a download.

    Args:
        weights: what is wanted.
        path: where the user says it is; then nowhere else is looked.

    Raises:
        PrecfmError: the given file is missing or another one, or the weights cannot be had.
    """
    if path is not None:
        if not path.is_file():
            raise PrecfmError(f"{path}: there is no such file; {weights.file} is needed")
        if (found := _sha256(path)) != weights.sha256:
            raise PrecfmError(f"{path}: SHA-256 is {found}; that of {weights.file} is {weights.sha256}")
        return path
    cached = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "precfm" / weights.file
    for candidate in [*_mirrored(weights), *_packaged(weights), cached]:
        if candidate.is_file() and _sha256(candidate) == weights.sha256:
            return candidate
    if weights.url is None:
        raise PrecfmError(f"{weights.file}: not found; {weights.install}, or put it below PRECFM_MIRROR")
    cached.parent.mkdir(parents=True, exist_ok=True)
    try:
        download_url_to_file(weights.url, str(cached), hash_prefix=weights.sha256, progress=False)
    except (urllib.error.URLError, OSError, RuntimeError) as error:  # RuntimeError: another checksum
        raise PrecfmError(
            f"{weights.file}: cannot be had from {weights.url} ({error}); put it below PRECFM_MIRROR "
            "or give its path"
        ) from error
    return cached


def load_state(path: Path) -> dict[str, Tensor]:
    """A state dictionary from a verified file, without running any code in it."""
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _mirrored(weights: Weights) -> list[Path]:
    mirror = os.environ.get("PRECFM_MIRROR")
    return sorted(Path(mirror).rglob(weights.file)) if mirror else []


def _packaged(weights: Weights) -> list[Path]:
    if weights.package is None or (spec := find_spec(weights.package[0])) is None:
        return []
    return [Path(place) / weights.package[1] for place in spec.submodule_search_locations or []]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
