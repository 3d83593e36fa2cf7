"""The plan: an experiment as a typed graph of artifacts with content keys, in plain Python and without torch.

key = short hash of (kind, parameters, the parents' keys, the fingerprint of the code that makes it); for data the
checksum of the source stands among the parameters. Labels are for readers and stay out of the key, so a renamed
method keeps its artifacts.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from precfm.artifacts import Node
from precfm.config import Experiment, Method, load_experiment, plain, read_yaml
from precfm.datasets.manifest import source_manifest
from precfm.datasets.sources import SOURCES
from precfm.errors import PrecfmError
from precfm.fingerprint import SCRIPTS, fingerprint
from precfm.options import class_constant
from precfm.registry import REGISTRY, THEORY_FIGURES, THEORY_TABLES, import_string
from precfm.report.claims import parse_claims

CLAIMS = Path("config/claims.yaml")

# Every kind of artifact with the script that makes it, in the order in which they are made.
KINDS: dict[str, str] = {
    "data": "data.py",
    "classifiers": "classifier.py",
    "autoencoders": "autoencoder.py",
    "latents": "latents.py",
    "features": "features.py",
    "preconditioners": "preconditioner.py",
    "diagnostics": "diagnostics.py",
    "flows": "flow.py",
    "samples": "samples.py",
    "evaluations": "evaluation.py",
    "theory": "theory.py",
    "frames": "frames.py",
    "table_files": "table.py",
    "figure_files": "figure.py",
    "verdicts": "verdicts.py",
}


class Plan:
    """All artifacts of an experiment.

    Attributes:
        experiment: the configuration.
        nodes: by id (`kind/label-key`), parents before children.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.nodes: dict[str, Node] = {}
        self._by_key: dict[tuple[str, str], Node] = {}
        _Builder(self).build()

    def add(
        self,
        kind: str,
        label: str,
        params: Mapping[str, Any],
        parents: Mapping[str, Node | Iterable[Node]] | None = None,
        targets: Iterable[str] = (),
    ) -> Node:
        """Add an artifact, or find the one that is equal to it.

        Args:
            kind: one of `KINDS`.
            label: a readable name.
            params: parts of the configuration, components and plain data.
            parents: the artifacts that it reads, by role.
            targets: import strings `module:name` of what its script loads from the registry.
        """
        families = {
            role: (nodes,) if isinstance(nodes, Node) else tuple(nodes)
            for role, nodes in (parents or {}).items()
        }
        targets = tuple(targets)
        code = fingerprint(SCRIPTS / KINDS[kind], targets)
        content = [
            kind,
            plain(params, for_key=True),
            {role: [(node.kind, node.key) for node in nodes] for role, nodes in families.items()},
            code,
        ]
        key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
        if (kind, key) not in self._by_key:
            ids = {role: tuple(node.id for node in nodes) for role, nodes in families.items()}
            where = (self.experiment.name, self.experiment.device)
            node = Node(kind, label, key, plain(params), ids, code, *where, KINDS[kind], targets)
            self.nodes[node.id] = self._by_key[kind, key] = node
        return self._by_key[kind, key]

    def of(self, kind: str) -> list[Node]:
        """All artifacts of a kind."""
        return [node for node in self.nodes.values() if node.kind == kind]

    def node(self, node_id: str) -> Node:
        """The artifact with an id.

        Raises:
            PrecfmError: the plan has none.
        """
        try:
            return self.nodes[node_id]
        except KeyError:
            name = self.experiment.name
            raise PrecfmError(
                f"{node_id}: not in the plan of {name}; `precfm ls {name}` lists what is"
            ) from None

    @property
    def key(self) -> str:
        """Key of the whole plan: changes if and only if any artifact does."""
        return hashlib.sha256("\n".join(sorted(self.nodes)).encode()).hexdigest()[:12]


def load_plan(experiment: str) -> Plan:
    """The plan of `config/<experiment>.yaml`."""
    return Plan(load_experiment(experiment))


