"""The audit of config/equivalences.json, the evidence that newer code makes the bytes of older code."""

from contextlib import suppress
from typing import Any

from precfm.audit.report import Report
from precfm.core.errors import PrecfmError
from precfm.pipeline import fingerprints as code
from precfm.pipeline.artifact import Artifact
from precfm.pipeline.manifest import entries
from precfm.pipeline.node import PUBLISHED, RECORD, homes


def check_equivalences(report: Report) -> None:
    """Artifacts that `precfm accept` names as evidence are as it says, where they are on this machine or published."""
    file = code.EQUIVALENCES.relative_to(code.EQUIVALENCES.parents[1])
    try:
        accepted = code.read_equivalences()
    except PrecfmError as error:
        problem = str(error).removeprefix(f"{code.EQUIVALENCES}: ")
        report.error("code", file, problem, f"`git checkout -- {file}` brings it back")
        return
    known = _known_artifacts() if accepted else {}
    for new, entry in accepted.items():
        for node_id, files in entry["artifacts"].items():
            if node_id not in known:
                report.notes.append(f"{file}: {new}: {node_id}, its evidence, is not on this machine")
            for found in known.get(node_id, ()):
                checksums = {name: stamp["sha256"] for name, stamp in (found["files"] or {}).items()}
                if checksums != files or found["fingerprint"] != entry["same_as"]:
                    problem = f"{new}: artifacts: {node_id} is not the artifact of this name"
                    remedy = f"remove the entry and run `precfm accept {entry['kind']}` again"
                    report.error("code", file, problem, remedy)


def _known_artifacts() -> dict[str, list[dict[str, Any]]]:
    """What records and published manifests say of each artifact, by id; damaged ones are found elsewhere."""
    found: dict[str, list[dict[str, Any]]] = {}
    for record in (record for home in homes() for record in home.glob(f"*/*/{RECORD}")):
        with suppress(PrecfmError):
            name = f"{record.parent.parent.name}/{record.parent.name}"
            found.setdefault(name, []).append(dict(Artifact.open(record.parent).record))
    for home in PUBLISHED.glob("*/"):
        with suppress(PrecfmError, OSError):
            for node_id, entry in entries(home).items():
                found.setdefault(node_id, []).append(entry)
    return found
