"""Whether this machine can run the pipeline, and what to do where it cannot: `precfm doctor`.

Nothing is changed, and the network is left alone unless asked for.
"""

import configparser
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from importlib.metadata import requires
from pathlib import Path
from typing import Literal, TypeAlias

import yaml
from filelock import FileLock, Timeout
from packaging.requirements import Requirement

from precfm.audit.environment import LOCK, differing_packages, installed
from precfm.datasets.manifest import source_manifest
from precfm.datasets.sources import MIRROR, RAW, SOURCES, mirror_folder, place_here
from precfm.pipeline.node import RESULTS

GIB = 2**30
DISK_PROBLEM, DISK_WARNING = 2 * GIB, 20 * GIB
NETWORK_SECONDS = 10.0
NETWORK_FILESYSTEMS = ("nfs", "cifs", "smb", "9p", "v9fs", "afs", "beegfs", "ceph", "fuse", "gpfs", "lustre")

Status = Literal["ok", "warning", "problem"]
Found: TypeAlias = Iterator[tuple[Status, str, str]]
"""Status, what was found, and what to do about it: nothing where all is well."""


@dataclass(frozen=True)
class Diagnosis:
    """What a check found: a `problem` stops a run sooner or later, a `warning` is worth knowing."""

    check: str
    status: Status
    found: str
    remedy: str

    def __str__(self) -> str:
        line = f"{'PROBLEM' if self.status == 'problem' else self.status:<7}  {self.check}: {self.found}"
        return f"{line}\n         -> {self.remedy}" if self.remedy else line


def examine(*, network: bool = False) -> Iterator[Diagnosis]:
    """Look at this machine and at the project in the working folder.

    Args:
        network: also try whether the data sources that are not here can be reached.
    """
    for check in (python, packages, programs, project, folders, gpu, remote, data):
        try:
            for status, found, remedy in check(network=network) if check is data else check():
                yield Diagnosis(check.__name__, status, found, remedy)
        except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
            what = " ".join(str(error).split())
            yield Diagnosis(
                check.__name__, "problem", f"could not be examined ({what})", "correct this first"
            )


def python() -> Found:
    """The interpreter's version."""
    found = f"{'.'.join(map(str, sys.version_info[:3]))} at {sys.prefix}"
    right = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield ("ok", found, "") if right else ("problem", found, "install 3.11 to 3.13; make PYTHON=python3.12")


def packages() -> Found:
    """Installed packages against requirements.lock."""
    if not LOCK.is_file():
        yield "warning", f"there is no {LOCK} here", "run it in a checkout to compare versions"
        return
    other = differing_packages()
    needed = {each.name for each in map(Requirement, requires("precfm") or ()) if each.marker is None}
    missing = [name for name, (_, version) in other.items() if version is None]
    differ = [f"{name} {version} instead of {pinned}" for name, (pinned, version) in other.items() if version]
    if missing:
        status: Status = "problem" if needed & set(missing) else "warning"
        yield status, f"not installed: {', '.join(missing)}", "`make install` brings them"
    if differ:
        yield (
            "warning",
            ", ".join(differ),
            "`make install` brings the pinned ones; others may give other bytes",
        )
    if not other:
        yield "ok", f"all are those of {LOCK}", ""


