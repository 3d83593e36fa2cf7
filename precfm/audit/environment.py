"""The audit of what surrounds the results: installed packages, this machine, the commit."""

import importlib.metadata
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from precfm.audit.git import asked
from precfm.audit.report import Report, counted
from precfm.core.errors import PrecfmError
from precfm.pipeline.build import processor
from precfm.pipeline.node import MACHINE, ON_DEVICE

LOCK = Path("requirements.lock")


def check_versions(report: Report) -> None:
    """Installed packages against requirements.lock."""
    if not LOCK.is_file():
        report.notes.append(f"{LOCK} is not here, so installed versions are not compared")
        return
    try:
        other = differing_packages()
    except PrecfmError as error:
        report.error("environment", LOCK, str(error), f"`git checkout -- {LOCK}` brings it back")
        return
    if other:
        named = [
            f"{name} {installed or 'none'} instead of {pinned}" for name, (pinned, installed) in other.items()
        ]
        report.warn("environment", LOCK, "other versions are installed", "`make install` brings these", named)


def differing_packages() -> dict[str, tuple[str, str | None]]:
    """Packages that are not installed as requirements.lock pins them for this machine.

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
            raise PrecfmError(f"{line!r} is no requirement; one package in each line is needed") from None
        version = installed(pinned.name)
        applies = pinned.marker is None or pinned.marker.evaluate()
        if applies and (version is None or not pinned.specifier.contains(version, prereleases=True)):
            found[pinned.name] = (str(pinned.specifier).removeprefix("=="), version)
    return found


def installed(package: str) -> str | None:
    """The version of an installed package; None if there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_machine(report: Report, home: Path, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Where artifacts were made: another machine may change the last digits, two devices more than that."""
    import platform

    import torch

    here: dict[str, str | None] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    usable = {"cpu", *(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))}
    elsewhere: dict[str, list[str]] = {}
    devices: dict[str, list[str]] = {}
    for node_id, record in records.items():
        place = record["made_on"]
        device = place.get("device", "cpu")
        if node_id.split("/")[0] in ON_DEVICE:
            devices.setdefault(device, []).append(node_id)
        here |= {name: installed(name) for name in place if name not in (*here, *MACHINE)}
        other = [
            f"{name} {place[name]}, here {value or 'none'}"
            for name, value in here.items()
            if place.get(name, value) != value
        ]
        for difference in [*other, *([f"{device}, which is not here"] if device not in usable else [])]:
            elsewhere.setdefault(difference, []).append(node_id)
    for difference, ids in elsewhere.items():
        problem = f"{counted(ids)} were made on another machine ({difference})"
        report.warn("environment", home, problem, "a rebuild here may differ in the last digits", ids)
    if len(devices) > 1:
        several = ", ".join(f"{len(ids)} artifacts on {device}" for device, ids in sorted(devices.items()))
        remedy = "compare methods on one device only"
        report.warn("devices", home, f"numbers of several devices stand side by side ({several})", remedy)


def check_commit(report: Report, folder: Path) -> None:
    """What git holds below a folder and is not as committed; whether it is right, checksums tell."""
    listed = asked("diff", "--name-only", "--no-renames", "--relative", "-z", "HEAD", "--", str(folder))
    wrong = {finding.file for finding in report.findings}
    changed = [name for name in os.fsdecode(listed or b"").split("\0") if name and name not in wrong]
    if changed:
        remedy = "commit them if the rest of this audit is clean, or `git checkout` brings them back"
        report.warn("commit", folder, f"{len(changed)} files are not as committed", remedy, changed)
