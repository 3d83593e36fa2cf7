"""What an experiment has published of its artifacts: its manifest, read, checked and compared with in one place."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from precfm.core.errors import PrecfmError

MANIFEST = "manifest.json"
_FIELDS = {"artifacts", "experiment", "key"}
_ENTRY = {"params", "parents", "fingerprint", "files", "made_on"}
_TOLD = ("fingerprint", "params", "parents", "files", "made_on")  # of an artifact, in the order of telling
_ID = re.compile(r"[a-z_]+/[^/]+-[0-9a-f]{12}")


def read_manifest(home: Path) -> dict[str, Any] | None:
    """The manifest of an experiment, once it has exactly the form in which it is written.

    Args:
        home: `results/<experiment>`.

    Returns:
        Its fields `experiment`, `key` and `artifacts` (by id: `params`, `parents`, `fingerprint`, `files` and
        `made_on`); None if there is none.

    Raises:
        PrecfmError: it is damaged.
    """
    file = home / MANIFEST
    try:
        text = file.read_bytes().decode("utf-8")
        manifest = json.loads(text)
        damage = _damage(manifest, home.name) or ("" if canonical(manifest) == text else "its form is wrong")
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError, IsADirectoryError) as error:
        damage = " ".join(str(error).split())
    if damage:
        raise PrecfmError(f"{file}: damaged ({damage}): `git checkout -- {file}` brings it back")
    return dict(manifest)


def entries(home: Path) -> dict[str, dict[str, Any]]:
    """The artifacts of an experiment's manifest, by id; none if there is no manifest.

    Raises:
        PrecfmError: it is damaged.
    """
    manifest = read_manifest(home)
    return dict(manifest["artifacts"]) if manifest is not None else {}


def published_entries(results: Path) -> dict[str, list[dict[str, Any]]]:
    """What the manifests of all experiments say of each artifact, by `kind/key`; mostly one says something.

    Raises:
        PrecfmError: a manifest is damaged.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for home in sorted(path for path in results.glob("[!.]*") if path.is_dir()):
        for node_id, entry in entries(home).items():
            found.setdefault(without_label(node_id), []).append(entry)
    return found


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


def differing(told: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """The fields in which an artifact is told otherwise than wanted; labels of parents do not count.

    Args:
        told: a record, or an entry of a manifest.
        wanted: the same, or the plan's word; a field that is not there, or None, is not compared.
    """
    fields = [field for field in _TOLD if wanted.get(field) is not None]
    return [field for field in fields if _content(told, field) != _content(wanted, field)]


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


def canonical(data: Any) -> str:
    """The one way in which records and manifests are written."""
    return json.dumps(data, indent=1, sort_keys=True) + "\n"


def _damage(manifest: Any, experiment: str) -> str:
    """What keeps it from being the manifest of the experiment; empty if nothing does."""
    if not isinstance(manifest, dict) or set(manifest) != _FIELDS:
        return f"its fields are not {', '.join(sorted(_FIELDS))}"
    if manifest["experiment"] != experiment or not isinstance(manifest["key"], str):
        return f"it is not the manifest of {experiment}"
    if not isinstance(manifest["artifacts"], dict):
        return "artifacts: a mapping is needed"
    found = ((node_id, _wrong(node_id, entry)) for node_id, entry in manifest["artifacts"].items())
    return next((f"{node_id}: {told}" for node_id, told in found if told), "")


def _wrong(node_id: str, entry: Any) -> str:
    """The first thing in an artifact's entry that is not as it should be."""
    if not _ID.fullmatch(node_id):
        return "no id of the form kind/label-key"
    if not isinstance(entry, dict) or set(entry) != _ENTRY:
        return f"its fields are not {', '.join(sorted(_ENTRY))}"
    parents, files, made_on = entry["parents"], entry["files"], entry["made_on"]
    if not isinstance(entry["params"], dict) or not isinstance(entry["fingerprint"], str):
        return "params or fingerprint is none"
    if not isinstance(parents, dict) or not all(map(_are_ids, parents.values())):
        return "parents are none"
    if not (made_on is None or isinstance(made_on, dict)):
        return "made_on is none"
    return (
        ""
        if files is None or (isinstance(files, dict) and all(map(_stamp, files.values())))
        else "files are none"
    )


def _are_ids(ids: Any) -> bool:
    return isinstance(ids, list) and all(isinstance(name, str) and _ID.fullmatch(name) for name in ids)


def _stamp(stamp: Any) -> bool:
    return (
        isinstance(stamp, dict)
        and set(stamp) == {"bytes", "sha256"}
        and isinstance(stamp["bytes"], int)
        and isinstance(stamp["sha256"], str)
    )
