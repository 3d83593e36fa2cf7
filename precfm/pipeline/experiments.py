"""Configuration files: read, extended, expanded into settings and methods, or cut to seconds.

An experiment is one file in `config/`. It may extend another (`extends: quick`): mappings merge, everything else
replaces, `null` removes. `precfm.pipeline.schema` holds the schema that the result must fit. A file with `parts` is a
list of experiments, each of which is made, published and checked by itself.
"""

import itertools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field

from precfm.core.errors import PrecfmError
from precfm.core.options import Strict, shortened, suggestion, validated
from precfm.pipeline.components import plain
from precfm.pipeline.fingerprints import SCRIPTS
from precfm.pipeline.node import PUBLISHED
from precfm.pipeline.schema import PLAIN, Distinct, Experiment, in_words
from precfm.pipeline.stand_ins import SOURCE, with_stand_ins

CONFIG_FOLDER = Path("config")
CLAIMS = CONFIG_FOLDER / "claims.yaml"
PARAMS = Path("params.yaml")  # what the ledger holds
NAME = r"[A-Za-z][A-Za-z0-9_-]{0,63}"  # of an experiment: it becomes part of paths and of commands
TAKEN = (PUBLISHED.name, CLAIMS.stem)  # names of other things
TINY = "-tiny"  # `<experiment>-tiny` is that experiment, cut to seconds


def require_checkout() -> None:
    """Refuse a working folder that is no checkout of the project, and a precfm that was installed without one.

    Raises:
        PrecfmError: there are no configurations, or no scripts beside this package.
    """
    if not CONFIG_FOLDER.is_dir():
        raise PrecfmError(
            f"{Path.cwd()}: no checkout of the project, which this command needs, since there is no folder "
            f"{CONFIG_FOLDER}/; `git clone` the project's repository, and run the command there"
        )
    if not SCRIPTS.is_dir():
        raise PrecfmError(
            f"{SCRIPTS}: no such folder, since this precfm was installed as a library alone; the command needs that of "
            "the checkout: `make install` installs it, `.venv/bin/precfm` runs it"
        )


def check_name(name: str) -> None:
    """Refuse what no experiment can be called.

    Raises:
        PrecfmError: it is no such name; names the value and what is right.
    """
    if not re.fullmatch(NAME, name) or name in TAKEN:
        raise PrecfmError(
            f"experiment: got {shortened(name)}; up to 64 letters, digits, _ and - are needed, a letter first, and not "
            + " or ".join(TAKEN)
        )


def configured(folder: Path = CONFIG_FOLDER) -> tuple[str, ...]:
    """The names of all experiments in a folder, without lists of them."""
    names = sorted(file.stem for file in folder.glob("*.yaml") if file.stem not in TAKEN)
    return tuple(name for name in names if parts_of(name, folder) == (name,))


def parts_of(name: str, folder: Path = CONFIG_FOLDER) -> tuple[str, ...]:
    """The experiments of the list `folder/<name>.yaml`; of an experiment itself, that alone.

    The parts of `<name>-tiny` are those of the list, cut.

    Raises:
        PrecfmError: the file is wrong; one that is missing is left to `load_experiment`.
    """
    check_name(name)
    base = name.removesuffix(TINY)
    for each, cut in ((name, ""), (base, TINY)):
        file = folder / f"{each}.yaml"
        content = read_yaml(file) if file.is_file() else None
        if isinstance(content, dict) and "parts" in content:
            try:
                found = validated(_List, content, in_words)
            except PrecfmError as error:
                raise PrecfmError(f"{file}: {error}") from None
            return tuple(part + cut for part in found.parts)
    return (name,)


class _List(Strict):
    """A file with `parts`."""

    description: str
    parts: Annotated[tuple[str, ...], Field(min_length=1), Distinct]


def load_experiment(name: str, folder: Path = CONFIG_FOLDER) -> Experiment:
    """Read and check the experiment `folder/<name>.yaml`.

    Raises:
        PrecfmError: the file is missing or wrong; the sentence names the file, the field, the value and the remedy.
    """
    if (parts := parts_of(name, folder)) != (name,):
        raise PrecfmError(
            f"experiment: got '{name}', a list of experiments; one of them is needed: {', '.join(parts)}"
        )
    base = name.removesuffix(TINY)
    if base != name and not (folder / f"{name}.yaml").is_file():
        cut = with_stand_ins(tiny(plain(load_experiment(base, folder))))
        return validated(Experiment, cut | {"name": name}, in_words)
    raw = _extended(name, folder, ())
    try:
        experiment = validated(Experiment, {"name": name, **expand(raw)}, in_words)
        for dataset, spec in experiment.datasets.items():
            if spec.source.name == SOURCE:
                raise PrecfmError(
                    f"datasets.{dataset}.source: got '{SOURCE}', which shows under {TINY} that a command works; real "
                    "data are needed"
                )
        return experiment
    except PrecfmError as error:
        raise PrecfmError(f"{folder / f'{name}.yaml'}: {error}") from None


