"""The schema of an experiment: strict, and with one clear sentence for what is wrong.

`precfm.pipeline.experiments` reads the files; `precfm.pipeline.components` judges the options of registered classes.
"""

import math
import re
from functools import partial
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, AliasChoices, Field, PlainValidator, ValidationError, model_validator

from precfm.core.errors import PrecfmError
from precfm.core.options import (
    LONGEST_VALUE,
    Count,
    Neutral,
    NotNegative,
    Positive,
    Seed,
    Strict,
    complaint,
    shortened,
    suggestion,
)
from precfm.core.registry import REGISTRY, build
from precfm.pipeline.components import Component, component, plain
from precfm.pipeline.pinned import pinned_model
from precfm.training.options import TrainingOptions

LISTED = 3  # fields with mistakes that a sentence names beside the first
NAME = r"[A-Za-z0-9][A-Za-z0-9._=+-]{0,99}"  # of what an experiment consists of
MATCHES = ("P", "F")  # baselines of as many parameters, of as many training FLOPs
PLAIN = "plain"  # the setting that has no name in labels: the one setting of a file that lists none
# Extractors of published weights, or of none, that may judge; `identity` is that of latents.
FIXED_JUDGES = tuple(name for name in REGISTRY["fixed_extractors"] if name != "identity")
Location: TypeAlias = tuple[str, ...]  # of a field, from the outside in


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values or len(set(values)) != len(values):
        raise ValueError(f"got {list(values)}; at least one is needed, and each of them once")
    return values


def _without_validation(options: TrainingOptions) -> TrainingOptions:
    if options.validate_every:
        raise PrecfmError(
            f"validate_every: got {options.validate_every}; 0 is needed, since only preconditioners train with "
            "validation"
        )
    return options


def in_words(error: ValidationError) -> str:
    """The first mistake of an experiment: field, value, and what would be right; of the others the fields.

    What a file says once for all settings or methods is one mistake, although every one of them inherits it.
    """
    mistakes: dict[tuple[Location, str], list[Location]] = {}
    for each in error.errors(include_url=False):
        place = tuple(str(part) for part in each["loc"])
        mistakes.setdefault((_inherited(place), complaint(each)), []).append(place)
    (_, what), *_ = mistakes
    fields = [_field(inherited, places) for (inherited, _), places in mistakes.items()]
    others = ", ".join(fields[1 : LISTED + 1]) + (", ..." if fields[LISTED + 1 :] else "")
    more = f" (and {len(fields) - 1} more: {others})" if others else ""
    return f"{fields[0]}: {what}{more}" if fields[0] else what


def _inherited(place: Location) -> Location:
    """A field without the setting, and for a flow without the method, that may have taken it from the file."""
    if place[:1] != ("settings",):
        return place
    return place[4:] if place[2:3] == ("methods",) and place[4:5] == ("flow",) else place[2:]


def _field(inherited: Location, places: list[Location]) -> str:
    """How to call a field that is wrong in these places; empty for a rule of the whole, which names its own."""
    if len(places) == 1:
        inherited = places[0]
    elif len(settings := {place[:2] for place in places}) == 1:
        inherited = (*settings.pop(), *inherited)
    return ".".join(part[:LONGEST_VALUE] for part in inherited).removeprefix(f"settings.{PLAIN}.")


# As in precfm.flows.times, which needs torch.
TimeName = Literal["uniform", "logit_normal", "kappa_directed", "mixed", "early", "late"]
Training = Annotated[TrainingOptions, AfterValidator(_without_validation)]
Distinct = AfterValidator(_distinct)
Seeds = Annotated[tuple[Seed, ...], Distinct]
Preconditioner = Annotated[Component, PlainValidator(partial(component, "preconditioners"))]


def _pinned(group: Literal["encoders", "extractors"], reference: str) -> str:
    """A reference to a pinned model, once the model is found to be the one that it names."""
    pinned_model(reference, group)
    return reference


def is_fixed(judge: str) -> bool:
    """Whether a judge is a fixed extractor of the registry, and no pinned classifier."""
    return judge in FIXED_JUDGES


