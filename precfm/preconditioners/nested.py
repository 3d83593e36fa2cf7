"""Preconditioners within another one, as its options name them: the stages of a composition."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from precfm.core.errors import PrecfmError
from precfm.core.registry import load_class
from precfm.preconditioners.base import Preconditioner


def _named(entries: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
    for position, entry in enumerate(entries):
        if not isinstance(entry.get("name"), str):
            raise PrecfmError(f"entry {position}: got {entry!r}; the 'name' of a preconditioner is needed")
    return entries


NestedMaps = Annotated[tuple[dict[str, Any], ...], Field(min_length=1, strict=False), AfterValidator(_named)]
"""Entries that each have the registered `name` of a preconditioner and its options."""

_ONLY_IMPORTED: ContextVar[bool] = ContextVar("only imported classes", default=False)


@contextmanager
def only_imported() -> Iterator[None]:
    """Within, classes of other packages are found only if imported already, as for names out of files."""
    token = _ONLY_IMPORTED.set(True)
    try:
        yield
    finally:
        _ONLY_IMPORTED.reset(token)


def nested_map(field: str, position: int, entry: dict[str, Any]) -> Preconditioner:
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
        # Its type stands for any subclass, whose options are checked where it is built.
        cls: Any = load_class("preconditioners", entry["name"], Preconditioner, imported=_ONLY_IMPORTED.get())
        made: Preconditioner = cls(**options)
    except (TypeError, PrecfmError) as error:
        raise PrecfmError(f"{field}.{position}: {error}") from None
    return made
