"""What this machine made of one experiment: artifacts, products and manifest against one another and the plan."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from precfm.audit.products import check_copies, check_strays, copies
from precfm.audit.records import DAMAGED, as_recorded, check_artifact, check_links
from precfm.audit.report import Report, counted
from precfm.core.errors import PrecfmError
from precfm.pipeline.manifest import MANIFEST, differing, entries, read_manifest
from precfm.pipeline.node import PUBLISHED, RECORD, RESULTS, Node
from precfm.pipeline.plan import KINDS, Plan, load_plan
from precfm.pipeline.products import AT_HOME, PRODUCTS


class LocalExperiment:
    """An experiment's folder in results/, checked.

    Attributes:
        plan: what the experiment wants; None if its configuration gives none.
        records: of its whole artifacts, by id.
        listed: what the manifest says of each artifact, by id.
    """

    def __init__(self, report: Report, name: str) -> None:
        self.report, self.name, self.home = report, name, RESULTS / name
        self.again = f"`make reproduce EXPERIMENT={name}` brings it up to date"
        self.plan = self._load_plan()
        self.listed = self._read_manifest()
        check_links(report, self.home)
        self.records = {
            f"{folder.parent.name}/{folder.name}": record
            for folder in self._artifact_folders()
            if (record := check_artifact(report, folder)) is not None
        }
        for node_id, record in self.records.items():
            self._check_origin(node_id, record)
        self._check_completeness()
        self._check_products()

    def _load_plan(self) -> Plan | None:
        try:
            return load_plan(self.name)
        except PrecfmError as error:
            remedy = "correct the configuration, or delete the folder"
            self.report.error("plan", self.home, f"there is no plan to compare with ({error})", remedy)
            return None

    def _read_manifest(self) -> Mapping[str, Mapping[str, Any]]:
        """What the manifest says of each artifact, once it was held against the plan; nothing if it is damaged."""
        file = self.home / MANIFEST
        try:
            manifest = read_manifest(self.home)
        except (OSError, PrecfmError) as error:
            self.report.error("manifest", file, str(error).removeprefix(f"{file}: "), self.again)
            return {}
        if manifest is None:  # a run was not finished, or artifacts were pulled or imported
            return {}
        self.report.read(file)
        listed: Mapping[str, Mapping[str, Any]] = manifest["artifacts"]
        nodes = self.plan.nodes if self.plan is not None else {}
        if self.plan is not None and listed.keys() != nodes.keys():
            problem = f"is of the plan {manifest['key']}, and configuration and code now give {self.plan.key}"
            self.report.error("manifest", file, problem, self.again)
        for node_id in nodes.keys() & listed.keys():
            if fields := differing(listed[node_id], as_recorded(nodes[node_id])):
                problem = f"damaged: {' and '.join(fields)} of {node_id} is not the plan's"
                self.report.error("manifest", file, problem, self.again)
        return listed

    def _artifact_folders(self) -> Iterator[Path]:
        """The artifacts; what is neither one nor a product, nor for logs, is an error."""
        known = {*filter(None, PRODUCTS.values()), "records", MANIFEST, *AT_HOME}
        for place in sorted(self.home.iterdir()):
            if place.name in known or place.is_symlink():
                continue
            if place.name in KINDS or any(place.glob(f"*/{RECORD}")):
                for folder in sorted(place.iterdir()):
                    if (folder / RECORD).is_file():
                        yield folder
                    elif not folder.is_symlink():
                        self._stray(folder)
            else:
                self._stray(place)

    def _stray(self, path: Path) -> None:
        self.report.error("plan", path, "is neither an artifact nor a product", "delete it")

    def _check_origin(self, node_id: str, record: Mapping[str, Any]) -> None:
        """An artifact against plan and manifest."""
        node = self.plan.nodes.get(node_id) if self.plan is not None else None
        if node is not None and (fields := differing(record, as_recorded(node))):
            check = "code" if "fingerprint" in fields else "record"
            problem = f"damaged: {' and '.join(fields)} is not the plan's"
            self.report.error(check, self.home / node_id / RECORD, problem, DAMAGED)
        if fields := differing(record, self.listed.get(node_id, {})):
            # The record carries its own checksum and is whole, so the manifest is to blame.
            problem = f"damaged or stale: {' and '.join(fields)} of {node_id} is not what the artifact's record says"
            self.report.error("manifest", self.home / MANIFEST, problem, self.again)

    def _check_completeness(self) -> None:
        """Every artifact of the plan is here, or a manifest says what it is; no other one is here."""
        if self.plan is None:
            return
        wanted = {(node.kind, node.label): node for node in self.plan.nodes.values()}
        unwanted: dict[str, list[str]] = {}
        for node_id in sorted(self.records.keys() - self.plan.nodes.keys()):
            kind, _, name = node_id.partition("/")
            why = _reason(wanted.get((kind, name.rpartition("-")[0])), self.records[node_id])
            unwanted.setdefault(why, []).append(node_id)
        for why, ids in unwanted.items():
            self.report.error("plan", self.home, f"not in the plan: {counted(ids)} {why}", self.again, ids)
        absent = [node.id for node in self.plan.nodes.values() if not node.exists]
        known = {**self._published(), **self.listed}
        never = [node_id for node_id in absent if not known.get(node_id, {}).get("files")]
        if never:
            problem = f"missing: {counted(never)} of the plan were never made"
            self.report.error("plan", self.home, problem, self.again, never)
        if kinds := Counter(node_id.split("/")[0] for node_id in absent if node_id not in never):
            self.report.absent[self.name] = dict(kinds)

    def _published(self) -> dict[str, dict[str, Any]]:
        try:
            return entries(PUBLISHED / self.name)
        except (OSError, PrecfmError):  # which the check of what is published names
            return {}

    def _check_products(self) -> None:
        ids = self.listed or (self.plan.nodes if self.plan is not None else self.records)
        made = {node_id: {**self.listed.get(node_id, {}), **self.records.get(node_id, {})} for node_id in ids}
        expected = copies(self.home, made, PRODUCTS)
        check_copies(self.report, expected, self.again)
        for file, (_, node_id) in expected.items():
            if self.listed and not file.exists():  # without a manifest they were not written yet
                self.report.error("product", file, f"missing, though {node_id} holds it", self.again)
        folders = [self.home / name for name in PRODUCTS.values() if name]
        check_strays(self.report, folders, expected, self.again)
        for name in AT_HOME:
            if (file := self.home / name).exists() and file not in expected:
                self._stray(file)


def _reason(node: Node | None, record: Mapping[str, Any]) -> str:
    """Why an artifact is not in the plan, given the plan's artifact of the same name."""
    if node is None:
        return "are in no plan any more"
    reasons = {
        "fingerprint": "were made by other code than the present",
        "params": "were made with other parameters",
        "parents": "were made from other inputs",
    }
    fields = differing(record, as_recorded(node))
    return next(
        (reasons[field] for field in fields if field in reasons), "have another key than their content"
    )
