"""The ledger: keys/ against the plans; params.yaml, dvc.lock and the files, asked of DVC itself.

DVC trusts its own database and file times where it compares files: flipped bytes are found by the records of artifacts.
What the ledger adds is that the artifacts are those which were recorded.
"""

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence, Set
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import yaml

from precfm.audit.git import asked, committed
from precfm.audit.report import Finding, Report
from precfm.core.errors import PrecfmError
from precfm.pipeline.experiments import PARAMS, read_recorded
from precfm.pipeline.key_lists import KEYS, differences, lists_of, strays
from precfm.pipeline.ledger import LEDGER, Outs, files_of, read_dependencies, read_ledger
from precfm.pipeline.manifest import MANIFEST, entries
from precfm.pipeline.node import PUBLISHED, RESULTS
from precfm.pipeline.plan import KINDS, load_plan

STAGES = ("keys", *KINDS, "products")  # of each experiment; `raw` is of each data source


def check_ledger(report: Report, experiments: Sequence[str], named: Sequence[str] = ()) -> None:
    """Hold keys/ against the plans, and the ledger against what it speaks of; what is not here is no finding.

    Args:
        report: gets the findings; what is absent or wrong in the experiments' own folders it says already.
        experiments: those of which this machine made something, checked before.
        named: whose keys to check; none means those of all that were recorded.
    """
    unfit = {"DVC is not set up here": not Path(".dvc").is_dir(), "a run is recording": _is_recording()}
    if any(unfit.values()):
        reasons = " and ".join(reason for reason, is_so in unfit.items() if is_so)
        report.notes.append(f"{LEDGER}: not compared, since {reasons}")
        return
    try:
        listed = read_recorded()
        stages, dependencies = read_ledger(), read_dependencies()
    except PrecfmError as error:
        file, _, problem = str(error).partition(": ")
        report.error("ledger", file, problem.partition(";")[0], _back(file))
        return
    for name in (name for name in listed["experiments"] if not named or name in named):
        _check_keys(report, name, dependencies)
    for stray in strays(listed["experiments"]):
        problem = f"is the list of no experiment in {PARAMS}"
        report.warn("ledger", stray, problem, "delete it, or `make reproduce` records its experiment")
    _check_stages(report, {*listed["experiments"], *listed["sources"]}, stages, experiments)
    if not find_spec("dvc"):
        report.notes.append(f"{LEDGER}: not compared with the files, since DVC is not installed")
    elif stages:
        _check_files(report, stages, experiments)
    if asked("diff", "--name-only", "HEAD", "--", str(LEDGER)):
        report.notes.append(f"{LEDGER}: not as committed; it holds what this machine made")


def _check_keys(report: Report, name: str, dependencies: Outs) -> None:
    """The lists of keys that the stages depend on are those of the plan, and those that were recorded."""
    try:
        wrong = differences(load_plan(name))
    except PrecfmError as error:
        problem = f"there is no plan to compare with ({error})"
        report.error("plan", KEYS / name, problem, "correct the configuration")
        return
    for file, problem in list(wrong.items())[:1]:
        more = f" ({len(wrong)} lists differ)" if len(wrong) > 1 else ""
        report.error("ledger", file, f"{problem}{more}", f"`precfm keys {name}` writes it", map(str, wrong))
    stages = {KEYS / name / f"{kind}.txt": dependencies.get(f"{kind}@{name}", {}) for kind in KINDS}
    recorded = {file: md5 for file, stage in stages.items() if (md5 := stage.get(str(file)))}
    other = [file for file, md5 in recorded.items() if file.is_file() and md5 != _md5(file.read_bytes())]
    if not other:
        return
    published = _published_lists(name)
    if recorded == {file: published.get(file) for file in recorded}:
        report.notes.append(f"{LEDGER}: of {name} it holds what is published, whose keys are of older code")
        return
    remedy = f"`make reproduce EXPERIMENT={name}` records anew"
    names = [file.stem for file in other]
    report.warn("ledger", KEYS / name, "recorded for other keys than the present", remedy, names)


def _published_lists(name: str) -> dict[Path, str]:
    """The checksums that the lists of keys had, where these are the artifacts of the published manifest."""
    with suppress(PrecfmError, OSError, KeyError):  # what is wrong with a manifest is found elsewhere
        lists = lists_of(name, entries(PUBLISHED / name))
        return {file: _md5(text.encode()) for file, text in lists.items()}
    return {}


def _md5(text: bytes) -> str:
    return hashlib.md5(text, usedforsecurity=False).hexdigest()


