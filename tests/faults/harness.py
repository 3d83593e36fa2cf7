"""Breaking a run on purpose: kills and signals at seeded random moments, until the same command has ended well.

`python -m tests.faults.harness FOLDER --rounds 3 --seed 0` does it by hand and prints the counts.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

from tests.workflow import ENVIRONMENT, ROOT, git, run

NAME = "tiny"
SMALL_NAME = "small"
# Every kind of artifact with as few jobs as that takes; trainings save often, so that there is what to resume from.
TINY = {
    "description": "Every kind of artifact in a few steps; made by the fault tests.",
    "extends": "smoke",
    "seeds": [0],
    "classifiers": {"training": {"save_every": 10}},
    "encoders": {"L16": {"training": {"save_every": 10}}},
    "flow": {"training": {"save_every": 10}},
    "methods": {"whitening": None, "gaussian_skip": None, "low_capacity_flow": None},
    "theory": {"steps_to_accuracy": None},
}
# Five jobs, for faults that need no training.
SMALL = {
    "description": "One controlled experiment and its report; made by the fault tests.",
    "theory": {
        "linear_grid": {
            "run": {
                "name": "linear_grid",
                "dim": 2,
                "condition_numbers": [1, 10],
                "times": [0.5],
                "steps": 16,
                "preconditioned_steps": 8,
            },
            "seeds": [0],
        }
    },
}
LONGEST = 3600  # seconds that a run may take before it counts as hung
VICTIMS = ("job", "snakemake", "dvc", "reproduce", "everything", "interrupt", "terminate")


def fresh_project(folder: Path) -> Path:
    """A copy of this project, uncommitted changes included, in which nothing was made, with both experiments."""
    listed = run(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    for name in listed:
        recorded = name == "dvc.lock" or name.startswith(("results/", "keys/"))
        if (ROOT / name).is_file() and not recorded:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    (folder / "params.yaml").write_text("experiments: []\nsources: []\n")
    (folder / f"config/{NAME}.yaml").write_text(yaml.safe_dump(TINY))
    (folder / f"config/{SMALL_NAME}.yaml").write_text(yaml.safe_dump(SMALL))
    run(folder, "git", "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "start")
    return folder


def reproduce(name: str) -> tuple[str, ...]:
    """The command behind `make reproduce`."""
    return (sys.executable, "workflow_scripts/reproduce.py", name, "--cores", "2")


def _heed_signals() -> None:
    """A shell's background ignores SIGINT, and `nohup` SIGHUP; what a test starts is in a terminal's foreground."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(folder: Path, *command: str | Path, log: Path) -> subprocess.Popen:
    """Start a command in a session of its own, as from a terminal."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [str(part) for part in command],
            cwd=folder,
            env={**ENVIRONMENT, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_heed_signals,
        )


def outcome(folder: Path) -> dict[str, str]:
    """Checksums of all that a run promises: artifacts, products, verdicts, ledger. Records may differ."""
    files = [folder / "dvc.lock", folder / "params.yaml", *sorted((folder / "keys").rglob("*.txt"))]
    files += [
        file
        for file in sorted((folder / "results").rglob("*"))
        if file.is_file()
        and not {".work", ".attic", "records"} & set(file.relative_to(folder).parts)
        and file.name != ".snakemake_timestamp"
    ]
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.is_file()
    }


def damage(folder: Path) -> list[str]:
    """What no fault may leave behind, whenever it strikes: artifacts with a record whose files are not as it says."""
    found = []
    for record in (folder / "results").glob("*/*/*/artifact.json"):
        try:
            files = json.loads(record.read_text())["files"]
        except ValueError:
            found.append(f"{record}: no JSON")
            continue
        for name, wanted in files.items():
            file = record.parent / name
            if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != wanted["sha256"]:
                found.append(str(file))
    return found


def family(process: subprocess.Popen) -> list[psutil.Process]:
    """A process and all that came from it, in other process groups too."""
    try:
        head = psutil.Process(process.pid)
        return [head, *head.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def at_work(folder: Path) -> list[psutil.Process]:
    """All processes of runs in a folder, those that outlived their run included."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()) == folder and role(process):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def role(process: psutil.Process) -> str:
    """What a process of a run is: `reproduce`, `snakemake`, `dvc`, the kind of artifact that a job makes, or empty."""
    try:
        words = process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""
    for word in words[1:3]:
        if "/.snakemake/scripts/" in word:
            return kind_at_work(process) or word.rsplit(".", 2)[1]
        if word.endswith(("/bin/snakemake", "/bin/dvc")):
            return Path(word).name
        if word.endswith("reproduce.py"):
            return "reproduce"
    return ""


def kind_at_work(process: psutil.Process) -> str:
    """The kind of artifact whose lock a job holds; empty where it holds none at this moment."""
    locks = [Path(file.path).name for file in process.open_files() if "/.work/locks/" in file.path]
    return next(
        (name.rpartition("-")[0] for name in locks if re.fullmatch(r"[a-z_]+-[0-9a-f]{12}\.lock", name)), ""
    )


