"""Which artifacts are behind rows of frames, by what each artifact stands for."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from precfm.report.frames import About, FrameSource
from precfm.report.reads import Row

Inputs: TypeAlias = Mapping[str, Sequence[tuple[str, About]]]
"""By role of the parents of `frames`, ids of artifacts and what each of them stands for."""


def inputs_behind(
    sources: Sequence[FrameSource],
    rows: Sequence[Row],
    about: Mapping[str, Sequence[About]],
    parents: Mapping[str, Sequence[str]],
) -> Inputs:
    """The parents of `frames` that rows are made of.

    Args:
        sources: of the frames that are read.
        rows: what the rows say; an empty one stands for all.
        about: by role, what each parent stands for.
        parents: by role, the ids of the parents, in the same order.
    """
    found = {}
    for role, abouts in about.items():
        behind = [source for source in sources if role in source.roles]
        pairs = zip(parents.get(role, ()), abouts, strict=False)
        kept = [
            (parent, each)
            for parent, each in pairs
            if any(source.matches(each, row) for source in behind for row in rows)
        ]
        if kept:
            found[role] = kept
    return found
