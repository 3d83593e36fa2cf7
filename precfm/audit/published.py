"""What the project has published, in git: every file against the published manifests, and which revision made it.

What an earlier revision made has other keys than the present plan: that is a note, no error.
"""

from pathlib import Path

from precfm.audit.products import check_copies, check_strays, copies
from precfm.audit.records import check_links
from precfm.audit.report import Report
from precfm.core.errors import PrecfmError
from precfm.pipeline.costs import COSTS, read_costs
from precfm.pipeline.manifest import MANIFEST, read_manifest
from precfm.pipeline.node import PUBLISHED
from precfm.pipeline.products import PRODUCTS
from precfm.pipeline.publication import about_frames, merged_claims, origin, without_counts
from precfm.pipeline.published_page import PAGE

FRAMES = {"frames": "frames"}  # the kind, and the folder that holds its tables
MERGED = (PUBLISHED / "claims.json", PUBLISHED / "claims.md", PUBLISHED / PAGE)


def check_published(report: Report, name: str) -> None:
    """Hold what is published of an experiment against its manifest, and note which revision made it."""
    home = PUBLISHED / name
    file, back = home / MANIFEST, f"`git checkout -- {home}` brings back what was published"
    try:
        manifest = read_manifest(home)
    except (OSError, PrecfmError) as error:
        report.error("manifest", file, str(error).removeprefix(f"{file}: "), back)
        return
    if manifest is None:
        report.error("manifest", file, "missing", back)
        return
    report.read(file)
    check_links(report, home)
    listed = manifest["artifacts"]
    products, frames = copies(home, listed, PRODUCTS), copies(home, listed, FRAMES)
    check_copies(report, {**products, **frames}, back)
    for missing in (product for product in products if not product.exists()):
        report.error("product", missing, "missing, though the manifest lists it", back)
    about = _check_frames(report, home, [table for table in frames if table.suffix == ".csv"], back)
    check_strays(report, [home], [file, about, *products, *frames, *_checked_costs(report, home, back)], back)
    report.notes.append(f"{home}: {origin(home)}")


def _check_frames(report: Report, home: Path, tables: list[Path], back: str) -> Path:
    """`frames/README.md` names the tables that are too large for git; the others are there, or none at all.

    What an early revision published has no frames.
    """
    about = home / FRAMES["frames"] / "README.md"
    if about.parent.exists():
        left_out = sorted(table.name for table in tables if not table.exists())
        if not about.is_file() or report.read(about) != about_frames(home.name, left_out).encode():
            problem = f"does not name the tables that are missing ({', '.join(left_out) or 'none'})"
            report.error("product", about, problem, back)
    return about


def _checked_costs(report: Report, home: Path, back: str) -> list[Path]:
    """The file that says what the run took, once it was looked at; a run without Snakemake has none."""
    costs = home / COSTS
    if not costs.exists():
        return []
    try:
        report.read(costs)
        read_costs(home)
    except (OSError, PrecfmError) as error:
        report.error("product", costs, str(error).removeprefix(f"{costs}: "), back)
    return [costs]


def check_merged_claims(report: Report) -> None:
    """The verdicts of all experiments together, and the README's table, are what those of each one give."""
    remedy = "`precfm claims` makes it anew"
    try:
        texts = merged_claims() if any(PUBLISHED.glob("*/claims.json")) else dict.fromkeys(MERGED, "")
    except (PrecfmError, UnicodeDecodeError, OSError) as error:
        report.error("product", MERGED[0], f"cannot be compared ({error})", "correct that first")
        return
    for file, text in texts.items():
        found = (report.read(file) if file.is_file() else b"").decode("utf-8", errors="replace")
        if without_counts(found) != without_counts(text):
            report.error("product", file, "is not what the experiments' verdicts give together", remedy)
        elif found != text:
            report.warn("product", file, "says of other code how many published keys are current", remedy)