class _Builder:
    """Walks through an experiment and adds its artifacts to a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.experiment = plan.experiment
        # What the reports need to know about the artifacts: which method, seed and dataset each one stands for.
        self.about: dict[str, list[dict[str, Any]]] = {}
        self.reported: dict[str, list[Node]] = {}

    def build(self) -> None:
        for dataset in self.experiment.datasets:
            self._dataset(dataset)
        self._theory()
        self._reports()

    def _report(self, role: str, node: Node, **about: Any) -> None:
        self.reported.setdefault(role, []).append(node)
        self.about.setdefault(role, []).append(about)

    def _dataset(self, name: str) -> None:
        spec, classifiers = self.experiment.datasets[name], self.experiment.classifiers
        assert classifiers is not None, "checked by the configuration"
        checksum = source_manifest(spec.source_name, SOURCES).checksum
        data = self.plan.add(
            "data",
            name,
            {"dataset": spec, "source": spec.source_name, "checksum": checksum},
            targets=[spec.source.target],
        )
        judges = [
            self.plan.add(
                "classifiers",
                f"{name}-s{seed}",
                {"model": classifiers.model, "training": classifiers.training, "seed": seed},
                {"data": data},
                [classifiers.model.target],
            )
            for seed in classifiers.seeds
        ]
        for space in self.experiment.autoencoders:
            self._space(name, space, data, judges)

    def _space(self, dataset: str, space: str, data: Node, judges: list[Node]) -> None:
        """One dataset in the latent space of one autoencoder."""
        label = f"{dataset}-{space}"
        spec = self.experiment.autoencoders[space]
        trained = {name: getattr(spec, name) for name in ("model", "beta", "training", "seed")}
        autoencoder = self.plan.add("autoencoders", label, trained, {"data": data}, [spec.model.target])
        encoded = {"encode": spec.encode, "seed": spec.seed}
        latents = self.plan.add("latents", label, encoded, {"data": data, "autoencoder": autoencoder})
        features = self.plan.add(
            "features", label, {}, {"data": data, "classifiers": tuple(judges), "latents": latents}
        )
        shared: dict[str, Node | tuple[Node, ...]] = {
            "data": data,
            "latents": latents,
            "autoencoder": autoencoder,
        }
        shared |= {"classifiers": tuple(judges), "features": features}
        self._report("latents", latents, dataset=label)
        first = self.experiment.seeds[0]
        self._evaluate(label, "floor", first, {"source": "train"}, {"latents": latents}, shared)
        for name, method in self.experiment.methods.items():
            for seed in self.experiment.seeds:
                self._method(label, name, method, seed, shared)

    def _method(self, label: str, name: str, method: Method, seed: int, shared: Mapping[str, Any]) -> None:
        component, flow = method.preconditioner, method.flow
        latents = shared["latents"]
        seeded = class_constant(component.target, "uses_seed", False)
        about = {"dataset": label, "method": name, "seed": seed}
        preconditioner = self.plan.add(
            "preconditioners",
            f"{label}-{name}" + (f"-s{seed}" if seeded else ""),
            {"preconditioner": component, "seed": seed if seeded else 0},
            {"latents": latents},
            _targets(component.room, plain(component)),
        )
        diagnostics = self.plan.add(
            "diagnostics",
            f"{label}-{name}" + (f"-s{seed}" if seeded else ""),
            {"path": flow.path},
            {"latents": latents, "preconditioner": preconditioner},
            [flow.path.target],
        )
        self._report("diagnostics", diagnostics, **about)
        parents = {"latents": latents, "preconditioner": preconditioner}
        trained = self.plan.add(
            "flows",
            f"{label}-{name}-s{seed}",
            {"flow": flow, "seed": seed},
            parents,
            [flow.model.target, flow.path.target],
        )
        self._report("flows", trained, **about)
        self._evaluate(label, name, seed, {"source": "flow"}, {**parents, "flow": trained}, shared)
        if component.name != "none" and (seeded or seed == self.experiment.seeds[0]):
            self._evaluate(label, f"alone:{name}", seed, {"source": "preconditioner"}, parents, shared)

    def _evaluate(
        self,
        label: str,
        method: str,
        seed: int,
        source: Mapping[str, Any],
        parents: Mapping[str, Node],
        shared: Mapping[str, Any],
    ) -> None:
        title = f"{label}-{method.replace(':', '-')}-s{seed}"
        drawn = {**source, "sampling": self.experiment.sampling, "seed": seed}
        samples = self.plan.add("samples", title, drawn, parents)
        evaluation = self.plan.add(
            "evaluations", title, {"evaluation": self.experiment.evaluation}, {"samples": samples, **shared}
        )
        self._report("evaluations", evaluation, dataset=label, method=method, seed=seed)

    def _theory(self) -> None:
        for name, spec in self.experiment.theory.items():
            for seed in spec.seeds:
                node = self.plan.add(
                    "theory", f"{name}-s{seed}", {"run": spec.run, "seed": seed}, targets=[spec.run.target]
                )
                self._report("theory", node, name=name, run=spec.run.name, seed=seed)

    def _reports(self) -> None:
        experiment = self.experiment
        frames = self.plan.add("frames", experiment.name, {"about": self.about}, self.reported)
        named = {"experiment": experiment.name}
        theory = {THEORY_FIGURES[spec.run.name] for spec in experiment.theory.values()}
        wanted = {
            "figures": [
                *theory,
                *(set(REGISTRY["figures"]) - set(THEORY_FIGURES.values()) if experiment.datasets else ()),
            ],
            "tables": [
                *(THEORY_TABLES if experiment.theory else ()),
                *(set(REGISTRY["tables"]) - set(THEORY_TABLES) if experiment.datasets else ()),
            ],
        }
        for room, kind in (("tables", "table_files"), ("figures", "figure_files")):
            for name in sorted(wanted[room]):
                target = import_string(room, name)
                self.plan.add(kind, name, {"name": name, **named}, {"frames": frames}, [target])
        claims = read_yaml(CLAIMS)
        parse_claims(claims)  # refused before the first job, not by the last one
        self.plan.add("verdicts", "claims", {"claims": claims, **named}, {"frames": frames})


def _targets(room: str, spec: Mapping[str, Any]) -> list[str]:
    """Import strings of a component and of the stages inside it."""
    inner = [target for stage in spec.get("stages", ()) for target in _targets(room, stage)]
    return [import_string(room, spec["name"]), *inner]
