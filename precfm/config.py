"""Configurations of experiments: read, extended, expanded, and refused with one clear sentence when wrong.

An experiment is one file in `config/`. It may extend another (`extends: quick`): mappings merge, everything else
replaces, `null` removes. Options of registered classes are checked against the classes' own signatures, without
importing them, so a whole configuration is judged before the first job starts.
"""

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, PlainValidator, ValidationError, model_validator

from precfm.errors import PrecfmError
from precfm.options import Neutral, Strict, check_ranges, options_of
from precfm.registry import import_string

CONFIG_FOLDER = Path("config")
TRAINING = "precfm.training:TrainingOptions"
Model = TypeVar("Model", bound=BaseModel)
# Arguments that the pipeline fills in from the data or the plan, by the registry's room: never configured.
FILLED_IN = {
    "models": frozenset({"dim", "num_classes"}),
    "autoencoders": frozenset({"channels", "image_size"}),
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
    return Component(room, value["name"], _validate(schema, options))


def _training(value: Any) -> Strict:
    if isinstance(value, Strict):
        return value
    options = _validate(options_of(TRAINING), value)
    try:
        judged = check_ranges(TRAINING, options)
    except PrecfmError as error:
        raise PrecfmError(str(error).removeprefix("training: ")) from None
    if judged.validate_every:
        raise PrecfmError(
            f"validate_every is {judged.validate_every}; it must be 0: only preconditioners train with validation"
        )
    return options


def _validate(schema: type[Model], value: Any) -> Model:
    """Validate as JSON, which takes a list for a tuple and is strict about everything else."""
    try:
        return schema.model_validate_json(json.dumps(value, allow_nan=False))
    except ValidationError as error:
        raise PrecfmError(_sentence(error)) from None
    except (TypeError, ValueError) as error:
        raise PrecfmError(f"got {value!r}, which is no plain data ({error})") from None


def _sentence(error: ValidationError) -> str:
    """The first mistake in words: field, value, and what would be right."""
    first, *others = error.errors()
    field = ".".join(str(part) for part in first["loc"]) or "the whole file"
    what = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        what = "no such field; remove it or correct its spelling"
    shown = "" if first["type"] in ("missing", "value_error") else f" (got {first['input']!r})"
    more = f" (and {len(others)} more)" if others else ""
    return f"{field}: {what}{shown}{more}"


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


class Autoencoder(Strict):
    """The map from images to latents; trained once, the same for all methods and seeds."""

    model: Annotated[Component, PlainValidator(partial(_component, "autoencoders"))]
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
    training: Training

    @model_validator(mode="after")
    def _last_checkpoint_is_the_end(self) -> "Flow":
        steps, checkpoints = self.training.steps, self.training.checkpoints
        if checkpoints[-1:] != (steps,):
            raise PrecfmError(
                f"training.checkpoints: got {list(checkpoints)}; the last must be training.steps, {steps}, where the "
                "final numbers come from (so a file that extends another and changes steps gives checkpoints too)"
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
    autoencoders: dict[str, Autoencoder] = Field(default_factory=dict)
    classifiers: Classifiers | None = None
    methods: dict[str, Method] = Field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    sampling: Sampling | None = None
    evaluation: Evaluation = Evaluation()
    theory: dict[str, Theory] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _whole(self) -> "Experiment":
        if len(set(self.seeds)) != len(self.seeds):
            raise PrecfmError(f"seeds: got {list(self.seeds)}; every seed may stand there once")
        for room in (self.datasets, self.autoencoders, self.methods, self.theory):
            for name in room:
                if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=+-]*", name) or name == "floor":
                    raise PrecfmError(
                        f"name '{name}': letters, digits and . _ = + - are needed, and 'floor' is taken"
                    )
        needed = ("autoencoders", "classifiers", "methods", "seeds", "sampling")
        missing = [name for name in needed if not getattr(self, name)]
        if self.datasets and missing:
            raise PrecfmError(
                f"datasets: given without {', '.join(missing)}; a data experiment needs them all"
            )
        if not self.datasets and not self.theory:
            raise PrecfmError("datasets, theory: both are empty, so there is nothing to make")
        for name, dataset in self.datasets.items():
            if min(dataset.heldout, self.sampling.n if self.sampling else 0) <= self.evaluation.neighbours:
                raise PrecfmError(
                    f"evaluation.neighbours: got {self.evaluation.neighbours}; fewer than sampling.n and "
                    f"datasets.{name}.heldout are needed"
                )
        return self


def load_experiment(name: str, folder: Path = CONFIG_FOLDER) -> Experiment:
    """Read and check the experiment `folder/<name>.yaml`.

    Raises:
        PrecfmError: the file is missing or wrong; the sentence names the file, the field, the value and the remedy.
    """
    raw = _extended(name, folder, ())
    try:
        return _validate(Experiment, {"name": name, **expand(raw)})
    except PrecfmError as error:
        raise PrecfmError(f"{folder / f'{name}.yaml'}: {error}") from None


def read_yaml(file: Path) -> Any:
    """Read a YAML file; numbers such as 1e-3 are numbers.

    Raises:
        PrecfmError: the file is missing, is no YAML, or has a key twice.
    """
    try:
        return yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        known = ", ".join(sorted(path.stem for path in file.parent.glob("*.yaml")))
        raise PrecfmError(f"{file}: no such file; {file.parent}/ holds {known or 'nothing'}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        what = " ".join(str(error).split())
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
            what = f"line {error.problem_mark.line + 1}: {error.problem}"
        raise PrecfmError(f"{file}: no valid YAML ({what})") from None


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-3 as text; people who write it mean a number. A key that stands twice is a mistake."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"the key '{key.value}' stands there a second time; remove one of the two"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+|[-+]?\.\d+[eE][-+]?\d+"),
    list("-+.0123456789"),
)