def programs() -> Found:
    """What `make reproduce` calls, and Snakemake's plugin for clusters."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    there = {name: shutil.which(name, path=path) for name in ("git", "make", "snakemake", "dvc", "sbatch")}
    plugin = "snakemake-executor-plugin-slurm"
    if there.pop("sbatch") or installed(plugin):
        there[plugin] = installed(plugin)
    for name, place in there.items():
        if place:
            yield "ok", f"{name} {installed(name) or place}", ""
        else:
            remedy = "`make install`, or your system's packages; `precfm make` and `precfm export` do without"
            yield "warning", f"no {name}", remedy


def project() -> Found:
    """Whether this is a checkout."""
    names = ("config", "workflow_scripts", "Snakefile", "dvc.yaml")
    if missing := [name for name in names if not Path(name).exists()]:
        yield "problem", f"no {', '.join(missing)} in {Path.cwd()}", "change to a clone of the project"
    else:
        yield "ok", str(Path.cwd()), ""


def folders() -> Found:
    """Whether there is space where a run writes, whether it may, and whether its locks hold there."""
    for folder in (RESULTS, RAW, Path(tempfile.gettempdir())):
        place = next(each for each in (folder, *folder.absolute().parents) if each.is_dir())
        free = shutil.disk_usage(place).free
        status: Status = "problem" if free < DISK_PROBLEM else "warning" if free < DISK_WARNING else "ok"
        remedy = "" if status == "ok" else "`precfm gc` empties the attic, `dvc gc --workspace` the cache"
        yield status, f"{folder}: {free / GIB:.1f} GiB free", remedy
        try:
            with tempfile.TemporaryDirectory(dir=place, prefix=".precfm-doctor-") as inside:
                if not locks_hold(Path(inside)):
                    yield "problem", f"{folder}: a lock can be taken twice", "move to a disk where locks hold"
        except OSError as error:
            yield "problem", f"{folder}: {error.strerror}", "allow it; TMPDIR moves temporary files"
        if (kind := filesystem_of(place)).startswith(NETWORK_FILESYSTEMS):
            remedy = "work there from one machine at a time, unless locks hold between machines"
            yield "warning", f"{folder} lies on {kind}, a network's file system", remedy


def filesystem_of(folder: Path) -> str:
    """The type of the file system that holds a folder; empty where `stat` cannot say."""
    command = ["stat", "--file-system", "--format=%T", "--", str(folder)]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def locks_hold(folder: Path) -> bool:
    """Whether a lock that is held in a folder cannot be taken a second time."""
    with FileLock(folder / "lock"), suppress(Timeout), FileLock(folder / "lock", timeout=0):
        return False
    return True


def gpu() -> Found:
    """GPUs that torch can use."""
    import torch

    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        yield "ok", f"{torch.cuda.get_device_name(index)}, {free / GIB:.0f} of {total / GIB:.0f} GiB free", ""
    if not torch.cuda.is_available():
        lost = shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists()
        found = f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds none"
        yield ("warning", found, "compare the CUDA version in `nvidia-smi`") if lost else ("ok", found, "")


def remote() -> Found:
    """Where artifacts are shared."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read([".dvc/config", ".dvc/config.local"], encoding="utf-8")
    name = settings.get("core", "remote", fallback="")
    url = settings.get(f"'remote \"{name}\"'", "url", fallback="")  # the quotes are DVC's
    if name and not url:
        yield "warning", f"{name} is the default, but has no URL", f"`dvc remote add {name} URL`"
    else:
        yield "ok", f"{name}, {url}" if name else "none; docs/sharing.md says how to set one", ""


def data(*, network: bool = False) -> Found:
    """Where the raw files of each source are; with `network`, whether those that are not here can be reached."""
    mirror = mirror_folder()
    if mirror is not None and not mirror.is_dir():
        yield "problem", f"{MIRROR} is '{mirror}', no folder", "correct it, or unset it"
    for name in sorted(yaml.safe_load(SOURCES.read_text(encoding="utf-8"))) if SOURCES.is_file() else ():
        source = source_manifest(name, SOURCES)
        place = place_here(source)
        said = "its origins need a network" if source.origins else "it has no public address"
        if network and not place:
            urls = [origin.place for origin in source.origins if origin.kind == "url"]
            answers = [unreachable(url.replace("{file}", source.files[0].name)) for url in urls]
            said = "" if "" in answers else "; ".join(answers) or said
        if place or not said:
            yield "ok", f"{name}: {place or 'can be fetched'}", ""
        else:
            remedy = (
                f"`precfm data fetch {name}` with a network, or set {MIRROR} to a folder that has its files"
            )
            yield "warning", f"{name}: not here ({said})", remedy


def unreachable(url: str) -> str:
    """Why a URL cannot be read; empty if it can. Only its headers are asked for."""
    try:
        if not url.startswith(("https://", "http://")):
            raise ValueError("no web address")
        request = urllib.request.Request(url, headers={"User-Agent": "precfm"}, method="HEAD")
        with urllib.request.urlopen(request, timeout=NETWORK_SECONDS):
            return ""
    except (OSError, HTTPException, ValueError) as error:
        return f"{url}: {' '.join(str(error).split())}"
