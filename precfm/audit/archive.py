"""An experiment in one file, as a DOI's payload or for readers without a DVC remote: `precfm export`.

The file is a zip whose bytes depend on nothing but what it holds and the revision: members are stored, sorted, without
times and owners. It unpacks to an RO-Crate, with configuration, manifest, products and artifacts under their names in a
checkout; its first member lists the checksum of every other one, for `sha256sum -c`. `precfm.audit.importing` reads it.
"""

import hashlib
import io
import shutil
import stat
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from precfm.audit.git import asked
from precfm.audit.importing import ABOUT, CHECKSUMS, METADATA
from precfm.audit.records import check_artifact
from precfm.audit.report import Report
from precfm.audit.ro_crate import archive_metadata
from precfm.core.errors import PrecfmError
from precfm.datasets.manifest import file_lists, file_sha256
from precfm.datasets.sources import SOURCES
from precfm.pipeline.experiments import CONFIG_FOLDER, TINY, read_yaml
from precfm.pipeline.fingerprints import PACKAGE
from precfm.pipeline.manifest import MANIFEST, manifest_text
from precfm.pipeline.node import RECORD, RESULTS, Node
from precfm.pipeline.plan import KINDS, Plan
from precfm.pipeline.products import manifest_of, products
from precfm.pipeline.publication import revision

Content = Path | bytes  # of a member: a file that is read when it is written, or the bytes themselves


def export_experiment(plan: Plan, kinds: Sequence[str] = (), to: Path | None = None) -> tuple[Path, int]:
    """Write an experiment, or some kinds of its artifacts, into one file.

    Args:
        plan: of an experiment whose artifacts, of these kinds, all exist.
        kinds: which ones, and then no products; none means everything.
        to: a new file; by default `<experiment>-<plan key>.zip`, with the kinds between both.

    Returns:
        The file, and the number of artifacts in it.

    Raises:
        PrecfmError: an artifact is missing or damaged, the file exists, or this is no git checkout.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise PrecfmError(f"--kind: '{kind}' is no kind of artifact; kinds are {', '.join(KINDS)}")
    to = to or Path(f"{'-'.join([plan.experiment, *kinds, plan.key])}.zip")
    if to.exists():
        raise PrecfmError(f"--to: '{to}' is there already; the name of a new file is needed")
    nodes = [node for node in plan.nodes.values() if not kinds or node.kind in kinds]
    missing = [node.id for node in nodes if not node.exists]
    if missing or not nodes:
        lacking = (
            f"{len(missing)} of {len(nodes)} artifacts are missing ({missing[0]})"
            if missing
            else "no artifacts"
        )
        raise PrecfmError(
            f"{plan.experiment}: {lacking}, and only whole experiments or kinds are exported; "
            f"`make reproduce EXPERIMENT={plan.experiment}` makes them, `--kind` chooses kinds"
        )
    _write(_members(plan, nodes, complete=not kinds), to)
    return to, len(nodes)


def _members(plan: Plan, nodes: Sequence[Node], *, complete: bool) -> dict[str, Content]:
    """What goes into an archive, by its name there; every artifact is verified."""
    members: dict[str, Content] = {name: PACKAGE.parent / name for name in ABOUT}
    members |= {
        file.as_posix(): file
        for file in [*_configuration(plan.experiment), SOURCES, *file_lists(SOURCES)]
        if file.is_file()
    }
    for node in nodes:
        members |= {
            (node.folder / name).as_posix(): node.folder / name for name in _files_of_whole(node.folder)
        }
    home, made_by = RESULTS / plan.experiment, _revision()
    if complete:
        for file, (artifact, name) in products(plan).items():
            members[(home / file).as_posix()] = artifact.path(name)
    members[(home / MANIFEST).as_posix()] = manifest_text({**manifest_of(plan), "revision": made_by})
    date = (asked("show", "--no-patch", "--format=%cI", made_by["commit"]) or b"").decode().strip()
    members[METADATA] = archive_metadata(plan, made_by, date, members)
    return dict(sorted(members.items()))


def _configuration(experiment: str) -> Iterator[Path]:
    """The files that say what an experiment is: its own, those that it extends, and the claims."""
    name: str | None = experiment
    if not (CONFIG_FOLDER / f"{name}.yaml").is_file():
        name = experiment.removesuffix(TINY)
    while name is not None:
        yield (file := CONFIG_FOLDER / f"{name}.yaml")
        name = read_yaml(file).get("extends")
    yield CONFIG_FOLDER / "claims.yaml"


def _revision() -> dict[str, Any]:
    try:
        return revision()
    except PrecfmError:
        raise PrecfmError(
            "export: a git checkout with a commit is needed, whose revision the archive names"
        ) from None


def _files_of_whole(folder: Path) -> list[str]:
    """The names of an artifact's files, its record's included, once every byte is found right."""
    report = Report()
    record = check_artifact(report, folder)
    if record is None or report.findings:
        raise PrecfmError(str(report.findings[0]))
    return [RECORD, *record["files"]]


def _write(members: Mapping[str, Content], to: Path) -> None:
    """Write a zip file, first the checksums of all members; it has its name only once it is whole."""
    sums = "".join(f"{_sha256(content)}  {name}\n" for name, content in members.items())
    to.parent.mkdir(parents=True, exist_ok=True)
    part = to.with_name(f".{to.name}.part")
    try:
        with zipfile.ZipFile(part, "w") as archive:
            for name, content in {CHECKSUMS: sums.encode(), **members}.items():
                with _opened(content) as source, archive.open(_header(name, content), "w") as member:
                    shutil.copyfileobj(source, member)
        part.rename(to)
    finally:
        part.unlink(missing_ok=True)


def _header(name: str, content: Content) -> zipfile.ZipInfo:
    """A member's header: a plain file, stored, at the earliest time that the format knows."""
    header = zipfile.ZipInfo(name)
    header.create_system, header.external_attr = 3, (stat.S_IFREG | 0o644) << 16  # 3: Unix
    header.file_size = content.stat().st_size if isinstance(content, Path) else len(content)
    return header


def _opened(content: Content) -> BinaryIO:
    return content.open("rb") if isinstance(content, Path) else io.BytesIO(content)


def _sha256(content: Content) -> str:
    return file_sha256(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()
