"""The audit of what surrounds the results: DVC's ledger, published times, installed packages, this machine."""

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import InvalidRequirement, Requirement

from precfm.artifacts import RESULTS
from precfm.errors import PrecfmError
from precfm.findings import Report, counted

LOCK = Path("requirements.lock")
LEDGER = Path("dvc.lock")
TIMES = ("wall_time.csv", "time_to_quality.csv")
_BUSY = ("Unable to acquire lock", "is busy, it is being blocked by")  # what DVC says


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


def check_times(report: Report, experiment: str) -> None:
    """Published times, which no artifact holds, against the commit."""
    for name in TIMES:
        file = RESULTS / experiment / "records" / name
        asked = ["git", "status", "--porcelain", "--ignored", "--", str(file)]
        try:
            done = subprocess.run(asked, capture_output=True, text=True)
        except OSError:  # git is not installed
            done = subprocess.CompletedProcess(asked, 1, "", "")
        if done.returncode or done.stdout.startswith(("??", "!!")):
            if file.is_file():
                report.notes.append(f"{file}: not in a commit yet, and times carry no checksum")
        elif done.stdout:
            remedy = "commit it after a run of your own, or `git checkout` brings back what was published"
            report.warn("times", file, "differs from the commit", remedy)


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


def ask_ledger() -> tuple[dict[str, Any], dict[str, Any], str]:
    """What DVC says of outputs and dependencies, and of single files; or why it says nothing."""
    if not LEDGER.is_file():
        return {}, {}, f"{LEDGER}: not here, so the ledger is not compared"
    program = Path(sys.executable).parent / "dvc"
    if not program.exists():
        return {}, {}, f"{LEDGER}: not compared, since DVC is not installed"
    answers = []
    for question in (["status", "--json"], ["data", "status", "--json", "--granular"]):
        done = subprocess.run(
            [str(program), *question],
            capture_output=True,
            text=True,
            env={**os.environ, "DVC_NO_ANALYTICS": "1"},
        )
        if done.returncode:
            said = " ".join(done.stderr.split())
            if any(words in said for words in _BUSY):
                return {}, {}, f"{LEDGER}: another DVC is at work here; try again when it is finished"
            return {}, {}, f"{LEDGER}: DVC failed: {said or done.returncode}"
        answers.append(json.loads(done.stdout or "{}"))
    return answers[0], answers[1], ""


def check_ledger(report: Report, stages: Mapping[str, Any], data: Mapping[str, Any], trouble: str) -> None:
    """The checksums in dvc.lock against the files, by DVC itself; what is not here is no finding."""
    if trouble.startswith(f"{LEDGER}: DVC failed"):
        back = f"`git checkout -- {LEDGER}` brings back what was committed"
        remedy = "`dvc status` tells more" if _parses(LEDGER) else back
        report.add("ledger", LEDGER, trouble.removeprefix(f"{LEDGER}: "), remedy)
    elif trouble:
        report.notes.append(trouble)
    homes = tuple(f"{RESULTS}/{name}/" for name in report.experiments)
    changed = data.get("uncommitted", {})
    files = {
        path: what
        for what in ("modified", "added", "deleted")
        for path in changed.get(what, ())
        if path.startswith(homes) and not path.endswith("/")
    }
    record = "`make reproduce` records what is right; `make pull` brings back what is damaged"
    told = {finding.file for finding in report.findings if finding.level == "error"}
    for path, what in files.items():
        if what != "deleted" and path not in told:
            report.add("ledger", path, f"{what} since {LEDGER} was written", record)
    outs, deps = _changed(stages, report.experiments)
    for path, what in outs.items():
        below = {name for name in (*files, *told) if name == path or name.startswith(f"{path}/")}
        absent = what == "deleted" or (what == "not in cache" and not Path(path).exists())
        if not absent and not below:
            report.add("ledger", path, f"{what} since {LEDGER} was written", record)
    for path in sorted(deps.keys() - outs.keys()):
        if path.startswith(homes):
            if deps[path] != "deleted":
                report.add(
                    "ledger", LEDGER, f"contradicts itself about {path}", "`make reproduce` records it anew"
                )
        else:
            problem = f"was recorded with another state of {path}"
            report.warn("ledger", LEDGER, problem, "`make reproduce` records the present one")


def _parses(file: Path) -> bool:
    """Whether a file is YAML, as a conflict of a merge or a damage leaves it not."""
    try:
        yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return True


def _changed(stages: Mapping[str, Any], experiments: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Outputs and dependencies that DVC finds changed, of the stages of some experiments."""
    found: dict[str, dict[str, str]] = {"changed outs": {}, "changed deps": {}}
    chosen = set(experiments)
    for stage, changes in stages.items():
        if stage.rpartition("@")[2] in chosen:
            for change in changes:
                for what, paths in change.items() if isinstance(change, dict) else ():
                    found.get(what, {}).update(paths)
    return found["changed outs"], found["changed deps"]