def _extended(name: str, folder: Path, seen: tuple[str, ...]) -> dict[str, Any]:
    file = folder / f"{name}.yaml"
    raw = read_yaml(file)
    if not isinstance(raw, dict):
        raise PrecfmError(f"{file}: got {type(raw).__name__}; a mapping of fields is needed")
    raw = dict(raw)
    base = raw.pop("extends", None)
    if base is None:
        return raw
    if base in (*seen, name):
        raise PrecfmError(
            f"{file}: extends: '{base}' extends this file in turn; a chain without a circle is needed"
        )
    return dict(merge(_extended(str(base), folder, (*seen, name)), raw))


def merge(base: Any, change: Any) -> Any:
    """Lay a change over a base: mappings merge, everything else replaces, `None` removes.

    A component under another name replaces the old one whole, since options do not carry over.
    """
    if not (isinstance(base, Mapping) and isinstance(change, Mapping)):
        return change
    if "name" in base and "name" in change and base["name"] != change["name"]:
        return dict(change)
    merged = {**base, **{key: merge(base.get(key), value) for key, value in change.items()}}
    return {key: value for key, value in merged.items() if value is not None}


def expand(raw: dict[str, Any]) -> dict[str, Any]:
    """Give every method its complete flow, and unfold sweeps into methods of their own.

    A method with `sweep: {preconditioner.exponent: [0, 0.5]}` becomes `<method>-exponent=0` and
    `<method>-exponent=0.5`; several fields give all combinations.
    """
    raw = dict(raw)
    shared = raw.pop("flow", {})
    methods: dict[str, Any] = {}
    for name, method in _mapping("methods", raw.get("methods") or {}).items():
        if "preconditioner" not in _mapping(f"methods.{name}", method):
            raise PrecfmError(f"methods.{name}.preconditioner: missing; a mapping with a 'name' is needed")
        for label, variant in _unfold(str(name), dict(method)):
            methods[label] = {**variant, "flow": merge(shared, variant.get("flow", {}))}
    return {**raw, "methods": methods} if methods else raw


def _mapping(field: str, value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise PrecfmError(f"{field}: got {value!r}; a mapping is needed")
    return value


def _unfold(name: str, method: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    sweep = _mapping(f"methods.{name}.sweep", method.pop("sweep", {}))
    for field, values in sweep.items():
        if not isinstance(field, str) or not isinstance(values, list) or not values:
            raise PrecfmError(
                f"methods.{name}.sweep.{field}: got {values!r}; the name of a field and a list of its values are needed"
            )
    variants = []
    for values in itertools.product(*sweep.values()):
        label, variant = name, method
        for field, value in zip(sweep, values, strict=True):
            label += f"-{field.rsplit('.', 1)[-1]}={value}"
            nested: Any = value
            for part in reversed(field.split(".")):
                nested = {part: nested}
            variant = merge(variant, nested)
        variants.append((label, variant))
    return variants


def plain(value: Any, *, for_key: bool = False) -> Any:
    """A part of a configuration as plain data.

    Args:
        value: a schema object, component, mapping, sequence or scalar.
        for_key: leave out what is at its neutral value (see `precfm.options.Neutral`).
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
