"""Components, given by name, by name with options, or as objects; and as data with all their options."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from precfm.core.errors import PrecfmError
from precfm.core.options import options_in, options_of, validated
from precfm.core.registry import build, load_class, name_of


def spec_of(
    group: str,
    value: object,
    kind: type[Any],
    *,
    without: frozenset[str] = frozenset(),
    imported: bool = False,
) -> dict[str, Any]:
    """A component as a name with all its options, those at their defaults included, checked before it is built.

    Args:
        group: of the registry, such as `models`.
        value: the name of a registered class, a mapping of its `name` and options, or an object.
        kind: the class that it must be of.
        without: arguments that are filled in later, and are no options.
        imported: as in `precfm.core.registry.load`, for names out of files.

    Returns:
        `name` and options, for `precfm.core.registry.build`.

    Raises:
        PrecfmError: the name is unknown or of another kind, or an option does not exist or is out of its range.

    Example:
        >>> from precfm.preconditioners.base import Preconditioner
        >>> spec_of("preconditioners", {"name": "whitening", "exponent": 0.25}, Preconditioner)
        {'name': 'whitening', 'exponent': 0.25, 'shrinkage': 'auto', 'rows': None}
    """
    if isinstance(value, kind):
        own: Any = value.options if isinstance(value, nn.Module) else options_in(value, without)
        return {"name": name_of(group, type(value)), **own}
    if isinstance(value, type):
        raise PrecfmError(f"{group}: got the class {value.__name__}; an object of it is needed")
    given = {"name": value} if isinstance(value, str) else value
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        raise PrecfmError(
            f"{group}: got {value!r}; a registered name, a mapping with a 'name', or a {kind.__name__} is needed"
        )
    target: Any = load_class(group, given["name"], kind, imported=imported)
    options = {name: option for name, option in given.items() if name != "name"}
    try:
        checked = validated(options_of(target, without), options)
    except PrecfmError as error:
        raise PrecfmError(f"{group}: '{given['name']}': {error}") from None
    return {"name": name_of(group, target), **checked.model_dump()}


def component(group: str, value: object, kind: type[Any]) -> Any:
    """The object that a name or a name with options stands for, or the object itself; see `spec_of`."""
    return value if isinstance(value, kind) else build(group, spec_of(group, value, kind))
