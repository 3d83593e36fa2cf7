"""Behind `make pull`: fetch an experiment's recorded artifacts from the DVC remote, and lose nothing that is here.

A plain `dvc pull` refuses where an artifact lies that the ledger does not know, and with --force deletes it; so
whatever differs from the manifest goes to the attic first, and what is damaged is removed.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from precfm.core.errors import PrecfmError, told_in_one_sentence
from precfm.pipeline.artifact import Artifact
from precfm.pipeline.attic import to_attic
from precfm.pipeline.experiments import load_experiment, read_recorded
from precfm.pipeline.files import remove
from precfm.pipeline.locks import alone
from precfm.pipeline.manifest import MANIFEST, agrees, read_manifest
from precfm.pipeline.node import RECORD, RESULTS
from precfm.pipeline.plan import KINDS

BIN = Path(sys.executable).parent
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
        sources = {dataset.source_name for dataset in load_experiment(experiment).datasets.values()}
        stages += [f"raw@{name}" for name in sorted(sources & set(held["sources"]))]
    with alone(experiment) as own, alone("ledger") as ledger:
        moved = set_aside(experiment, kinds)
        if moved:
            print(f"{experiment}: {len(moved)} artifacts that the ledger does not know moved to the attic")
        done = subprocess.run(
            [str(BIN / "dvc"), "pull", *stages],
            env={**os.environ, "DVC_NO_ANALYTICS": "1"},
            pass_fds=[own, ledger],
        )
        wrong = refuse_wrong(experiment, kinds)
    complaints = [refusal(experiment, wrong)] if wrong else []
    if done.returncode:
        complaints.append(
            f"{experiment}: could not pull (see above); a remote that holds it is needed: "
            "`dvc remote add --default NAME URL`, and it is asked only for what `dvc push` has sent there"
        )
    if complaints:
        raise PrecfmError("\nprecfm: ".join(complaints))


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
        f"{wrong[0]}{more}: not what {experiment}'s manifest in git lists, so not left in place "
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
        file = RESULTS / experiment / MANIFEST
        raise PrecfmError(f"{file}: missing; it is kept in git: `git checkout -- {file}` brings it back")
    artifacts: dict[str, Any] = manifest["artifacts"]
    return artifacts


if __name__ == "__main__":
    with told_in_one_sentence():
        typer.run(main)
