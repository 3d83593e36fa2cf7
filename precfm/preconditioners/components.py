"""Preconditioners that another one is made of, as its options name them: stages, or candidates."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from precfm.core import registry
from precfm.core.errors import PrecfmError
from precfm.preconditioners.base import Preconditioner


def _named(entries: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
    for position, entry in enumerate(entries):
        if not isinstance(entry.get("name"), str):
            raise PrecfmError(f"entry {position}: got {entry!r}; the 'name' of a preconditioner is needed")
        if entry["name"] == "auto":
            raise PrecfmError(f"entry {position}: got 'auto', which chooses by itself; any other is allowed")
    return entries


Components = Annotated[tuple[dict[str, Any], ...], Field(min_length=1, strict=False), AfterValidator(_named)]
"""Entries that each have the registered `name` of a preconditioner and its options."""

_ONLY_IMPORTED: ContextVar[bool] = ContextVar("only imported classes", default=False)


@contextmanager
def only_imported() -> Iterator[None]:
    """Within, components of other packages are found only if imported already, as for names out of files."""
    token = _ONLY_IMPORTED.set(True)
    try:
        yield
    finally:
        _ONLY_IMPORTED.reset(token)


def preconditioner_class(name: str) -> type[Preconditioner]:
    """The class that a name stands for; within `only_imported`, of an imported module.

    Raises:
        PrecfmError: the name is unknown, or stands for something else.
    """
    found = registry.load("preconditioners", name, imported=_ONLY_IMPORTED.get())
    if not (isinstance(found, type) and issubclass(found, Preconditioner)):
        raise PrecfmError(
            f"name: got '{name}', which is no preconditioner; a subclass of Preconditioner is needed"
        )
    return found


def component(field: str, position: int, entry: dict[str, Any]) -> Preconditioner:
    """The unfitted preconditioner that one entry of an option stands for.

    Args:
        field: the option, for messages.
        position: the entry's place in it, for messages.
        entry: the registered `name` of a preconditioner and its options.

    Raises:
        PrecfmError: the name or an option does not exist, or an option is out of its range.
    """
    options = {key: value for key, value in entry.items() if key != "name"}
    try:
        return preconditioner_class(entry["name"])(**options)
    except (TypeError, PrecfmError) as error:
        raise PrecfmError(f"{field}.{position}: {error}") from None