def _judge(reference: str) -> str:
    """A fixed extractor by its name, or a reference to a pinned classifier."""
    try:
        return reference if is_fixed(reference) else _pinned("extractors", reference)
    except PrecfmError as error:
        raise PrecfmError(f"{error}; or one of {', '.join(FIXED_JUDGES)}") from None


PinnedEncoder = Annotated[str, AfterValidator(partial(_pinned, "encoders"))]
Judge = Annotated[str, AfterValidator(_judge)]
Source = Annotated[Component, PlainValidator(partial(component, "datasets"))]


def source_name(source: Component) -> str:
    """The entry in data/sources.yaml: your own images say it themselves, published sets are called like it."""
    return str(getattr(source.options, "source", source.name))


class Judges(Strict):
    """The judges of a data set: those that report, and another one for all selection, where something is selected.

    Each is a classifier of data/models/, `NAME@CHECKSUM`, or a fixed extractor, such as `imagenet`.
    """

    report: Annotated[tuple[Judge, ...], Field(min_length=1)]
    select: Judge | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "Judges":
        given = (*self.report, *([] if self.select is None else [self.select]))
        weights = [reference.partition("@")[2] or reference for reference in given]
        if len(set(weights)) != len(weights):
            raise PrecfmError(
                f"select: got '{self.select}' beside report: {', '.join(self.report)}; each judge may stand there "
                "once, since the one that selects may not report"
            )
        return self


class Dataset(Strict):
    """Where the images come from, and how many go into each split.

    `without` names sources of which no image may be in the train split, so that what is trained here may serve them;
    `judges` (or `classifiers`) are pinned or fixed ones instead of those that the experiment trains. A source of
    latents has no images: no encoder encodes it, and no judge looks at it.
    """

    source: Source
    train: Count
    validation: Count
    heldout: Count
    seed: Seed = 0
    without: tuple[Source, ...] = ()
    classifiers: Judges | None = Field(default=None, validation_alias=AliasChoices("judges", "classifiers"))

    @property
    def is_latents(self) -> bool:
        """Whether it holds latents, and no images."""
        return bool(self.source.constant("kind") == "latents")

    @property
    def source_name(self) -> str:
        """The entry in data/sources.yaml."""
        return source_name(self.source)

    @model_validator(mode="after")
    def _consistent(self) -> "Dataset":
        if self.source_name in map(source_name, self.without):
            raise PrecfmError(f"without: got '{self.source_name}', the source itself; others are needed")
        if self.is_latents:
            for field in ("without", "judges"):
                if self.without if field == "without" else self.classifiers:
                    raise PrecfmError(
                        f"{field}: given, but '{self.source_name}' has latents and no images; none is needed"
                    )
        return self


class Encoder(Strict):
    """The map from images to latents; fitted once, the same for all methods and seeds, or pinned in data/models/.

    `datasets` says for which data sets it is; for all of them where it is left out. The seed is that of the training,
    and of the posterior samples with `encode: sample`. With `flips` every train image is followed by its mirror image.
    """

    model: Annotated[Component, PlainValidator(partial(component, "encoders"))] | None = None
    pinned: PinnedEncoder | None = None
    encode: Literal["mean", "sample"] = "mean"
    flips: bool = False
    training: Training | None = None
    seed: Seed = 0
    datasets: Annotated[tuple[str, ...], Distinct] | None = None

    @property
    def network(self) -> Component:
        """The class with its options, which a pinned encoder says itself."""
        if self.model is not None:
            return self.model
        assert self.pinned is not None
        return component("encoders", pinned_model(self.pinned, "encoders").model)

    @model_validator(mode="after")
    def _consistent(self) -> "Encoder":
        if (self.model is None) == (self.pinned is None):
            raise PrecfmError("model, pinned: one of the two is needed, and not both")
        name, trained = self.network.name, self.network.constant("trained") and self.pinned is None
        if trained and self.training is None:
            raise PrecfmError(f"training: missing; how to train '{name}' is needed")
        if self.training is not None and not trained:
            raise PrecfmError(
                f"training: got one, but '{self.pinned or name}' is fitted without; none is needed"
            )
        if self.encode == "sample" and not self.network.constant("has_posterior"):
            raise PrecfmError(
                f"encode: got 'sample'; 'mean' is needed, since '{name}' gives one latent per image"
            )
        return self


