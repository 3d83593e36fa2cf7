"""Behind `make pull`: fetch an experiment's artifacts from a DVC remote or an archive, and lose nothing that is here.

A plain `dvc pull` refuses where an artifact lies that the ledger does not know, and with --force deletes it, even if
it then fetches nothing. So whatever differs from the manifest goes to the attic first, what is damaged is removed, and
products come back where theirs could not be pulled. The ledger in git vouches for the manifest, and the manifest for
every artifact.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from dvc.dirs import system_config_dir

from precfm.audit.importing import import_archive
from precfm.cli.running import run
from precfm.core.errors import PrecfmError
from precfm.datasets.sources import RAW
from precfm.pipeline.artifact import Artifact
from precfm.pipeline.attic import to_attic
from precfm.pipeline.experiments import PARAMS, read_recorded
from precfm.pipeline.files import remove
from precfm.pipeline.ledger import LEDGER, read_ledger
from precfm.pipeline.locks import alone
from precfm.pipeline.manifest import MANIFEST, agrees, read_manifest
from precfm.pipeline.node import RECORD, RESULTS, holds_files
from precfm.pipeline.plan import KINDS, load_plan
from precfm.pipeline.products import AT_HOME, PRODUCTS

PRODUCT_NAMES = (*filter(None, PRODUCTS.values()), *AT_HOME, MANIFEST)
DVC = Path(sys.executable).parent / "dvc"
REFUSED = "refused"
REMOTE = "precfm-from"  # the name of a remote that is asked once


def main(
    experiment: Annotated[str, typer.Argument(help="The experiment.")] = "quick",
    kind: Annotated[str | None, typer.Option(help="Only this kind of artifact.")] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from", help="An archive, a folder or a URL; default: the remote of DVC's configuration."
        ),
    ] = None,
) -> None:
    """Fetch what the ledger, or an archive, holds of an experiment."""
    if kind not in (None, *KINDS):
        raise PrecfmError(f"--kind: '{kind}' is no kind of artifact; kinds are {', '.join(KINDS)}")
    if source and "://" not in source and not Path(source).is_dir():
        if not Path(source).is_file():
            raise PrecfmError(
                f"--from: '{source}' is no archive, no folder, and no URL such as s3://BUCKET/PATH"
            )
        if kind:
            raise PrecfmError(
                "--kind: an archive is imported as a whole; `precfm export --kind` writes a small one"
            )
        print("\n".join(import_archive(Path(source), experiment).lines()))
        return
    kinds, sources = recorded(experiment, kind)
    with alone(experiment) as own, alone("ledger") as ledger, remote_at(source) as (options, environment):

        def pull(*arguments: str) -> bool:
            return dvc(["pull", *options, *arguments], environment, [own, ledger])

        wrong: list[Path] = []
        require_in_ledger(experiment, kinds, sources)
        pulled = pull_products(experiment, pull)
        if pulled:
            if moved := len(set_aside(experiment, kinds)):
                print(f"{experiment}: {moved} artifacts that the ledger does not know moved to the attic")
            pulled = pull(*(f"{name}@{experiment}" for name in kinds))
            wrong = set_aside(experiment, kinds, refuse=True)
            for name in sources:
                if not pull(f"raw@{name}"):
                    print(f"note: {RAW / name}: not pulled; it comes from its source when it is needed")
                    remove_empty(RAW / name)
        remove_empty(RESULTS / experiment)
    complaints = [refusal(experiment, wrong)] if wrong else []
    if not pulled:
        complaints.append(
            f"{experiment}: could not pull (see above); a remote that holds what `dvc push` sends is needed, "
            "by `make pull FROM=...` or `dvc remote add --default NAME URL`"
        )
    if complaints:
        raise PrecfmError("\nprecfm: ".join(complaints))


def recorded(experiment: str, kind: str | None) -> tuple[list[str], list[str]]:
    """The kinds that are asked for, and the data sources in the ledger that are not here."""
    held = read_recorded()
    if experiment not in held["experiments"]:
        known = ", ".join(held["experiments"]) or "none yet"
        raise PrecfmError(
            f"params.yaml: '{experiment}' was never recorded (recorded: {known}); `make reproduce` makes it"
        )
    kinds = [kind] if kind else list(KINDS)
    sources = set() if kind else {*load_plan(experiment).sources.values()} & {*held["sources"]}
    return kinds, sorted(name for name in sources if not holds_files(RAW / name))


def require_in_ledger(experiment: str, kinds: Sequence[str], sources: Sequence[str]) -> None:
    """Refuse a ledger that was cut: DVC deletes what it finds no checksum of.

    Raises:
        PrecfmError: a stage that would be pulled is not there with all its outputs.
    """
    home, held = RESULTS / experiment, read_ledger()
    wanted = {f"products@{experiment}": {str(home / name) for name in PRODUCT_NAMES}}
    wanted |= {f"{kind}@{experiment}": {str(home / kind)} for kind in kinds}
    wanted |= {f"raw@{name}": {str(RAW / name)} for name in sources}
    for stage, outs in wanted.items():
        if not outs <= held.get(stage, {}).keys():
            raise PrecfmError(
                f"{LEDGER}: does not hold all of {stage}, though {PARAMS} lists it, so nothing was pulled; "
                f"`git checkout -- {LEDGER}` brings back what was committed"
            )


def pull_products(experiment: str, pull: Callable[..., bool]) -> bool:
    """Whether the products could be pulled; otherwise they are, byte for byte, as they were.

    They hold nothing that artifacts do not, so what the ledger has replaces them. A pull that was killed leaves a copy,
    from which the next one takes what is missing.

    Raises:
        PrecfmError: their manifest is not the one which the ledger names.
    """
    home = RESULTS / experiment
    kept = RESULTS / ".work" / "parts" / f"run-{experiment}.products"  # `precfm gc` spares it during a pull
    part, done = kept.with_suffix(".part"), False
    for path in (home / name for name in PRODUCT_NAMES):
        if not path.exists():
            copy(kept / path.name, path)
    for path in (kept, part):
        remove(path)
    part.mkdir(parents=True)
    for name in PRODUCT_NAMES:
        copy(home / name, part / name)
    part.rename(kept)
    try:
        if pull("--force", f"products@{experiment}"):
            check_manifest(experiment)
            done = True
    finally:
        for name in PRODUCT_NAMES if not done else ():
            remove(home / name)
            copy(kept / name, home / name)
        remove_empty(home)
        kept.rename(part)  # in one step, so that no half of a copy is taken for one
        remove(part)
    return done


def copy(source: Path, target: Path) -> None:
    """Copy a file, a folder, or nothing."""
    if not source.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def remove_empty(folder: Path) -> None:
    """Remove a folder in which there is no file."""
    if not holds_files(folder):
        remove(folder)


@contextmanager
def remote_at(source: str | None) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Options and environment with which DVC asks a folder or URL instead of the default remote.

    They name a configuration of a temporary folder, in the place of the machine's, so whatever happens nothing stays.
    """
    if not source:
        yield [], {}
        return
    with TemporaryDirectory() as folder:
        if (machine := Path(system_config_dir(), "config")).is_file():
            shutil.copy(machine, folder)
        environment = {"DVC_SYSTEM_CONFIG_DIR": folder}
        place = source if "://" in source else str(Path(source).resolve())
        if not dvc(["remote", "add", "--quiet", "--force", "--system", REMOTE, place], environment):
            raise PrecfmError(f"--from: '{source}' is no place that DVC can pull from")
        yield ["--remote", REMOTE], environment