def tiny(value: Any) -> Any:
    """An experiment, as plain data, cut to seconds: every method of every setting, in a few steps on little data.

    One data set, one seed, and one encoder for each setting. Its numbers mean nothing; it shows that the whole
    command works.
    """
    if isinstance(value, Mapping):
        cut = {name: _TINY[name](item) if name in _TINY else tiny(item) for name, item in value.items()}
        if cut.get("checkpoints") and "steps" in cut:
            cut["checkpoints"] = [cut["steps"] // 2, cut["steps"]]
        return cut
    return [tiny(item) for item in value] if isinstance(value, list) else value


def _at_most(limit: int) -> Callable[[Any], Any]:
    return lambda value: value if value is None else min(value, limit)


def _few(count: int) -> Callable[[Any], Any]:
    """The first entries of a list; a number of repetitions at most so many."""
    return lambda value: value[:count] if isinstance(value, list) else min(value, max(count, 2))


def _gentle(kappas: list[float]) -> list[float]:
    """Condition numbers that descent masters in a few steps, as many as before and as different."""
    return [min(kappa, 2.0**position) for position, kappa in enumerate(kappas)]


_TINY: dict[str, Callable[[Any], Any]] = {
    "steps": _at_most(12),
    "flow_steps": _at_most(12),
    "preconditioned_steps": _at_most(8),
    "warmup_steps": _at_most(2),
    "validate_every": _at_most(6),
    "checkpoints": lambda value: [6, 12] if value else [],
    "horizons": lambda value: [6, 12] if value else [],
    "batch_size": _at_most(16),
    "resolution": _at_most(32),
    "width": _at_most(32),
    "depth": _at_most(2),
    "heads": _at_most(2),
    "layers": _at_most(1),
    "compile": lambda value: False,
    "rows": _at_most(100),
    "components": _at_most(16),
    "train": _at_most(600),
    "validation": _at_most(200),
    "heldout": _at_most(300),
    "n": _at_most(100),
    "points": _at_most(4),
    "samples": _at_most(200),
    "data_size": _at_most(500),
    "seeds": _few(1),
    "encoders": lambda value: value[:1] if isinstance(value, list) else tiny(value),
    # The first one; what an encoder says of which it is for is left out.
    "datasets": lambda value: tiny(dict([*value.items()][:1])) if isinstance(value, Mapping) else None,
    "condition_numbers": _gentle,
    "worst_condition_numbers": _gentle,
    "learning_rate": lambda value: value[:1] if isinstance(value, list) else value,
}


def read_yaml(file: Path) -> Any:
    """Read a YAML file; numbers such as 1e-3 are numbers.

    Raises:
        PrecfmError: the file is missing, is no YAML, contains itself, or has a key twice or one that is no text.
    """
    try:
        found = yaml.load(file.read_text(encoding="utf-8"), _Loader)
        json.dumps(found, default=str)  # a ValueError where it contains itself
        return found
    except FileNotFoundError:
        known = sorted(path.stem for path in file.parent.glob("*.yaml") if path.stem not in TAKEN)
        raise PrecfmError(f"{file}: no such file{suggestion(file.stem, known)}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        what = " ".join(str(error).split())
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
            what = f"line {error.problem_mark.line + 1}: {error.problem}"
        raise PrecfmError(f"{file}: cannot be read ({what})") from None


def read_recorded() -> dict[str, list[str]]:
    """The `experiments` and the `sources` that params.yaml lists: those that the ledger holds.

    Raises:
        PrecfmError: the file is missing or damaged.
    """
    listed = read_yaml(PARAMS)
    for field in ("experiments", "sources"):
        names = listed.get(field) if isinstance(listed, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise PrecfmError(f"{PARAMS}: {field}: got {shortened(names)}, but a list of names is needed")
    return {field: listed[field] for field in ("experiments", "sources")}


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-3 as text; people who write it mean a number, and text with 2026-01-01.

    A key that stands twice is a mistake, and so is one that is no text: `no` is read as false.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # the constructor refuses it
            problem = ""
            if key.value in seen:
                problem = "stands there a second time; remove one of the two"
            elif key.tag not in _KEYS:
                problem = "is read as a value that is no text; put it into quotes"
            if problem:
                problem = f"the key {shortened(key.value)} {problem}"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return node


_KEYS = tuple(f"tag:yaml.org,2002:{tag}" for tag in ("str", "int", "merge"))
_Loader.yaml_implicit_resolvers = {
    first: [each for each in resolvers if each[0] != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _extended(name: str, folder: Path, seen: tuple[str, ...]) -> dict[str, Any]:
    file = folder / f"{name}.yaml"
    raw = read_yaml(file)
    if not isinstance(raw, dict):
        what = "is empty" if raw is None else f"got {shortened(raw)}"
        raise PrecfmError(f"{file}: {what}; fields are needed, such as `extends: quick`")
    raw = dict(raw)
    base = raw.pop("extends", None)
    if base is None:
        return raw
    if base in (*seen, name):
        raise PrecfmError(
            f"{file}: extends: '{base}' extends this file in turn; a chain without a circle is needed"
        )
    try:
        check_name(str(base))
        inherited = _extended(str(base), folder, (*seen, name))
    except PrecfmError as error:
        raise PrecfmError(f"{file}: extends: {error}") from None
    return dict(merge(inherited, raw))


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
    """Give every setting its methods, every method its complete flow, and unfold sweeps into methods of their own.

    A method with `sweep: {preconditioner.exponent: [0, 0.5]}` becomes `<method>-exponent=0` and
    `<method>-exponent=0.5`; several fields give all combinations. A setting takes the file's methods, seeds,
    encoders, sampling and flow, but for what it says itself.
    """
    raw = dict(raw)
    shared, methods, sampling = (
        _mapping(name, raw.pop(name, None) or {}) for name in ("flow", "methods", "sampling")
    )
    common = {"seeds": raw.pop("seeds", None), "sampling": sampling}
    settings = _mapping("settings", raw.pop("settings", None) or {PLAIN: {}})
    if not methods and not any(common.values()):  # latents, models, or theory alone
        if shared or settings != {PLAIN: {}}:
            raise PrecfmError("methods: missing; flow and settings need methods, seeds and sampling")
        return raw
    missing = [name for name, value in {**common, "methods": methods}.items() if not value]
    if raw.get("datasets") and missing:
        raise PrecfmError(
            f"datasets: given without {', '.join(sorted(missing))}; a data experiment needs them all"
        )
    if not raw.get("datasets"):
        return raw
    common["encoders"] = list(_mapping("encoders", raw.get("encoders") or {}))
    unfolded = {str(name): _complete(str(name), method, shared) for name, method in methods.items()}
    expanded = {}
    for name, setting in settings.items():
        own = dict(_mapping(f"settings.{name}", setting))
        change, chosen = own.pop("flow", {}), own.pop("methods", None)
        expanded[name] = {
            **common,
            **own,
            "sampling": merge(sampling, own.get("sampling", {})),
            "methods": {
                label: {**method, "flow": merge(method["flow"], change)}
                for definition in _chosen(f"settings.{name}.methods", chosen, unfolded)
                for label, method in unfolded[definition].items()
            },
        }
    return {**raw, "settings": expanded}


def _complete(name: str, method: Any, shared: Any) -> dict[str, Any]:
    """A method and its variants, by name, with complete flows."""
    if "preconditioner" not in _mapping(f"methods.{name}", method):
        raise PrecfmError(f"methods.{name}.preconditioner: missing; a mapping with a 'name' is needed")
    return {
        label: {**variant, "flow": merge(shared, variant.get("flow", {}))}
        for label, variant in _unfold(name, dict(method))
    }


def _chosen(field: str, names: Any, known: Mapping[str, Any]) -> list[str]:
    """The methods that a setting lists; all of them if it lists none."""
    if names is None:
        return list(known)
    wrong = [name for name in names if str(name) not in known] if isinstance(names, list) else [names]
    if wrong:
        there_are = suggestion(str(wrong[0]), known)
        raise PrecfmError(f"{field}: got {shortened(wrong[0])}; a list of methods is needed{there_are}")
    return list(map(str, names))


def _mapping(field: str, value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise PrecfmError(f"{field}: got {shortened(value)}; a mapping is needed")
    return value


def _unfold(name: str, method: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    sweep = _mapping(f"methods.{name}.sweep", method.pop("sweep", {}))
    for field, values in sweep.items():
        texts = list(map(str, values)) if isinstance(values, list) else []
        if not isinstance(field, str) or not texts or len(set(texts)) < len(texts):
            raise PrecfmError(
                f"methods.{name}.sweep.{field}: got {shortened(values)}; the name of a field and a list of its values, "
                "each of them once, are needed"
            )
    variants = []
    for values in itertools.product(*sweep.values()):
        label, variant = name, method
        for field, value in zip(sweep, values, strict=True):
            label += f"-{field.rsplit('.', 1)[-1]}={value}"
            variant = _changed(variant, field.split("."), value)
        variants.append((label, variant))
    return variants


def _changed(base: Any, field: list[str], value: Any) -> Any:
    """`base` with one field changed; a number stands for a place in a list, as in `flow.wrappers.0.skip`."""
    if not field:
        return merge(base, value)
    first, *rest = field
    if isinstance(base, list) and first.isdigit() and int(first) < len(base):
        place = int(first)
        return [*base[:place], _changed(base[place], rest, value), *base[place + 1 :]]
    inside = base.get(first) if isinstance(base, Mapping) else None
    return merge(base, {first: _changed(inside, rest, value)})
