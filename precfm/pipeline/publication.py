"""The results folder as a whole: what leaves a plan goes to the attic, what is finished is published.

results/<experiment>/<kind>/     artifacts of the plan, versioned by DVC
results/<experiment>/tables/ ... products with plain names, in git
results/<experiment>/records/    logs, times, stamps: whatever changes from run to run
results/.attic/                  artifacts that no plan wants at present
results/.work/                   locks, part-folders and scratch of running jobs
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from precfm.core.errors import PrecfmError
from precfm.datasets.manifest import file_sha256
from precfm.pipeline.artifact import Artifact
from precfm.pipeline.files import remove, write_whole
from precfm.pipeline.manifest import canonical, entries
from precfm.pipeline.node import RESULTS, Node
from precfm.pipeline.plan import KINDS, Plan

PRODUCTS = {"table_files": "tables", "figure_files": "figures", "verdicts": ""}
_UNTRACKED = ".snakemake_timestamp"


def publish(plan: Plan) -> None:
    """Copy the products to their plain names and write the manifest of the whole experiment.

    Artifacts that are not on this machine (a partial pull) keep what the last manifest said of them. Of several at
    once, each waits for the one before.
    """
    home = RESULTS / plan.experiment.name
    locks = RESULTS / ".work" / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"publish-{plan.experiment.name}.lock"):
        for name in PRODUCTS.values():
            (home / name).mkdir(parents=True, exist_ok=True)
        products = _products(plan)
        for file, (artifact, name) in products.items():
            write_whole(file, artifact.path(name).read_bytes())
        for stale in _in_product_folders(home) - products.keys():
            remove(stale)
        write_whole(home / "manifest.json", _manifest(plan))
        _publish_times(home, plan)
        publish_time_to_quality(home, plan)


def is_published(plan: Plan) -> bool:
    """Whether all that is published is whole and up to date, so that to publish again would change nothing."""
    home = RESULTS / plan.experiment.name
    try:
        products = _products(plan)
        return (
            (home / "manifest.json").read_bytes() == _manifest(plan)
            and _in_product_folders(home) <= products.keys()
            and all(
                file_sha256(file) == artifact.record["files"][name]["sha256"]
                for file, (artifact, name) in products.items()
            )
        )
    except (OSError, PrecfmError):  # a product or its artifact is not there
        return False


def _products(plan: Plan) -> dict[Path, tuple[Artifact, str]]:
    """For each published file the artifact that holds it, and its name there."""
    home = RESULTS / plan.experiment.name
    artifacts = [
        (folder, Artifact.open(node.folder)) for kind, folder in PRODUCTS.items() for node in plan.of(kind)
    ]
    return {
        home / folder / name: (artifact, name)
        for folder, artifact in artifacts
        for name in artifact.record["files"]
    }


def _in_product_folders(home: Path) -> set[Path]:
    folders = [home / name for name in PRODUCTS.values() if name]
    return {file for folder in folders for file in folder.iterdir() if file.name != _UNTRACKED}


def _manifest(plan: Plan) -> bytes:
    """The manifest's text; what an earlier one says of artifacts that are not here is taken over."""
    before: dict[str, dict[str, Any]] = {}
    with suppress(OSError, PrecfmError):  # it is damaged
        before = entries(RESULTS / plan.experiment.name)
    manifest = {
        "experiment": plan.experiment.name,
        "key": plan.key,
        "artifacts": {node.id: _entry(node, before.get(node.id)) for node in plan.nodes.values()},
    }
    return canonical(manifest).encode()


def _entry(node: Node, before: dict[str, Any] | None) -> dict[str, Any]:
    if not node.exists and before:
        return before
    record = Artifact.open(node.folder).record if node.exists else {}
    return {
        "params": node.params,
        "parents": {role: list(ids) for role, ids in node.parents.items()},
        "fingerprint": node.fingerprint,
        "files": record.get("files"),
        "made_on": record.get("made_on"),
    }


