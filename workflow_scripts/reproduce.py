"""Behind `make reproduce`: tidy the results, let Snakemake make what is missing, let DVC record it.

Snakemake with the plan is the only judge of what must run; DVC records what is there, if anything has changed.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
import yaml
from filelock import FileLock, Timeout

from precfm.artifacts import RECORD, RESULTS
from precfm.datasets.manifest import file_sha256
from precfm.datasets.sources import RAW, SOURCES
from precfm.errors import PrecfmError
from precfm.plan import KINDS, Plan, load_plan
from precfm.store import collect_claims, tidy

PARAMS = Path("params.yaml")
HEADER = "# What the ledger holds; `make reproduce EXPERIMENT=x` adds x when it is first recorded.\n"
BIN = Path(sys.executable).parent


def main(
    experiment: Annotated[str, typer.Argument(help="The name of a file in config/.")] = "quick",
    target: Annotated[
        str, typer.Option(help="A Snakemake target; other than `everything` records nothing.")
    ] = "everything",
    cores: Annotated[int, typer.Option(help="Jobs at a time.")] = os.cpu_count() or 1,
) -> None:
    """Make an experiment, or one of its kinds, and say where the products are."""
    plan = load_plan(experiment)
    with alone(experiment):
        left, returned = tidy(plan)
        if left or returned:
            print(
                f"{experiment}: {len(left)} artifacts moved to the attic, {len(returned)} fetched back or copied"
            )
        home = RESULTS / experiment
        if not all((home / name).is_file() for name in ("claims.json", "claims.md", "manifest.json")):
            for stamp in (home / "records").glob("published-*"):
                stamp.unlink()  # a product was deleted: publish again
        run_snakemake(plan, target, cores)
    if target == "everything":
        with alone("ledger"):
            record(plan)
            collect_claims()
        announce(experiment)


@contextmanager
def alone(what: str) -> Iterator[None]:
    """Let one run at a time work on an experiment, or on the ledger; a second one waits."""
    folder = RESULTS / ".work" / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"run-{what}.lock")
    try:
        lock.acquire(timeout=1)
    except Timeout:
        print(f"{what}: another run is at work; waiting for it", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def run_snakemake(plan: Plan, target: str, cores: int) -> None:
    """Run Snakemake; if it fails, repeat in one line each what the failed jobs said."""
    records = RESULTS / plan.experiment.name / "records"
    for old in records.glob("logs/*/*.error"):
        old.unlink()
    threads = {
        name: str(plan.experiment.threads)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    }
    command = [str(BIN / "snakemake"), "--workflow-profile", "profiles/default", "--cores", str(cores)]
    command += ["--config", f"experiment={plan.experiment.name}", "--", target]
    done = subprocess.run(
        command, env={**os.environ, **threads, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    )
    if done.returncode:
        said = [file.read_text(encoding="utf-8").strip() for file in sorted(records.glob("logs/*/*.error"))]
        sys.exit("\n".join(said) or f"precfm: {plan.experiment.name}: not finished; the same command goes on")


def record(plan: Plan) -> None:
    """Let DVC record and store the artifacts, unless nothing has changed since it last did.

    The experiment and its sources are listed in params.yaml first.
    """
    experiment = plan.experiment
    stamp = RESULTS / experiment.name / "records" / "ledger"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == ledger_state(plan):
        return
    held = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
    sources = {dataset.source_name for dataset in experiment.datasets.values()}
    wanted = {
        "experiments": sorted({*held["experiments"], experiment.name}),
        "sources": sorted({*held["sources"], *(name for name in sources if (RAW / name).is_dir())}),
    }
    if wanted != held:
        PARAMS.write_text(HEADER + yaml.safe_dump(wanted, default_flow_style=None), encoding="utf-8")
    stages = [f"{kind}@{experiment.name}" for kind in (*KINDS, "publish")]
    stages += [f"raw@{name}" for name in sorted(sources) if (RAW / name).is_dir()]
    dvc = [str(BIN / "dvc"), "commit", "--quiet", "--force", *stages]
    if subprocess.run(dvc, env={**os.environ, "DVC_NO_ANALYTICS": "1"}).returncode:
        sys.exit(f"precfm: {experiment.name}: everything is made, but DVC could not record it (see above)")
    stamp.write_text(ledger_state(plan), encoding="utf-8")


def ledger_state(plan: Plan) -> str:
    """A hash of all that DVC would look at: the ledger, the stages' dependencies, and when artifacts were made."""
    home = RESULTS / plan.experiment.name
    files = [
        Path(name) for name in ("params.yaml", "dvc.yaml", "dvc.lock", "requirements.lock", str(SOURCES))
    ]
    files += [
        path for name in ("config", "precfm", "workflow_scripts") for path in Path(name).rglob("*.[py]*")
    ]
    files += [path for name in ("tables", "figures") for path in (home / name).iterdir()]
    files += [home / "manifest.json", home / "claims.json"]
    contents = [f"{path} {file_sha256(path)}" for path in files if path.is_file() and path.suffix != ".pyc"]
    made = [f"{node.id} {(node.folder / RECORD).stat().st_mtime_ns}" for node in plan.nodes.values()]
    return hashlib.sha256("\n".join(sorted(contents + made)).encode()).hexdigest()


def announce(experiment: str) -> None:
    """Say where the products are."""
    home = RESULTS / experiment
    print(
        f"\n{experiment}: done\n  tables    {home}/tables/\n  figures   {home}/figures/\n  verdicts  {home}/claims.md"
    )


if __name__ == "__main__":
    try:
        typer.run(main)
    except PrecfmError as error:
        sys.exit(f"precfm: {error}")
    except OSError as error:
        sys.exit(f"precfm: {error.filename}: {error.strerror}; free space and write permission are needed")
