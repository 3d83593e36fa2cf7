"""What `precfm doctor` looks at: whether this machine can run the pipeline, and what to do where it cannot.

Every check says what it found and, where that is not right, what to do. A problem stops a run sooner or later; a
warning is worth knowing. Nothing is changed, and the network is left alone unless asked for.
"""

import configparser
import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from http.client import HTTPException
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import FileLock, Timeout

from precfm.audit.environment import LOCK, differing_packages, installed
from precfm.core.errors import PrecfmError
from precfm.datasets.manifest import SourceManifest, source_manifest
from precfm.datasets.origins import Mirror, OriginError
from precfm.datasets.sources import MIRROR, RAW, SOURCES
from precfm.pipeline.node import RESULTS

PYTHONS = ((3, 11), (3, 13))
GIB = 2**30
DISK_PROBLEM, DISK_WARNING = 2 * GIB, 20 * GIB
MEMORY_PROBLEM, MEMORY_WARNING = 2 * GIB, 4 * GIB
NAMED = 4  # things that a line names
NETWORK_SECONDS = 10.0
NETWORK_FILESYSTEMS = re.compile(r"nfs\d?|cifs|smb\w*|9p|afs|beegfs|ceph|fuse\..*|gpfs|lustre|virtiofs|drvfs")

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Attributes:
        check: what was looked at.
        status: `ok`, `warning` (worth knowing) or `problem` (a run will stop).
        found: what is so.
        remedy: what to do; empty where all is well.
    """

    check: str
    status: Status
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        sign = {"ok": "ok     ", "warning": "warning", "problem": "PROBLEM"}[self.status]
        return f"{sign}  {self.check}: {self.found}" + (f"\n         -> {self.remedy}" if self.remedy else "")

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def examine(*, network: bool = False) -> Iterator[Finding]:
    """Look at this machine and at the project in the working folder.

    Args:
        network: also try whether the data sources that are not here can be reached.

    Yields:
        Findings, one or more per check.
    """
    for check in (python, versions, tools, project, writing, filesystem, disk, memory, threads, gpu, remote):
        try:
            yield from check()
        except (OSError, PrecfmError, ValueError) as error:
            what = " ".join(str(error).split())
            yield Finding(check.__name__, "problem", f"could not be examined ({what})", "mend this first")
    try:
        yield from data(network=network)
    except PrecfmError as error:
        yield Finding("data", "problem", str(error), f"`git checkout -- {SOURCES}` brings the file back")


def python() -> Iterator[Finding]:
    """The interpreter's version."""
    version = sys.version_info[:2]
    found = f"{'.'.join(map(str, sys.version_info[:3]))} at {sys.prefix}"
    if PYTHONS[0] <= version <= PYTHONS[1]:
        yield Finding("python", "ok", found)
    else:
        yield Finding("python", "problem", found, "install Python 3.11, 3.12 or 3.13; make PYTHON=python3.12")


def versions() -> Iterator[Finding]:
    """Installed packages against requirements.lock."""
    if not LOCK.is_file():
        yield Finding(
            "versions", "warning", f"there is no {LOCK} here", "run it in a checkout to compare versions"
        )
        return
    other = differing_packages()
    missing = [name for name, (_, here) in other.items() if here is None]
    differ = [
        f"{name} {here} instead of {pinned}" for name, (pinned, here) in other.items() if here is not None
    ]
    remedy = "`make install` brings them; other versions may give other bytes"
    if differ:
        yield Finding("versions", "warning", _some(differ), remedy)
    if missing:
        needed = sorted(_needed_by_the_library() & set(missing))
        status: Status = "problem" if needed else "warning"
        yield Finding("versions", status, f"not installed: {_some(needed or missing)}", remedy)
    if not other:
        yield Finding("versions", "ok", f"all packages are those of {LOCK}")


def _needed_by_the_library() -> set[str]:
    """The names of the packages that precfm itself cannot do without."""
    lines = importlib.metadata.requires("precfm") or []
    return {re.split(r"[^A-Za-z0-9._-]", line)[0].lower() for line in lines if "extra ==" not in line}


def tools() -> Iterator[Finding]:
    """The programs that `make reproduce` calls."""
    beside = Path(sys.executable).parent
    for name, purpose in {
        "git": "keeps the products and the ledger",
        "make": "runs `make reproduce`",
        "snakemake": "runs the jobs; `precfm make` does without",
        "dvc": "records and shares artifacts; `precfm export` does without",
    }.items():
        place = shutil.which(name, path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")
        if place:
            version = installed(name) if name in ("snakemake", "dvc") else None
            yield Finding(name, "ok", version or place)
        else:
            remedy = "`make install`" if name in ("snakemake", "dvc") else f"install {name} with your system"
            yield Finding(name, "warning", f"not found; it {purpose}", remedy)


def project() -> Iterator[Finding]:
    """Whether this is a checkout."""
    missing = [
        name for name in ("config", "workflow_scripts", "Snakefile", "dvc.yaml") if not Path(name).exists()
    ]
    if missing:
        remedy = "change to a clone of the project; the library alone works anywhere"
        yield Finding("project", "problem", f"no {_some(missing)} in {Path.cwd()}", remedy)
    else:
        yield Finding("project", "ok", str(Path.cwd()))


def writing() -> Iterator[Finding]:
    """Whether folders that a run writes to can be written."""
    for folder in (RESULTS, RAW, Path(tempfile.gettempdir())):
        place = _existing(folder)
        try:
            with tempfile.NamedTemporaryFile(dir=place, prefix=".precfm-doctor-"):
                pass
        except OSError as error:
            remedy = f"mend the permissions of {place}, or free space"
            if place == Path(tempfile.gettempdir()):
                remedy = "set TMPDIR to a folder that can be written"
            yield Finding("writing", "problem", f"{folder}: {error.strerror}", remedy)
        else:
            yield Finding("writing", "ok", f"{folder} can be written")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.absolute().parents) if place.is_dir())


