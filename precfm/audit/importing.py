"""An archive of `precfm.audit.archive`, verified and put in place: `precfm import`.

Nothing in it is trusted: only listed plain files in safe places are unpacked, into a folder of our own; each artifact
is held against checksum, record, manifest and the plan of this checkout, and each product against its artifact; and all
must be right before the first artifact is moved into place. Nothing else of an archive is used.
"""

import errno
import os
import re
import shutil
import socket
import stat
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from filecmp import cmp
from pathlib import Path
from typing import Any

from filelock import FileLock

from precfm.audit.products import check_copies, copies
from precfm.audit.records import PAYLOAD, as_recorded, below, check_artifact
from precfm.audit.report import Report
from precfm.core.errors import PrecfmError
from precfm.datasets.manifest import LIST, file_lists, file_sha256
from precfm.datasets.sources import SOURCES
from precfm.pipeline.experiments import NAME
from precfm.pipeline.files import remove
from precfm.pipeline.locks import alone, lock
from precfm.pipeline.manifest import MANIFEST, agrees, differing, entries, read_manifest, without_label
from precfm.pipeline.node import PUBLISHED, RECORD, RESULTS, Node
from precfm.pipeline.plan import KINDS, load_plan
from precfm.pipeline.products import PRODUCTS

CHECKSUMS = "manifest-sha256.txt"
METADATA = "ro-crate-metadata.json"
ABOUT = ("CITATION.cff", "LICENSE")
_PLACE = re.compile(
    "|".join(map(re.escape, (METADATA, *ABOUT, SOURCES.as_posix())))
    + rf"|config/{NAME}\.yaml|data/{NAME}{re.escape(LIST)}|results/({NAME})/{PAYLOAD}"
)
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_UNREADABLE = (zipfile.BadZipFile, EOFError, ValueError, RuntimeError, ArithmeticError, struct.error, OSError)
_FORGED = (errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL)  # other errors are the machine's


@dataclass
class Imported:
    """What an import did.

    Attributes:
        experiment: whose artifacts they are.
        placed: ids of those that came into place.
        replaced: of those of them that were there already, but damaged.
        kept: of those that were there already, equal.
        different: of those that are there with other bytes, and were left as they are.
        unlike_published: of those whose bytes are not the published ones.
        unlike_here: configuration and sources in the archive whose text is another one than in this checkout.
    """

    experiment: str
    placed: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    unlike_published: list[str] = field(default_factory=list)
    unlike_here: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """The same for people."""
        new, there = len(self.placed) + len(self.replaced), len(self.kept) + len(self.different)
        yield f"{self.experiment}: {new} artifacts put in place, {there} were there already"
        for node_id in self.replaced:
            yield f"{node_id}: was there, but damaged, and was replaced"
        for node_id in self.different:
            yield f"{node_id}: is there with other bytes, and was left as it is"
        if self.unlike_published:
            count = len(self.unlike_published)
            yield f"note: {count} have other bytes than the published ones, as they have on another machine"
        if self.unlike_here:
            names = ", ".join(self.unlike_here)
            yield f"note: other text than in this checkout, though of the same plan, and not used: {names}"


def import_archive(file: Path, experiment: str | None = None) -> Imported:
    """Verify an archive and put its artifacts in place; what is whole and there already stays as it is.

    It waits for a run that works on the experiment, or that records.

    Args:
        file: of `export_experiment`.
        experiment: whose it must be; None means any.

    Raises:
        PrecfmError: it is no such archive, anything in it is damaged or not as listed, or it is of another
            experiment, configuration or code; then nothing was put in place.
    """
    with _staging() as staging:
        try:
            name = _unpack(file, staging)
            manifest, artifacts = _checked(staging / RESULTS / name)
        except _UNREADABLE as error:
            if isinstance(error, OSError) and error.errno not in _FORGED:
                raise
            what = " ".join(str(error).replace(f"{staging}/", "").split()) or type(error).__name__
            raise PrecfmError(f"{file}: no whole archive of `precfm export` ({what})") from None
        if experiment not in (None, name):
            raise PrecfmError(f"{file}: holds the experiment '{name}', but '{experiment}' was asked for")
        with alone(name), alone("ledger"):
            nodes = _planned(file, name, manifest["revision"], artifacts)
            done = _put_all(staging / RESULTS / name, artifacts, nodes)
        done.unlike_here = _unlike_here(staging)
        return done


