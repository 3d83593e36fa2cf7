"""An experiment's manifest: every artifact with parameters, parents and checksums; read, checked, compared with.

`results/<experiment>/manifest.json` says what this machine made, and `results/published/<experiment>/manifest.json`, in
git, what was published, and of which revision.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from precfm.core.errors import PrecfmError
from precfm.core.options import Strict, sentence
from precfm.pipeline.artifact import record_checksum
from precfm.pipeline.node import PUBLISHED

MANIFEST = "manifest.json"
_COMPARED = ("fingerprint", "params", "parents", "files", "made_on")  # of an artifact, in the order of naming
NodeId = Annotated[str, Field(pattern=r"^[a-z_]+/[^/]+-[0-9a-f]{12}$")]


class Stamp(Strict):
    """A file's size and checksum."""

    bytes: int
    sha256: str


class Entry(Strict):
    """What a manifest says of one artifact; no files and no machine where it is not there."""

    params: dict[str, Any]
    parents: dict[str, list[NodeId]]
    fingerprint: str
    files: dict[str, Stamp] | None
    made_on: dict[str, Any] | None


class Revision(Strict):
    """The commit that made what is published, and whether the code was as in that commit."""

    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    clean: bool


class Manifest(Strict):
    """The whole manifest, with a checksum of all else in it; `revision` stands only in what is published."""

    experiment: str
    key: str
    artifacts: dict[NodeId, Entry]
    revision: Revision | None = None
    checksum: str


def read_manifest(home: Path) -> dict[str, Any] | None:
    """The manifest of an experiment, once it has exactly the form in which it is written.

    Args:
        home: `results/<experiment>` or `results/published/<experiment>`.

    Returns:
        The fields of `Manifest` as plain data; None if there is none.

    Raises:
        PrecfmError: it is damaged.
    """
    file = home / MANIFEST
    try:
        text = file.read_bytes().decode("utf-8")
        manifest = Manifest.model_validate_json(text)
        found: dict[str, Any] = json.loads(text)
        damage = "" if canonical(found) == text else "its form is wrong"
        if manifest.checksum != record_checksum(found):
            damage = "its own checksum is wrong"
        if manifest.experiment != home.name:
            damage = f"it is not the manifest of {home.name}"
    except FileNotFoundError:
        return None
    except ValidationError as error:
        damage = sentence(error)
    except (ValueError, RecursionError, IsADirectoryError) as error:
        damage = " ".join(str(error).split())
    if damage:
        published = home.parent == PUBLISHED
        remedy = (
            f"`git checkout -- {file}` brings it back" if published else "`make reproduce` writes it again"
        )
        raise PrecfmError(f"{file}: damaged ({damage}): {remedy}")
    return found


def entries(home: Path) -> dict[str, dict[str, Any]]:
    """The artifacts of an experiment's manifest, by id; none if there is no manifest.

    Raises:
        PrecfmError: it is damaged.
    """
    manifest = read_manifest(home)
    return dict(manifest["artifacts"]) if manifest is not None else {}


def agrees(record: Mapping[str, Any], entry: Mapping[str, Any], node_id: str) -> bool:
    """Whether an artifact is the one that was published.

    Args:
        record: what its `artifact.json` says.
        entry: what the manifest says of it; where that names no files, only the rest is compared.
        node_id: its id `kind/label-key` in the manifest, which is where it lies.
    """
    kind, name = node_id.split("/")
    of_this_name = record.get("kind") == kind and name.endswith(f"-{record.get('key')}")
    return of_this_name and not differing(record, entry)


def differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """The fields in which an artifact is not as wanted; labels of parents do not count.

    Args:
        found: a record, or an entry of a manifest.
        wanted: the same, or the plan's word; a field that is not there, or None, is not compared.
    """
    fields = [field for field in _COMPARED if wanted.get(field) is not None]
    return [field for field in fields if _content(found, field) != _content(wanted, field)]


def _content(about: Mapping[str, Any], field: str) -> Any:
    value = about.get(field)
    if field != "parents" or not isinstance(value, Mapping):
        return value
    return {
        role: [without_label(str(parent)) for parent in ids] if isinstance(ids, list) else ids
        for role, ids in value.items()
    }


def without_label(node_id: str) -> str:
    """An id as records have it, `kind/key`: a label is no part of the content."""
    kind, _, name = node_id.partition("/")
    return f"{kind}/{name.rpartition('-')[2]}"


def manifest_text(content: Mapping[str, Any]) -> bytes:
    """What is written of a manifest: the fields of `Manifest`, its checksum added."""
    return canonical({**content, "checksum": record_checksum(content)}).encode()


def canonical(data: Any) -> str:
    """The one way in which records and manifests are written."""
    return json.dumps(data, indent=1, sort_keys=True) + "\n"