def _check_stages(report: Report, listed: Set[str], stages: Outs, experiments: Sequence[str]) -> None:
    """What params.yaml lists, and what was committed of it, is there; what was never recorded is a warning."""
    there = {stage.partition("@")[2] for stage in stages}
    for name in sorted(listed - there):
        report.error("ledger", LEDGER, f"{name} is missing, though {PARAMS} lists it", _back(LEDGER))
    sources = {stage.partition("@")[2] for stage in stages if stage.startswith("raw@")}
    for name in sorted(there - listed):
        remedy = f"`git checkout -- {PARAMS}` brings it back"
        if name not in sources:
            remedy += f", `precfm forget {name}` takes it out of both"
        report.error("ledger", PARAMS, f"{name} is missing, though {LEDGER} has it", remedy)
    lost = [stage for stage, outs in _committed().items() if not outs.keys() <= stages.get(stage, {}).keys()]
    if lost := [stage for stage in lost if stage.partition("@")[2] in there & listed]:
        report.error("ledger", LEDGER, "what was committed of some stages is missing", _back(LEDGER), lost)
    for name in experiments:
        new = [stage for kind in STAGES if (stage := f"{kind}@{name}") not in [*stages, *lost]]
        if new:
            problem = f"{len(new)} stages of {name} were never recorded, as after `precfm make`"
            report.warn("ledger", LEDGER, problem, f"`make reproduce EXPERIMENT={name}` records them", new)


def _committed() -> Outs:
    """The stages that the last commit has; none where it has no ledger that can be read."""
    with suppress(yaml.YAMLError, PrecfmError):
        return files_of(yaml.safe_load(committed(LEDGER) or b""))
    return {}


def _back(file: Path | str) -> str:
    return f"`git checkout -- {file}` brings back what was committed, then `make reproduce` records anew"


def _is_recording() -> bool:
    """Whether `make reproduce` or `make pull` holds the ledger's lock (`precfm.pipeline.locks.alone`)."""
    file = RESULTS / ".work" / "locks" / "run-ledger.lock"
    if not file.is_file():
        return False
    with file.open("rb") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _check_files(report: Report, stages: Outs, experiments: Sequence[str]) -> None:
    """What DVC finds changed since it recorded, of these experiments and of raw data.

    Artifacts and products were checked before: where they are as records, plan and manifest say, they are what this
    machine made, a warning.
    """
    command = [sys.executable, "-m", "dvc", "data", "status", "--json", "--granular"]
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        if asked("rev-parse", "--git-dir") is None:
            report.notes.append(f"{LEDGER}: not compared with the files, since this is no git repository")
            return
        last = (done.stderr.strip().splitlines() or ["no reason given"])[0]
        report.error("ledger", LEDGER, f"DVC cannot compare it ({last})", _back(LEDGER))
        return
    found: dict[str, list[str]] = json.loads(done.stdout).get("uncommitted", {})
    modified = {name.rstrip("/") for name in found.get("modified", ())}
    changed = [name for what in ("modified", "added") for name in found.get(what, ()) if name[-1] != "/"]
    blamed, whole = list(report.errors), dict[str, list[str]]()
    for path in sorted(modified & set().union(*stages.values())):
        place, experiment, kind = [*Path(path).parts, "", ""][:3]
        ours = place == RESULTS.name
        if ours and experiment not in experiments:
            continue
        if kind in report.absent.get(experiment, {}):
            report.notes.append(f"{path}: not compared with {LEDGER}, since it is here in part")
            continue
        if ours and not any(_is_about(finding, Path(path)) for finding in blamed):
            whole.setdefault(experiment, []).append(path)
            continue
        files = [name for name in changed if name.startswith(f"{path}/")]
        remedy = "`make reproduce` records what is right, `make pull` brings back what is damaged"
        report.error("ledger", path, f"is not what {LEDGER} holds", remedy, files)
    for experiment, paths in whole.items():
        remedy = f"`make reproduce EXPERIMENT={experiment}` records them"
        report.warn("ledger", RESULTS / experiment, f"other bytes than {LEDGER} holds", remedy, paths)


def _is_about(finding: Finding, folder: Path) -> bool:
    """Whether a finding is about something in a folder of an experiment, or may be."""
    file, home, kind = Path(finding.file), folder.parent, f"{folder.name}/"
    about_home = file == home and (not finding.names or any(name.startswith(kind) for name in finding.names))
    return file == home / MANIFEST or file.is_relative_to(folder) or about_home
