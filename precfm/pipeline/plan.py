"""The plan: an experiment as a typed graph of artifacts with content keys, in plain Python and without torch.

key = short hash of (kind, parameters, the parents' keys, the fingerprint of the code that makes it); for data the
checksum of the source stands among the parameters. Labels are for readers and stay out of the key, so a renamed
method keeps its artifacts.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precfm.core.errors import PrecfmError
from precfm.core.options import class_constant
from precfm.core.registry import IMAGES, REGISTRY, THEORY_FIGURES, THEORY_TABLES, import_string
from precfm.datasets.image_names import image_names
from precfm.datasets.manifest import SourceManifest, source_manifest
from precfm.datasets.sources import SOURCES
from precfm.pipeline.experiments import load_experiment, read_yaml
from precfm.pipeline.fingerprints import SCRIPTS, fingerprint
from precfm.pipeline.node import Node
from precfm.pipeline.schema import NESTED, PLAIN, Component, Dataset, Experiment, Flow, Method, Setting, plain
from precfm.report.claims import parse_claims

CLAIMS = Path("config/claims.yaml")
METRIC_POINTS = 1000  # latents over which the decoder's pull-back metric is averaged
KERNEL_POINTS = 48  # points of the tangent kernel
KERNEL_THRESHOLD = 0.01  # residual, in units of the latents' mean variance, to which it predicts the steps
SEARCH_STEPS = 25  # of the midpoint solver
MATCHES = ("P", "F")  # baselines of as many parameters, of as many training FLOPs

# Every kind of artifact with the script that makes it, in the order in which they are made.
KINDS: dict[str, str] = {
    "data": "data.py",
    "classifiers": "classifier.py",
    "encoders": "encoder.py",
    "latents": "latents.py",
    "features": "features.py",
    "decoder_metrics": "decoder_metric.py",
    "preconditioners": "preconditioner.py",
    "diagnostics": "diagnostics.py",
    "budgets": "budget.py",
    "recipes": "recipe.py",
    "kernels": "kernel.py",
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


def load_plan(experiment: str) -> Plan:
    """The plan of `config/<experiment>.yaml`."""
    return Plan(load_experiment(experiment))


@dataclass(frozen=True)
class _Space:
    """One dataset in the latent space of one encoder, with what all methods share there."""

    label: str
    data: Node
    encoder: Node
    latents: Node
    classifiers: tuple[Node, ...]
    features: Node


class _Builder:
    """Walks through an experiment and adds its artifacts to a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.experiment = plan.experiment
        # What the reports need to know about the artifacts: which method, seed and dataset each one stands for.
        self.about: dict[str, list[dict[str, Any]]] = {}
        self.reported: dict[str, list[Node]] = {}
        self.searched: dict[str, Node] = {}
        self.setting = PLAIN
        self.alone: set[tuple[str, str]] = set()

    def build(self) -> None:
        for dataset in self.experiment.datasets:
            self._dataset(dataset)
        self._theory()
        self._reports()

    def _report(self, role: str, node: Node, **about: Any) -> None:
        if "dataset" in about and role != "latents":
            about["setting"] = self.setting
        self.reported.setdefault(role, []).append(node)
        self.about.setdefault(role, []).append(about)

    def _dataset(self, name: str) -> None:
        spec, classifiers = self.experiment.datasets[name], self.experiment.classifiers
        assert classifiers is not None, "checked by the configuration"
        manifest = source_manifest(spec.source_name, SOURCES)
        checksum = manifest.checksum
        _check_counts(name, spec, manifest)
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
        for space in self.experiment.encoders:
            settings = {
                setting: spec for setting, spec in self.experiment.settings.items() if space in spec.encoders
            }
            if settings:
                shared = self._space(name, space, data, judges)
                for setting, of_setting in settings.items():
                    self.setting = setting
                    label = f"{name}-{space}" + (f"-{setting}" if setting != PLAIN else "")
                    self._setting(label, of_setting, shared)

    def _space(self, dataset: str, space: str, data: Node, judges: list[Node]) -> "_Space":
        """One dataset in the latent space of one encoder."""
        label = f"{dataset}-{space}"
        spec = self.experiment.encoders[space]
        trained = {name: getattr(spec, name) for name in ("model", "training", "seed")}
        encoder = self.plan.add("encoders", label, trained, {"data": data}, [spec.model.target])
        encoded = {"encode": spec.encode, "seed": spec.seed}
        latents = self.plan.add("latents", label, encoded, {"data": data, "encoder": encoder})
        features = self.plan.add(
            "features", label, {}, {"data": data, "classifiers": tuple(judges), "latents": latents}
        )
        self._report("latents", latents, dataset=label)
        return _Space(label, data, encoder, latents, tuple(judges), features)

    def _setting(self, label: str, setting: Setting, space: "_Space") -> None:
        """All methods of one comparison, and the floor: the train split against the held-out one."""
        floor = {"source": "train", "sampling": setting.sampling, "seed": setting.seeds[0]}
        self._evaluate(label, "floor", setting.seeds[0], floor, {"latents": space.latents}, space)
        for name, method in setting.methods.items():
            for seed in setting.seeds:
                self._method(label, name, method, seed, setting, space)

    def _method(
        self, label: str, name: str, method: Method, seed: int, setting: Setting, space: "_Space"
    ) -> None:
        component, first = method.preconditioner, seed == setting.seeds[0]
        seeded = class_constant(component.target, "uses_seed", False)
        preconditioner = self._preconditioner(label, name, component, seed, space)
        diagnostics = self.plan.add(
            "diagnostics",
            f"{label}-{name}" + (f"-s{seed}" if seeded else ""),
            {"path": method.flow.path},
            {"latents": space.latents, "preconditioner": preconditioner},
            [method.flow.path.target],
        )
        self._report("diagnostics", diagnostics, dataset=label, method=name, seed=seed)
        self._flow(label, name, method.flow, seed, preconditioner, setting, space)
        if component.name != "none" and (label, preconditioner.id) not in self.alone:
            self.alone.add((label, preconditioner.id))
            drawn = {"source": "preconditioner", "sampling": setting.sampling, "seed": seed}
            parents = {"latents": space.latents, "preconditioner": preconditioner}
            self._evaluate(label, f"alone:{name}", seed, drawn, parents, space)
        if self.setting in self.experiment.predict and first and method.flow.is_plain:
            self._kernel(label, name, method.flow, seed, preconditioner, space)
        wanted = name in setting.matched if setting.matched is not None else seeded
        if wanted:
            parents = {"latents": space.latents, "preconditioner": preconditioner}
            budget = self.plan.add(
                "budgets",
                f"{label}-{name}-s{seed}",
                {"flow": method.flow},
                {**parents, **self._geometry(method.flow, space)},
                _flow_targets(method.flow),
            )
            self._report("budgets", budget, dataset=label, method=name, seed=seed)
            bare = self._preconditioner(label, "baseline", self.experiment.baseline, seed, space)
            for match in MATCHES:
                self._flow(label, f"{name}-{match}", method.flow, seed, bare, setting, space, (match, budget))

    def _preconditioner(
        self, label: str, name: str, component: Component, seed: int, space: "_Space"
    ) -> Node:
        """The fitted map; a fit without randomness is one for all seeds."""
        seeded = class_constant(component.target, "uses_seed", False)
        metric = class_constant(component.target, "needs_metric", False)
        return self.plan.add(
            "preconditioners",
            f"{label}-{name}" + (f"-s{seed}" if seeded else ""),
            {"preconditioner": component, "seed": seed if seeded else 0},
            {"latents": space.latents, **(self._decoder_metric(space) if metric else {})},
            _targets(component.room, plain(component)),
        )

    def _flow(
        self,
        label: str,
        name: str,
        flow: Flow,
        seed: int,
        preconditioner: Node,
        setting: Setting,
        space: "_Space",
        match: tuple[str, Node] | None = None,
    ) -> None:
        """Train, sample and evaluate one flow: under the plain recipe, or under one that a search has chosen."""
        spec: dict[str, Any] = {"flow": flow}
        parents: dict[str, Node] = {"latents": space.latents, "preconditioner": preconditioner}
        parents |= self._geometry(flow, space)
        if match is not None:
            spec["match"], parents["budget"] = match
        if setting.recipe == "tuned":
            search = {"search": self.experiment.search, "solver": "midpoint", "solver_steps": SEARCH_STEPS}
            judged = {"data": space.data, "encoder": space.encoder, "classifiers": space.classifiers}
            parents["recipe"] = self._searched(
                f"{label}-{name}", {**spec, **search}, {**parents, **judged}, _flow_targets(flow)
            )
        trained = self.plan.add(
            "flows", f"{label}-{name}-s{seed}", {**spec, "seed": seed}, parents, _flow_targets(flow)
        )
        self._report("flows", trained, dataset=label, method=name, seed=seed)
        drawn = {"source": "flow", "sampling": setting.sampling, "seed": seed}
        ends = {"latents": space.latents, "preconditioner": preconditioner, "flow": trained}
        self._evaluate(label, name, seed, drawn, ends, space, _flow_targets(flow))

    def _searched(
        self,
        label: str,
        params: Mapping[str, Any],
        parents: Mapping[str, Any],
        targets: Iterable[str],
    ) -> Node:
        """The recipe of a method: searched once, behind the first seed's preconditioner, and used for all seeds."""
        if label not in self.searched:
            self.searched[label] = self.plan.add("recipes", label, params, parents, targets)
        return self.searched[label]

    def _kernel(
        self, label: str, name: str, flow: Flow, seed: int, preconditioner: Node, space: "_Space"
    ) -> None:
        """What the tangent kernel predicts, for the first seed."""
        kernel = self.plan.add(
            "kernels",
            f"{label}-{name}-s{seed}",
            {"flow": flow, "seed": seed, "points": KERNEL_POINTS, "threshold": KERNEL_THRESHOLD},
            {"latents": space.latents, "preconditioner": preconditioner, **self._geometry(flow, space)},
            _flow_targets(flow),
        )
        self._report("kernels", kernel, dataset=label, method=name, seed=seed)

    def _geometry(self, flow: Flow, space: "_Space") -> dict[str, Node]:
        """The decoder's metric, where the objective measures errors in it."""
        return (
            self._decoder_metric(space) if getattr(flow.objective.options, "metric", "") == "decoder" else {}
        )

    def _decoder_metric(self, space: "_Space") -> dict[str, Node]:
        parents = {"latents": space.latents, "encoder": space.encoder}
        return {
            "decoder_metric": self.plan.add(
                "decoder_metrics", space.label, {"points": METRIC_POINTS}, parents
            )
        }

    def _evaluate(
        self,
        label: str,
        method: str,
        seed: int,
        drawn: Mapping[str, Any],
        parents: Mapping[str, Node],
        space: "_Space",
        targets: Iterable[str] = (),
    ) -> None:
        title = f"{label}-{method.replace(':', '-')}-s{seed}"
        samples = self.plan.add("samples", title, drawn, parents, targets)
        evaluation = self.plan.add(
            "evaluations",
            title,
            {"evaluation": self.experiment.evaluation},
            {
                "samples": samples,
                "data": space.data,
                "latents": space.latents,
                "encoder": space.encoder,
                "classifiers": space.classifiers,
                "features": space.features,
            },
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


def _check_counts(name: str, spec: Dataset, manifest: SourceManifest) -> None:
    """Refuse splits that are larger than the source, where its size is known without reading it."""
    listed = len(image_names(file.name for file in manifest.files))  # 0 where they are inside a zip file
    images = IMAGES.get(spec.source.name) or ((listed,) if listed else ())
    pools: list[tuple[tuple[str, ...], str]] = [(("train", "validation", "heldout"), "images")]
    if len(images) > 1:
        pools = [
            (("train", "validation"), "official training images"),
            (("heldout",), "official test images"),
        ]
    for (splits, what), there in zip(pools, images, strict=False):
        wanted = sum(getattr(spec, split) for split in splits)
        if wanted > there:
            raise PrecfmError(
                f"datasets.{name}: {' + '.join(splits)}: got {wanted}, but '{manifest.name}' has {there} {what}"
            )


def _targets(room: str, spec: Mapping[str, Any]) -> list[str]:
    """Import strings of a component and of the stages inside it."""
    stages = [stage for option in NESTED for stage in spec.get(option) or ()]
    return [
        import_string(room, spec["name"]),
        *(target for stage in stages for target in _targets(room, stage)),
    ]


def _flow_targets(flow: Flow) -> list[str]:
    """Import strings of all that a flow is made of."""
    return [flow.model.target, flow.path.target, flow.objective.target]
