"""From an experiment to its plan: which artifacts there are, and what each is made from."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from precfm.core.registry import REGISTRY, import_string, load
from precfm.pipeline.components import Component
from precfm.pipeline.experiments import load_experiment, read_yaml
from precfm.pipeline.keys import KeyedArtifacts
from precfm.pipeline.node import Node
from precfm.pipeline.plan import Plan
from precfm.pipeline.schema import PLAIN, Experiment, Flow, Method, Setting
from precfm.pipeline.spaces import Space, sources_of, spaces
from precfm.report.claims import parse_claims
from precfm.report.frames import available
from precfm.report.reads import wanted

CLAIMS = Path("config/claims.yaml")
METRIC_POINTS = 1000  # latents over which the decoder's pull-back metric is averaged
KERNEL_POINTS = 48  # points of the tangent kernel
KERNEL_THRESHOLD = 0.01  # residual, in units of the latents' mean variance, to which it predicts the steps
SEARCH_STEPS = 25  # of the midpoint solver
MATCHES = ("P", "F")  # baselines of as many parameters, of as many training FLOPs


def build_plan(name: str) -> Plan:
    """The plan of `config/<name>.yaml`, made anew.

    Raises:
        PrecfmError: the configuration is wrong.
    """
    return _Builder(load_experiment(name)).build()


class _Builder:
    """Walks through an experiment and adds its artifacts to a plan."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.plan = Plan(
            experiment.name, experiment.device, experiment.threads, sources_of(experiment.datasets)
        )
        self.artifacts = KeyedArtifacts(self.plan)
        self.add = self.artifacts.add
        # What the reports need to know about the artifacts: which method, seed and dataset each one stands for.
        self.about: dict[str, list[dict[str, Any]]] = {}
        self.reported: dict[str, list[Node]] = {}
        self.searched: dict[str, Node] = {}
        self.setting = PLAIN
        self.alone: set[tuple[str, str]] = set()

    def build(self) -> Plan:
        for space in spaces(self.experiment, self.artifacts):
            self._report("latents", space.latents, dataset=space.label)
            for name, setting in space.settings.items():
                self.setting = name
                alone = name == PLAIN or len(space.settings) == 1
                self._setting(space.label if alone else f"{space.label}-{name}", setting, space)
        self._theory()
        self._reports()
        return self.plan

    def _report(self, role: str, node: Node, **about: Any) -> None:
        if "dataset" in about and role != "latents":
            about["setting"] = self.setting
        self.reported.setdefault(role, []).append(node)
        self.about.setdefault(role, []).append(about)

    def _setting(self, label: str, setting: Setting, space: Space) -> None:
        """All methods of one comparison, and the floor: the train split against the held-out one."""
        floor = {"source": "train", "sampling": setting.sampling, "seed": setting.seeds[0]}
        self._evaluate(
            label, "floor", setting.seeds[0], floor, {"latents": space.latents}, space, batch=label
        )
        for name, method in setting.methods.items():
            for seed in setting.seeds:
                self._method(label, name, method, seed, setting, space)

    def _method(
        self, label: str, name: str, method: Method, seed: int, setting: Setting, space: Space
    ) -> None:
        component, first = method.preconditioner, seed == setting.seeds[0]
        seeded = component.constant("uses_seed")
        preconditioner = self._preconditioner(label, name, component, seed, space)
        ends = {"latents": space.latents, "preconditioner": preconditioner}
        diagnostics = self.add(
            "diagnostics",
            f"{label}-{name}" + (f"-s{seed}" if seeded else ""),
            {"path": method.flow.path},
            ends,
            method.flow.path.targets,
            batch=label,
        )
        self._report("diagnostics", diagnostics, dataset=label, method=name, seed=seed)
        self._flow(label, name, method.flow, seed, preconditioner, setting, space)
        if component.name != "none" and (label, preconditioner.id) not in self.alone:
            self.alone.add((label, preconditioner.id))
            drawn = {"source": "preconditioner", "sampling": setting.sampling, "seed": seed}
            self._evaluate(label, f"alone:{name}", seed, drawn, ends, space, batch="" if seeded else label)
        if self.setting in self.experiment.predict and first and method.flow.is_plain:
            self._kernel(label, name, method.flow, seed, preconditioner, space)
        wanted = name in setting.matched if setting.matched is not None else seeded
        if wanted:
            budget = self.add(
                "budgets",
                f"{label}-{name}-s{seed}",
                {"flow": method.flow},
                {**ends, **self._geometry(method.flow, space)},
                method.flow.targets,
            )
            self._report("budgets", budget, dataset=label, method=name, seed=seed)
            bare = self._preconditioner(label, "baseline", self.experiment.baseline, seed, space)
            for match in MATCHES:
                self._flow(label, f"{name}-{match}", method.flow, seed, bare, setting, space, (match, budget))

    def _preconditioner(self, label: str, name: str, component: Component, seed: int, space: Space) -> Node:
        """The fitted map; a fit without randomness is one for all seeds."""
        seeded = component.constant("uses_seed")
        metric = self._decoder_metric(space) if component.constant("needs_metric") else {}
        return self.add(
            "preconditioners",
            f"{label}-{name}" + (f"-s{seed}" if seeded else ""),
            {"preconditioner": component, "seed": seed if seeded else 0},
            {"latents": space.latents, **metric},
            component.targets,
            batch="" if seeded else label,  # in closed form
        )

    def _flow(
        self,
        label: str,
        name: str,
        flow: Flow,
        seed: int,
        preconditioner: Node,
        setting: Setting,
        space: Space,
        match: tuple[str, Node] | None = None,
    ) -> None:
        """Train, sample and evaluate one flow: under the plain recipe, or under one that a search has chosen."""
        spec: dict[str, Any] = {"flow": flow}
        ends = {"latents": space.latents, "preconditioner": preconditioner}
        parents: dict[str, Node] = {**ends, **self._geometry(flow, space)}
        if match is not None:
            spec["match"], parents["budget"] = match
        if setting.recipe == "tuned":
            search = {"search": self.experiment.search, "solver": "midpoint", "solver_steps": SEARCH_STEPS}
            judged = {"data": space.data, "encoder": space.encoder, "classifier": space.selecting}
            parents["recipe"] = self._searched(
                f"{label}-{name}", {**spec, **search}, {**parents, **judged}, flow.targets
            )
        trained = self.add("flows", f"{label}-{name}-s{seed}", {**spec, "seed": seed}, parents, flow.targets)
        self._report("flows", trained, dataset=label, method=name, seed=seed)
        drawn = {"source": "flow", "sampling": setting.sampling, "seed": seed}
        self._evaluate(label, name, seed, drawn, {**ends, "flow": trained}, space, flow.targets)

    def _searched(
        self, label: str, params: Mapping[str, Any], parents: Mapping[str, Any], targets: Iterable[str]
    ) -> Node:
        """The recipe of a method: searched once, behind the first seed's preconditioner, and used for all seeds."""
        if label not in self.searched:
            self.searched[label] = self.add("recipes", label, params, parents, targets)
        return self.searched[label]

    def _kernel(
        self, label: str, name: str, flow: Flow, seed: int, preconditioner: Node, space: Space
    ) -> None:
        """What the tangent kernel predicts, for the first seed."""
        kernel = self.add(
            "kernels",
            f"{label}-{name}-s{seed}",
            {"flow": flow, "seed": seed, "points": KERNEL_POINTS, "threshold": KERNEL_THRESHOLD},
            {"latents": space.latents, "preconditioner": preconditioner, **self._geometry(flow, space)},
            flow.targets,
        )
        self._report("kernels", kernel, dataset=label, method=name, seed=seed)

    def _geometry(self, flow: Flow, space: Space) -> dict[str, Node]:
        """The decoder's metric, where the objective measures errors in it."""
        return self._decoder_metric(space) if flow.objective.made().needs_decoder_metric else {}

    def _decoder_metric(self, space: Space) -> dict[str, Node]:
        parents = {"latents": space.latents, "encoder": space.encoder}
        return {
            "decoder_metric": self.add("decoder_metrics", space.label, {"points": METRIC_POINTS}, parents)
        }

    def _evaluate(
        self,
        label: str,
        method: str,
        seed: int,
        drawn: Mapping[str, Any],
        parents: Mapping[str, Node],
        space: Space,
        targets: Iterable[str] = (),
        *,
        batch: str = "",
    ) -> None:
        title = f"{label}-{method.replace(':', '-')}-s{seed}"
        samples = self.add("samples", title, drawn, parents, targets)
        evaluation = self.add(
            "evaluations",
            title,
            {"evaluation": self.experiment.evaluation},
            {"samples": samples, **space.judged},
            batch=batch,
        )
        self._report("evaluations", evaluation, dataset=label, method=method, seed=seed)

    def _theory(self) -> None:
        for name, spec in self.experiment.theory.items():
            for seed in spec.seeds:
                node = self.add(
                    "theory", f"{name}-s{seed}", {"run": spec.run, "seed": seed}, targets=spec.run.targets
                )
                self._report("theory", node, name=name, run=spec.run.name, seed=seed)

    def _reports(self) -> None:
        experiment = self.experiment
        if not self.reported:  # classifiers alone
            return
        frames = self.add("frames", experiment.name, {"about": self.about}, self.reported)
        named = {"experiment": experiment.name}
        for group, kind in (("tables", "table_files"), ("figures", "figure_files")):
            functions = {name: load(group, name) for name in REGISTRY[group]}
            for name in wanted(functions, available(self.about)):
                target = import_string(group, name)
                self.add(kind, name, {"name": name, **named}, {"frames": frames}, [target], batch=kind)
        claims = read_yaml(CLAIMS)
        parse_claims(claims)  # refused before the first job, not by the last one
        self.add("verdicts", "claims", {"claims": claims, **named}, {"frames": frames})