class Classifiers(Strict):
    """The frozen judges that this experiment trains: one independently trained feature extractor per seed.

    Those of `seeds` report; the one of `selection_seed` chooses recipes and reports nothing.
    """

    model: Annotated[Component, PlainValidator(partial(component, "extractors"))]
    training: Training
    seeds: Seeds
    selection_seed: Seed = 1000

    @model_validator(mode="after")
    def _consistent(self) -> "Classifiers":
        if self.selection_seed in self.seeds:
            raise PrecfmError(
                f"selection_seed: got {self.selection_seed}, one of seeds; another is needed, since the classifier "
                "that selects may not report"
            )
        return self


class Flow(Strict):
    """The main velocity field and how it is trained; wrappers go around the model, one after the other."""

    model: Annotated[Component, PlainValidator(partial(component, "models"))]
    wrappers: tuple[Annotated[Component, PlainValidator(partial(component, "wrappers"))], ...] = ()
    path: Annotated[Component, PlainValidator(partial(component, "paths"))]
    objective: Annotated[Component, PlainValidator(partial(component, "objectives"))] = Field(
        default={"name": "flow_matching"}, validate_default=True
    )
    training: Training

    @property
    def skip_is_fitted(self) -> bool:
        """Whether a wrapper's fit is an artifact of its own."""
        return any(wrapper.constant("costly_fit") for wrapper in self.wrappers)

    @property
    def has_skip(self) -> bool:
        """Whether a wrapper adds a velocity of its own to that of the network."""
        network, path, found = (
            build("models", {"name": "mlp"}, shape=self._smallest_shape, num_classes=0),
            self.path.made(),
            False,
        )
        for wrapper in self.wrappers:
            network = build("wrappers", plain(wrapper), network=network, path=path)
            found = found or network.adds_velocity
        return found

    @property
    def _smallest_shape(self) -> tuple[int, ...]:
        """A shape that the wrappers take: a vector, or a map of one patch where they are of feature maps."""
        directions = {getattr(wrapper.options, "directions", "eigen") for wrapper in self.wrappers}
        side = math.lcm(*(getattr(wrapper.options, "patch", 1) for wrapper in self.wrappers))
        return (1,) if directions <= {"eigen"} else (1, side, side)

    @property
    def label_dropout(self) -> float:
        """Share of the labels that the network is not told in training."""
        return getattr(self.model.options, "label_dropout", 0.0)

    @property
    def without_fitted_skips(self) -> "Flow":
        """The same without the wrappers whose fit is an artifact of its own."""
        kept = tuple(wrapper for wrapper in self.wrappers if not wrapper.constant("costly_fit"))
        return self.model_copy(update={"wrappers": kept})

    @property
    def is_plain(self) -> bool:
        """Plain flow matching by a plain network and optimizer: all that the tangent kernel can predict."""
        usual = component("objectives", {"name": "flow_matching"})
        bare = not self.wrappers and not self.label_dropout
        return self.objective == usual and bare and self.training.optimizer != "muon"

    @property
    def targets(self) -> list[str]:
        """Import strings of all that it is made of."""
        parts = (self.model, *self.wrappers, self.path, self.objective)
        return [target for part in parts for target in part.targets]

    @model_validator(mode="after")
    def _consistent(self) -> "Flow":
        steps, checkpoints = self.training.steps, self.training.checkpoints
        if checkpoints[-1:] != (steps,):
            raise PrecfmError(
                f"training.checkpoints: got {list(checkpoints)}; the last must be training.steps, {steps}, where the "
                "final numbers come from (so a file that extends another and changes steps gives checkpoints too)"
            )
        if self.wrappers and not self.objective.constant("predicts_velocity"):
            raise PrecfmError(
                f"objective: got '{self.objective.name}' with the wrapper '{self.wrappers[0].name}', which makes a "
                "velocity; 'flow_matching', or no wrapper, is needed"
            )
        return self


