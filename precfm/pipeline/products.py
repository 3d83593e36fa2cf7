"""What an experiment is made for, under plain names: tables, figures, verdicts and its page, beside the artifacts.

results/<experiment>/<kind>/      artifacts of the plan
results/<experiment>/tables/ ...  products, copied out of the artifacts, and the manifest of all artifacts
results/<experiment>/records/     logs, times, stamps: whatever changes from run to run
results/.attic/                   artifacts that no plan wants at present
results/.work/                    locks, plans, part-folders and scratch of running jobs

All of it is this machine's and ignored by git; `precfm.pipeline.publication` publishes.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from precfm.core.errors import PrecfmError
from precfm.datasets.manifest import file_sha256
from precfm.pipeline.artifact import Artifact
from precfm.pipeline.files import remove, write_whole
from precfm.pipeline.manifest import MANIFEST, entries, manifest_text
from precfm.pipeline.node import RESULTS, Node
from precfm.pipeline.plan import KINDS, Plan

PRODUCTS = {"table_files": "tables", "figure_files": "figures", "verdicts": "", "pages": ""}
AT_HOME = ("claims.json", "claims.md", "report.html")  # of the kinds whose files are in no folder
_UNTRACKED = ".snakemake_timestamp"


def write_products(plan: Plan) -> None:
    """Copy the products to their plain names and write the manifest of the whole experiment.

    Artifacts that are not on this machine (a partial pull) keep what the last manifest said of them. Of several at
    once, each waits for the one before.
    """
    home = RESULTS / plan.experiment
    locks = RESULTS / ".work" / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"products-{plan.experiment}.lock"):
        for name in PRODUCTS.values():
            (home / name).mkdir(parents=True, exist_ok=True)
        files = products(plan)
        for file, (artifact, name) in files.items():
            write_whole(home / file, artifact.path(name).read_bytes())
        for stale in _in_product_folders(home) - files.keys():
            remove(home / stale)
        write_whole(home / MANIFEST, manifest_text(manifest_of(plan)))


def are_written(plan: Plan) -> bool:
    """Whether all products are whole and up to date, so that to write them again would change nothing."""
    home = RESULTS / plan.experiment
    try:
        files = products(plan)
        return (
            (home / MANIFEST).read_bytes() == manifest_text(manifest_of(plan))
            and _in_product_folders(home) <= files.keys()
            and all(
                file_sha256(home / file) == artifact.record["files"][name]["sha256"]
                for file, (artifact, name) in files.items()
            )
        )
    except (OSError, PrecfmError):  # a product or its artifact is not there
        return False


def products(plan: Plan) -> dict[Path, tuple[Artifact, str]]:
    """For each product, by its path below the experiment's folder, the artifact that holds it and its name there.

    Raises:
        PrecfmError: an artifact is missing or damaged.
    """
    artifacts = [
        (folder, Artifact.open(node.folder)) for kind, folder in PRODUCTS.items() for node in plan.of(kind)
    ]
    return {
        Path(folder, name): (artifact, name)
        for folder, artifact in artifacts
        for name in artifact.record["files"]
    }


def _in_product_folders(home: Path) -> set[Path]:
    folders = [home / name for name in PRODUCTS.values() if name]
    return {
        file.relative_to(home) for folder in folders for file in folder.iterdir() if file.name != _UNTRACKED
    }


def manifest_of(plan: Plan) -> dict[str, Any]:
    """The manifest without its checksum; of artifacts that are not on this machine it says what an earlier one says."""
    before: dict[str, dict[str, Any]] = {}
    with suppress(OSError, PrecfmError):  # it is damaged
        before = entries(RESULTS / plan.experiment)
    return {
        "experiment": plan.experiment,
        "key": plan.key,
        "artifacts": {node.id: _entry(node, before.get(node.id)) for node in plan.nodes.values()},
    }


def _entry(node: Node, before: dict[str, Any] | None) -> dict[str, Any]:
    if not node.exists and before:
        return before
    record = Artifact.open(node.folder).record if node.exists else {}
    return {
        "params": node.recorded_params,
        "parents": {role: list(ids) for role, ids in node.parents.items()},
        "fingerprint": node.fingerprint,
        "files": record.get("files"),
        "made_on": record.get("made_on"),
    }


def summary(plan: Plan) -> list[tuple[str, int, int]]:
    """For every kind: how many artifacts the plan wants, and how many exist."""
    return [
        (kind, len(nodes), sum(node.exists for node in nodes)) for kind in KINDS if (nodes := plan.of(kind))
    ]
