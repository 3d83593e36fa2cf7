"""What the project stands for: results/published/, in git, with the revision that made it.

Nothing but `precfm publish EXPERIMENT` writes there. `results/published/<experiment>/` holds tables, figures, verdicts,
the manifest, the frames that tables, figures and verdicts are made of, so that they can be recomputed from it, and what
the run took (`precfm.pipeline.costs`).
"""

import json
import re
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from precfm.core.errors import PrecfmError
from precfm.pipeline.artifact import Artifact
from precfm.pipeline.costs import COSTS, costs_text, measured_costs
from precfm.pipeline.experiments import CLAIMS, read_yaml
from precfm.pipeline.files import remove, write_whole
from precfm.pipeline.manifest import MANIFEST, manifest_text, read_manifest, without_label
from precfm.pipeline.node import PUBLISHED, RESULTS
from precfm.pipeline.plan import Plan, load_plan
from precfm.pipeline.products import manifest_of, products
from precfm.pipeline.published_page import PAGE, published_page
from precfm.pipeline.readme import with_claims
from precfm.report.claims import parse_claims
from precfm.report.claims_document import merge_claims

CODE = (
    "precfm",
    "workflow_scripts",
    "config",
    "data/sources.yaml",
    "data/models",
)  # what decides the results
LARGEST_FRAME = 2_000_000  # bytes of a file that goes into git
README = Path("README.md")


def publish(plan: Plan) -> list[str]:
    """Publish a complete experiment, and merge the verdicts of all that are published.

    Args:
        plan: of an experiment whose artifacts all exist.

    Returns:
        The frames that were left out because they are too large for git.

    Raises:
        PrecfmError: an artifact is missing or damaged, or this is no git checkout.
    """
    if not plan.of("frames"):
        raise PrecfmError(
            f"{plan.experiment}: has no tables and figures to publish; `precfm pin` pins models"
        )
    missing = [node.id for node in plan.nodes.values() if not node.exists]
    if missing:
        raise PrecfmError(
            f"{plan.experiment}: {len(missing)} of {len(plan.nodes)} artifacts are missing ({missing[0]}), but only "
            f"a complete experiment is published; `make reproduce EXPERIMENT={plan.experiment}` makes them"
        )
    made_by = revision()
    home = PUBLISHED / plan.experiment
    content = {home / file: artifact.path(name) for file, (artifact, name) in products(plan).items()}
    (node,) = plan.of("frames")
    frames = Artifact.open(node.folder)
    tables = sorted(name for name in frames.record["files"] if name.endswith(".csv"))
    too_large = [name for name in tables if frames.record["files"][name]["bytes"] > LARGEST_FRAME]
    content |= {home / "frames" / name: frames.path(name) for name in tables if name not in too_large}
    written = {file: source.read_bytes() for file, source in content.items()}
    written[home / "frames" / "README.md"] = about_frames(plan.experiment, too_large).encode()
    if costs := measured_costs(plan):
        written[home / COSTS] = costs_text(costs)
    written[home / MANIFEST] = manifest_text({**manifest_of(plan), "revision": made_by})
    locks = RESULTS / ".work" / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / "publish.lock"):
        for file, text in written.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, text)
        for stale in [file for file in home.rglob("*") if file.is_file() and file not in written]:
            remove(stale)
        collect_claims()
    return too_large


def about_frames(experiment: str, too_large: Sequence[str]) -> str:
    """What `frames/README.md` says."""
    text = f"The long tables that the tables, figures and verdicts of `{experiment}` are made of.\n"
    if too_large:
        names = ", ".join(f"`{name}`" for name in too_large)
        text += (
            f"\nLeft out, larger than 2 MB: {names}. `make reproduce EXPERIMENT={experiment}` makes them.\n"
        )
    return text


def revision() -> dict[str, Any]:
    """The commit of this checkout, and whether code, configurations and sources are as in it, new files counted.

    Raises:
        PrecfmError: this is no git checkout.
    """
    changed = _git("status", "--porcelain", "--untracked-files=all", "--", *CODE)
    return {"commit": _git("rev-parse", "HEAD"), "clean": not changed}


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        raise PrecfmError(
            "a git checkout with a commit is needed, since what is published or pinned names its revision"
        ) from None
    return done.stdout.strip()


def collect_claims() -> list[str]:
    """Merge the verdicts of all published experiments, with the revisions that made them, and put them into the README.

    Returns:
        The experiments whose verdicts were merged.

    Raises:
        PrecfmError: nothing is published, or a file is damaged.
    """
    for file, text in merged_claims().items():
        write_whole(file, text.encode())
    return [file.parent.name for file in _verdicts()]


def merged_claims() -> dict[Path, str]:
    """The texts of the merged verdicts and their page, in `results/published/`, and of the README with its table.

    Raises:
        PrecfmError: nothing is published, or a file is damaged.
    """
    files = _verdicts()
    if not files:
        raise PrecfmError(f"{PUBLISHED}: holds no verdicts; `precfm publish EXPERIMENT` puts them there")
    origins = [origin(file.parent) for file in files]
    made_by = {each.experiment: str(each) for each in origins}
    documents = [file.read_text(encoding="utf-8") for file in files]
    spec = parse_claims(read_yaml(CLAIMS))
    named = {name for claim in spec.claims for name in claim.experiments}
    planned = {name for name in named if not (CLAIMS.parent / f"{name}.yaml").is_file()}
    as_json, as_markdown = merge_claims(documents, spec, made_by, planned)
    sizes = {each.experiment: each.keys for each in origins}
    page = published_page(as_markdown, documents, spec, made_by, sizes, planned)
    texts = {PUBLISHED / "claims.json": as_json, PUBLISHED / "claims.md": as_markdown, PUBLISHED / PAGE: page}
    if README.is_file():
        text = README.read_bytes().decode("utf-8")
        texts[README] = with_claims(text, json.loads(as_json)["claims"])
    return texts


def _verdicts() -> list[Path]:
    return sorted(PUBLISHED.glob("*/claims.json"))


@dataclass(frozen=True)
class Origin:
    """Which revision made a published experiment, and how many of its keys the present plan still has."""

    experiment: str
    revision: str
    current: int
    keys: int

    def __str__(self) -> str:
        return f"revision {self.revision}, {self.current} of {self.keys} keys are current"


def origin(home: Path) -> Origin:
    """Where a published experiment comes from; without a valid configuration none of its keys is current.

    Raises:
        PrecfmError: its manifest is missing or damaged.
    """
    manifest = read_manifest(home)
    if manifest is None:
        raise PrecfmError(f"{home / MANIFEST}: missing; `git checkout -- {home / MANIFEST}` brings it back")
    present: set[str] = set()
    with suppress(PrecfmError):
        present = {without_label(node_id) for node_id in load_plan(home.name).nodes}
    keys = {without_label(node_id) for node_id in manifest["artifacts"]}
    made_by = manifest.get("revision") or {"commit": "unknown", "clean": True}
    changes = "" if made_by["clean"] else " with uncommitted changes"
    return Origin(home.name, f"{made_by['commit'][:12]}{changes}", len(keys & present), len(keys))


def without_counts(text: str) -> str:
    """A merged text without how many keys are current: all that other code changes in it."""
    return re.sub(r"\b\d+ of (?=\d+ keys are current)", "", text)
