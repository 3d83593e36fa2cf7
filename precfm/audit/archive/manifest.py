"""What an export announces and what an artifact's record must say, with the checks that both must pass."""

import json
import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from precfm.core.errors import PrecfmError
from precfm.pipeline.artifact import record_checksum
from precfm.pipeline.experiments import NAME
from precfm.pipeline.node import RECORD
from precfm.pipeline.plan import KINDS

MANIFEST = "manifest.json"
LARGEST_TEXT = 2**26  # bytes of a manifest or of a record
SAFE_NAME = r"[A-Za-z0-9][A-Za-z0-9._=+-]*"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Bytes = Annotated[int, Field(ge=0)]


class _Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class PackedFile(_Plain):
    """One file of an export."""

    name: Annotated[str, Field(pattern=r"^precfm-[0-9]{4,}\.tar(\.[0-9]{3,})?$")]
    bytes: Bytes
    sha256: Sha256


class PackedArtifact(_Plain):
    """One artifact of an export: where it belongs, and the checksum of its record."""

    experiment: Annotated[str, Field(pattern=f"^{NAME}$")]
    id: Annotated[str, Field(pattern=rf"^[a-z_]+/{SAFE_NAME}-[0-9a-f]{{12}}$")]
    record: Sha256


class Volume(_Plain):
    """One tar file, in one or more pieces."""

    files: Annotated[list[PackedFile], Field(min_length=1)]
    artifacts: Annotated[list[PackedArtifact], Field(min_length=1)]


class Manifest(_Plain):
    """What an export consists of."""

    format: Literal[1] = 1
    volumes: Annotated[list[Volume], Field(min_length=1)]


class Payload(BaseModel):
    """One payload file as a record lists it."""

    model_config = ConfigDict(strict=True)
    sha256: Sha256
    bytes: Bytes


class Record(BaseModel):
    """What `artifact.json` must hold; see `precfm.pipeline.build`."""

    model_config = ConfigDict(strict=True)
    kind: str
    key: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    params: dict[str, Any]
    parents: dict[str, list[str]]
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]+$")]
    files: dict[str, Payload]
    made_on: dict[str, Any]


def checked_record(text: bytes, artifact_id: str) -> Record:
    """The record of an artifact, once it is what a record must be.

    Args:
        text: the contents of `artifact.json`.
        artifact_id: `kind/label-key`, where it was found.

    Raises:
        PrecfmError: a field is missing or malformed, its own checksum is wrong, it belongs to another artifact, or a
            file's name leads elsewhere.
    """
    where = f"{artifact_id}/{RECORD}"
    try:
        record = Record.model_validate_json(text)
    except ValidationError as error:
        raise PrecfmError(f"{where}: {first_mistake(error)}; the record of an artifact is needed") from None
    content = json.loads(text)
    if content.get("checksum") != record_checksum(content):
        raise PrecfmError(f"{where}: damaged (its own checksum is wrong); fetch it anew")
    kind, _, name = artifact_id.partition("/")
    if kind not in KINDS or record.kind != kind or not name.endswith(f"-{record.key}"):
        raise PrecfmError(
            f"{where}: says it is {record.kind} {record.key}; it should be what its folder is called"
        )
    names = frozenset(record.files)
    for file in record.files:
        _check_file_name(file, names, where)
    return record


def _check_file_name(name: str, names: frozenset[str], where: str) -> None:
    """Refuse what leads out of the artifact, hides, or stands in another file's way."""
    path = PurePosixPath(name)
    plain = all(re.fullmatch(r"[A-Za-z0-9_=+:,@ -][A-Za-z0-9._=+:,@ -]{0,199}", part) for part in path.parts)
    if not plain or str(path) != name or not path.parts or name == RECORD:
        raise PrecfmError(f"{where}: file name {name!r} is none that a payload may have")
    if any(str(parent) in names for parent in path.parents):
        raise PrecfmError(f"{where}: {name!r} lies below a file")


def first_mistake(error: ValidationError) -> str:
    """The first thing that is wrong, with its place."""
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(str(part) for part in first['loc']) or 'the whole file'}: {first['msg']}"
