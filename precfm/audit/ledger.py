"""DVC's ledger: params.yaml, dvc.lock and the files, asked of DVC itself.

DVC trusts its own database and file times where it compares files: flipped bytes are found by the records of artifacts.
What the ledger adds is that the artifacts are those which were recorded.
"""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from precfm.audit.report import Report
from precfm.core.errors import PrecfmError
from precfm.core.options import validated
from precfm.pipeline.experiments import PARAMS, read_recorded, read_yaml
from precfm.pipeline.node import RESULTS
from precfm.pipeline.plan import KINDS

LEDGER = Path("dvc.lock")
STAGES = (*KINDS, "products")  # of each experiment; `raw` is of each data source


class Recorded(BaseModel):
    """What the ledger says of a file or folder."""

    path: str
    md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}(\.dir)?$")]


class Stage(BaseModel):
    """A stage of the ledger."""

    deps: list[Recorded] = []
    outs: Annotated[list[Recorded], Field(min_length=1)]


class Ledger(BaseModel):
    """What is read of dvc.lock."""

    form: Literal["2.0"] = Field(alias="schema")
    stages: dict[str, Stage]


def check_ledger(report: Report, experiments: Sequence[str]) -> None:
    """Hold the ledger against what it speaks of; what is not on this machine is no finding.

    Args:
        report: gets the findings; that artifacts of a kind are absent it says already.
        experiments: those of which this machine made something.
    """
    if not find_spec("dvc") or not Path(".dvc").is_dir():
        report.notes.append(f"{LEDGER}: not compared, since DVC is not installed or not set up here")
        return
    if _is_recording():
        report.notes.append(
            f"{LEDGER}: not compared, since a run is recording; try again when it is finished"
        )
        return
    try:
        listed = read_recorded()
        content = read_yaml(LEDGER) if LEDGER.is_file() else {"schema": "2.0", "stages": {}}
        stages = _fitting(content).stages
    except PrecfmError as error:
        file, _, problem = str(error).partition(": ")
        report.error("ledger", file, problem, _back(file))
        return
    in_params, in_ledger = (
        {*listed["experiments"], *listed["sources"]},
        {name.partition("@")[2] for name in stages},
    )
    for name in sorted(in_params - in_ledger):
        report.error("ledger", LEDGER, f"{name} is missing, though {PARAMS} lists it", _back(LEDGER))
    for name in sorted(in_ledger - in_params):
        report.error("ledger", PARAMS, f"{name} is missing, though {LEDGER} has it", _back(PARAMS))
    for name in experiments:
        if lacking := [stage for stage in STAGES if f"{stage}@{name}" not in stages]:
            if name in in_ledger:
                report.error("ledger", LEDGER, f"stages of {name} are missing", _back(LEDGER), lacking)
            elif name not in in_params:
                remedy = f"`make reproduce EXPERIMENT={name}` records it"
                report.warn("ledger", LEDGER, f"{name} was never recorded, as after `precfm make`", remedy)
    if stages:
        _check_files(report, [out.path for stage in stages.values() for out in stage.outs])


def _back(file: Path | str) -> str:
    return f"`git checkout -- {file}` brings back what was committed, `make reproduce` records anew"


def _fitting(content: Any) -> Ledger:
    try:
        return validated(Ledger, content)
    except PrecfmError as error:
        raise PrecfmError(f"{LEDGER}: {error}") from None


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


def _check_files(report: Report, outs: Sequence[str]) -> None:
    """What DVC finds changed since it recorded."""
    command = [sys.executable, "-m", "dvc", "data", "status", "--json", "--granular"]
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[0]
        report.error("ledger", LEDGER, f"DVC cannot compare it ({last})", _back(LEDGER))
        return
    found: dict[str, list[str]] = json.loads(done.stdout).get("uncommitted", {})
    modified = {name.rstrip("/") for name in found.get("modified", ())}
    changed = [
        name for what in ("modified", "added") for name in found.get(what, ()) if not name.endswith("/")
    ]
    for path in (path for path in outs if path in modified):
        _, experiment, kind = [*Path(path).parts, "", ""][:3]
        if kind in report.absent.get(experiment, {}):
            report.notes.append(f"{path}: not compared with {LEDGER}, since it is here in part")
            continue
        files = [name for name in changed if name.startswith(f"{path}/")]
        remedy = "`make reproduce` records what is right, `make pull` brings back what is damaged"
        report.error("ledger", path, f"is not what {LEDGER} holds", remedy, files)
