"""The audit: does everything in results/ agree with its checksums, the plan, the ledger and this machine?

Findings are errors; warnings tell what may change the last digits of a rebuild. Times in `records/` change from run to
run and carry no checksum: those that are published are held against the commit, which gives warnings. Logs are left
out.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from precfm.against import compare, published_here, published_in
from precfm.artifacts import ON_DEVICE, RECORD, RESULTS, Node, record_checksum
from precfm.datasets.manifest import file_sha256
from precfm.errors import PrecfmError
from precfm.experiments import CONFIG_FOLDER
from precfm.findings import Report, counted
from precfm.plan import KINDS, Plan, load_plan
from precfm.published import MANIFEST, canonical, read_manifest
from precfm.store import PRODUCTS
from precfm.surroundings import ask_ledger, check_ledger, check_machine, check_times, check_versions

_FIELDS = {"kind", "key", "params", "parents", "fingerprint", "files", "made_on"}
_UNTRACKED = {".snakemake_timestamp", ".gitignore"}
_DAMAGED = "delete this artifact's folder, then `make pull` or `make reproduce` brings it back"


def audit(experiments: Sequence[str] = (), against: str | None = None) -> Report:
    """Check results/ as a whole: files, plan, ledger, products, machine.

    Args:
        experiments: which ones; none means all that have a folder in results/.
        against: compare the published numbers with those of `git:REVISION` or of another folder.

    Returns:
        The report.

    Raises:
        PrecfmError: an experiment has no results, or there is nothing to compare with.
    """
    chosen = list(experiments) or sorted(path.name for path in RESULTS.glob("[!.]*") if path.is_dir())
    for name in chosen:
        if not (RESULTS / name).is_dir():
            raise PrecfmError(
                f"{RESULTS / name}: not there; `make reproduce EXPERIMENT={name}` or `make pull` makes it"
            )
    if not chosen:
        raise PrecfmError(f"{RESULTS}: holds no experiment; run `make reproduce` or `make pull` first")
    report = Report(chosen)
    if against is not None:
        _check_against(report, against)
    with ThreadPoolExecutor(1) as ledger:  # DVC works in its own processes meanwhile
        asked = ledger.submit(ask_ledger)
        rooms = [_Room(report, name) for name in chosen]
        for room in rooms:
            room.check()
        _check_attic(report)
        _check_merged_claims(report)
        check_versions(report)
        for room in rooms:
            check_machine(report, room.name, room.records)
            check_times(report, room.name)
        check_ledger(report, *asked.result())
    return report


class _Room:
    """The results of one experiment."""

    def __init__(self, report: Report, name: str) -> None:
        self.report, self.name, self.home = report, name, RESULTS / name
        self.again = f"`make reproduce EXPERIMENT={name}` brings it up to date"
        self.plan = self._load_plan()
        self.records: dict[str, Mapping[str, Any]] = {}
        self.published: dict[str, Any] = {}  # the manifest's entries, by id
        self.others: list[Path] = []  # what lies beside the artifacts, products among it

    def _load_plan(self) -> Plan | None:
        try:
            return load_plan(self.name)
        except PrecfmError as error:
            place = CONFIG_FOLDER / f"{self.name}.yaml"
            self.report.add("plan", self.home, f"there is no plan to compare with ({error})", f"mend {place}")
            return None

    def check(self) -> None:
        self._check_links()
        self._check_manifest()
        for folder in self._folders():
            if (record := check_artifact(self.report, folder)) is not None:
                self.records[f"{folder.parent.name}/{folder.name}"] = record
        for place in self.others:
            if place not in self._expected_products():  # they are known only now if the manifest is damaged
                self._stray(place)
        for node_id, record in self.records.items():
            self._check_origin(node_id, record)
        self._check_completeness()
        self._check_products()
        self._check_devices()

    def _check_links(self) -> None:
        for path in _below(self.home):
            if path.is_symlink() or (path.is_file() and path.stat().st_nlink > 1):
                what = "symbolic" if path.is_symlink() else "hard"
                remedy = "replace it by a copy: DVC records a link as empty, and a linked file can change elsewhere"
                self.report.add("link", path, f"is a {what} link", remedy)

    def _folders(self) -> Iterator[Path]:
        """The artifacts' folders; what else lies among them is reported, and what lies beside them is noted."""
        known = {*filter(None, PRODUCTS.values()), "records", MANIFEST, *_UNTRACKED}
        for place in sorted(self.home.iterdir()):
            if place.name in known or place.is_symlink():
                continue
            if place.is_dir() and (place.name in KINDS or any(place.glob(f"*/{RECORD}"))):
                for folder in sorted(place.iterdir()):
                    if (folder / RECORD).is_file():
                        yield folder
                    elif folder.name not in _UNTRACKED and not folder.is_symlink():
                        self._stray(folder)
            else:
                self.others.append(place)

    def _stray(self, path: Path) -> None:
        self.report.add("plan", path, "is neither an artifact nor a product", "delete it")

    def _check_manifest(self) -> None:
        file, report, plan = self.home / MANIFEST, self.report, self.plan
        back = f"`git checkout -- {file}` or `make reproduce EXPERIMENT={self.name}` brings it back"
        try:
            manifest = read_manifest(self.home)
        except PrecfmError as error:
            remedy = f"or `make reproduce EXPERIMENT={self.name}` writes it anew"
            report.add("manifest", file, str(error).removeprefix(f"{file}: "), remedy)
            return
        if manifest is None:
            report.add("manifest", file, "missing: nothing was published", self.again)
            return
        report.files, report.bytes = report.files + 1, report.bytes + file.stat().st_size
        self.published = published = manifest["artifacts"]
        key = manifest["key"]
        current = plan is not None and published.keys() == plan.nodes.keys()
        if plan is not None and current != (key == plan.key):
            report.add("manifest", file, "damaged: it contradicts itself", back)
        if plan is None:
            return
        if not current:
            report.add(
                "manifest",
                file,
                f"was published from the plan {key}, and configuration and code now give {plan.key}: what is "
                "published is out of date",
                self.again,
            )
        for node_id in plan.nodes.keys() & published.keys():
            if told := _contradiction(plan.nodes[node_id], published[node_id]):
                report.add("manifest", file, f"damaged: {told} of {node_id} is not the plan's", back)

    def _check_origin(self, node_id: str, record: Mapping[str, Any]) -> None:
        """An artifact against plan and manifest."""
        file = self.home / node_id / RECORD
        if self.plan is not None and (node := self.plan.nodes.get(node_id)) is not None:
            if record.get("fingerprint") != node.fingerprint:
                problem = (
                    f"says that code {record.get('fingerprint')} made it, the plan says {node.fingerprint}"
                )
                self.report.add("code", file, problem, _DAMAGED)
            elif told := _contradiction(node, record):
                self.report.add("record", file, f"damaged: {told} is not the plan's", _DAMAGED)
        entry = self.published.get(node_id)
        if entry is None:
            return
        for name in ("files", "params", "fingerprint", "made_on"):
            if entry.get(name) is None or entry[name] == record.get(name):
                continue
            if "checksum" in record:  # the record is whole, so the manifest is to blame
                problem = f"damaged or stale: {name} of {node_id} is not what the artifact's own record says"
                file = self.home / MANIFEST
            else:
                problem = f"its {name} is not what {MANIFEST} says of it"
            remedy = f"`make reproduce EXPERIMENT={self.name}` publishes again, `git checkout` brings back"
            self.report.add("record", file, problem, remedy)

    def _check_completeness(self) -> None:
        """Every artifact of the plan is here or published; no other one is here."""
        if self.plan is None:
            return
        wanted = {(node.kind, node.label): node for node in self.plan.nodes.values()}
        grouped: dict[str, list[str]] = {}
        for node_id in sorted(self.records.keys() - self.plan.nodes.keys()):
            kind, name = node_id.split("/")
            why = _reason(wanted.get((kind, name.rpartition("-")[0])), self.records[node_id])
            grouped.setdefault(why, []).append(node_id)
        for why, ids in grouped.items():
            problem = f"not in the plan: {counted(ids)} {why}"
            remedy = (
                f"`make reproduce EXPERIMENT={self.name}` moves them to the attic and makes what is needed"
            )
            self.report.add("plan", self.home, problem, remedy, ids)
        if ids := [
            node_id
            for node_id in self.plan.nodes
            if not (self.home / node_id / RECORD).is_file()
            and not (self.published.get(node_id) or {}).get("files")
        ]:
            problem = f"missing: {counted(ids)} of the plan were never made"
            self.report.add(
                "plan", self.home, problem, f"`make reproduce EXPERIMENT={self.name}` makes them", ids
            )
        absent = self.published.keys() - self.records.keys()
        kinds = Counter(node_id.split("/")[0] for node_id in absent if not (self.home / node_id).exists())
        if kinds:
            self.report.not_here[self.name] = dict(kinds)

    def _product_nodes(self) -> dict[str, Mapping[str, Any]]:
        """What is published: the manifest's word, or else the plan's."""
        if self.published:
            entries = self.published
        elif self.plan is not None:
            entries = {node_id: self.records.get(node_id, {}) for node_id in self.plan.nodes}
        else:
            entries = dict(self.records)
        return {
            node_id: {**entry, **self.records.get(node_id, {})}
            for node_id, entry in entries.items()
            if node_id.split("/")[0] in PRODUCTS
        }

    def _expected_products(self) -> dict[Path, tuple[str, str]]:
        """Each product's path with its checksum and the artifact that it is a copy of."""
        return {
            self.home / PRODUCTS[node_id.split("/")[0]] / name: (stamp["sha256"], node_id)
            for node_id, entry in self._product_nodes().items()
            for name, stamp in (entry.get("files") or {}).items()
        }

    def _check_products(self) -> None:
        expected = self._expected_products()
        publish = f"`make reproduce EXPERIMENT={self.name}` publishes again"
        for file, (sha256, node_id) in expected.items():
            if not file.is_file():
                self.report.add("product", file, f"missing, though {node_id} holds it", publish)
            elif _sha256(self.report, file) != sha256:
                self.report.add("product", file, f"is not what {node_id} holds: stale or damaged", publish)
        for folder in {self.home / name for name in PRODUCTS.values() if name}:
            for file in _below(folder):
                if file.is_file() and file not in expected and file.name not in _UNTRACKED:
                    self.report.add("product", file, "stale: no artifact holds it", publish)

    def _check_devices(self) -> None:
        """Tables whose rows of one data set were made on different devices."""
        graph = {**self.published, **self.records}
        devices: dict[str, Counter[str]] = {}
        for node_id, entry in self.published.items():
            if not node_id.startswith("frames/"):
                continue
            for role, about in (entry["params"].get("about") or {}).items():
                for parent, told in zip(entry["parents"].get(role, ()), about, strict=False):
                    for ancestor in _ancestors(self.published, parent):
                        device = (graph.get(ancestor, {}).get("made_on") or {}).get("device")
                        if device and ancestor.split("/")[0] in ON_DEVICE and "dataset" in told:
                            devices.setdefault(told["dataset"], Counter())[device] += 1
        for dataset, several in devices.items():
            if len(several) > 1:
                for table in sorted(self.home.glob("tables/*.csv")):
                    if any(
                        line.startswith(f"{dataset},")
                        for line in table.read_text("utf-8", "replace").splitlines()
                    ):
                        problem = f"rows of {dataset} mix devices ({', '.join(sorted(several))})"
                        self.report.warn("devices", table, problem, "compare methods on one device only")


