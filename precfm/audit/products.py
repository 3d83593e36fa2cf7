"""Tables, figures, verdicts and frames under plain names, held against the artifacts that they are copies of."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from precfm.audit.records import sha256, unlisted
from precfm.audit.report import Report

STAMP = ".snakemake_timestamp"  # empty; Snakemake leaves it in the folders that it makes


def copies(
    home: Path, entries: Mapping[str, Mapping[str, Any]], folders: Mapping[str, str]
) -> dict[Path, tuple[str, str]]:
    """The products of an experiment.

    Args:
        home: the experiment's folder.
        entries: what is known of each artifact, by id.
        folders: by kind, the folder below `home` that holds copies of its files.

    Returns:
        By the product's path, its checksum and the id of its artifact.
    """
    return {
        home / folders[kind] / name: (stamp["sha256"], node_id)
        for node_id, entry in entries.items()
        if (kind := node_id.split("/")[0]) in folders
        for name, stamp in (entry.get("files") or {}).items()
    }


def check_copies(report: Report, expected: Mapping[Path, tuple[str, str]], remedy: str) -> None:
    """Each product that is there is whole.

    Args:
        report: gets the findings.
        expected: of `copies`.
        remedy: what to do about a wrong one.
    """
    for file, (checksum, node_id) in expected.items():
        if file.exists() and sha256(report, file) != checksum:
            report.error("product", file, f"is not what {node_id} holds: stale or damaged", remedy)


def check_strays(report: Report, folders: Iterable[Path], expected: Iterable[Path], remedy: str) -> None:
    """Nothing else lies in the products' folders, be it empty or hidden."""
    files = set(expected)
    for folder in folders:
        for path in unlisted(folder, files):
            if not (path == folder / STAMP and path.is_file() and not path.stat().st_size):
                report.error("product", path, "stale: no artifact holds it", f"delete it, or {remedy}")
