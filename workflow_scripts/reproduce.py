"""Behind `make reproduce`: tidy the results, let Snakemake make what the products need, let DVC record it.

Snakemake with the plan alone decides what must run; DVC records what is there, if anything has changed. All that it
writes is this machine's: `precfm publish` publishes.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import IO, Annotated, Any

import typer
import yaml

from precfm.audit.agreement import agreement_with_published
from precfm.cli.running import run
from precfm.cli.watching import shown
from precfm.core.errors import PrecfmError
from precfm.datasets.manifest import file_sha256
from precfm.datasets.sources import RAW, SOURCES
from precfm.pipeline.artifact import Artifact
from precfm.pipeline.attic import tidy
from precfm.pipeline.experiments import parts_of, read_recorded, require_checkout
from precfm.pipeline.files import remove, write_whole
from precfm.pipeline.key_lists import KEYS, write_key_lists
from precfm.pipeline.ledger import LEDGER, read_ledger, write_recorded
from precfm.pipeline.locks import alone
from precfm.pipeline.node import RECORD, RESULTS, Node
from precfm.pipeline.plan import KINDS, Plan, load_plan
from precfm.pipeline.products import are_written

DVC_AT_WORK = Path(".dvc/tmp/rwlock")  # DVC's own list of which of its processes reads or writes what
CACHE = Path(".dvc/cache/files")
LOCKS_BEFORE = RESULTS / ".work" / "ledger"  # the ledger as it was, there while DVC records an experiment
DVC_TRIES, DVC_PAUSE = 5, 3.0  # seconds; for a `dvc` command that somebody runs meanwhile
BIN = Path(sys.executable).parent
SNAKEMAKE_LOGS = Path(".snakemake/log")  # among its own, what it said in the last run of each experiment
LAST_LINES = 30  # of it, where no job said why it failed


def main(
    experiment: Annotated[str, typer.Argument(help="The name of a file in config/.")] = "quick",
    target: Annotated[
        str,
        typer.Option(
            help="`all`, `products`, a kind, or an artifact's record; other than `all` records nothing."
        ),
    ] = "all",
    cores: Annotated[int, typer.Option(min=1, help="Jobs at a time.")] = os.cpu_count() or 1,
) -> None:
    """Make an experiment, or all of a list of them, and say where the products are."""
    require_checkout()
    plans = [
        load_plan(part) for part in parts_of(experiment)
    ]  # what is wrong with any is said before the first runs
    for plan in plans:
        reproduce(plan, target, cores)


def reproduce(plan: Plan, target: str, cores: int) -> None:
    """Make one experiment, or one of its kinds."""
    experiment = plan.experiment
    targets = ["all", "products", *KINDS]
    if target not in (*targets, *(str(node.folder / RECORD) for node in plan.nodes.values())):
        raise PrecfmError(
            f"--target: {target!r} is none; it must be one of {', '.join(targets)}, or an artifact's {RECORD}"
        )
    wanted = [f"all_{target}" if target in KINDS else target]
    with alone(experiment) as held:
        (SNAKEMAKE_LOGS / f"{experiment}.log").unlink(missing_ok=True)
        if any(LOCKS_BEFORE.glob("[!.]*")):
            with alone("ledger"):  # DVC may have outlived the run that started it
                wanted += repair_after_killed_dvc(plan)
        left, returned = tidy(plan)
        if left or returned:
            print(
                f"{experiment}: {len(left)} artifacts moved to the attic, {len(returned)} fetched back or copied"
            )
        wanted += remove_damaged(plan.nodes.values(), deep=False)
        if target in KINDS:  # `dvc repro` asks, and records whatever it finds
            wanted += remove_damaged(plan.of(target))
        write_products_again_unless_whole(plan)
        run_snakemake(plan, wanted, cores, held)
        if target == "all":
            with alone("ledger") as ledger:  # nobody takes what DVC moves for damaged
                if not is_recorded(plan):
                    if damaged := remove_damaged(plan.nodes.values()):
                        run_snakemake(plan, damaged, cores, held)
                    record(plan, ledger)
    if target == "all":
        announce(experiment)


def write_products_again_unless_whole(plan: Plan) -> None:
    """Remove the stamp that tells Snakemake that all products are written, where one was deleted or damaged."""
    if not are_written(plan):
        for stamp in (RESULTS / plan.experiment / "records").glob("products-*"):
            stamp.unlink()


def run_group(
    command: list[str],
    environment: dict[str, str],
    held: int,
    log: IO[bytes] | None = None,
    meanwhile: AbstractContextManager[None] | None = None,
) -> int:
    """Run a command in a process group of its own until all of the group has ended.

    SIGINT, SIGTERM and SIGHUP end the whole group, jobs included: Snakemake then starts no more; a second one kills.

    Args:
        command: what to run.
        environment: added to this process's.
        held: the lock that the command holds as long as it lives.
        log: gets what the command says; None lets it speak itself.
        meanwhile: entered while the command runs.

    Returns:
        The command's exit code; after a signal, this function does not return but says how to go on.
    """
    asked: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def stop(number: int, _: Any) -> None:
        asked.append(number)
        if child is not None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGTERM if len(asked) == 1 else signal.SIGKILL)

    stops = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN
    ]
    before = {number: signal.signal(number, stop) for number in stops}
    try:
        child = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            process_group=0,
            pass_fds=[held],
            stdout=log,
            stderr=log and subprocess.STDOUT,
        )
        if asked:  # before there was a child
            os.killpg(child.pid, signal.SIGTERM)
        with meanwhile or nullcontext():
            code = child.wait()
        with suppress(ProcessLookupError):  # jobs of a Snakemake that was killed
            os.killpg(child.pid, signal.SIGKILL)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        print(
            "precfm: stopped; what is finished is kept, trainings go on from their last save: "
            "the same command goes on",
            file=sys.stderr,
        )
        sys.exit(128 + asked[0])
    return code


def run_snakemake(plan: Plan, targets: list[str], cores: int, held: int) -> None:
    """Run Snakemake and show how it goes on; if it fails, say in one line each what the failed jobs said.

    What Snakemake says itself goes to a file.
    """
    records, log = RESULTS / plan.experiment / "records", SNAKEMAKE_LOGS / f"{plan.experiment}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    for old in records.glob("logs/**/*.error"):
        old.unlink()
    threads = {
        name: str(plan.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    }
    command = [str(BIN / "snakemake"), "--workflow-profile", "profiles/default", "--cores", str(cores)]
    command += ["--config", f"experiment={plan.experiment}", "--", *targets]
    environment = {**threads, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    with log.open("ab") as file:
        start = file.tell()
        failed = run_group(command, environment, held, file, shown(plan, cores, _wanted(plan, targets)))
    if failed:
        said = [file.read_text(encoding="utf-8").strip() for file in sorted(records.glob("logs/**/*.error"))]
        if not said:
            end = log.read_bytes()[start:].decode(errors="replace").splitlines()[-LAST_LINES:]
            said = [*end, f"precfm: {plan.experiment}: not finished ({log}); the same command goes on"]
        sys.exit("\n".join(said))


def _wanted(plan: Plan, targets: list[str]) -> set[str]:
    """What Snakemake may have to make for these targets."""
    if {"all", "products"} & set(targets):
        return set(plan.nodes)
    asked = [
        node for node in plan.nodes.values() if {f"all_{node.kind}", str(node.folder / RECORD)} & set(targets)
    ]
    return {node.id for node in plan.with_missing_parents(node.id for node in asked)}


def is_recorded(plan: Plan) -> bool:
    """Whether nothing has changed since DVC last recorded this experiment."""
    stamp = RESULTS / plan.experiment / "records" / "ledger"
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == ledger_state(plan)


def record(plan: Plan, held: int) -> None:
    """Let DVC record and store the artifacts, and write their keys; not those of an experiment that is here in part.

    The experiment and its sources are listed in params.yaml first.
    """
    experiment = plan.experiment
    if absent := [node.id for node in plan.nodes.values() if not node.exists]:
        print(
            f"{experiment}: {LEDGER} is left as it was, since {len(absent)} artifacts are not here ({absent[0]}); "
            f"`make pull EXPERIMENT={experiment}` or `precfm make {experiment}` brings them"
        )
        return
    read_ledger()  # a damaged one is refused in one sentence
    write_key_lists(plan)
    listed = read_recorded()
    sources = set(plan.sources.values())
    wanted = {
        "experiments": sorted({*listed["experiments"], experiment}),
        "sources": sorted({*listed["sources"], *(name for name in sources if (RAW / name).is_dir())}),
    }
    if wanted != listed:
        write_recorded(wanted)
    stages = [f"{stage}@{experiment}" for stage in ("keys", *KINDS, "products")]
    stages += [f"raw@{name}" for name in sorted(sources) if (RAW / name).is_dir()]
    dvc = [str(BIN / "dvc"), "commit", "--quiet", "--force", *stages]
    before = LOCKS_BEFORE / experiment
    before.parent.mkdir(parents=True, exist_ok=True)
    write_whole(before, LEDGER.read_bytes() if LEDGER.is_file() else b"")
    for attempt in range(DVC_TRIES):
        if attempt:
            time.sleep(DVC_PAUSE)
        if not run_group(dvc, {"DVC_NO_ANALYTICS": "1"}, held):
            break
    else:
        sys.exit(
            f"precfm: {experiment}: everything is made, but DVC could not record it (see above); "
            "the same command tries again"
        )
    before.unlink()
    write_whole(RESULTS / experiment / "records" / "ledger", ledger_state(plan).encode())


def repair_after_killed_dvc(plan: Plan) -> list[str]:
    """Undo what a DVC that was killed while it recorded may have left: a cut ledger, files between two places.

    Returns:
        The records of artifacts that this run has to make again, since their files were not as their record says.
    """
    try:
        json.loads(DVC_AT_WORK.read_text(encoding="utf-8"))
    except FileNotFoundError:
        pass
    except ValueError:  # cut: with it DVC does nothing, without it DVC begins a new one
        DVC_AT_WORK.unlink(missing_ok=True)
    for before in sorted(LOCKS_BEFORE.glob("[!.]*")):
        kept, found = before.read_bytes(), LEDGER.read_bytes() if LEDGER.is_file() else b""
        try:
            lost = _entries(kept) - _entries(found)
        except (ValueError, TypeError, AttributeError, yaml.YAMLError):
            lost = {"all"}
        if lost and kept:
            write_whole(LEDGER, kept)
        elif lost or not found:  # DVC refuses an empty ledger
            LEDGER.unlink(missing_ok=True)
    if not (LOCKS_BEFORE / plan.experiment).is_file():
        return []
    damaged = remove_damaged(plan.nodes.values())
    (LOCKS_BEFORE / plan.experiment).unlink()
    return damaged


def remove_damaged(nodes: Iterable[Node], *, deep: bool = True) -> list[str]:
    """Remove the artifacts whose record, or whose files if `deep`, are damaged; what Snakemake has to make again."""
    found = []
    for node in nodes:
        try:
            if node.exists:
                artifact = Artifact.open(node.folder)
                if deep:
                    artifact.verified()
        except PrecfmError as error:
            print(f"{node.id}: removed, and made again ({str(error).partition(';')[0]})")
            remove(node.folder)
            found.append(str(node.folder / RECORD))
    return found


def _entries(lock: bytes) -> set[str]:
    """The stages in the text of a ledger, each with its fields; an error where the text breaks off."""
    stages = yaml.safe_load(lock)["stages"] if lock else {}
    return {f"{stage} {field}" for stage, fields in stages.items() for field in fields}


def ledger_state(plan: Plan) -> str:
    """A hash of all that DVC would look at: ledger, dependencies of stages, when artifacts changed, its cache."""
    home = RESULTS / plan.experiment
    files = [Path(name) for name in ("params.yaml", "dvc.yaml", str(LEDGER), str(SOURCES))]
    files += (KEYS / plan.experiment).glob("*")
    files += [path for name in ("tables", "figures") for path in (home / name).iterdir()]
    files += [home / "manifest.json", home / "claims.json", home / "report.html"]
    contents = [f"{path} {file_sha256(path)}" for path in files if path.is_file()]
    payload = [(file, file.stat()) for node in plan.nodes.values() for file in node.folder.rglob("*")]
    made = [f"{file} {stat.st_size} {stat.st_mtime_ns}" for file, stat in payload if file.is_file()]
    made.append(f"cache {CACHE.is_dir()}")
    return hashlib.sha256("\n".join(sorted(contents + made)).encode()).hexdigest()


def announce(experiment: str) -> None:
    """Say where the products are, and whether their numbers agree with the published ones, if there are any."""
    home = RESULTS / experiment
    places = {"report": "report.html", "tables": "tables/", "figures": "figures/", "claims": "claims.md"}
    print(f"\n{experiment}: done")
    for what, place in places.items():
        if (home / place).exists():
            print(f"  {what:8}{home}/{place}")
    try:
        found = agreement_with_published(experiment)
    except (PrecfmError, OSError) as error:  # everything is made all the same
        print(f"{experiment}: cannot be compared with the published run ({error})")
        return
    if found:
        print(f"{found.line}{'; `precfm compare` shows where' if found.exit_code else ''}")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command()(main)
    run(app, "reproduce.py")
