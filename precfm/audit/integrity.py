"""The audit: does everything in results/ agree with its checksums, the plan, the ledger and this machine?

Findings are errors; warnings tell what may change the last digits of a rebuild, or is not committed yet. Times in
`records/` change from run to run and carry no checksum: those that are published are held against the commit and what
they are made from. Logs, benchmark files and stamps in `records/` are left out.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from precfm.audit.comparison import MIN_SEEDS, RELATIVE, compare, published_here, published_in
from precfm.audit.environment import MERGED, TIMES, check_commit, check_machine, check_times, check_versions
from precfm.audit.equivalences import check_equivalences
from precfm.audit.findings import Report, counted
from precfm.audit.ledger import Claim, check_ledger
from precfm.core.errors import PrecfmError
from precfm.datasets.manifest import file_sha256
from precfm.pipeline.artifact import record_checksum
from precfm.pipeline.experiments import CONFIG_FOLDER, NAME
from precfm.pipeline.manifest import MANIFEST, canonical, differing, read_manifest
from precfm.pipeline.node import ON_DEVICE, RECORD, RESULTS, Node
from precfm.pipeline.plan import KINDS, Plan, load_plan
from precfm.pipeline.publication import PRODUCTS

_FIELDS = {"kind", "key", "params", "parents", "fingerprint", "files", "made_on"}
_STAMP = ".snakemake_timestamp"  # empty; Snakemake leaves it in the folders of products
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
        if experiments and not re.fullmatch(NAME, name):
            raise PrecfmError(f"experiment {name!r}: letters, digits, _ and - are needed, a letter first")
        if not (RESULTS / name).is_dir():
            raise PrecfmError(
                f"{RESULTS / name}: not there; `make reproduce EXPERIMENT={name}` or `make pull` makes it"
            )
    if not chosen:
        raise PrecfmError(f"{RESULTS}: holds no experiment; run `make reproduce` or `make pull` first")
    report = Report(chosen)
    if against is not None:
        _check_against(report, against, named=bool(experiments))
    rooms = [_Room(report, name) for name in chosen]
    for room in rooms:
        room.check()
    if not experiments:
        _check_strays(report)
    _check_attic(report)
    _check_merged_claims(report)
    check_equivalences(report, [room.plan for room in rooms if room.plan is not None])
    check_versions(report)
    for room in rooms:
        check_machine(report, room.name, room.records)
        check_times(report, room.name, room.plan)
    check_ledger(report, [room.claim() for room in rooms])
    check_commit(report, chosen)
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
            remedy = f"mend {place}" if str(place) in str(error) else "mend that first"
            self.report.add("plan", self.home, f"there is no plan to compare with ({error})", remedy)
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

    def claim(self) -> Claim:
        """What the ledger must hold of it."""
        datasets = self.plan.experiment.datasets if self.plan is not None else {}
        sources = {dataset.source_name for dataset in datasets.values()}
        return Claim(self.name, list(self.published), sorted(sources))

    def _check_links(self) -> None:
        for path in _below(self.home):
            if path.is_symlink() or (path.is_file() and path.stat().st_nlink > 1):
                what = "symbolic" if path.is_symlink() else "hard"
                remedy = "replace it by a copy: DVC records a link as empty, and a linked file can change elsewhere"
                self.report.add("link", path, f"is a {what} link", remedy)

    def _folders(self) -> Iterator[Path]:
        """The artifacts' folders; what else lies among them is reported, and what lies beside them is noted."""
        known = {*filter(None, PRODUCTS.values()), "records", MANIFEST}
        for place in sorted(self.home.iterdir()):
            if place.name in known or place.is_symlink():
                continue
            if place.is_dir() and (place.name in KINDS or any(place.glob(f"*/{RECORD}"))):
                for folder in sorted(place.iterdir()):
                    if (folder / RECORD).is_file():
                        yield folder
                    elif not folder.is_symlink():
                        self._stray(folder)
            else:
                self.others.append(place)
        for place in sorted((self.home / "records").glob("*")):
            if not _is_record(place):
                self._stray(place)

    def _stray(self, path: Path) -> None:
        self.report.add("plan", path, "is neither an artifact nor a product", "delete it")

    def _check_manifest(self) -> None:
        file, report, plan = self.home / MANIFEST, self.report, self.plan
        back = f"`git checkout -- {file}` or `make reproduce EXPERIMENT={self.name}` brings it back"
        try:
            manifest = read_manifest(self.home)
        except OSError as error:
            report.add("manifest", file, f"cannot be read ({error.strerror})", back)
            return
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
            for told in differing(published[node_id], _planned(plan.nodes[node_id])):
                report.add("manifest", file, f"damaged: {told} of {node_id} is not the plan's", back)

    def _check_origin(self, node_id: str, record: Mapping[str, Any]) -> None:
        """An artifact against plan and manifest."""
        file = self.home / node_id / RECORD
        if self.plan is not None and (node := self.plan.nodes.get(node_id)) is not None:
            told = differing(record, _planned(node))
            if "fingerprint" in told:
                problem = (
                    f"says that code {record.get('fingerprint')} made it, the plan says {node.fingerprint}"
                )
                self.report.add("code", file, problem, _DAMAGED)
            elif told:
                self.report.add("record", file, f"damaged: {' and '.join(told)} is not the plan's", _DAMAGED)
        for name in differing(record, self.published.get(node_id, {})):
            # The record carries its own checksum and is whole, so the manifest is to blame.
            problem = f"damaged or stale: {name} of {node_id} is not what the artifact's own record says"
            remedy = f"`make reproduce EXPERIMENT={self.name}` publishes again, `git checkout` brings back"
            self.report.add("record", self.home / MANIFEST, problem, remedy)

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
                stamp = file == folder / _STAMP and file.is_file() and not file.stat().st_size
                if file not in expected and not stamp and not _holds(file, expected):
                    self.report.add(
                        "product", file, "stale: no artifact holds it", f"delete it, or {publish}"
                    )

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


