"""A lineage as lines of text: short enough to read on a terminal, or in full."""

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from precfm.audit.lineage import Lineage, Step, flat
from precfm.core.errors import PrecfmError
from precfm.core.options import Strict, options_of
from precfm.core.registry import REGISTRY
from precfm.pipeline.schema import TRAINING, Evaluation, Sampling, Search, plain

WIDTH = 110
FEW_FILES = 4  # so many files of a source are told with their checksums
_INDENT = "   "


def tree(traced: Lineage, *, full: bool = False) -> Iterator[str]:
    """A lineage as lines of text; an artifact that several others need is told once and then referred to.

    Args:
        traced: the lineage.
        full: tell every parameter, file and machine, in lines of any length; otherwise parameters at their default
            and checksums of files are left out, and no line is longer than `WIDTH` unless a single word is.
    """
    view = _Full(traced) if full else _Brief(traced)
    yield from view.head()
    yield from view.branch(traced.root, "", "")


class _Full:
    """Everything, one line for each sort of thing."""

    def __init__(self, traced: Lineage) -> None:
        self.traced = traced
        self.told: set[str] = set()

    def lines(self, text: str, first: str, later: str) -> Iterator[str]:
        """A text behind its indent."""
        yield first + text

    def head(self) -> Iterator[str]:
        """What is traced, before its artifacts."""
        traced, cell = self.traced, self.traced.cell
        where = (
            f", row {cell.row}" + (f": {cell.column} = {cell.value}" if cell.column else "") if cell else ""
        )
        yield from self.lines(f"{traced.file}{where}", "", "  ")
        if cell is not None:
            about = ", ".join(f"{name} {value}" for name, value in cell.about.items() if value)
            yield from self.lines(about, "  ", "    ")
        if traced.seeds:
            yield from self.lines(f"training seeds {', '.join(map(str, traced.seeds))}", "  ", "    ")
        yield f"  sha256 {traced.sha256}"
        for note in traced.notes:
            yield from self.lines(f"note: {note}", "  ", "    ")

    def branch(self, node_id: str, role: str, indent: str) -> Iterator[str]:
        """An artifact with all that it was made from."""
        step = self.traced.steps[node_id]
        again = node_id in self.told
        title = f"{_title(step, role)}{' (see above)' if again else '' if step.here else ' (not here)'}"
        yield from self.lines(title, f"{indent}+- ", f"{indent}     ")
        if again:
            return
        self.told.add(node_id)
        children = [(role, parent) for role, ids in step.parents.items() for parent in ids]
        bar = indent + _INDENT + ("|  " if children else _INDENT)
        for text in self.details(step):
            yield from self.lines(text, bar, f"{bar}  ")
        yield from self.below(children, indent + _INDENT)

    def below(self, children: list[tuple[str, str]], indent: str) -> Iterator[str]:
        """The artifacts from which one was made, by role."""
        for role, parent in children:
            yield from self.branch(parent, role, indent)

    def details(self, step: Step) -> Iterator[str]:
        """What there is to say of an artifact beside its parents."""
        if parameters := _parameters(step.params):
            yield f"parameters {parameters}"
        yield _code(step)
        if step.made_on:
            yield f"made on {_machine(step.made_on)}"
        if step.files:
            yield "files " + ", ".join(f"{name} {stamp['sha256'][:12]}" for name, stamp in step.files.items())
        if source := self.source(step):
            yield f"source {step.params['source']} {source['checksum']}"
            yield from (f"   {name} {sha256}" for name, sha256 in source["files"].items())

    def source(self, step: Step) -> Mapping[str, Any] | None:
        """The raw data behind an artifact of kind `data`."""
        return self.traced.sources.get(str(step.params.get("source"))) if step.kind == "data" else None


class _Brief(_Full):
    """What a reader looks for first, wrapped."""

    def __init__(self, traced: Lineage) -> None:
        super().__init__(traced)
        made_on = [tuple(sorted(step.made_on.items())) for step in traced.steps.values() if step.made_on]
        complete = max(map(len, made_on), default=0)  # the reports know less of their machine
        usual = Counter(each for each in made_on if len(each) == complete).most_common(1)
        self.usual: dict[str, Any] = dict(usual[0][0]) if usual else {}

    def lines(self, text: str, first: str, later: str) -> Iterator[str]:
        yield from textwrap.wrap(
            text,
            WIDTH,
            initial_indent=first,
            subsequent_indent=later,
            break_long_words=False,
            break_on_hyphens=False,
        )

    def head(self) -> Iterator[str]:
        yield from super().head()
        if self.usual:
            yield from self.lines(f"made on {_machine(self.usual)}", "  ", "    ")
        yield "  parameters at their defaults are left out; all of them, and every file: --full"

    def below(self, children: list[tuple[str, str]], indent: str) -> Iterator[str]:
        shared = []
        for role, parent in children:
            if parent in self.told:
                shared.append(parent)
            else:
                yield from self.branch(parent, role, indent)
        if shared:
            yield from self.lines(f"see above: {', '.join(shared)}", f"{indent}+- ", f"{indent}     ")

    def details(self, step: Step) -> Iterator[str]:
        told = {
            name: value for name, value in step.params.items() if name != "checksum"
        }  # the source's, below
        if parameters := _parameters(without_defaults(told)):
            yield f"parameters {parameters}"
        yield _code(step)
        other = {name: value for name, value in (step.made_on or {}).items() if self.usual.get(name) != value}
        if other:
            yield f"made on {_machine(other)}"
        if source := self.source(step):
            yield f"source {step.params['source']} {source['checksum']}"
            if len(source["files"]) <= FEW_FILES:
                yield from (f"{name} {sha256}" for name, sha256 in source["files"].items())
            else:
                yield f"{len(source['files'])} files"


def without_defaults(value: Any, name: str = "") -> Any:
    """Parameters without the options that have their present default.

    Args:
        value: parameters as plain data, or a part of them.
        name: what the part is called in the whole.

    Example:
        >>> without_defaults({"sampling": {"n": 1000, "solver": "midpoint", "steps": 10}})
        {'sampling': {'n': 1000, 'steps': 10}}
    """
    if not isinstance(value, Mapping):
        return value
    defaults = _defaults(name, value)
    return {
        key: without_defaults(item, key)
        for key, item in value.items()
        if key not in defaults or item != defaults[key]
    }


def _defaults(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    known: dict[str, type[Strict]] = {"sampling": Sampling, "evaluation": Evaluation, "search": Search}
    schema = known.get(name)
    rooms = [room for room in REGISTRY.keys() - {"figures", "tables"} if value.get("name") in REGISTRY[room]]
    try:
        if name == "training":
            schema = options_of(TRAINING)
        elif "name" in value and len(rooms) == 1:
            schema = options_of(REGISTRY[rooms[0]][value["name"]])
    except (PrecfmError, OSError):  # made by code that is no longer there
        schema = None
    return {key: plain(field.default) for key, field in schema.model_fields.items()} if schema else {}


def _title(step: Step, role: str) -> str:
    return f"{role}: {step.id}" if role and role != step.kind else step.id


def _parameters(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in flat(params))


def _machine(made_on: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(made_on.items()))


def _code(step: Step) -> str:
    of = f" and {len(step.modules)} modules of precfm" if step.modules else ""
    return f"code {step.fingerprint} ({step.script}{of})"
