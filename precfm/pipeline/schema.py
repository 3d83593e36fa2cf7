"""The schema of an experiment: strict, and with one clear sentence for what is wrong.

Options of registered classes are checked against the classes' own signatures, without importing them, so a whole
configuration is judged before the first job starts. `precfm.pipeline.experiments` reads the files.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, Field, PlainValidator, ValidationError, model_validator

from precfm.core.errors import PrecfmError
from precfm.core.options import Neutral, Strict, check_ranges, options_of, refuse
from precfm.core.registry import import_string

TRAINING = "precfm.training.trainer:TrainingOptions"
NESTED = ("stages", "candidates")  # options that hold components of the same room
PLAIN = "plain"  # the setting that has no name in labels: the one setting of a file that lists none
Model = TypeVar("Model", bound=BaseModel)
Location: TypeAlias = tuple[str, ...]  # of a field, from the outside in
# Arguments that the pipeline fills in from the data or the plan, by the registry's room: never configured.
FILLED_IN = {
    "models": frozenset({"dim", "num_classes"}),
    "encoders": frozenset({"channels", "image_size"}),
    "extractors": frozenset({"channels", "image_size", "num_classes"}),
    "theory": frozenset({"seed"}),
}


@dataclass(frozen=True)
class Component:
    """A registered class together with its options.

    Attributes:
        room: the registry's room, such as `preconditioners`.
        name: the registered name.
        options: the validated options, defaults included.
    """

    room: str
    name: str
    options: Strict

    @property
    def target(self) -> str:
        """Import string of the class."""
        return import_string(self.room, self.name)

    @property
    def module(self) -> str:
        """The module that holds the class."""
        return self.target.split(":")[0]


def _component(room: str, value: Any) -> Component:
    if isinstance(value, Component):
        return value
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise PrecfmError(f"got {value!r}; a mapping with a 'name' from the registry's {room} is needed")
    options = {key: item for key, item in value.items() if key != "name"}
    schema = options_of(import_string(room, value["name"]), FILLED_IN.get(room, frozenset()))
    for field in set(NESTED) & set(schema.model_fields):
        stages = options.get(field, schema.model_fields[field].default)
        if isinstance(stages, list | tuple):
            options[field] = [plain(_nested(room, field, i, stage)) for i, stage in enumerate(stages)]
    judged = validated(schema, options)
    fields = schema.model_fields
    refuse(
        {name: field.metadata for name, field in fields.items()},
        {name: getattr(judged, name) for name in fields},
    )
    return Component(room, value["name"], judged)


def _nested(room: str, field: str, index: int, value: Any) -> Component:
    try:
        return _component(room, value)
    except PrecfmError as error:
        raise PrecfmError(f"{field}.{index}: {error}") from None


def _training(value: Any) -> Strict:
    if isinstance(value, Strict):
        return value
    options = validated(options_of(TRAINING), value)
    try:
        judged = check_ranges(TRAINING, options)
    except PrecfmError as error:
        raise PrecfmError(str(error).removeprefix("training: ")) from None
    if judged.validate_every:
        raise PrecfmError(
            f"validate_every is {judged.validate_every}; it must be 0: only preconditioners train with validation"
        )
    return options


def validated(schema: type[Model], value: Any) -> Model:
    """Plain data as a schema object; judged as JSON, which takes a list for a tuple and is strict otherwise.

    Raises:
        PrecfmError: something is wrong; the sentence names the field, the value and the remedy.
    """
    try:
        return schema.model_validate_json(json.dumps(value, allow_nan=False))
    except ValidationError as error:
        raise PrecfmError(_sentence(error)) from None
    except (TypeError, ValueError) as error:
        raise PrecfmError(f"got {value!r}, which is no plain data ({error})") from None


def _sentence(error: ValidationError) -> str:
    """The first mistake in words: field, value, and what would be right; of the others the fields.

    What a file says once for all settings or methods is one mistake, although every one of them inherits it.
    """
    mistakes: dict[tuple[Location, str], list[Location]] = {}
    for each in error.errors():
        place = tuple(str(part) for part in each["loc"])
        what = each["msg"].removeprefix("Value error, ")
        if each["type"] == "extra_forbidden":
            what = "no such field; remove it or correct its spelling"
        shown = "" if each["type"] in ("missing", "value_error") else f" (got {each['input']!r})"
        mistakes.setdefault((_inherited(place), what + shown), []).append(place)
    (_, what), *_ = mistakes
    fields = [_field(inherited, places) for (inherited, _), places in mistakes.items()]
    more = f" (and {len(fields) - 1} more: {', '.join(fields[1:])})" if fields[1:] else ""
    return f"{fields[0]}: {what}{more}"


def _inherited(place: Location) -> Location:
    """A field without the setting, and for a flow without the method, that may have taken it from the file."""
    if place[:1] != ("settings",):
        return place
    return place[4:] if place[2:3] == ("methods",) and place[4:5] == ("flow",) else place[2:]


def _field(inherited: Location, places: list[Location]) -> str:
    """How to call a field that is wrong in these places."""
    if len(places) == 1:
        inherited = places[0]
    elif len(settings := {place[:2] for place in places}) == 1:
        inherited = (*settings.pop(), *inherited)
    return ".".join(inherited).removeprefix(f"settings.{PLAIN}.") or "the whole file"


Training = Annotated[Any, PlainValidator(_training)]
Positive = Annotated[int, Field(gt=0)]
Seeds = Annotated[tuple[int, ...], Field(min_length=1)]


class Dataset(Strict):
    """Where the images come from, and how many go into each split."""

    source: Annotated[Component, PlainValidator(partial(_component, "datasets"))]
    train: Positive
    validation: Positive
    heldout: Positive
    seed: int = 0

    @property
    def source_name(self) -> str:
        """The entry in data/sources.yaml: your own images say it themselves, published sets are called like it."""
        return str(getattr(self.source.options, "source", self.source.name))


class Encoder(Strict):
    """The map from images to latents; trained once, the same for all methods and seeds."""

    model: Annotated[Component, PlainValidator(partial(_component, "encoders"))]
    beta: Annotated[float, Field(ge=0)] = 1e-3
    encode: Literal["mean", "sample"] = "mean"
    training: Training
    seed: int = 0


class Classifiers(Strict):
    """The frozen judges: one independently trained feature extractor per seed."""

    model: Annotated[Component, PlainValidator(partial(_component, "extractors"))]
    training: Training
    seeds: Seeds


class Flow(Strict):
    """The main velocity field and how it is trained."""

    model: Annotated[Component, PlainValidator(partial(_component, "models"))]
    path: Annotated[Component, PlainValidator(partial(_component, "paths"))]
    objective: Annotated[Component, PlainValidator(partial(_component, "objectives"))] = Field(
        default={"name": "flow_matching"}, validate_default=True
    )
    training: Training

    @property
    def is_plain(self) -> bool:
        """Plain flow matching by a plain network and optimizer: all that the tangent kernel foretells."""
        usual = _component("objectives", {"name": "flow_matching"})
        own = hasattr(self.model.options, "skip") or self.training.optimizer == "muon"
        return bool(self.objective == usual) and not own

    @model_validator(mode="after")
    def _consistent(self) -> "Flow":
        steps, checkpoints = self.training.steps, self.training.checkpoints
        if checkpoints[-1:] != (steps,):
            raise PrecfmError(
                f"training.checkpoints: got {list(checkpoints)}; the last must be training.steps, {steps}, where the "
                "final numbers come from (so a file that extends another and changes steps gives checkpoints too)"
            )
        if self.objective.name == "denoising_score" and hasattr(self.model.options, "skip"):
            raise PrecfmError(
                f"objective: got 'denoising_score' with the model '{self.model.name}', whose skip is a velocity; "
                "'flow_matching', or another model, is needed"
            )
        assumed = getattr(self.model.options, "path", self.path.name)
        if assumed != self.path.name:
            raise PrecfmError(
                f"model.path: got '{assumed}'; it must be the flow's path, '{self.path.name}', whose statistics the "
                "model uses"
            )
        return self


class Method(Strict):
    """A preconditioner and the flow that is trained behind it."""

    preconditioner: Annotated[Component, PlainValidator(partial(_component, "preconditioners"))]
    flow: Flow


class Sampling(Strict):
    """How samples are drawn: the same labels and noise for every method."""

    n: Positive
    solver: Literal["euler", "midpoint", "rk4", "dopri5"] = "midpoint"
    steps: Positive = 50
    seed: int = 0


class Evaluation(Strict):
    """What is measured on the samples, against the held-out split."""

    neighbours: Positive = 3
    precision_recall: Literal["last", "all"] = "last"
    seed: int = 0


class Search(Strict):
    """The tuned recipe: every method tries every combination, in short trainings judged on the validation split.

    The judges are the classifiers that report the results, on validation images; one training for each combination.
    """

    time: Annotated[tuple[Literal["uniform", "logit_normal", "kappa_directed"], ...], Field(min_length=1)] = (
        "uniform",
        "logit_normal",
    )
    learning_rate: Annotated[tuple[float, ...], Field(min_length=1)] = (1e-3, 4e-3)
    schedule: Annotated[tuple[Literal["constant", "cosine"], ...], Field(min_length=1)] = (
        "constant",
        "cosine",
    )
    steps: Positive = 1000
    n: Positive = 500
    seed: int = 1000


class Setting(Strict):
    """One comparison: methods that differ in nothing but themselves, on the same seeds.

    Numbers of different settings are never compared. A learned preconditioner brings two matched baselines without
    it, `<method>-P` of as many parameters and `<method>-F` of as many training FLOPs, unless `matched` leaves it out.
    """

    methods: Annotated[dict[str, Method], Field(min_length=1)]
    encoders: Annotated[tuple[str, ...], Field(min_length=1)]
    seeds: Seeds
    sampling: Sampling
    recipe: Literal["plain", "tuned"] = "plain"
    matched: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "Setting":
        if len(set(self.seeds)) != len(self.seeds):
            raise PrecfmError(f"seeds: got {list(self.seeds)}; every seed may stand there once")
        unknown = set(self.matched or ()) - set(self.methods)
        if unknown:
            raise PrecfmError(
                f"matched: got '{sorted(unknown)[0]}'; it must be one of its methods, {', '.join(self.methods)}"
            )
        return self


class Theory(Strict):
    """One controlled experiment with closed forms, repeated over seeds."""

    run: Annotated[Component, PlainValidator(partial(_component, "theory"))]
    seeds: Seeds


class Experiment(Strict):
    """A whole experiment, as `config/<name>.yaml` describes it."""

    name: str
    description: str
    device: Literal["cpu", "cuda"] = "cpu"
    threads: Positive = 1
    datasets: dict[str, Dataset] = Field(default_factory=dict)
    encoders: dict[str, Encoder] = Field(default_factory=dict)
    classifiers: Classifiers | None = None
    settings: dict[str, Setting] = Field(default_factory=dict)
    search: Search = Search()
    baseline: Annotated[Component, PlainValidator(partial(_component, "preconditioners"))] = Field(
        default={"name": "scalar"}, validate_default=True
    )
    predict: tuple[
        str, ...
    ] = ()  # settings whose flows the tangent kernel foretells, where it can: see `Flow`
    evaluation: Evaluation = Evaluation()
    theory: dict[str, Theory] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _whole(self) -> "Experiment":
        names = [*self.datasets, *self.encoders, *self.settings, *self.theory]
        names += [name for setting in self.settings.values() for name in setting.methods]
        for name in names:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=+-]*", name) or name == "floor":
                raise PrecfmError(
                    f"name '{name}': letters, digits and . _ = + - are needed, and 'floor' is taken"
                )
        if self.datasets and self.classifiers is None:
            raise PrecfmError("datasets: given without classifiers; a data experiment needs them all")
        if not self.datasets and not self.theory:
            raise PrecfmError("datasets, theory: both are empty, so there is nothing to make")
        for name in self.predict:
            if name not in self.settings:
                raise PrecfmError(
                    f"predict: got '{name}'; it must be a setting, one of {', '.join(self.settings)}"
                )
        for name, setting in self.settings.items():
            for space in setting.encoders:
                if space not in self.encoders:
                    raise PrecfmError(
                        f"settings.{name}.encoders: got '{space}'; known are {', '.join(self.encoders)}"
                    )
            for dataset, spec in self.datasets.items():
                if min(spec.heldout, setting.sampling.n) <= self.evaluation.neighbours:
                    raise PrecfmError(
                        f"evaluation.neighbours: got {self.evaluation.neighbours}; fewer than sampling.n and "
                        f"datasets.{dataset}.heldout are needed"
                    )
        return self


def plain(value: Any, *, for_key: bool = False) -> Any:
    """A part of a configuration as plain data.

    Args:
        value: a schema object, component, mapping, sequence or scalar.
        for_key: leave out what is at its neutral value (see `precfm.core.options.Neutral`).
    """
    if isinstance(value, Component):
        return {"name": value.name, **plain(value.options, for_key=for_key)}
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        kept = {
            name: getattr(value, name)
            for name, field in fields.items()
            if not (for_key and Neutral(getattr(value, name)) in field.metadata)
        }
        return plain(kept, for_key=for_key)
    if isinstance(value, Mapping):
        return {str(key): plain(item, for_key=for_key) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item, for_key=for_key) for item in value]
    return value
