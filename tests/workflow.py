"""Running the real workflow in clones of this project: what the tests of workflow and README share."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from precfm.pipeline.artifact import record_checksum

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    "DVC_NO_ANALYTICS": "1",
    "OMP_NUM_THREADS": "1",
}


def run(folder, *command, code=0, **environment):
    done = subprocess.run(
        command,
        cwd=folder,
        env={**ENVIRONMENT, "PYTHONPATH": str(folder), **environment},
        capture_output=True,
        text=True,
    )
    said = done.stdout + done.stderr
    assert done.returncode == code, (
        f"{' '.join(map(str, command))} exited with {done.returncode}:\n{said[-4000:]}"
    )
    return said


def git(folder, *arguments):
    return run(folder, "git", "-c", "user.name=test", "-c", "user.email=test@localhost", *arguments)


def reproduce(folder, *arguments, code=0, **environment):
    """What the script said, and Snakemake, whose words it keeps in a file."""
    said = run(
        folder, sys.executable, "workflow_scripts/reproduce.py", "smoke", *arguments, code=code, **environment
    )
    return said + snakemake_log(folder, "smoke")


def snakemake_log(folder, experiment):
    """What Snakemake said in the last run of an experiment; nothing if it did not start."""
    log = folder / f".snakemake/log/{experiment}.log"
    return log.read_text() if log.is_file() else ""


def jobs(said):
    """The rules that Snakemake ran, with how often, from its table of job counts."""
    table = re.search(r"^job\s+count\n[- ]+\n(.*?)^total", said, re.MULTILINE | re.DOTALL)
    return (
        {name: int(count) for name, count in re.findall(r"^(\S+)\s+(\d+)$", table[1], re.MULTILINE)}
        if table
        else {}
    )


def bytes_below(folder):
    """The checksum of every file, but for the time stamps that Snakemake leaves in folders."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != ".snakemake_timestamp"
    }


def clone(source, target):
    git(source, "clone", "--quiet", str(source), str(target))
    return target


def sealed(record):
    """The text of a forged record whose own checksum is right."""
    return json.dumps({**record, "checksum": record_checksum(record)}, indent=1, sort_keys=True) + "\n"
