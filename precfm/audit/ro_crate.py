"""RO-Crates, which other programs for provenance can read: of a lineage, and of an archive.

References:
    Workflow Run Crate, https://w3id.org/ro/wfrun/workflow/0.5: one action for the whole run, and one for each
    artifact on the way, with its code, its parameters and what it used.
    Process Run Crate, https://w3id.org/ro/wfrun/process/0.5: one action; an archive is one.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import date
from mimetypes import guess_type
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from precfm.audit.lineage import Lineage, Step, flat
from precfm.core.errors import PrecfmError
from precfm.pipeline.fingerprints import PACKAGE
from precfm.pipeline.node import RECORD, RESULTS
from precfm.pipeline.plan import KINDS, Plan

PROCESS_RUN = "https://w3id.org/ro/wfrun/process/0.5"
PROFILES = {
    PROCESS_RUN: "Process Run Crate",
    "https://w3id.org/ro/wfrun/workflow/0.5": "Workflow Run Crate",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "Workflow RO-Crate",
}
TERMS = {"sha256": "https://w3id.org/ro/terms/workflow-run#sha256"}  # not among the terms of RO-Crate itself
LICENSE = "https://spdx.org/licenses/MIT"
SNAKEFILE = PACKAGE.parent / "Snakefile"


def write_crate(traced: Lineage, folder: Path) -> None:
    """Write a lineage as a crate: the file itself, a record of each artifact and source, and how they hang together.

    Args:
        traced: of `precfm.audit.lineage.lineage`.
        folder: a new or empty folder.

    Raises:
        PrecfmError: the folder holds something, or the library for crates is not installed.
    """
    rocrate = _new_crate()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PrecfmError(f"{folder}: is there already; a new folder is needed")
    with TemporaryDirectory() as temporary:
        crate = _Crate(rocrate, traced, Path(temporary))
        crate.fill()
        crate.rocrate.write(folder)


def archive_metadata(plan: Plan, revision: Mapping[str, Any], date: str, files: Iterable[str]) -> bytes:
    """What `ro-crate-metadata.json` says of an archive; it depends on nothing but the arguments.

    Args:
        plan: of the experiment that the archive holds.
        revision: the commit, and whether code and configuration are as in it.
        date: of the commit, as ISO 8601.
        files: the members of the archive, beside this one.

    Raises:
        PrecfmError: the library for crates is not installed.
    """
    crate, home = _new_crate(), f"{RESULTS}/{plan.experiment}"
    made = f"revision {revision['commit']}{'' if revision['clean'] else ', with changes that were not committed'}"
    command = f"make reproduce EXPERIMENT={plan.experiment}"
    given, results = _data_of_archive(crate, home, files)
    code = {"name": "precfm", "softwareVersion": made}
    action = crate.add_action(
        _context(crate, "#precfm", "SoftwareApplication", **code),
        identifier="#run",
        object=given,
        result=results,
        properties={"name": command},
    )
    root = crate.root_dataset
    root["name"] = f"precfm: {plan.experiment}"
    root["description"] = (
        f"The experiment {plan.experiment} (plan {plan.key}), made by precfm, {made}. In a checkout of that revision, "
        f"`precfm import` puts the artifacts of this archive in place, and `{command}` makes what is left."
    )
    root["identifier"], root["version"], root["datePublished"] = plan.key, revision["commit"], date
    root["license"] = _context(crate, LICENSE, "CreativeWork", name="MIT License")
    root["conformsTo"] = _profile(crate, PROCESS_RUN)
    root["mentions"] = action
    return (json.dumps(crate.metadata.generate(), indent=1, sort_keys=True) + "\n").encode()


def _data_of_archive(crate: Any, home: str, files: Iterable[str]) -> tuple[list[Any], list[Any]]:
    """Add what an archive holds, artifacts as one folder for each kind; what it was made from, and what was made."""
    given: list[Any] = []
    made: list[Any] = []
    kinds: Counter[str] = Counter()
    for file in sorted(files):
        kind = file.removeprefix(f"{home}/").split("/")[0]
        if file.startswith(f"{home}/") and kind in KINDS:
            kinds[kind] += file.endswith(f"/{RECORD}")
            continue
        entity = crate.add_file(dest_path=file)
        if "/" in file:
            (made if file.startswith(f"{home}/") else given).append(entity)
    for kind, count in kinds.items():
        about = {
            "name": kind,
            "description": f"artifacts: {count}; the {RECORD} of each says how it was made",
        }
        made.append(crate.add_dataset(dest_path=f"{home}/{kind}", properties=about))
    return given, made


def _new_crate() -> Any:
    try:
        from rocrate.rocrate import ROCrate
    except ImportError:
        raise PrecfmError(
            "rocrate is not installed; `pip install precfm[workflow]` or `make install` brings it"
        ) from None
    return ROCrate(version="1.1")


def _context(crate: Any, identifier: str, kind: str, **properties: Any) -> Any:
    from rocrate.model.contextentity import ContextEntity

    return crate.add(ContextEntity(crate, identifier, {"@type": kind, **properties}))


def _profile(crate: Any, url: str) -> Any:
    return _context(crate, url, "CreativeWork", name=PROFILES[url], version=url.rsplit("/", 1)[1])


class _Crate:
    """A crate while it is filled; `rocrate` is the object of the library of that name."""

    def __init__(self, rocrate: Any, traced: Lineage, temporary: Path) -> None:
        self.rocrate, self.traced, self.temporary = rocrate, traced, temporary
        self.codes: dict[str, Any] = {}

    def fill(self) -> None:
        """Add everything that belongs into it."""
        traced, root = self.traced, self.rocrate.root_dataset
        root["name"] = f"Where {traced.file} comes from"
        root["description"] = f"Lineage of {traced.file}, made by the precfm experiment {traced.experiment}."
        root["datePublished"] = date.today().isoformat()
        root["license"] = self._context(LICENSE, "CreativeWork", name="MIT License")
        root["conformsTo"] = [_profile(self.rocrate, url) for url in PROFILES]
        self.rocrate.metadata.extra_terms.update(TERMS)
        workflow = self.rocrate.add_workflow(
            SNAKEFILE,
            "Snakefile",
            main=True,
            lang="snakemake",
            properties={
                "name": "precfm",
                "encodingFormat": "text/plain",
                **({"version": traced.revision["commit"]} if traced.revision else {}),
            },
        )
        sources = [
            self._file(
                f"sources/{name}.json", source, name=f"data source {name}", identifier=source["checksum"]
            )
            for name, source in traced.sources.items()
        ]
        records = {
            step.id: self._file(
                f"artifacts/{step.id}.json", asdict(step), name=step.id, description=_about(step)
            )
            for step in traced.steps.values()
        }
        product = self._product()
        actions = [self._action("run", workflow, sources, [product], f"make {traced.experiment}")]
        for step in traced.steps.values():
            used = [records[parent] for ids in step.parents.values() for parent in ids]
            used += sources if step.kind == "data" else []
            used += [
                self._context(f"#{step.id}/{name}", "PropertyValue", name=name, value=value)
                for name, value in flat(step.params)
            ]
            made = [records[step.id], *([product] if step.id == traced.root else [])]
            actions.append(self._action(step.id, self._code(step), used, made, f"make {step.id}"))
        root["mentions"] = actions

    def _context(self, identifier: str, kind: str, **properties: Any) -> Any:
        return _context(self.rocrate, identifier, kind, **properties)

    def _file(self, place: str, content: Any, **properties: Any) -> Any:
        file = self.temporary / place.replace("/", "--")
        file.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return self.rocrate.add_file(
            file, place, properties={"encodingFormat": "application/json", **properties}
        )

    def _product(self) -> Any:
        file, cell = Path(self.traced.file), self.traced.cell
        properties = {
            "name": self.traced.file,
            "sha256": self.traced.sha256,
            "encodingFormat": guess_type(file.name)[0] or "application/octet-stream",
        }
        if cell is not None:
            properties["description"] = f"{cell.name}: {json.dumps(dict(cell.about))}; column {cell.column}"
        return self.rocrate.add_file(file, f"product/{file.name}", properties=properties)

    def _code(self, step: Step) -> Any:
        """A script with all code that it needs, as one application whose version is the fingerprint."""
        if step.fingerprint not in self.codes:
            self.codes[step.fingerprint] = self._context(
                f"#code-{step.fingerprint}",
                "SoftwareApplication",
                name=f"workflow_scripts/{step.script}",
                softwareVersion=step.fingerprint,
            )
        return self.codes[step.fingerprint]

    def _action(self, name: str, instrument: Any, used: list[Any], made: list[Any], title: str) -> Any:
        return self.rocrate.add_action(
            instrument,
            identifier=f"#action-{name.replace('/', '-')}",
            object=used if len(used) != 1 else used[0],
            result=made if len(made) != 1 else made[0],
            properties={"name": title, "actionStatus": "http://schema.org/CompletedActionStatus"},
        )


def _about(step: Step) -> str:
    made_on = ", ".join(f"{name} {value}" for name, value in sorted((step.made_on or {}).items()))
    machine = f"; made on {made_on}" if made_on else ""
    return f"parameters, parents, code and checksums of an artifact{machine}"