def _below(folder: Path) -> Iterator[Path]:
    """Everything below a folder, links themselves instead of what they lead to."""
    for place, folders, files in os.walk(folder):
        for name in sorted([*folders, *files]):
            yield Path(place) / name


def _read(report: Report, file: Path) -> str:
    data = file.read_bytes()
    report.files += 1
    report.bytes += len(data)
    return data.decode("utf-8")


def _sha256(report: Report, file: Path) -> str:
    report.files += 1
    report.bytes += file.stat().st_size
    return file_sha256(file)


def check_artifact(report: Report, folder: Path) -> Mapping[str, Any] | None:
    """One artifact against its own record, which is returned if it is whole."""
    file = folder / RECORD
    try:
        text = _read(report, file)
        record = json.loads(text)
        stamps = {str(name): (stamp["sha256"], stamp["bytes"]) for name, stamp in record["files"].items()}
        names = set(record) - {"checksum"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        report.add("record", file, f"damaged ({error})", _DAMAGED)
        return None
    sealed = "checksum" not in record or record["checksum"] == record_checksum(record)
    if not sealed or names != _FIELDS or text != canonical(record):
        report.add("record", file, "damaged: its own checksum or form is wrong", _DAMAGED)
        return None
    if (record["kind"], record["key"]) != (folder.parent.name, folder.name.rpartition("-")[2]):
        report.add("record", file, f"is the record of {record['kind']} {record['key']}", _DAMAGED)
    for name, (sha256, size) in stamps.items():
        payload = folder / name
        if not payload.is_file():
            report.add("payload", payload, "missing", _DAMAGED)
        elif payload.stat().st_size != size or _sha256(report, payload) != sha256:
            report.add("payload", payload, "damaged: not the bytes that its checksum stands for", _DAMAGED)
    for path in _below(folder):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in stamps and name != RECORD and path.name not in _UNTRACKED:
            report.add("payload", path, "is no part of the artifact", "delete it")
    return {str(key): value for key, value in record.items()}


def _contradiction(node: Node, told: Mapping[str, Any]) -> str | None:
    """The first field in which a record or a manifest's entry differs from the plan."""
    planned = json.loads(json.dumps({"fingerprint": node.fingerprint, "params": node.params}))
    for name, value in planned.items():
        if told.get(name) != value:
            return str(name)
    return None if _parents(node.parents) == _parents(told.get("parents") or {}) else "parents"


def _parents(families: Mapping[str, Iterable[str]]) -> dict[str, list[tuple[str, str]]]:
    """Parents by kind and key; labels are for readers."""
    return {
        role: [(parent.split("/")[0], parent.split("/")[-1].rpartition("-")[2]) for parent in ids]
        for role, ids in families.items()
    }


def _reason(node: Node | None, record: Mapping[str, Any]) -> str:
    """Why an artifact is not in the plan, given the plan's artifact of the same name."""
    if node is None:
        return "are in no plan any more"
    if record.get("fingerprint") != node.fingerprint:
        return "were made by other code than the present"
    return {
        "params": "were made with other parameters",
        "parents": "were made from other inputs",
    }.get(_contradiction(node, record) or "", "have another key than their content")


def _ancestors(entries: Mapping[str, Any], node_id: str) -> set[str]:
    """An artifact and all that it was made from."""
    found: set[str] = set()
    pending = [node_id]
    while pending:
        if (name := pending.pop()) not in found:
            found.add(name)
            for ids in (entries.get(name, {}).get("parents") or {}).values():
                pending.extend(ids)
    return found


def _check_attic(report: Report) -> None:
    """What lies in the attic comes back when a plan wants it, so it is checked as well."""
    for file in sorted((RESULTS / ".attic").glob(f"*/*/{RECORD}")):
        check_artifact(report, file.parent)


def _check_merged_claims(report: Report) -> None:
    from precfm.report.claims_document import merge_claims

    verdicts = sorted(RESULTS.glob("[!.]*/claims.json"))
    merged = dict.fromkeys(("claims.json", "claims.md"), "")
    try:
        if verdicts:
            texts = merge_claims([file.read_text(encoding="utf-8") for file in verdicts])
            merged = dict(zip(merged, texts, strict=True))
    except (PrecfmError, UnicodeDecodeError) as error:
        report.add("product", RESULTS / "claims.json", f"cannot be compared ({error})", "mend that first")
        return
    for name, text in merged.items():
        file = RESULTS / name
        found = file.read_bytes() if file.is_file() else b""
        report.files, report.bytes = report.files + file.is_file(), report.bytes + len(found)
        if found != text.encode():
            problem = "is not what the experiments' verdicts give together"
            report.add("product", file, problem, "`precfm claims` makes it anew")


def _check_against(report: Report, place: str) -> None:
    """Published numbers against those of another run."""
    for name in report.experiments:
        there = published_in(place, name)
        if not there:
            raise PrecfmError(f"against: {place} holds no published numbers of {name}")
        for comparison in compare(published_here(name), there):
            report.comparisons.append(comparison)
            if comparison.beyond:
                problem = f"{len(comparison.beyond)} differences to {place} beyond the tolerance"
                remedy = "compare parameters, code and machine of both; `precfm why` names them"
                report.add("against", RESULTS / comparison.file, problem, remedy, comparison.beyond)