class Method(Strict):
    """A preconditioner and the flow that is trained behind it; `through`: behind these before, each for as long."""

    preconditioner: Preconditioner
    flow: Flow
    through: tuple[Preconditioner, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> "Method":
        if self.through and self.flow.wrappers:
            raise PrecfmError(
                f"through: got {len(self.through)} maps with the wrapper '{self.flow.wrappers[0].name}', which is "
                "fitted in the space of one; without wrappers is needed"
            )
        return self


class Sampling(Strict):
    """How samples are drawn: the same labels and noise for every method.

    `guidance` is the weight of the class in classifier-free guidance; recipes are searched without.
    """

    n: Count
    solver: Literal["euler", "midpoint", "rk4", "dopri5"] = "midpoint"
    steps: Count = 50
    seed: Seed = 0
    guidance: Annotated[NotNegative, Neutral(1.0)] = 1.0


class Evaluation(Strict):
    """What is measured on the samples, against the held-out split.

    Metrics of pairs (KID, MMD, precision, recall) look at no more than the first `pairs` rows of either, which are in
    random order.
    """

    neighbours: Count = 3
    pairs: Count = 5000
    precision_recall: Literal["last", "all"] = "last"
    seed: Seed = 0


class Likelihood(Strict):
    """The negative log-likelihood of held-out latents, in the space before the map: where, and of how many.

    The points are drawn once, and are the same for all flows.
    """

    points: Count = 1000
    seed: Seed = 0


class Search(Strict):
    """The tuned recipe: every method tries every combination, in short trainings judged on the validation split.

    The judge is a classifier that reports nothing, on validation images; one training for each combination of time,
    learning rate and schedule, sampled with each number of solver steps.
    """

    time: Annotated[tuple[TimeName, ...], Distinct] = ("uniform", "logit_normal")
    solver_steps: Annotated[tuple[Count, ...], Distinct] = (50,)
    learning_rate: Annotated[tuple[Positive, ...], Distinct] = (1e-3, 4e-3)
    schedule: Annotated[tuple[Literal["constant", "cosine"], ...], Distinct] = (
        "constant",
        "cosine",
    )
    steps: Count = 1000
    n: Count = 500
    seed: Seed = 1000


class Setting(Strict):
    """One comparison: methods that differ in nothing but themselves, on the same seeds.

    Numbers of different settings are never compared. A learned preconditioner, and a skip whose fit is an artifact of
    its own, bring two matched baselines without it, `<method>-P` of as many parameters and `<method>-F` of as many
    training FLOPs, unless `matched` leaves it out. With `likelihood` every flow is judged by that, too.
    """

    methods: Annotated[dict[str, Method], Field(min_length=1)]
    encoders: tuple[str, ...] = ()  # of images; your own latents need none
    seeds: Seeds
    sampling: Sampling
    recipe: Literal["plain", "tuned"] = "plain"
    matched: tuple[str, ...] | None = None
    likelihood: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> "Setting":
        if len(set(self.encoders)) != len(self.encoders):
            raise PrecfmError(f"encoders: got {list(self.encoders)}; each of them once is needed")
        unknown = set(self.matched or ()) - set(self.methods)
        if unknown:
            name = sorted(unknown)[0]
            raise PrecfmError(
                f"matched: got {shortened(name)}, no method of it{suggestion(name, self.methods)}"
            )
        for name, method in self.methods.items():
            if self.sampling.guidance != 1 and not method.flow.label_dropout:
                raise PrecfmError(
                    f"sampling.guidance: got {self.sampling.guidance}, but the flow.model of '{name}' is trained "
                    "without label_dropout; 1 is needed, or a label_dropout such as 0.1"
                )
            if taken := {f"{name}-{match}" for match in MATCHES} & self.methods.keys():
                raise PrecfmError(
                    f"methods: got the name {taken.pop()!r}, that of a matched baseline of '{name}'; another is needed"
                )
        return self


class Theory(Strict):
    """One controlled experiment with closed forms, repeated over seeds."""

    run: Annotated[Component, PlainValidator(partial(component, "theory"))]
    seeds: Seeds


class Experiment(Strict):
    """A whole experiment, as `config/<name>.yaml` describes it."""

    name: str
    description: str
    device: Literal["cpu", "cuda"] = "cpu"
    devices: Count = 1  # that train a flow together; as many processes on the processor
    threads: Count = 1
    datasets: dict[str, Dataset] = Field(default_factory=dict)
    encoders: dict[str, Encoder] = Field(default_factory=dict)
    classifiers: Classifiers | None = None
    settings: dict[str, Setting] = Field(default_factory=dict)
    search: Search = Search()
    baseline: Preconditioner = Field(default={"name": "scalar"}, validate_default=True)
    predict: tuple[str, ...] = ()  # settings whose flows the tangent kernel predicts, where it can
    evaluation: Evaluation = Evaluation()
    likelihood: Likelihood = Likelihood()
    theory: dict[str, Theory] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _whole(self) -> "Experiment":
        named = {group: getattr(self, group) for group in ("datasets", "encoders", "settings", "theory")}
        named["methods"] = [name for setting in self.settings.values() for name in setting.methods]
        for group, names in named.items():
            for name in names:
                if not re.fullmatch(NAME, name) or name == "floor":
                    raise PrecfmError(
                        f"{group}: got the name {shortened(name)}; up to 100 letters, digits and . _ = + - are needed, "
                        "a letter or digit first, and not 'floor'"
                    )
        for name, of_dataset in self.datasets.items():
            self._check_selection(name, of_dataset)
        for name, encoder in self.encoders.items():
            if unknown := set(encoder.datasets or ()) - self.datasets.keys():
                wrong = sorted(unknown)[0]
                known = suggestion(wrong, self.datasets)
                raise PrecfmError(f"encoders.{name}.datasets: got {shortened(wrong)}, no data set{known}")
        if not self.datasets and not self.theory:
            raise PrecfmError("datasets, theory: both are empty, so there is nothing to make")
        for name in self.predict:
            if name not in self.settings:
                known = suggestion(name, self.settings)
                raise PrecfmError(f"predict: got {shortened(name)}, no setting{known}")
        of_images = [name for name, spec in self.datasets.items() if not spec.is_latents]
        for name, setting in self.settings.items():
            if of_images and not setting.encoders:
                raise PrecfmError(
                    f"settings.{name}.encoders: missing; the data set {of_images[0]} has images, and an encoder turns "
                    "these into latents"
                )
            for space in setting.encoders:
                if space not in self.encoders:
                    known = suggestion(space, self.encoders)
                    raise PrecfmError(f"settings.{name}.encoders: got {shortened(space)}, no encoder{known}")
            for dataset, spec in self.datasets.items():
                if min(spec.heldout, setting.sampling.n) <= self.evaluation.neighbours:
                    raise PrecfmError(
                        f"evaluation.neighbours: got {self.evaluation.neighbours}; fewer than sampling.n and "
                        f"datasets.{dataset}.heldout are needed"
                    )
        return self

    def _check_selection(self, name: str, dataset: Dataset) -> None:
        """Refuse images without judges, and a tuned recipe where nothing can choose it."""
        tuned = next((label for label, setting in self.settings.items() if setting.recipe == "tuned"), None)
        if dataset.is_latents:
            if tuned:
                raise PrecfmError(
                    f"settings.{tuned}.recipe: got 'tuned'; 'plain' is needed, since recipes are chosen by a judge of "
                    f"images, and the data set {name} has latents alone"
                )
            return
        if self.settings and self.classifiers is None and dataset.classifiers is None:
            raise PrecfmError(
                f"datasets.{name}: given without classifiers; its own, pinned, or those of the experiment, which "
                "trains them, are needed"
            )
        if tuned and dataset.classifiers is not None and dataset.classifiers.select is None:
            raise PrecfmError(
                f"datasets.{name}.judges.select: missing; the setting '{tuned}' has its recipes chosen by a judge that "
                "reports nothing"
            )