@contextmanager
def _staging() -> Iterator[Path]:
    """A new folder that nobody else uses, on the disk of the results; one import at a time."""
    work = RESULTS / ".work"
    (work / "locks").mkdir(parents=True, exist_ok=True)
    with FileLock(work / "locks" / "import.lock"):
        for left in (work / "parts").glob("import.*"):  # by a killed import: this one holds the lock
            remove(left)
        staging = work / "parts" / f"import.part-{socket.gethostname()}-{os.getpid()}"
        staging.mkdir(parents=True)
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _unpack(file: Path, staging: Path) -> str:
    """Unpack an archive into a folder of our own, every byte as its list of checksums says; its experiment's name."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if not members or members[0].filename != CHECKSUMS:
            raise PrecfmError(f"its first member is not {CHECKSUMS}")
        for member in members:
            _require_plain(member)
        if sum(member.file_size for member in members) > file.stat().st_size:
            raise PrecfmError("its members overlap")
        lines = archive.read(CHECKSUMS).decode().splitlines()
        sums = {match[2]: match[1] for match in map(_LINE.fullmatch, lines) if match}
        if [member.filename for member in members[1:]] != list(sums) or len(sums) != len(lines):
            raise PrecfmError(f"its members are not those that {CHECKSUMS} lists")
        places = [_PLACE.fullmatch(name) for name in sums]
        experiments = {match[1] for match in places if match} - {None}
        if not all(places) or len(experiments) != 1 or PUBLISHED.name in experiments:
            raise PrecfmError("its members are not those of one experiment")
        for name, sha256 in sums.items():
            place = staging / name
            place.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, place.open("xb") as copy:
                shutil.copyfileobj(source, copy)
            if file_sha256(place) != sha256:
                raise PrecfmError(f"{name} is not what its checksum stands for")
    (experiment,) = experiments
    return experiment


def _require_plain(member: zipfile.ZipInfo) -> None:
    """A member is a file whose bytes are stored as they are: no link, no folder, neither packed nor encrypted."""
    stored = member.compress_type == zipfile.ZIP_STORED and member.compress_size == member.file_size
    if not (stored and stat.S_ISREG(member.external_attr >> 16) and member.flag_bits == 0):
        raise PrecfmError(f"{member.filename!r} is no plain file, stored as it is")


def _checked(home: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The manifest of what was unpacked, and by id the records of the artifacts, once they agree."""
    manifest = None
    with suppress(PrecfmError):  # whose remedy would be wrong here
        manifest = read_manifest(home)
    if manifest is None or not manifest.get("revision"):
        raise PrecfmError(f"it holds no whole {home / MANIFEST} with a revision")
    artifacts = {}
    for folder in [path for kind in KINDS for path in sorted((home / kind).glob("*"))]:
        report, node_id = Report(), f"{folder.parent.name}/{folder.name}"
        record = check_artifact(report, folder)
        if record is None or report.findings:
            raise PrecfmError(f"{report.findings[0].file}: {report.findings[0].problem}")
        entry = manifest["artifacts"].get(node_id)
        if entry is None or entry["files"] is None or not agrees(record, entry, node_id):
            raise PrecfmError(f"{node_id} is not what its manifest lists")
        artifacts[node_id] = record
    if not artifacts:
        raise PrecfmError("it holds no artifact")
    _check_products(home, artifacts)
    return manifest, artifacts


def _check_products(home: Path, artifacts: Mapping[str, Mapping[str, Any]]) -> None:
    """Whatever is no artifact is a product, as its artifact holds it, or the manifest."""
    products, report = copies(home, artifacts, PRODUCTS), Report()
    check_copies(report, products, "")
    if report.findings:
        raise PrecfmError(f"{report.findings[0].file} is not what its artifact holds")
    for file in (path for path in below(home) if not path.is_dir()):
        place = file.relative_to(home)
        in_artifact = place.parts[0] in KINDS and "/".join(place.parts[:2]) in artifacts
        if not (in_artifact or file in products or file == home / MANIFEST):
            raise PrecfmError(f"{file} is neither an artifact nor a product of one")


def _unlike_here(staging: Path) -> list[str]:
    """The files of configuration and sources that this checkout has with another text, or not at all."""
    files = [*sorted(staging.glob("config/*.yaml")), staging / SOURCES, *file_lists(staging / SOURCES)]
    names = [file.relative_to(staging) for file in files if file.is_file()]
    return [str(name) for name in names if not name.is_file() or not cmp(staging / name, name, shallow=False)]


def _planned(
    file: Path, experiment: str, made_by: Mapping[str, Any], artifacts: Mapping[str, Mapping[str, Any]]
) -> dict[str, Node]:
    """The present plan's node of each artifact.

    Raises:
        PrecfmError: the plan does not want one of them, or there is no such plan.
    """
    changes = "" if made_by["clean"] else ", with changes that were not committed,"
    of_revision = f"revision {made_by['commit'][:12]}{changes} made it"
    try:
        nodes = {without_label(node.id): node for node in load_plan(experiment).nodes.values()}
    except PrecfmError as error:
        raise PrecfmError(
            f"{file}: {experiment} has no plan in this checkout ({error}); {of_revision}"
        ) from None
    foreign = [
        node_id
        for node_id, record in artifacts.items()
        if (key := without_label(node_id)) not in nodes or differing(record, as_recorded(nodes[key]))
    ]
    if foreign:
        raise PrecfmError(
            f"{file}: {len(foreign)} of its {len(artifacts)} artifacts are not in this checkout's plan of {experiment} "
            f"({foreign[0]}), which has another configuration or other code; {of_revision}"
        )
    return {node_id: nodes[without_label(node_id)] for node_id in artifacts}


def _put_all(source: Path, artifacts: Mapping[str, Mapping[str, Any]], nodes: Mapping[str, Node]) -> Imported:
    """Move what is not there yet, or damaged, into place, each under its lock and the plan's label for it."""
    done = Imported(source.name)
    published: dict[str, dict[str, Any]] = {}
    with suppress(OSError, PrecfmError):  # it is damaged, which `precfm audit` names
        published = {
            without_label(node_id): entry for node_id, entry in entries(PUBLISHED / source.name).items()
        }
    for node_id, record in artifacts.items():
        folder, node = source / node_id, nodes[node_id]
        if differing(
            {"files": record["files"]}, {"files": published.get(without_label(node_id), {}).get("files")}
        ):
            done.unlike_published.append(node.id)
        with lock(node):
            there, damaged = node.exists, Report()
            if there:
                check_artifact(damaged, node.folder)
            if not there or damaged.findings:
                node.folder.parent.mkdir(parents=True, exist_ok=True)
                remove(node.folder)  # Snakemake's empty folder, or the remains of an incomplete pull
                folder.rename(node.folder)
                (done.replaced if there else done.placed).append(node.id)
            elif file_sha256(node.folder / RECORD) == file_sha256(folder / RECORD):
                done.kept.append(node.id)
            else:
                done.different.append(node.id)
    return done
