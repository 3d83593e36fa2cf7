"""A lineage as lines of text: a tree that fits on a terminal, or in full."""

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from precfm.audit.lineage import Lineage, Step, flat, sources_read
from precfm.pipeline.node import MACHINE

WIDTH = 110
FEW_FILES = 4  # so many files of a source are named with their checksums
_INDENT = "   "


def tree(traced: Lineage, *, full: bool = False) -> Iterator[str]:
    """A lineage as lines of text; an artifact that several others need is described once and then referred to.

    Args:
        traced: the lineage.
        full: with the checksum of every file, and in lines of any length; otherwise no line is longer than `WIDTH`
            unless a single word is.
    """
    yield from _Tree(traced, full).lines()


class _Tree:
    """A lineage while it is written down."""

    def __init__(self, traced: Lineage, full: bool) -> None:
        self.traced, self.full = traced, full
        self.described: set[str] = set()
        machines = Counter(
            _named(step.made_on) for step in traced.steps.values() if "torch" in (step.made_on or {})
        )
        self.usual = machines.most_common(1)[0][0] if machines else ""

    def lines(self) -> Iterator[str]:
        traced, cell = self.traced, self.traced.cell
        where = f", {cell.name}" + (f": {cell.column} = {cell.value}" if cell.column else "") if cell else ""
        yield from self.wrapped(f"{traced.file}{where}", "", "  ")
        head = [", ".join(f"{name} {value}" for name, value in (cell.about if cell else {}).items() if value)]
        head += [f"training seeds {', '.join(map(str, traced.seeds))}" if traced.seeds else ""]
        head += [f"sha256 {traced.sha256}"]
        if traced.revision:
            changes = "" if traced.revision["clean"] else ", with changes that were not committed"
            head += [f"made by revision {traced.revision['commit']}{changes}"]
        head += [f"made on {self.usual}" if self.usual else "", *(f"note: {note}" for note in traced.notes)]
        for text in filter(None, head):
            yield from self.wrapped(text, "  ", "    ")
        yield from self.branch(traced.root, "", "")

    def wrapped(self, text: str, first: str, later: str) -> Iterator[str]:
        """A text behind its indent."""
        if self.full:
            yield first + text
        else:
            yield from textwrap.wrap(
                text,
                WIDTH,
                initial_indent=first,
                subsequent_indent=later,
                break_long_words=False,
                break_on_hyphens=False,
            )

    def branch(self, node_id: str, role: str, indent: str) -> Iterator[str]:
        """An artifact with all that it was made from."""
        step = self.traced.steps[node_id]
        self.described.add(node_id)
        title = f"{role}: {step.id}" if role and role != step.kind else step.id
        yield from self.wrapped(
            title + ("" if step.here else " (not here)"), f"{indent}+- ", f"{indent}     "
        )
        children = [(role, parent) for role, ids in step.parents.items() for parent in ids]
        bar = indent + _INDENT + ("|  " if children else _INDENT)
        for text in self.details(step):
            yield from self.wrapped(text, bar, f"{bar}  ")
        above = []
        for role, parent in children:
            if parent in self.described:
                above.append(parent)
            else:
                yield from self.branch(parent, role, indent + _INDENT)
        if above:
            indent += _INDENT
            yield from self.wrapped(f"see above: {', '.join(above)}", f"{indent}+- ", f"{indent}     ")

    def details(self, step: Step) -> Iterator[str]:
        """What there is to say of an artifact beside its parents."""
        if parameters := ", ".join(f"{name}={value}" for name, value in flat(step.params)):
            yield f"parameters {parameters}"
        yield f"code {step.fingerprint}" + (f" ({step.script})" if step.script else "")
        if step.made_on and "torch" in step.made_on and _named(step.made_on) != self.usual:
            yield f"made on {_named(step.made_on)}"
        libraries = {name: value for name, value in (step.made_on or {}).items() if name not in MACHINE}
        if self.full and libraries:
            yield "libraries " + ", ".join(f"{name} {value}" for name, value in sorted(libraries.items()))
        if self.full and step.files:
            yield "files " + ", ".join(f"{name} {stamp['sha256']}" for name, stamp in step.files.items())
        for name in sources_read(step.kind, step.params):
            source = self.traced.sources[name]
            yield f"source {name} {source['checksum']}"
            if self.full or len(source["files"]) <= FEW_FILES:
                yield from (f"{name} {sha256}" for name, sha256 in source["files"].items())
            else:
                yield f"{len(source['files'])} files"


def _named(made_on: Mapping[str, Any] | None) -> str:
    """The machine, without the libraries, which differ between kinds of artifact."""
    return ", ".join(f"{name} {value}" for name, value in sorted((made_on or {}).items()) if name in MACHINE)
