"""From an experiment to its plan: which artifacts there are, and what each is made from."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from precfm.core.errors import PrecfmError
from precfm.core.registry import REGISTRY, import_string, load
from precfm.pipeline.components import NESTED, Component, component
from precfm.pipeline.experiments import CLAIMS, load_experiment, read_yaml
from precfm.pipeline.fingerprints import foreign_modules
from precfm.pipeline.keys import KeyedArtifacts
from precfm.pipeline.networks import refuse_misfit
from precfm.pipeline.node import Node
from precfm.pipeline.plan import Plan
from precfm.pipeline.processes import refuse_more_than, refuse_uncuttable
from precfm.pipeline.schema import MATCHES, PLAIN, Experiment, Flow, Setting
from precfm.pipeline.spaces import REPLICATES, Space, sources_of, spaces
from precfm.pipeline.theory_yields import statistics_of
from precfm.report.claims import ClaimsSpec, missing_arms, missing_statistics, parse_claims
from precfm.report.frames import available
from precfm.report.reads import wanted

METRIC_POINTS = 1000  # latents over which the decoder's pull-back metric is averaged
KERNEL_POINTS = 48  # points of the tangent kernel
KERNEL_THRESHOLD = 0.01  # residual, in units of the latents' mean variance, to which it predicts the steps
FLOOR_DRAWS = 10  # of the train split: how far apart two samples of the data are
# Of published data sets; of your own images the job finds out.
CLASSES = {"mnist": 10, "mnist5k": 10, "fashion_mnist": 10}


def build_plan(name: str) -> Plan:
    """The plan of `config/<name>.yaml`, made anew.

    Raises:
        PrecfmError: the configuration is wrong.
    """
    return _Builder(load_experiment(name)).build()


def _with_inner(field: str, part: Component) -> Iterator[tuple[str, Component]]:
    """A component and all inside it, such as the stages of a composition, each with its field."""
    yield field, part
    for option in NESTED:
        for place, entry in enumerate(getattr(part.options, option, None) or ()):
            yield from _with_inner(f"{field}.{option}.{place}", component(part.group, entry))


def _refuse_more_than_the_data_have(space: Space, parts: Mapping[str, Component]) -> None:
    """Refuse more components of a mixture than half of the rows of a class, and ranks above the latents' dimension.

    Both where classes and dimension are known already; elsewhere the fit does.

    Args:
        space: the latents that it is fitted to.
        parts: maps and wrappers, by their field in the configuration.
    """
    of_data = space.data.params["dataset"]
    classes = CLASSES.get(of_data["source"]["name"])
    for field, each in (inner for part in parts.items() for inner in _with_inner(*part)):
        asked = getattr(each.options, "components", 0)
        if classes and 2 * asked * classes > of_data["train"]:
            raise PrecfmError(
                f"{field}.components: got {asked}, of '{each.name}'; at most {of_data['train'] // (2 * classes)} are "
                "possible, half of the training rows of a class"
            )
        rank, dimension = getattr(each.options, "rank", None), space.dimension
        if isinstance(rank, int) and dimension is not None and rank > dimension:
            raise PrecfmError(
                f"{field}.rank: got {rank}, of '{each.name}'; at most {dimension} is possible, the dimension of "
                f"the latents {space.label}"
            )


@dataclass(frozen=True)
class _Run:
    """One flow: of a method, under one seed.

    Attributes:
        label: of the comparison, in tables the data set.
        method: its name there.
        flow: how it is built and trained.
        seed: of the training.
        setting: the comparison.
        space: the latents.
        preconditioner: the fitted map.
        maps: import strings of what the map is made of.
        skip: the fitted wrappers.
        through: the fitted maps behind which the network is trained before.
        match: for a matched baseline, what matches and the budget.
    """

    label: str
    method: str
    flow: Flow
    seed: int
    setting: Setting
    space: Space
    preconditioner: Node | None = None
    maps: tuple[str, ...] = ()
    skip: Node | None = None
    through: tuple[Node, ...] = ()
    match: tuple[str, Node] | None = None

    def behind(self, preconditioner: Node) -> "_Run":
        """The same behind a fitted map, without a skip."""
        return replace(self, preconditioner=preconditioner, skip=None)

    @property
    def ends(self) -> dict[str, Node]:
        """Data and map."""
        assert self.preconditioner is not None
        return {"latents": self.space.latents, "preconditioner": self.preconditioner}

    @property
    def parents(self) -> dict[str, Node]:
        """Data, map and skip."""
        return {**self.ends, **({} if self.skip is None else {"skip": self.skip})}


class _Builder:
    """Walks through an experiment and adds its artifacts to a plan."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.plan = Plan(
            experiment.name,
            experiment.device,
            experiment.devices,
            experiment.threads,
            sources_of(experiment.datasets),
        )
        self.artifacts = KeyedArtifacts(self.plan)
        self.add = self.artifacts.add
        # What the reports need to know about the artifacts: which method, seed and dataset each one stands for.
        self.about: dict[str, list[dict[str, Any]]] = {}
        self.reported: dict[str, list[Node]] = {}
        self.searched: dict[str, Node] = {}
        self.setting = PLAIN
        self.labels: set[str] = set()
        self.alone: dict[tuple[str, str], str] = {}  # the method that a map alone is named after

    def build(self) -> Plan:
        if self.experiment.device == "cuda" and torch.cuda.is_available():
            refuse_more_than(torch.cuda.device_count(), self.experiment.devices)
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
        """All methods of one comparison, and the floor: draws of the train split against the held-out one."""
        if label in self.labels:
            raise PrecfmError(
                f"names: data set, encoder and setting are '{label}' together, as others are, so tables could not tell "
                "them apart; other names are needed"
            )
        self.labels.add(label)
        for draw in range(FLOOR_DRAWS):
            drawn = {"source": "train", "sampling": setting.sampling, "seed": draw}
            self._evaluate(label, "floor", draw, drawn, {"latents": space.latents}, space, batch=label)
        for name, method in setting.methods.items():
            for seed in setting.seeds:
                run = _Run(label, name, method.flow, seed, setting, space)
                self._method(run, method.preconditioner, method.through)

    def _method(self, run: "_Run", component: Component, through: tuple[Component, ...]) -> None:
        """A method under one seed: its map, its skip, what both do alone, its flow, and the baselines that match it."""
        label, flow, setting, space = run.label, run.flow, run.setting, run.space
        seeded = component.constant("uses_seed")
        own = f"methods.{run.method}"
        parts = {f"{own}.preconditioner": component}
        parts |= {f"{own}.through.{place}": each for place, each in enumerate(through)}
        parts |= {f"{own}.flow.wrappers.{place}": each for place, each in enumerate(flow.wrappers)}
        _refuse_more_than_the_data_have(space, parts)
        refuse_misfit(f"{own}.flow.model", flow.model, space.label, space.shape)
        refuse_uncuttable(f"{own}.flow", flow, self.experiment.devices)
        run = replace(run.behind(self._preconditioner(run, component)), maps=tuple(component.targets))
        if flow.wrappers:
            run = replace(run, skip=self._skip(run))
        before = [
            self._preconditioner(replace(run, method=f"{run.method}-{place}"), each)
            for place, each in enumerate(through)
        ]
        diagnostics = self.add(
            "diagnostics",
            f"{label}-{run.method}" + (f"-s{run.seed}" if seeded else ""),
            {"path": flow.path},
            run.ends,
            flow.path.targets,
            batch=label,
        )
        self._report("diagnostics", diagnostics, dataset=label, method=run.method, seed=run.seed)
        self._flow(replace(run, through=tuple(before)))
        self._alone(run, component)
        first = run.seed == setting.seeds[0]
        if self.setting in self.experiment.predict and first and flow.is_plain:
            self._kernel(run)
        learned = seeded or flow.skip_is_fitted
        if run.method in setting.matched if setting.matched is not None else learned:
            baseline = self.experiment.baseline
            _refuse_more_than_the_data_have(space, {"baseline": baseline})
            bare = run.behind(self._preconditioner(replace(run, method="baseline"), baseline))
            bare = replace(bare, maps=tuple(baseline.targets))
            plain = bare.flow.without_fitted_skips
            budget = self.add(
                "budgets",
                f"{label}-{run.method}-s{run.seed}",
                {"flow": flow, **({} if plain == flow else {"baseline": plain})},
                {**run.parents, **self._geometry(flow, space)},
                flow.targets,
            )
            self._report("budgets", budget, dataset=label, method=run.method, seed=run.seed)
            for match in MATCHES:
                self._flow(replace(bare, method=f"{run.method}-{match}", flow=plain, match=(match, budget)))

    def _preconditioner(self, run: "_Run", component: Component) -> Node:
        """The fitted map; a fit without randomness is one for all seeds."""
        seeded, label = component.constant("uses_seed"), run.label
        metric = self._decoder_metric(run.space) if component.constant("needs_metric") else {}
        return self.add(
            "preconditioners",
            f"{label}-{run.method}" + (f"-s{run.seed}" if seeded else ""),
            {"preconditioner": component, "seed": run.seed if seeded else 0},
            {"latents": run.space.latents, **metric},
            component.targets,
            batch="" if seeded else label,  # in closed form
        )

    def _skip(self, run: "_Run") -> Node:
        """The wrappers around a network, fitted behind its map; one for all seeds where neither is random."""
        flow, ends = run.flow, run.ends
        seeded = any(wrapper.constant("uses_seed") for wrapper in flow.wrappers)
        of_seed = seeded or not ends["preconditioner"].batch
        params = {"wrappers": flow.wrappers, "path": flow.path, "seed": run.seed if seeded else 0}
        if flow.label_dropout:  # then there is a null class
            params["label_dropout"] = flow.label_dropout
        skip = self.add(
            "skips",
            f"{run.label}-{run.method}" + (f"-s{run.seed}" if of_seed else ""),
            params,
            ends,
            flow.targets,
            batch="" if of_seed else run.label,
        )
        self._report("skips", skip, dataset=run.label, method=run.method, seed=run.seed)
        return skip

    def _alone(self, run: "_Run", component: Component) -> None:
        """What a map, or a skip, makes of the noise of the flow behind it; once for all methods that have it."""
        parents, source = run.ends, "preconditioner"
        alone = parents["preconditioner"]
        if run.flow.has_skip:
            assert run.skip is not None
            alone, source, parents = run.skip, "flow", {**parents, "flow": run.skip}
        elif component.name == "none":
            return
        first = self.alone.setdefault((run.label, alone.id), run.method)
        if run.method == first:
            self._judge(run, f"alone:{run.method}", source, parents, batch=run.label if alone.batch else "")

    def _flow(self, run: "_Run") -> None:
        """Train, sample and judge one flow: under the plain recipe, or under one that a search has chosen."""
        spec: dict[str, Any] = {"flow": run.flow}
        parents: dict[str, Any] = {**run.parents, **self._geometry(run.flow, run.space)}
        if run.through:
            parents["through"] = run.through
        if run.match is not None:
            spec["match"], parents["budget"] = run.match
        sampled: dict[str, Node] = dict(run.ends)
        name, space, targets = f"{run.label}-{run.method}", run.space, run.flow.targets
        if run.setting.recipe == "tuned":
            searched = {**spec, "search": self.experiment.search, "solver": "midpoint"}
            judged = {"data": space.data, "encoder": space.encoder, "classifier": space.selecting}
            parents["recipe"] = self._searched(name, searched, {**parents, **judged}, targets)
            sampled["recipe"] = parents["recipe"]
        batch = name if self._trains_side_by_side(run) else ""
        trained = self.add(
            "flows", f"{name}-s{run.seed}", {**spec, "seed": run.seed}, parents, targets, batch=batch
        )
        self._report("flows", trained, dataset=run.label, method=run.method, seed=run.seed)
        self._judge(run, run.method, "flow", {**sampled, "flow": trained})

    def _trains_side_by_side(self, run: "_Run") -> bool:
        """Whether `precfm.training.batched.train_many` can train all seeds of a method, and it pays.

        A small network does not fill a GPU. A matched baseline may have other steps under each seed, an error metric
        that knows the data another loss; what classes of other packages do, nobody knows.
        """
        flow, objective = run.flow, run.flow.objective.made()
        return (
            (self.experiment.device, self.experiment.devices) == ("cuda", 1)
            and len(run.setting.seeds) > 1
            and not run.through
            and run.match is None
            and flow.model.name == "mlp"
            and flow.training.optimizer != "muon"
            and not objective.couples_rows
            and getattr(objective, "metric", "flow") == "flow"
            and not foreign_modules(tuple(flow.targets))
        )

    def _searched(
        self, label: str, params: Mapping[str, Any], parents: Mapping[str, Any], targets: Iterable[str]
    ) -> Node:
        """The recipe of a method: searched once, behind the first seed's preconditioner, and used for all seeds."""
        if label not in self.searched:
            self.searched[label] = self.add("recipes", label, params, parents, targets)
        return self.searched[label]

    def _kernel(self, run: "_Run") -> None:
        """What the tangent kernel predicts, for the first seed."""
        kernel = self.add(
            "kernels",
            f"{run.label}-{run.method}-s{run.seed}",
            {"flow": run.flow, "seed": run.seed, "points": KERNEL_POINTS, "threshold": KERNEL_THRESHOLD},
            {**run.ends, **self._geometry(run.flow, run.space)},
            run.flow.targets,
        )
        self._report("kernels", kernel, dataset=run.label, method=run.method, seed=run.seed)

    def _geometry(self, flow: Flow, space: Space) -> dict[str, Node]:
        """The decoder's metric, where the objective measures errors in it."""
        return self._decoder_metric(space) if flow.objective.made().needs_decoder_metric else {}

    def _decoder_metric(self, space: Space) -> dict[str, Node]:
        if space.encoder is None:
            raise PrecfmError(
                f"datasets.{space.label}: has latents and no decoder, but a method asks for the decoder's metric; "
                "methods without it are needed"
            )
        parents = {"latents": space.latents, "encoder": space.encoder}
        return {
            "decoder_metric": self.add("decoder_metrics", space.label, {"points": METRIC_POINTS}, parents)
        }

    def _judge(
        self, run: "_Run", method: str, source: str, parents: Mapping[str, Node], *, batch: str = ""
    ) -> None:
        """Samples with their metrics; and how likely held-out latents are, where the setting asks for it.

        What is in a batch has no randomness of its own: other seeds draw other samples of one and the same density.
        """
        targets = (*run.maps, *(run.flow.targets if source == "flow" else ()))
        drawn = {"source": source, "sampling": run.setting.sampling, "seed": run.seed}
        self._evaluate(run.label, method, run.seed, drawn, parents, run.space, targets, batch=batch)
        if run.setting.likelihood:
            likelihood = self.add(
                "likelihoods",
                f"{run.label}-{method.replace(':', '-')}" + ("" if batch else f"-s{run.seed}"),
                {"source": source, "likelihood": self.experiment.likelihood, "replicates": REPLICATES},
                {role: node for role, node in parents.items() if role != "recipe"},
                targets,
                batch=batch,
            )
            self._report("likelihoods", likelihood, dataset=run.label, method=method, seed=run.seed)

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

    def _arms(self) -> dict[str, set[str]]:
        """By setting, the flows that are judged."""
        arms: dict[str, set[str]] = {}
        for about in self.about.get("flows", ()):
            arms.setdefault(about["setting"], set()).add(about["method"])
        return arms

    def _refuse_undecided(self, spec: ClaimsSpec) -> None:
        """Before the first job: refuse what a claim asks for and no job will make."""
        name, arms = self.experiment.name, self._arms()
        likelihoods = {about["setting"] for about in self.about.get("likelihoods", ())}
        missing_arms(spec, name, arms, likelihoods)
        runs = {job: theory.run for job, theory in self.experiment.theory.items()}
        by_default = {job: component(run.group, {"name": run.name}) for job, run in runs.items()}
        yielded, possible = (
            {job: statistics_of(run) for job, run in each.items()} for each in (runs, by_default)
        )
        missing_statistics(spec, name, yielded, possible, has_data=bool(arms))

    def _reports(self) -> None:
        experiment = self.experiment
        if not self.reported:  # classifiers alone
            return
        frames = self.add("frames", experiment.name, {"about": self.about}, self.reported)
        named = {"experiment": experiment.name}
        shown: dict[str, list[Node]] = {}
        for group, kind in (("tables", "table_files"), ("figures", "figure_files")):
            functions = {name: load(group, name) for name in REGISTRY[group]}
            for name in wanted(functions, available(self.about)):
                target = import_string(group, name)
                made = self.add(kind, name, {"name": name, **named}, {"frames": frames}, [target], batch=kind)
                shown.setdefault(group, []).append(made)
        claims = read_yaml(CLAIMS)
        self._refuse_undecided(parse_claims(claims))
        verdicts = self.add("verdicts", "claims", {"claims": claims, **named}, {"frames": frames})
        self.add("pages", "report", named, {"frames": frames, **shown, "verdicts": verdicts})
