"""Your own latents: a file or a folder of shards, with labels if you have them; no encoder, no images."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BeforeValidator
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.options import Count, checked
from precfm.datasets.manifest import SourceFile, file_sha256, register
from precfm.datasets.streams import LatentRows, RowStream, check_labels
from precfm.latents.reading import Latents as StoredLatents
from precfm.latents.reading import open_latents
from precfm.latents.stored_tensors import SUFFIXES

LABELS = "labels"  # folder beside the latents that holds the file of labels, where that is one of its own
# A list, too, as it comes out of a configuration.
LatentShape = Annotated[
    tuple[Count, ...], BeforeValidator(lambda given: tuple(given) if isinstance(given, list) else given)
]


class Latents:
    """Latents of anything: of images, sound or volumes, made elsewhere.

    Args:
        source: the name under which they stand in data/sources.yaml (`precfm data add NAME FILE`).
        shape: of one latent, such as [4, 32, 32]; None takes what the file holds, and then a plan knows it only when
            the file has been read.
        classes: how many classes there are; None for one more than the largest label.
        tensor: which tensor, where a file holds several beside `labels`.
        channels_last: the rows are stored as (height, width, channels), and are read as (channels, height, width).

    Attributes:
        kind: what a row is.
        counts: empty: only the files tell how many there are.
    """

    kind = "latents"
    counts: tuple[int, ...] = ()

    @checked
    def __init__(
        self,
        *,
        source: str = "latents",
        shape: LatentShape | None = None,
        classes: Count | None = None,
        tensor: str | None = None,
        channels_last: bool = False,
    ) -> None:
        self.source = source
        self.shape = None if shape is None else tuple(shape)
        self.classes = classes
        self.tensor = tensor
        self.channels_last = channels_last

    @contextmanager
    def open(self, folder: Path) -> Iterator[RowStream]:
        """Look what the files hold; rows are read when they are asked for, all files once for each call.

        Args:
            folder: where the fetched files lie: shards, and a folder `labels` if those have a file of their own.

        Raises:
            PrecfmError: the files are no latents, have another shape than the options say, a number is not finite, or
                the labels do not fit.
        """
        stored = stored_latents(folder, tensor=self.tensor, channels_last=self.channels_last)
        found = stored.shape[1:]
        if self.shape is not None and found != self.shape:
            raise PrecfmError(
                f"shape: got {list(self.shape)}, but the latents of '{self.source}' are {list(found)}; that is needed"
            )
        labels = torch.zeros(len(stored), dtype=torch.int64) if stored.labels is None else stored.labels
        classes = int(labels.max()) + 1 if self.classes is None else self.classes
        names = tuple(str(index) for index in range(classes))
        check_labels(labels, len(stored), names)
        yield RowStream(self.kind, found, labels, names, lambda rows: _taken(stored, rows))

    def load(self, folder: Path) -> LatentRows:
        """All rows in memory.

        Args:
            folder: as for `open`.

        Raises:
            PrecfmError: as `open`.
        """
        with self.open(folder) as stream:
            rows = stream.read(torch.arange(len(stream)))
            return LatentRows(rows, stream.labels, stream.class_names)


def _taken(stored: StoredLatents, rows: Tensor) -> Tensor:
    """Rows in the order in which they are asked for."""
    order = rows.argsort()
    taken = stored.take(rows[order]).float()
    return taken[order.argsort()]


def stored_latents(
    place: Path, labels: Path | None = None, *, tensor: str | None = None, channels_last: bool = False
) -> StoredLatents:
    """Look at a file or folder of latents, and at a file of their labels.

    Args:
        place: the file or folder; a folder may hold the labels in a file below `labels`.
        labels: the file of labels, where it lies elsewhere.
        tensor: as in `Latents`.
        channels_last: as in `Latents`.

    Raises:
        PrecfmError: as `precfm.latents.reading.open_latents`.
    """
    beside = sorted((place / LABELS).iterdir()) if (place / LABELS).is_dir() else []
    found = labels or next(iter(beside), None)
    return open_latents(place, tensor=tensor, labels=found, channels_last=channels_last)


def are_latents(path: Path) -> bool:
    """Whether a file, or a folder without images, has the ending of files of tensors.

    Example:
        >>> are_latents(Path("z.safetensors")), are_latents(Path("photographs.zip"))
        (True, False)
    """
    if path.is_dir():
        return any(file.suffix in SUFFIXES for file in path.iterdir())
    return path.suffix in SUFFIXES


def add_latents(name: str, path: Path, sources_file: Path, labels: Path | None = None) -> StoredLatents:
    """Register a file, or a folder of shards, of latents as a data source; every number is looked at.

    Args:
        name: the new source's name.
        path: the file or folder.
        sources_file: data/sources.yaml.
        labels: a file of one integer per row, where they do not stand beside the latents.

    Returns:
        What they hold.

    Raises:
        PrecfmError: the name is malformed or taken, a number is not finite, or the files are no latents with fitting
            labels.
    """
    stored = stored_latents(path, labels)
    for _ in stored.batches():  # refuses what is not finite
        pass
    files = [(shard.file.name, shard.file) for shard in stored.shards]
    if labels is not None:
        files.append((f"{LABELS}/{labels.name}", labels))
    listed = [SourceFile(file, place.stat().st_size, file_sha256(place)) for file, place in files]
    places = (path,) if labels is None else (path, labels)
    register(name, listed, places, "latents added with `precfm data add`", sources_file)
    return stored
