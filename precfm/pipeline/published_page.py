"""The page over all published experiments: results/published/report.html, made of what lies beside it."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from precfm.pipeline.node import PUBLISHED
from precfm.report.claims import ClaimsSpec
from precfm.report.claims_document import sorted_verdicts
from precfm.report.page.assembly import merged_page
from precfm.report.page.claim_rows import row_of_all

PAGE = "report.html"
HEADLINES = (
    "recovery",
    "steps_against_kappa",
    "sample_grids",
)  # figures, each of the largest experiment that has it


def published_page(
    claims: str,
    documents: Sequence[str],
    spec: ClaimsSpec,
    made_by: Mapping[str, str],
    sizes: Mapping[str, int],
    planned: Collection[str],
) -> str:
    """The page as text.

    Args:
        claims: the merged verdicts, as Markdown.
        documents: the text of each experiment's `claims.json`.
        spec: the present claims.
        made_by: by experiment, in words, which revision made it.
        sizes: by experiment, how many artifacts it has.
        planned: experiments that claims name, but that have no configuration yet.
    """
    rows = [row_of_all(each, planned) for each in sorted_verdicts(documents, spec)[0]]
    pages = {name for name in made_by if (PUBLISHED / name / PAGE).is_file()}
    largest_first = sorted(sizes, key=lambda name: (-sizes[name], name))
    return merged_page(claims, rows, made_by, pages, list(_headlines(largest_first)))


def _headlines(experiments: Sequence[str]) -> Iterator[dict[str, Any]]:
    for name in HEADLINES:
        stems = {each: PUBLISHED / each / "figures" / name for each in experiments}
        for experiment, stem in stems.items():
            files: dict[str, Path] = {suffix: stem.with_suffix(suffix) for suffix in (".md", ".png")}
            if all(file.is_file() for file in files.values()):
                contents = {suffix: file.read_bytes() for suffix, file in files.items()}
                yield {"experiment": experiment, "name": name, **contents}
                break