def filesystem() -> Iterator[Finding]:
    """Whether results lie where locks and renames work, and are files of their own."""
    place = _existing(RESULTS)
    kind = filesystem_of(place)
    if NETWORK_FILESYSTEMS.fullmatch(kind):
        remedy = "let one machine at a time work there, or be sure that its locks hold between machines"
        yield Finding("filesystem", "warning", f"{RESULTS} lies on {kind}, a network's", remedy)
    else:
        yield Finding("filesystem", "ok", f"{RESULTS} lies on {kind}")
    with tempfile.TemporaryDirectory(dir=place, prefix=".precfm-doctor-") as name:
        if not locks_hold(Path(name)):
            remedy = "move the project to a file system with locks; two runs would disturb one another"
            yield Finding("locks", "problem", f"a lock in {RESULTS} can be taken twice", remedy)
        else:
            yield Finding("locks", "ok", "hold")
    shared = list(islice(_shared_files(RESULTS), NAMED + 1))
    if shared:
        remedy = (
            "a change would damage DVC's cache: `dvc config --unset cache.type`, then `dvc checkout --relink`"
        )
        yield Finding("links", "warning", f"links instead of files: {_some(shared)}", remedy)


def filesystem_of(path: Path) -> str:
    """The type of the file system that holds a path, as the kernel calls it; `unknown` where that is not told."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    mounts = []
    for line in lines:
        before, _, after = line.partition(" - ")
        mounts.append((before.split()[4].replace("\\040", " "), after.split()[0]))
    real = path.resolve()
    above = {str(real), *map(str, real.parents)}
    fitting = [(len(point), kind) for point, kind in mounts if point in above]
    return max(fitting, key=lambda mount: mount[0])[1] if fitting else "unknown"


def locks_hold(folder: Path) -> bool:
    """Whether a lock that is held in a folder cannot be taken a second time."""
    with FileLock(folder / "lock"):
        try:
            FileLock(folder / "lock").acquire(timeout=0).lock.release()
        except Timeout:
            return True
    return False


def _shared_files(results: Path) -> Iterator[str]:
    """Payload files that are links, or that have a second name elsewhere."""
    for path in sorted(results.glob("[!.]*/*/*/*")):
        if path.is_symlink() or (path.is_file() and path.stat().st_nlink > 1):
            yield str(path)


def disk() -> Iterator[Finding]:
    """Free space where results and scratch lie."""
    for folder in dict.fromkeys((_existing(RESULTS), Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(folder).free
        found = f"{free / GIB:.1f} GiB free at {folder}"
        remedy = (
            "`precfm gc` empties the attic, `dvc gc --workspace` the cache; an experiment takes up to 10 GiB"
        )
        yield _by_amount("disk", free, DISK_PROBLEM, DISK_WARNING, found, remedy)


def memory() -> Iterator[Finding]:
    """Memory that is available to this process."""
    available = available_memory()
    if available is None:
        yield Finding("memory", "ok", "not told by this system")
        return
    remedy = "close other programs, or run fewer jobs at a time (make reproduce CORES=1)"
    found = f"{available / GIB:.1f} GiB available"
    yield _by_amount("memory", available, MEMORY_PROBLEM, MEMORY_WARNING, found, remedy)


def available_memory() -> int | None:
    """Bytes that are available: the machine's, or the container's where that is less; None where not told."""
    amounts = []
    try:
        match = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="utf-8"))
        amounts += [int(match[1]) * 1024] if match else []
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text(encoding="utf-8").strip()
        if limit.isdigit():
            amounts.append(int(limit) - int((group / "memory.current").read_text(encoding="utf-8")))
    except OSError:
        pass
    return min(amounts, default=None)


def _by_amount(check: str, amount: int, problem: int, warning: int, found: str, remedy: str) -> Finding:
    status: Status = "problem" if amount < problem else "warning" if amount < warning else "ok"
    return Finding(check, status, found, "" if status == "ok" else remedy)


def threads() -> Iterator[Finding]:
    """Cores, and whether they are free."""
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > cores + 0.5:
        remedy = "wait, or run fewer jobs (CORES=1): jobs beside a busy process are many times slower"
        yield Finding("threads", "warning", f"{cores} cores, load {load:.1f}", remedy)
    else:
        yield Finding("threads", "ok", f"{cores} cores, load {load:.1f}")
    if asked not in ("", "1"):
        remedy = "unset it: every job has the threads of its experiment, and their number may change bytes"
        yield Finding("threads", "warning", f"OMP_NUM_THREADS is {asked}", remedy)


def gpu() -> Iterator[Finding]:
    """GPUs that torch can use."""
    try:
        import torch
    except ImportError as error:
        yield Finding("gpu", "problem", f"torch cannot be imported ({error})", "`make install`")
        return
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            found = f"{torch.cuda.get_device_name(index)}, {free / GIB:.0f} of {total / GIB:.0f} GiB free"
            remedy = "end what else runs there; a training may not fit"
            yield _by_amount("gpu", free, 0, total // 4, found, remedy)
    elif shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists():
        remedy = (
            f"torch {torch.__version__} needs a matching driver: compare `nvidia-smi` with torch.version.cuda"
        )
        yield Finding(
            "gpu", "warning", f"there is one, but torch (CUDA {torch.version.cuda}) cannot use it", remedy
        )
    else:
        yield Finding("gpu", "ok", "none; experiments with `device: cuda` need another machine")


def remote() -> Iterator[Finding]:
    """Where artifacts are shared."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read([".dvc/config", ".dvc/config.local"], encoding="utf-8")
    name = settings.get("core", "remote", fallback="").strip()
    if not name:
        yield Finding("remote", "ok", "none; `dvc remote add --default NAME URL` sets one (docs/sharing.md)")
        return
    # DVC writes ['remote "name"'], quotes included.
    section = next((each for each in settings.sections() if each.strip("'") == f'remote "{name}"'), "")
    url = settings.get(section, "url", fallback="") if section else ""
    if url:
        yield Finding("remote", "ok", f"{name}, {url}")
    else:
        remedy = f"`dvc remote add {name} URL`, or set another with `dvc remote default NAME`"
        yield Finding("remote", "warning", f"{name} is the default, but has no URL", remedy)


