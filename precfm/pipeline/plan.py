"""The plan: an experiment as a graph of artifacts with content keys, as plain data that needs no torch to be read.

`precfm.pipeline.builder` makes it from a configuration. A finished plan is kept as JSON below results/.work/plans/,
named by a hash of all that it depends on, so a run that finds everything made imports neither torch nor a class.
"""

import hashlib
import json
import platform
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pydantic

from precfm.core.errors import PrecfmError
from precfm.core.options import shortened, suggestion
from precfm.datasets.manifest import source_manifest, source_names
from precfm.datasets.sources import SOURCES, mirror_folder, place_here
from precfm.pipeline import fingerprints as code
from precfm.pipeline.experiments import CONFIG_FOLDER, TINY
from precfm.pipeline.files import write_whole
from precfm.pipeline.node import MODELS, RESULTS, Node

# Every kind of artifact, in the order in which they are made; workflow_scripts/<kind>.py makes it.
KINDS = (
    "data",
    "classifiers",
    "encoders",
    "latents",
    "features",
    "decoder_metrics",
    "preconditioners",
    "diagnostics",
    "skips",
    "budgets",
    "recipes",
    "kernels",
    "flows",
    "samples",
    "evaluations",
    "likelihoods",
    "theory",
    "frames",
    "table_files",
    "figure_files",
    "verdicts",
    "pages",
)


_NAMES_WEIGHTS = re.compile(r"""\b(?:source|subfolder)["']?:\s*["']?([^\s"',{}]+)""")
_OF_WEIGHTS = ("config.json", "*.safetensors")


@dataclass(frozen=True)
class Plan:
    """All artifacts of an experiment.

    Attributes:
        experiment: its name.
        device: where artifacts are made, `cpu` or `cuda`.
        devices: processes that train a flow together.
        threads: of each job, or of each of these processes.
        sources: by data set, the entry of data/sources.yaml that its images come from.
        nodes: by id (`kind/label-key`), parents before children.
    """

    experiment: str
    device: str = "cpu"
    devices: int = 1
    threads: int = 1
    sources: Mapping[str, str] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)

    def of(self, kind: str) -> list[Node]:
        """All artifacts of a kind."""
        return [node for node in self.nodes.values() if node.kind == kind]

    def required(self, kind: str) -> list[Node]:
        """All artifacts of a kind that the plan must have.

        Raises:
            PrecfmError: it has none.
        """
        if not (nodes := self.of(kind)):
            kinds = suggestion(kind, dict.fromkeys(node.kind for node in self.nodes.values()))
            raise PrecfmError(f"{shortened(kind)}: no artifact of {self.experiment} is of this kind{kinds}")
        return nodes

    def node(self, node_id: str) -> Node:
        """The artifact with an id.

        Raises:
            PrecfmError: the plan has none.
        """
        if node_id not in self.nodes:
            name = self.experiment
            raise PrecfmError(
                f"{shortened(node_id)}: not in the plan of {name}; `precfm ls {name}` lists what is"
            )
        return self.nodes[node_id]

    def with_missing_parents(self, ids: Iterable[str]) -> list[Node]:
        """These artifacts, and what those of them that do not exist need and is missing; parents first."""
        wanted = set(ids)
        for node in reversed(self.nodes.values()):
            if node.id in wanted and not node.exists:
                parents = (parent for family in node.parents.values() for parent in family)
                wanted |= {parent for parent in parents if not self.nodes[parent].exists}
        return [node for node in self.nodes.values() if node.id in wanted]

    @property
    def key(self) -> str:
        """Key of the whole plan: changes if and only if any artifact does."""
        return hashlib.sha256("\n".join(sorted(self.nodes)).encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**vars(self), "nodes": [node.to_json() for node in self.nodes.values()]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Plan":
        """The inverse of `to_json`."""
        nodes = map(Node.from_json, data["nodes"])
        return cls(**{**data, "nodes": {node.id: node for node in nodes}})


def in_batches(nodes: Iterable[Node]) -> Iterator[list[Node]]:
    """Artifacts by what one job makes: those of a batch together, once all is there that any of them needs."""
    batches: dict[tuple[str, str], list[Node]] = defaultdict(list)
    for node in nodes:
        batches[node.kind, node.batch or node.id].append(node)
    place = {node.id: batch for batch, members in batches.items() for node in members}
    order: TopologicalSorter[tuple[str, str]] = TopologicalSorter()
    for batch, members in batches.items():
        parents = (parent for node in members for family in node.parents.values() for parent in family)
        order.add(batch, *(place[parent] for parent in parents if parent in place))
    return (batches[batch] for batch in order.static_order())


def load_plan(experiment: str) -> Plan:
    """The plan of `config/<experiment>.yaml`: the one that is kept if nothing has changed, or a new one.

    Raises:
        PrecfmError: the configuration is wrong.
    """
    state = _state(experiment)
    file = RESULTS / ".work" / "plans" / f"{experiment}.{state}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):  # there is none, or it is damaged
        checksum, text = file.read_text(encoding="utf-8").split("\n", 1)
        if checksum == hashlib.sha256(text.encode()).hexdigest():
            return Plan.from_json(json.loads(text))

    from precfm.pipeline.builder import build_plan

    plan = build_plan(experiment)
    foreign = any(node.packages for node in plan.nodes.values())  # code that is no part of the state
    if not foreign and state == _state(experiment):
        with suppress(OSError):
            _keep(plan, file)
    return plan


def _keep(plan: Plan, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(plan.to_json())
    write_whole(file, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode())
    for older in file.parent.glob(f"{plan.experiment}.*.json"):
        if older != file:
            older.unlink()


def _state(experiment: str) -> str:
    """A hash of all that a plan depends on: code, configurations, sources, pinned models, Python and pydantic.

    What a tiny experiment is made of depends on what is on this machine, too.
    """
    digest = hashlib.sha256(f"{platform.python_version()} {pydantic.VERSION}".encode())
    if experiment.endswith(TINY):
        digest.update(f"{mirror_folder()} {sorted(_places())}".encode())
    for file in _depends_on():
        digest.update(f"\0{file}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _places() -> Iterator[str]:
    """Which sources are on this machine and where, and which files of weights that a configuration may mean."""
    for name in source_names(SOURCES):
        with suppress(PrecfmError):  # what is wrong with an entry is said by the plan
            yield f"{name} {place_here(source_manifest(name, SOURCES))}"
    folders = [
        Path(name)
        for file in CONFIG_FOLDER.glob("*.yaml")
        for name in _NAMES_WEIGHTS.findall(file.read_text(encoding="utf-8"))
    ]
    with suppress(ImportError):
        from huggingface_hub.constants import HF_HUB_CACHE

        folders += Path(HF_HUB_CACHE).glob("models--*/snapshots/*")
    for folder in dict.fromkeys(folders):
        for pattern in _OF_WEIGHTS:
            yield from map(str, [*folder.glob(pattern), *folder.glob(f"*/{pattern}")])


def _depends_on() -> Iterator[Path]:
    for folder in (code.PACKAGE, code.SCRIPTS):
        yield from sorted(file for file in folder.rglob("*") if file.suffix in (".py", *code.TEMPLATES))
    yield from (file for file in (code.EQUIVALENCES, SOURCES) if file.is_file())
    yield from sorted(CONFIG_FOLDER.glob("*.yaml"))
    yield from sorted(
        file for pattern in ("*.json", "*.npy", "*.safetensors") for file in MODELS.glob(pattern)
    )