@dataclass
class Counts:
    """What was done to the runs, and what came of it."""

    kills: Counter = field(default_factory=Counter)
    stages: Counter = field(default_factory=Counter)
    starts: int = 0
    rounds: int = 0
    recovered: int = 0
    equal: int = 0

    def __str__(self) -> str:
        faults = ", ".join(f"{name} {count}" for name, count in sorted(self.kills.items()))
        stages = ", ".join(f"{name} {count}" for name, count in sorted(self.stages.items()))
        return (
            f"{self.rounds} rounds, {self.starts} starts, {self.kills.total()} faults ({faults}), "
            f"while at work: {stages}; recovered {self.recovered} of {self.rounds}, equal {self.equal} of {self.rounds}"
        )


def wait_for(process: subprocess.Popen, name: str) -> psutil.Process:
    """The first process of a role that appears in a run."""
    begun = time.monotonic()
    while process.poll() is None and time.monotonic() < begun + LONGEST:
        for member in family(process):
            if role(member) == name:
                return member
        time.sleep(0.02)
    raise AssertionError(f"no {name} appeared")


def strike(folder: Path, process: subprocess.Popen, victim: str, counts: Counts, draw: random.Random) -> bool:
    """Kill or signal one victim of a running command; False where there is none at this moment."""
    roles = [(role(member), member) for member in at_work(folder)]
    jobs = [member for name, member in roles if name and name not in ("reproduce", "snakemake", "dvc")]
    targets = {
        "job": jobs,
        "everything": [member for _, member in roles],
        "interrupt": family(process)[:1],
        "terminate": family(process)[:1],
    }.get(victim, [member for name, member in roles if name == victim])
    if not targets:
        return False
    if victim == "job":
        targets = [draw.choice(targets)]
    number = {"interrupt": signal.SIGINT, "terminate": signal.SIGTERM}.get(victim, signal.SIGKILL)
    for target in targets:
        try:
            target.send_signal(number)
        except psutil.NoSuchProcess:
            continue
    busy = {name for name, _ in roles} - {"", "reproduce", "snakemake"}
    counts.kills[victim] += 1
    counts.stages.update(busy or {"between jobs"})
    return True


def disturbed(
    folder: Path,
    faults: int,
    draw: random.Random,
    counts: Counts,
    *,
    command: tuple[str | Path, ...] = reproduce(NAME),
    victims: tuple[str, ...] = VICTIMS,
    mean_seconds: float,
) -> None:
    """Run a command with faults at random moments and start it again after each, until it has ended well.

    Raises:
        AssertionError: an artifact was damaged, a signal was not answered, or the last run did not end well.
    """
    log = folder.parent / f"{folder.name}.log"
    while True:
        process = start(folder, *command, log=log)
        counts.starts += 1
        struck = ""
        # Most faults come soon after a start, some late: memoryless, as in life.
        due = time.monotonic() + draw.expovariate(1 / mean_seconds)
        while faults and process.poll() is None and struck in ("", "job"):  # a run survives a killed job
            time.sleep(0.02)
            if time.monotonic() >= due:
                victim = draw.choice(victims)
                if strike(folder.resolve(), process, victim, counts, draw):
                    struck, faults = victim, faults - 1
                    due = time.monotonic() + draw.expovariate(1 / mean_seconds)
        process.wait(LONGEST)
        recording = any(
            (folder / "results/.work/ledger").glob("*")
        )  # DVC moves files; the next run looks at them
        left = damage(folder)
        assert recording or not left, f"after {struck}: {left}"
        if struck in ("interrupt", "terminate") and process.returncode:
            said = log.read_text()[-2000:]
            assert process.returncode in (128 + signal.SIGINT, 128 + signal.SIGTERM, -2, -15), said
        if process.returncode == 0 and not faults:
            return
        if not struck:
            assert process.returncode == 0, log.read_text()[-4000:]
            return


def main() -> None:
    """Rounds of faults by hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--faults", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mean-seconds", type=float, default=15.0, help="between faults")
    options = parser.parse_args()
    reference = options.folder / "undisturbed"
    if not (reference / "dvc.lock").is_file():
        shutil.rmtree(reference, ignore_errors=True)
        fresh_project(reference)
        process = start(reference, *reproduce(NAME), log=options.folder / "undisturbed.log")
        assert process.wait(LONGEST) == 0, (options.folder / "undisturbed.log").read_text()[-4000:]
    wanted, counts = outcome(reference), Counts()
    for number in range(options.rounds):
        draw = random.Random(f"{options.seed} {number}")
        folder = options.folder / f"round-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        run(reference, "git", "clone", "--quiet", str(reference), str(folder))
        counts.rounds += 1
        disturbed(folder, options.faults, draw, counts, mean_seconds=options.mean_seconds)
        counts.recovered += 1
        found = outcome(folder)
        different = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
        counts.equal += not different
        print(counts, *different[:10], sep="\n", flush=True)


if __name__ == "__main__":
    main()