def data(*, network: bool = False) -> Iterator[Finding]:
    """Where the raw files of each source are; with `network`, whether those that are not here can be reached."""
    mirror = os.environ.get(MIRROR)
    if mirror and not Path(mirror).is_dir():
        yield Finding("mirror", "problem", f"{MIRROR} is '{mirror}', no folder", "correct it, or unset it")
        mirror = None
    elif mirror:
        yield Finding("mirror", "ok", f"{MIRROR} is {mirror}")
    if not SOURCES.is_file():
        return
    try:
        names = sorted(yaml.safe_load(SOURCES.read_text(encoding="utf-8")))
    except (yaml.YAMLError, TypeError, UnicodeDecodeError) as error:
        raise PrecfmError(f"{SOURCES}: is no list of sources ({' '.join(str(error).split())})") from None
    for name in names:
        yield _source(source_manifest(name, SOURCES), Path(mirror) if mirror else None, network)


def _source(source: SourceManifest, mirror: Path | None, network: bool) -> Finding:
    check = f"data {source.name}"
    missing = [
        file
        for file in source.files
        if not (path := RAW / source.name / file.name).is_file() or path.stat().st_size != file.bytes
    ]
    if not missing:
        return Finding(check, "ok", f"in {RAW / source.name}")
    if mirror is not None and _mirrored(mirror, source):
        return Finding(check, "ok", f"in {MIRROR}")
    for origin in source.origins:
        if origin.kind == "python" and _package_folder(origin.place.partition("/")[0]) is not None:
            return Finding(check, "ok", f"comes with the package {origin.place.partition('/')[0]}")
        if origin.kind == "folder" and (SOURCES.parent / origin.place).exists():
            return Finding(check, "ok", f"in {SOURCES.parent / origin.place}")
    remedy = (
        f"`precfm data fetch {source.name}` with a network, or set {MIRROR} to a folder that holds the files"
    )
    urls = [origin.place for origin in source.origins if origin.kind == "url"]
    if not network or not urls:
        return Finding(check, "warning", "not here; its origins need a network", remedy)
    for url in urls:
        if not (said := _unreachable(url.replace("{file}", missing[0].name))):
            return Finding(check, "ok", f"can be fetched from {url}")
    return Finding(check, "warning", f"not here, and {urls[-1]} cannot be reached ({said})", remedy)


def _mirrored(mirror: Path, source: SourceManifest) -> bool:
    places = Mirror(mirror, source.files)
    try:
        for file in source.files:
            places.open(file)
    except OriginError:
        return False
    return True


def _package_folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec else None
    return Path(places[0]) if places else None


def _unreachable(url: str) -> str:
    """Why a URL cannot be read; empty if it can. Only its headers are asked for."""
    if not url.startswith(("https://", "http://")):
        return "no web address"
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "precfm"}, method="HEAD")
        with urllib.request.urlopen(request, timeout=NETWORK_SECONDS):
            return ""
    except (OSError, HTTPException, ValueError) as error:
        return " ".join(str(error).split())


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