def _publish_times(home: Path, plan: Plan) -> None:
    """Wall time per job, from Snakemake's benchmark files; it never enters a deterministic artifact.

    What was made on another machine keeps the times that were published before.
    """
    import pandas as pd

    table = home / "records" / "wall_time.csv"
    before: list[dict[Any, Any]] = pd.read_csv(table).to_dict("records") if table.is_file() else []
    rows = {row["artifact"]: row for row in before if f"{row['kind']}/{row['artifact']}" in plan.nodes}
    for node in plan.nodes.values():
        if (row := wall_time(table.parent, node.kind, node.name)) is not None:
            rows[node.name] = row
    if rows:
        table.parent.mkdir(exist_ok=True)
        write_whole(table, wall_times(rows.values()))


def wall_time(records: Path, kind: str, name: str) -> dict[str, Any] | None:
    """What a job took: its row of `wall_time.csv`, from the file that Snakemake wrote.

    Args:
        records: `results/<experiment>/records`.
        kind: the artifact's.
        name: its folder's.

    Returns:
        `kind`, `artifact`, `seconds` and `max_rss_mb`; None if there is no file, or its job was killed as it wrote.
    """
    import pandas as pd

    try:
        last = pd.read_csv(records / "benchmarks" / kind / f"{name}.tsv", sep="\t").iloc[-1]
        seconds, memory = float(last["s"]), float(last["max_rss"])
    except (OSError, ValueError, IndexError, KeyError):
        return None
    return {"kind": kind, "artifact": name, "seconds": seconds, "max_rss_mb": memory}


def wall_times(rows: Iterable[dict[str, Any]]) -> bytes:
    """The contents of `wall_time.csv` with some rows."""
    import pandas as pd

    return pd.DataFrame(rows).to_csv(index=False, lineterminator="\n").encode()


def publish_time_to_quality(home: Path, plan: Plan) -> None:
    """Seconds to quality, where the wall times of all flows and preconditioners are known."""
    import pandas as pd

    from precfm.report.wall_time import seconds_to_quality

    (node,) = plan.of("frames")
    times = home / "records" / "wall_time.csv"
    if not (times.is_file() and node.exists and node.parents.get("flows")):
        return
    artifact = Artifact.open(node.folder)
    if not {"records.csv", "budgets.csv"} <= artifact.record["files"].keys():
        return
    seconds = pd.read_csv(times).set_index("artifact")["seconds"]
    runs = []
    for flow_id, about in zip(node.parents["flows"], node.params["about"]["flows"], strict=True):
        flow = plan.node(flow_id)
        fitted = plan.node(flow.parents["preconditioner"][0])
        if not {flow.name, fitted.name} <= set(seconds.index):
            return
        named = {field: about[field] for field in ("dataset", "method", "seed")}
        runs.append({**named, "fit_seconds": seconds[fitted.name], "train_seconds": seconds[flow.name]})
    table = seconds_to_quality({name: artifact.frame(f"{name}.csv") for name in ("records", "budgets")}, runs)
    if table is not None:
        text = table.to_csv(index=False, lineterminator="\n")
        write_whole(home / "records" / "time_to_quality.csv", text.encode())


def summary(plan: Plan) -> list[tuple[str, int, int]]:
    """For every kind: how many artifacts the plan wants, and how many exist."""
    return [
        (kind, len(nodes), sum(node.exists for node in nodes)) for kind in KINDS if (nodes := plan.of(kind))
    ]


def collect_claims() -> list[str]:
    """Merge the verdicts of all published experiments into `results/claims.json` and `results/claims.md`.

    Returns:
        The experiments whose verdicts were merged.
    """
    from precfm.report.claims_document import merge_claims

    files = sorted(RESULTS.glob("[!.]*/claims.json"))
    if not files:
        raise PrecfmError(f"{RESULTS}: holds no published claims; run `make reproduce` first")
    as_json, as_markdown = merge_claims([file.read_text(encoding="utf-8") for file in files])
    write_whole(RESULTS / "claims.json", as_json.encode())
    write_whole(RESULTS / "claims.md", as_markdown.encode())
    return [file.parent.name for file in files]
