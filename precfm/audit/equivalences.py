"""The audit of config/equivalences.json: the evidence that newer code makes the bytes of older code, checked again."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from precfm.audit.findings import Report
from precfm.core.errors import PrecfmError
from precfm.pipeline import fingerprints as code
from precfm.pipeline.artifact import Artifact
from precfm.pipeline.manifest import entries
from precfm.pipeline.node import RECORD, RESULTS
from precfm.pipeline.plan import Plan


def check_equivalences(report: Report, plans: Sequence[Plan]) -> None:
    """What `precfm accept` recorded: the artifacts that it names are here, or published, and are as it says.

    An entry that the present code does not use may be about artifacts that are long gone.
    """
    file = code.EQUIVALENCES.relative_to(code.EQUIVALENCES.parents[1])
    try:
        accepted = code.read_equivalences()
    except PrecfmError as error:
        problem = str(error).removeprefix(f"{code.EQUIVALENCES}: ").partition("; it is kept")[0]
        report.add("code", file, problem, f"`git checkout -- {file}` brings it back")
        return
    if not accepted:
        return
    makers = {(node.script, node.targets) for plan in plans for node in plan.nodes.values() if node.script}
    used = {code.own_fingerprint(code.SCRIPTS / script, targets) for script, targets in makers}
    known = [_known_artifacts(home) for home in sorted(RESULTS.glob("[!.]*")) if home.is_dir()]
    for new, entry in accepted.items():
        again = f"remove the entry and run `precfm accept {entry['kind']}` again"
        named = [
            (node_id, files, artifacts[node_id])
            for node_id, files in entry["artifacts"].items()
            for artifacts in known
            if node_id in artifacts
        ]
        for node_id, files, told in named:
            stamps = {name: stamp.get("sha256") for name, stamp in (told.get("files") or {}).items()}
            if stamps != files or told.get("fingerprint") != entry["same_as"]:
                problem = f"{new}: artifacts: {node_id} is not the artifact that is here under this name"
                report.add("code", file, problem, again)
        if new in used and not named:
            problem = (
                f"{new}: artifacts: none is here or published, so nothing shows that the code does the same"
            )
            report.add("code", file, problem, again)


def _known_artifacts(home: Path) -> dict[str, Mapping[str, Any]]:
    """An experiment's artifacts by id: what the manifest says, or the artifact itself."""
    found: dict[str, Mapping[str, Any]] = {}
    for file in sorted(home.glob(f"*/*/{RECORD}")):
        with suppress(PrecfmError):
            found[f"{file.parent.parent.name}/{file.parent.name}"] = Artifact.open(file.parent).record
    with suppress(PrecfmError, OSError):
        found |= {node_id: entry for node_id, entry in entries(home).items() if entry["files"]}
    return found
