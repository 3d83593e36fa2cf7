"""One artifact held against its own record: every byte of it, and nothing beside it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from precfm.audit.report import Report
from precfm.core.errors import PrecfmError
from precfm.core.options import Strict, sentence
from precfm.datasets.manifest import file_sha256
from precfm.pipeline.artifact import record_checksum
from precfm.pipeline.manifest import Stamp, canonical
from precfm.pipeline.node import RECORD, Node

_PART = r"[A-Za-z0-9_=+:,@ -][A-Za-z0-9._=+:,@ -]*"  # nothing hidden, nothing that leads elsewhere
PAYLOAD = rf"{_PART}(/{_PART})*"
KEY = r"[0-9a-f]{12}"
DAMAGED = "delete its folder, then `precfm make EXPERIMENT KIND/LABEL-KEY` or `make pull` brings it back"

Model = TypeVar("Model", bound=BaseModel)


class Record(Strict):
    """What `artifact.json` must hold; `precfm.pipeline.build` writes it."""

    kind: str
    key: Annotated[str, Field(pattern=f"^{KEY}$")]
    params: dict[str, Any]
    parents: dict[str, list[str]]
    fingerprint: str
    files: dict[Annotated[str, Field(pattern=f"^{PAYLOAD}$")], Stamp]
    made_on: dict[str, Any]
    checksum: str


def parsed(schema: type[Model], text: bytes) -> Model:
    """JSON as an object of a schema.

    Raises:
        PrecfmError: it does not fit, in one sentence.
    """
    try:
        return schema.model_validate_json(text)
    except ValidationError as error:
        raise PrecfmError(sentence(error)) from None


def as_recorded(node: Node) -> dict[str, Any]:
    """What the plan says of an artifact, as it would be read from a record."""
    return dict(json.loads(json.dumps(node.to_json() | {"params": node.recorded_params})))


def check_artifact(report: Report, folder: Path) -> dict[str, Any] | None:
    """Hold an artifact against its own record.

    Args:
        report: gets an error for everything that is wrong.
        folder: `<kind>/<label>-<key>`, wherever it lies.

    Returns:
        The record, if it is whole.
    """
    file = folder / RECORD
    try:
        text = report.read(file)
        files = parsed(Record, text).files
        record: dict[str, Any] = json.loads(text)
    except (OSError, ValueError) as error:
        report.error("record", file, f"damaged ({getattr(error, 'strerror', error)})", DAMAGED)
        return None
    if record["checksum"] != record_checksum(record) or text != canonical(record).encode():
        report.error("record", file, "damaged: its own checksum or form is wrong", DAMAGED)
        return None
    if (record["kind"], record["key"]) != (folder.parent.name, folder.name.rpartition("-")[2]):
        report.error("record", file, f"is the record of {record['kind']} {record['key']}", DAMAGED)
    for name, stamp in files.items():
        payload = folder / name
        if not payload.is_file():
            report.error("payload", payload, "missing", DAMAGED)
        elif sha256(report, payload) != stamp.sha256 or payload.stat().st_size != stamp.bytes:
            report.error("payload", payload, "damaged: not the bytes that its checksum stands for", DAMAGED)
    for path in unlisted(folder, {file, *(folder / name for name in files)}):
        report.error("payload", path, "is no part of the artifact", "delete it")
    return record


def check_links(report: Report, folder: Path) -> None:
    """Nothing below a folder is a link."""
    for path in below(folder):
        if path.is_symlink() or (path.is_file() and path.stat().st_nlink > 1):
            what = "symbolic" if path.is_symlink() else "hard"
            remedy = (
                "replace it by a copy: DVC records a link as empty, and a linked file can change elsewhere"
            )
            report.error("link", path, f"is a {what} link", remedy)


def sha256(report: Report, file: Path) -> str:
    """The checksum of a file; nothing if it cannot be read."""
    try:
        report.files, report.size = report.files + 1, report.size + file.stat().st_size
        return file_sha256(file)
    except OSError:
        return ""


def unlisted(folder: Path, files: set[Path]) -> Iterator[Path]:
    """What lies below a folder and is neither one of these files nor a folder that leads to one."""
    wanted = files | {parent for file in files for parent in file.parents}
    return (path for path in below(folder) if path not in wanted)


def below(folder: Path) -> Iterator[Path]:
    """Everything below a folder, links themselves instead of what they lead to."""
    for place, folders, files in os.walk(folder):
        yield from (Path(place) / name for name in sorted([*folders, *files]))