def _holds(place: Path, files: Iterable[Path]) -> bool:
    """Whether a folder holds one of some files."""
    return place.is_dir() and any(place in file.parents for file in files)


def _is_record(place: Path) -> bool:
    """Whether something belongs into `records/`: times, logs, and the stamps of publishing and recording."""
    if place.is_dir():
        return place.name in ("benchmarks", "logs")
    return place.is_file() and (place.name in (*TIMES, "ledger") or place.name.startswith("published-"))


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
    """The checksum of a file; nothing if it cannot be read."""
    report.files += 1
    report.bytes += file.stat().st_size
    with suppress(OSError):
        return file_sha256(file)
    return ""


def check_artifact(report: Report, folder: Path) -> Mapping[str, Any] | None:
    """One artifact against its own record, which is returned if it is whole."""
    file = folder / RECORD
    try:
        text = _read(report, file)
        record = json.loads(text)
        stamps = {str(name): (stamp["sha256"], stamp["bytes"]) for name, stamp in record["files"].items()}
        names = set(record) - {"checksum"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        report.add("record", file, f"damaged ({error})", _DAMAGED)
        return None
    if record.get("checksum") != record_checksum(record) or names != _FIELDS or text != canonical(record):
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
    files = [folder / name for name in stamps]
    for path in _below(folder):
        name = path.relative_to(folder).as_posix()
        if name not in stamps and name != RECORD and not _holds(path, files):
            report.add("payload", path, "is no part of the artifact", "delete it")
    return {str(key): value for key, value in record.items()}


def _planned(node: Node) -> dict[str, Any]:
    """What the plan says of an artifact, as it would be read from a record."""
    return dict(json.loads(json.dumps(node.to_json())))


def _reason(node: Node | None, record: Mapping[str, Any]) -> str:
    """Why an artifact is not in the plan, given the plan's artifact of the same name."""
    if node is None:
        return "are in no plan any more"
    reasons = {
        "fingerprint": "were made by other code than the present",
        "params": "were made with other parameters",
        "parents": "were made from other inputs",
    }
    return (
        next(map(reasons.get, differing(record, _planned(node))), None)
        or "have another key than their content"
    )


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


def _check_strays(report: Report) -> None:
    """What lies in results/ beside the experiments."""
    for place in sorted(RESULTS.iterdir()):
        if not (place.is_dir() or place.name in MERGED) or place.is_symlink():
            report.add("plan", place, "is neither an experiment nor a product", "delete it")
        elif place.is_dir() and place.name.startswith(".") and place.name not in (".attic", ".work"):
            report.add("plan", place, "is neither the attic nor the place of running jobs", "delete it")


def _check_attic(report: Report) -> None:
    """What lies in the attic comes back when a plan wants it, so it is checked as well."""
    for file in sorted((RESULTS / ".attic").glob(f"*/*/{RECORD}")):
        check_artifact(report, file.parent)


def _check_merged_claims(report: Report) -> None:
    from precfm.report.claims_document import merge_claims

    verdicts = sorted(RESULTS.glob("[!.]*/claims.json"))
    merged = dict.fromkeys(MERGED, "")
    try:
        if verdicts:
            texts = merge_claims([file.read_text(encoding="utf-8") for file in verdicts])
            merged = dict(zip(merged, texts, strict=True))
    except (PrecfmError, UnicodeDecodeError, OSError) as error:
        report.add("product", RESULTS / "claims.json", f"cannot be compared ({error})", "mend that first")
        return
    for name, text in merged.items():
        file = RESULTS / name
        found = file.read_bytes() if file.is_file() else b""
        report.files, report.bytes = report.files + file.is_file(), report.bytes + len(found)
        if found != text.encode():
            problem = "is not what the experiments' verdicts give together"
            report.add("product", file, problem, "`precfm claims` makes it anew")


def _check_against(report: Report, place: str, *, named: bool) -> None:
    """Published numbers against those of another run, which must have all experiments that are named, or any."""
    others = {name: published_in(place, name) for name in report.experiments}
    for name, there in others.items():
        if not there and (named or not any(others.values())):
            raise PrecfmError(f"against: {place} holds no published numbers of {name}")
        if not there:
            report.notes.append(f"{RESULTS / name}: {place} holds no published numbers of it")
            continue
        for comparison in compare(published_here(name), there):
            report.comparisons.append(comparison)
            if comparison.beyond:
                problem = f"{len(comparison.beyond)} differences to {place} beyond the tolerance"
                remedy = "compare parameters, code and machine of both; `precfm why` names them"
                report.add("against", RESULTS / comparison.file, problem, remedy, comparison.beyond)
            if comparison.unjudged:
                problem = (
                    f"{comparison.unjudged} numbers cannot be judged: they differ from {place} by more than "
                    f"{RELATIVE:.0%} and agree only through intervals of fewer than {MIN_SEEDS} seeds"
                )
                report.warn(
                    "against", RESULTS / comparison.file, problem, "more seeds in both runs tell more"
                )
