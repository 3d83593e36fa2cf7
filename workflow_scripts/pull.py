"""Behind `make pull`: fetch an experiment's recorded artifacts from the DVC remote, and lose nothing that is here.

A plain `dvc pull` refuses where an artifact lies that the ledger does not know, and with --force deletes it; so
whatever differs from the manifest goes to the attic first, and what is damaged is removed. The ledger in git vouches
for the manifest, and the manifest for every artifact.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from precfm.core.errors import PrecfmError, one_sentence
from precfm.pipeline.artifact import Artifact
from precfm.pipeline.attic import to_attic
from precfm.pipeline.experiments import read_recorded
from precfm.pipeline.files import remove
from precfm.pipeline.locks import alone
from precfm.pipeline.manifest import MANIFEST, agrees, read_manifest
from precfm.pipeline.node import RECORD, RESULTS
from precfm.pipeline.plan import KINDS, load_plan

BIN = Path(sys.executable).parent
LEDGER = Path("dvc.lock")
REFUSED = "refused"


def main(
    experiment: Annotated[str, typer.Argument(help="A recorded experiment.")] = "quick",
    kind: Annotated[str | None, typer.Option(help="Only this kind of artifact.")] = None,
) -> None:
    """Fetch what the ledger holds of an experiment."""
    held = read_recorded()
    recorded = held["experiments"]
    if experiment not in recorded:
        known = ", ".join(recorded) or "none yet"
        raise PrecfmError(
            f"params.yaml: '{experiment}' was never recorded (recorded: {known}); `make reproduce` makes it"
        )
    if kind not in (None, *KINDS):
        raise PrecfmError(f"--kind: '{kind}' is no kind of artifact; kinds are {', '.join(KINDS)}")
    kinds = [kind] if kind else list(KINDS)
    stages = [f"{name}@{experiment}" for name in kinds]
    if kind is None:
        sources = set(load_plan(experiment).sources.values())
        stages += [f"raw@{name}" for name in sorted(sources & set(held["sources"]))]
    with alone(experiment) as own, alone("ledger") as ledger:
        # Products and manifest hold nothing that artifacts do not, so what the ledger has replaces them.
        pulled = dvc_pull(["--force", f"products@{experiment}"], [own, ledger])
        wrong: list[Path] = []
        if pulled:
            check_manifest(experiment)
            if moved := len(set_aside(experiment, kinds)):
                print(f"{experiment}: {moved} artifacts that the ledger does not know moved to the attic")
            pulled = dvc_pull(stages, [own, ledger])
            wrong = refuse_wrong(experiment, kinds)
    complaints = [refusal(experiment, wrong)] if wrong else []
    if not pulled:
        complaints.append(
            f"{experiment}: could not pull (see above); a remote that holds it is needed: "
            "`dvc remote add --default NAME URL`, and it is asked only for what `dvc push` has sent there"
        )
    if complaints:
        raise PrecfmError("\nprecfm: ".join(complaints))


def dvc_pull(arguments: list[str], locks: list[int]) -> bool:
    """Whether `dvc pull` ended well; it holds the locks as long as it lives."""
    command = [str(BIN / "dvc"), "pull", *arguments]
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    return subprocess.run(command, env=environment, pass_fds=locks).returncode == 0


def check_manifest(experiment: str) -> None:
    """Refuse a manifest that is not the one which the ledger names: whoever forged it could forge all else.

    Raises:
        PrecfmError: it is another one, or the ledger names none.
    """
    file = RESULTS / experiment / MANIFEST
    stages = yaml.safe_load(LEDGER.read_text(encoding="utf-8"))["stages"]
    outs = stages.get(f"products@{experiment}", {}).get("outs", ())
    named = {out["path"]: out["md5"] for out in outs}.get(str(file))
    if not file.is_file() or hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest() != named:
        remove(file)
        raise PrecfmError(
            f"{file}: not the one that {LEDGER} names, so nothing was pulled; `make reproduce` makes it anew"
        )


def set_aside(experiment: str, kinds: list[str]) -> list[Path]:
    """Move every artifact that is not as the manifest says to the attic, and remove what is damaged."""
    listed = _listed(experiment)
    moved = []
    for kind in kinds:
        for folder in sorted((RESULTS / experiment / kind).glob("*")):
            try:
                artifact = Artifact.open(folder)
                artifact.verified()
            except PrecfmError:
                remove(folder)
                continue
            if not _is_listed(artifact, listed) and to_attic(folder, kind):
                moved.append(folder)
    return moved


def refuse_wrong(experiment: str, kinds: list[str]) -> list[Path]:
    """Let nothing stay in place that came from elsewhere and is not as the manifest says.

    It goes to a place in the attic from where no plan fetches it back: it may be somebody's forgery, or what somebody
    made here meanwhile. What is damaged or incomplete is removed.

    Returns:
        The folders that such artifacts were in.
    """
    listed = _listed(experiment)
    wrong = []
    for kind in kinds:
        for folder in sorted((RESULTS / experiment / kind).glob("*")):
            complete = (folder / RECORD).is_file()
            try:
                artifact = Artifact.open(folder)
                artifact.verified()
            except PrecfmError:
                remove(folder)
            else:
                if _is_listed(artifact, listed):
                    continue
                to_attic(folder, f"{REFUSED}/{kind}")
            if complete:
                wrong.append(folder)
    return wrong


def refusal(experiment: str, wrong: list[Path]) -> str:
    """What to say of artifacts that were refused."""
    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return (
        f"{wrong[0]}{more}: not what {experiment}'s manifest lists, so not left in place "
        f"(see {RESULTS}/.attic/{REFUSED}/); `make reproduce` makes it anew, and after "
        "`dvc remote modify NAME verify true` DVC refuses it, too"
    )


def _is_listed(artifact: Artifact, listed: dict[str, Any]) -> bool:
    node_id = f"{artifact.folder.parent.name}/{artifact.folder.name}"
    entry = listed.get(node_id)
    return entry is not None and agrees(artifact.record, entry, node_id)


def _listed(experiment: str) -> dict[str, Any]:
    """What the experiment's manifest says of each artifact."""
    manifest = read_manifest(RESULTS / experiment)
    if manifest is None:
        raise PrecfmError(f"{RESULTS / experiment / MANIFEST}: missing; `make pull` fetches it first")
    artifacts: dict[str, Any] = manifest["artifacts"]
    return artifacts


if __name__ == "__main__":
    with one_sentence():
        typer.run(main)
