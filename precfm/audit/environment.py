"""The audit of what surrounds the results: the commit, published times, installed packages, this machine."""

import importlib.metadata
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from precfm.audit.findings import Report, counted
from precfm.audit.git import asked, committed
from precfm.core.errors import PrecfmError
from precfm.pipeline.node import RESULTS
from precfm.pipeline.plan import Plan
from precfm.pipeline.publication import publish_time_to_quality, wall_time, wall_times

LOCK = Path("requirements.lock")
TIMES = ("wall_time.csv", "time_to_quality.csv")
MERGED = ("claims.json", "claims.md")


def check_versions(report: Report) -> None:
    """Installed packages against requirements.lock."""
    if not LOCK.is_file():
        report.notes.append(f"{LOCK}: not here, so installed versions are not compared")
        return
    try:
        differing = differing_packages()
    except PrecfmError as error:
        report.add("environment", LOCK, str(error).removeprefix(f"{LOCK}: "), f"`git checkout -- {LOCK}`")
        return
    if differing:
        other = [f"{name} {here or 'none'} instead of {pinned}" for name, (pinned, here) in differing.items()]
        problem = f"{len(other)} package{'s' * (len(other) > 1)} here in another version"
        report.warn("environment", LOCK, problem, "`make install` brings the pinned ones", other)


def differing_packages() -> dict[str, tuple[str, str | None]]:
    """Packages that are not here as requirements.lock pins them for this machine.

    Returns:
        By name, the pinned version, and the installed one or None.

    Raises:
        PrecfmError: a line of the file is no requirement.
    """
    found: dict[str, tuple[str, str | None]] = {}
    for line in LOCK.read_text(encoding="utf-8").splitlines():
        if not line.strip() or line[0] in " #":  # checksums and comments
            continue
        try:
            pinned = Requirement(line.rstrip(" \\"))
        except InvalidRequirement:
            raise PrecfmError(
                f"{LOCK}: {line!r} is no requirement; one package in each line is needed"
            ) from None
        if pinned.marker is not None and not pinned.marker.evaluate():
            continue
        here = installed(pinned.name)
        if here is None or not pinned.specifier.contains(here, prereleases=True):
            found[pinned.name] = (str(pinned.specifier).removeprefix("=="), here)
    return found


def installed(package: str) -> str | None:
    """The version of an installed package; None if there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_times(report: Report, experiment: str, plan: Plan | None) -> None:
    """Published times, which no artifact holds, against the commit and against what they are made from.

    A row of `wall_time.csv` is that of the commit, or what the job's benchmark file says; `time_to_quality.csv` is that
    of the commit, or what the times and artifacts give.
    """
    times, quality = (RESULTS / experiment / "records" / name for name in TIMES)
    for file, wrong in ((times, _wrong_row), (quality, _wrong_quality)):
        before = committed(file)
        found = file.read_bytes() if file.is_file() else None
        if found == before:
            continue
        if found is None:
            report.add(
                "times", file, "missing, though the commit has it", f"`git checkout -- {file}` brings it back"
            )
        elif (problem := wrong(found, before, file, plan)) is not None:
            remedy = (
                f"commit it if it is right; otherwise `git checkout -- {file}` brings back what was published"
            )
            if before is None and problem == _UNKNOWN:
                report.notes.append(f"{file}: {problem}")
            else:
                report.add("times", file, problem, remedy)


_UNKNOWN = "neither in a commit nor made from what is here, and times carry no checksum"


def _wrong_row(found: bytes, committed: bytes | None, file: Path, plan: Plan | None) -> str | None:
    """The first row of the wall times that is there twice, missing, or neither the commit's nor a benchmark's."""
    lines, before = found.split(b"\n"), (committed or b"").split(b"\n")
    known = {_HEADER, b"", *before}
    if lines[0] != _HEADER or lines[-1] or b"" in lines[:-1]:
        return "damaged: it has another form than `precfm` writes"
    present = Counter(map(_job, lines[1:-1]))
    if twice := [job for job, count in present.items() if count > 1]:
        return f"it has more than one row of {twice[0]}"
    unknown = False
    for line in (line for line in lines[1:-1] if line not in known):
        kind, _, name = _job(line).partition("/")
        row = wall_time(file.parent, kind, name)
        if row is None and committed is None:
            unknown = True
        elif row is None or line != wall_times([row]).split(b"\n")[1]:
            shown = line.decode("utf-8", "backslashreplace")
            return f"the row {shown!r} is neither in the commit nor what the job's benchmark says"
    for job in map(_job, before[1:]):
        if job not in present and plan is not None and job in plan.nodes:
            return f"the row of {job}, which the commit has, is missing"
    return _UNKNOWN if unknown else None


_HEADER = b"kind,artifact,seconds,max_rss_mb"


def _job(line: bytes) -> str:
    return "/".join(os.fsdecode(cell) for cell in line.split(b",")[:2])


def _wrong_quality(found: bytes, committed: bytes | None, file: Path, plan: Plan | None) -> str | None:
    """Why the seconds to quality cannot be right."""
    again = _quality_again(file, plan) if plan is not None else None
    if again == found:
        return None
    if again is None and committed is None:
        return _UNKNOWN
    return "is not what the times and artifacts give" if again is not None else "differs from the commit"


def _quality_again(file: Path, plan: Plan) -> bytes | None:
    """What publishing would write now; None if artifacts or times are missing or damaged."""
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary) / "records" / file.name
        made.parent.mkdir()
        try:
            shutil.copyfile(file.with_name(TIMES[0]), made.with_name(TIMES[0]))
            publish_time_to_quality(Path(temporary), plan)
            return made.read_bytes()
        except (OSError, ValueError, KeyError):
            return None


def check_commit(report: Report, experiments: Iterable[str]) -> None:
    """What git holds of the results and is not as committed is named; checksums tell whether it is right."""
    told = {finding.file for finding in report.findings}
    for place in [*(RESULTS / name for name in experiments), *(RESULTS / name for name in MERGED)]:
        listed = asked("diff", "--name-only", "--no-renames", "--relative", "-z", "HEAD", "--", str(place))
        changed = [name for name in os.fsdecode(listed or b"").split("\0") if name and name not in told]
        changed = [name for name in changed if Path(name).name not in TIMES]
        if changed:
            problem = f"{len(changed)} files are not as committed"
            remedy = "commit them if the rest of this audit is clean, or `git checkout` brings them back"
            report.warn("commit", place, problem, remedy, changed)


def check_machine(report: Report, experiment: str, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Where artifacts were made against this machine: other places may change the last digits."""
    import platform

    import torch

    here = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    elsewhere: dict[str, list[str]] = {}
    for node_id, record in records.items():
        place = record.get("made_on")
        if not isinstance(place, dict):  # damaged, and reported as such
            continue
        for name, value in here.items():
            if name in place and place[name] != value:
                elsewhere.setdefault(f"{name} {place[name]}, here {value}", []).append(node_id)
        device = place.get("device", "cpu")
        if device != "cpu" and not (torch.cuda.is_available() and torch.cuda.get_device_name() == device):
            elsewhere.setdefault(f"{device}, which is not here", []).append(node_id)
    for difference, names in elsewhere.items():
        problem = f"{counted(names)} were made on another machine ({difference})"
        remedy = "nothing to mend; a rebuild here may differ in the last digits"
        report.warn("environment", RESULTS / experiment, problem, remedy, names)
