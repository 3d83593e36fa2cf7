"""A finished artifact, for reading: an immutable folder with a checksum for every file."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precfm.core.errors import PrecfmError
from precfm.datasets.manifest import file_sha256
from precfm.pipeline.node import RECORD
from precfm.pipeline.shards import StoredRows, shards_of

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor


@dataclass(frozen=True)
class Artifact:
    """A finished artifact, for reading. Every file is checked against its checksum before it is used."""

    folder: Path
    record: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> "Artifact":
        """Open the artifact in a folder.

        Raises:
            PrecfmError: there is none, or its record is damaged.
        """
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            if not all(
                isinstance(value, dict) for value in (record, record["files"], *record["files"].values())
            ):
                raise ValueError("it lists no files")
            if record["checksum"] != record_checksum(record):
                raise ValueError("its own checksum is wrong")
            return cls(folder, record)
        except FileNotFoundError:
            raise PrecfmError(
                f"{folder}: no complete artifact there; run `make reproduce` to make it"
            ) from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise PrecfmError(f"{folder / RECORD}: damaged ({error}); {_REMEDY}") from None

    @property
    def params(self) -> Mapping[str, Any]:
        """The parameters that it was made with."""
        params: Mapping[str, Any] = self.record["params"]
        return params

    @property
    def key(self) -> str:
        """Its content key."""
        return str(self.record["key"])

    def path(self, name: str) -> Path:
        """The path of a payload file, once its checksum is found right.

        Raises:
            PrecfmError: the file is missing, unknown or damaged.
        """
        file = self.folder / name
        expected = self.record["files"].get(name)
        if expected is None or Path(name).is_absolute() or ".." in Path(name).parts:
            raise PrecfmError(
                f"{file}: not part of this artifact, which holds {', '.join(self.record['files'])}"
            )
        try:
            found = file_sha256(file)
        except OSError as error:
            raise PrecfmError(f"{file}: {error.strerror or error}; {_REMEDY}") from None
        if found != expected.get("sha256"):
            raise PrecfmError(
                f"{file}: damaged (checksum {found[:12]}, expected {str(expected.get('sha256'))[:12]}); {_REMEDY}"
            )
        return file

    def verified(self) -> Path:
        """The folder, once every payload file is found right."""
        for name in self.record["files"]:
            self.path(name)
        return self.folder

    def shards(self, name: str) -> list[Path]:
        """The paths of the files that a large safetensors file was split into, or its own, once found right.

        Raises:
            PrecfmError: a file is missing, unknown or damaged.
        """
        return [self.path(shard) for shard in shards_of(name, self.record["files"]) or [name]]

    def rows(self, name: str) -> StoredRows:
        """A safetensors file, or its shards, for reading in slices of rows."""
        return StoredRows(self.shards(name))

    def tensors(self, name: str) -> dict[str, "Tensor"]:
        """A safetensors file, or its shards together, as a mapping of tensors in memory."""
        from safetensors.torch import load_file

        files = self.shards(name)
        if len(files) > 1:
            stored = StoredRows(files)
            return stored.read(0, len(stored))
        tensors: dict[str, Tensor] = load_file(files[0])
        return tensors

    def frame(self, name: str) -> "pd.DataFrame":
        """A CSV file as a data frame."""
        import pandas as pd

        return pd.read_csv(self.path(name))

    def json(self, name: str) -> Any:
        """A JSON file as plain data."""
        return json.loads(self.path(name).read_text(encoding="utf-8"))


_REMEDY = "delete this folder and run the same command again, which makes it anew"


def record_checksum(record: Mapping[str, Any]) -> str:
    """The checksum of everything else that a record holds."""
    content = {name: value for name, value in record.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
