"""Preconditioners within another one, as its options name them: the stages of a composition."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from precfm.core.errors import PrecfmError
from precfm.core.registry import load_class
from precfm.preconditioners.base import Preconditioner


def _named(entries: tuple[Any, ...]) -> tuple[Any, ...]:
    for position, entry in enumerate(entries):
        name = entry.get("name") if isinstance(entry, dict) else entry
        if not isinstance(name, str | Preconditioner):
            raise PrecfmError(
                f"entry {position}: got {entry!r}; a preconditioner, its name, or a mapping with the 'name' of one is "
                "needed"
            )
    return entries


NestedMaps = Annotated[tuple[Any, ...], Field(min_length=1, strict=False), AfterValidator(_named)]
"""Preconditioners, fitted or not; or registered names, alone or in a mapping with options."""

_ONLY_IMPORTED: ContextVar[bool] = ContextVar("only imported classes", default=False)


@contextmanager
def only_imported() -> Iterator[None]:
    """Within, classes of other packages are found only if imported already, as for names out of files."""
    token = _ONLY_IMPORTED.set(True)
    try:
        yield
    finally:
        _ONLY_IMPORTED.reset(token)


def nested_map(field: str, position: int, entry: Any) -> Preconditioner:
    """The preconditioner that one entry of an option is, or an unfitted one that it stands for.

    Args:
        field: the option, for messages.
        position: the entry's place in it, for messages.
        entry: as in `NestedMaps`.

    Raises:
        PrecfmError: the name or an option does not exist, or an option is out of its range.
    """
    if isinstance(entry, Preconditioner):
        return entry
    name, options = (entry, {}) if isinstance(entry, str) else (entry["name"], dict(entry))
    options.pop("name", None)
    try:
        # Its type stands for any subclass, whose options are checked where it is built.
        cls: Any = load_class("preconditioners", name, Preconditioner, imported=_ONLY_IMPORTED.get())
        made: Preconditioner = cls(**options)
    except (TypeError, PrecfmError) as error:
        raise PrecfmError(f"{field}.{position}: {error}") from None
    return made