def dvc(arguments: Sequence[str], environment: Mapping[str, str], locks: Sequence[int] = ()) -> bool:
    """Whether DVC ended well; it holds the locks as long as it lives."""
    settings = {**os.environ, "DVC_NO_ANALYTICS": "1", **environment}
    return subprocess.run([DVC, *arguments], env=settings, pass_fds=locks).returncode == 0


def check_manifest(experiment: str) -> None:
    """Refuse a manifest that is not the one which the ledger names: whoever forged it could forge all else.

    Raises:
        PrecfmError: it is another one, or the ledger names none.
    """
    file = RESULTS / experiment / MANIFEST
    named = read_ledger().get(f"products@{experiment}", {}).get(str(file))
    if not file.is_file() or hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest() != named:
        raise PrecfmError(
            f"{file}: not the one that {LEDGER} names, so nothing was pulled; `make reproduce` makes it anew"
        )


def set_aside(experiment: str, kinds: Sequence[str], *, refuse: bool = False) -> list[Path]:
    """Move every artifact that is not as the manifest says to the attic, and remove what is damaged or incomplete.

    Args:
        experiment: whose artifacts.
        kinds: which of them.
        refuse: move them to a place from where no plan fetches them back, because they came from elsewhere: somebody's
            forgery, or what somebody made here meanwhile.

    Returns:
        The folders that were moved, or damaged although they came from elsewhere.
    """
    manifest = read_manifest(RESULTS / experiment)
    if manifest is None:
        raise PrecfmError(f"{RESULTS / experiment / MANIFEST}: missing; `make pull` fetches it first")
    listed, moved = manifest["artifacts"], []
    for folder in sorted(path for kind in kinds for path in (RESULTS / experiment / kind).glob("*")):
        kind, complete = folder.parent.name, (folder / RECORD).is_file()
        try:
            artifact = Artifact.open(folder)
            artifact.verified()
        except PrecfmError:
            remove(folder)
            if refuse and complete:
                moved.append(folder)
            continue
        entry = listed.get(f"{kind}/{folder.name}")
        if entry is None or not agrees(artifact.record, entry, f"{kind}/{folder.name}"):
            to_attic(folder, f"{REFUSED}/{kind}" if refuse else kind)
            moved.append(folder)
    return moved


def refusal(experiment: str, wrong: Sequence[Path]) -> str:
    """What to say of artifacts that were refused."""
    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return (
        f"{wrong[0]}{more}: not what {experiment}'s manifest lists, so not left in place "
        f"(see {RESULTS}/.attic/{REFUSED}/); `make reproduce` makes it anew, and after "
        "`dvc remote modify NAME verify true` DVC refuses it, too"
    )


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command()(main)
    run(app, "pull.py")
