"""Registered classes with their options, as a configuration names them.

Options are judged by the class's own signature, and where the data fill nothing in, an object is made once, so that
rules across options speak before the first job, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import BaseModel

from precfm.core.errors import PrecfmError
from precfm.core.options import Neutral, Place, Strict, options_of, parameters, shortened, validated
from precfm.core.registry import base_of, import_string, load, load_class

NESTED = ("stages", "candidates")  # options that hold components of the same group
# Arguments that the pipeline fills in from the data or the plan, by the registry's group: never configured.
FILLED_IN = {
    "models": frozenset({"shape", "num_classes"}),  # as in precfm.flows.models.base, which needs torch
    "wrappers": frozenset({"shape", "num_classes", "network", "path"}),
    "encoders": frozenset({"channels", "image_size"}),
    "extractors": frozenset({"channels", "image_size", "num_classes"}),
    "theory": frozenset({"seed"}),
}

# Those of them that a class must take, where that is not all.
NEEDED = {"wrappers": frozenset({"network", "path"})}


@dataclass(frozen=True)
class Component:
    """A registered class together with its options.

    Attributes:
        group: the registry's group, such as `preconditioners`.
        name: the registered name.
        options: the validated options, defaults included.
    """

    group: str
    name: str
    options: Strict

    @property
    def targets(self) -> list[str]:
        """Import strings of the class, and of the components inside its options."""
        inside = [entry for option in NESTED for entry in getattr(self.options, option, None) or ()]
        own = import_string(self.group, self.name)
        return [own, *(target for entry in inside for target in component(self.group, entry).targets)]

    def constant(self, name: str) -> Any:
        """An attribute of the class; False if it has none of that name."""
        return getattr(load(self.group, self.name), name, False)

    def made(self) -> Any:
        """An object with these options; only of a group in which the data fill nothing in."""
        options = {name: getattr(self.options, name) for name in type(self.options).model_fields}
        return load(self.group, self.name)(**options)


def component(group: str, value: Any) -> Component:
    """A component from its `name` and options, as a configuration gives them.

    Raises:
        PrecfmError: the name or an option does not exist, or an option is not what the class takes.
    """
    if isinstance(value, Component):
        return value
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise PrecfmError(
            f"got {shortened(value)}; a mapping with a 'name' from the registry's {group} is needed"
        )
    options = {key: item for key, item in value.items() if key != "name"}
    base, filled_in = base_of(group), FILLED_IN.get(group, frozenset())
    name = value["name"]
    target: Any = load(group, name) if base is object else load_class(group, name, base)
    if lacking := sorted(NEEDED.get(group, filled_in) - parameters(target).keys()):
        raise PrecfmError(f"'{name}' does not take {', '.join(lacking)}, which the data fill in")
    schema = options_of(target, filled_in)
    for field in set(NESTED) & set(schema.model_fields):
        entries = options.get(field, schema.model_fields[field].default)
        if isinstance(entries, list | tuple):
            options[field] = [plain(_nested(group, field, i, entry)) for i, entry in enumerate(entries)]
    found = Component(group, name, validated(schema, options))
    if not filled_in:  # its rules across options
        try:
            found.made()
        except TypeError as error:  # as of a class that is still abstract
            raise PrecfmError(f"'{name}' cannot be made ({error})") from None
    return found


def _nested(group: str, field: str, index: int, value: Any) -> Component:
    try:
        return component(group, value)
    except PrecfmError as error:
        raise PrecfmError(f"{field}.{index}: {error}") from None


def plain(value: Any, *, for_key: bool = False, places: bool = True) -> Any:
    """A part of a configuration as plain data.

    Args:
        value: a schema object, component, mapping, sequence or scalar.
        for_key: leave out what is at its neutral value (see `precfm.core.options.Neutral`), and places.
        places: False leaves out options that are places alone (see `precfm.core.options.Place`).
    """
    places = places and not for_key
    inside = partial(plain, for_key=for_key, places=places)
    if isinstance(value, Component):
        return {"name": value.name, **inside(value.options)}
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        kept = {
            name: getattr(value, name)
            for name, field in fields.items()
            if not (for_key and Neutral(getattr(value, name)) in field.metadata)
            and (places or Place() not in field.metadata)
        }
        return inside(kept)
    if isinstance(value, Mapping):
        return {str(key): inside(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [inside(item) for item in value]
    return value
