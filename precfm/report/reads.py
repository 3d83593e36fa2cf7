"""What a table, a figure or a claim's statistics are made of, declared beside the function: frames, all that it gets,
and which of their rows are behind a row of a table."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, TypeAlias, TypeVar

import pandas as pd

from precfm.core.errors import PrecfmError
from precfm.report.frames import Frames, sources_of

Function = TypeVar("Function", bound=Callable[..., Any])

Row: TypeAlias = Mapping[str, Any]
"""A row of a table, or what rows of frames have in common, by column."""

Behind: TypeAlias = Callable[[Row, str], Iterable[Row]]
"""From a row of a table and a column of it (empty: the whole row) to what rows of frames say that are behind it.

Of the columns those count that identify artifacts (`precfm.report.frames.FrameSource.keys`); one that is absent or
empty says nothing, so an empty mapping stands for all rows."""


class LeftOutError(Exception):
    """An experiment has nothing for this table or figure; the message is the reason."""


def own_row(row: Row, column: str) -> Iterable[Row]:
    """Of the same data set, method and seed as far as the row says: what most numbers are made of."""
    return [row]


def with_baseline(row: Row, column: str) -> Iterable[Row]:
    """The row's own, and the same of the baseline that it names."""
    return [row, {**row, "method": row["baseline"]}]


def reads(
    *needed: str, optional: tuple[str, ...] = (), behind: Behind = own_row
) -> Callable[[Function], Function]:
    """Declare the frames that a function reads, as its attribute `reads`; nothing else is handed to it.

    Lineage rests on it: a number of a table comes from the artifacts behind these frames and from no others.

    Args:
        needed: names of `precfm.report.frames.FRAMES`, or `<experiment>.<table>` for a table of a controlled
            experiment; without them the function has nothing to show.
        optional: frames that are read where an experiment has them.
        behind: of a table, which rows of the frames a number is made of; made from these alone, the table holds the
            same number.

    Example:
        >>> @reads("budgets", optional=("records",))
        ... def build(frames): ...
        >>> build.reads, build.needs
        (('budgets', 'records'), ('budgets',))
    """

    def declare(function: Function) -> Function:
        vars(function).update(reads=(*needed, *optional), needs=needed, behind=behind)
        return function

    return declare


def declared(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of the frames that a function reads.

    Raises:
        PrecfmError: it does not say.
    """
    found = getattr(function, "reads", None)
    if found is None:
        name = f"{function.__module__}:{function.__qualname__}"
        raise PrecfmError(
            f"{name} does not say which frames it reads; decorate it with precfm.report.reads.reads"
        )
    names: tuple[str, ...] = found
    return names


class Declared(Mapping[str, Any]):
    """The declared ones of an experiment's frames; asking for any other is an error, not an absent frame."""

    def __init__(self, frames: Mapping[str, Any], names: Collection[str]) -> None:
        """Keep the frames of these names.

        Args:
            frames: all frames of an experiment by name; those that it cannot give are absent.
            names: what is declared.
        """
        self._names = frozenset(names)
        self._frames = {name: frame for name, frame in frames.items() if name in self._names}

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            known = ", ".join(sorted(self._names)) or "none"
            raise PrecfmError(f"the frame '{name}' is read but not declared; declared are {known}")
        return self._frames[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._frames)

    def __len__(self) -> int:
        return len(self._frames)


def handed(function: Callable[..., Any], frames: Mapping[str, Any]) -> Declared:
    """Those of an experiment's frames that a function declares: what it is to be called with."""
    return Declared(frames, declared(function))


def wanted(functions: Mapping[str, Callable[..., Any]], available: Collection[str]) -> list[str]:
    """The tables or figures that an experiment can fill: those with all needed frames and at least one in all.

    Args:
        functions: by registered name.
        available: from `precfm.report.frames.available`: names of frames, and `<experiment>.*` for all tables of a
            controlled experiment.

    Returns:
        Names, sorted.

    Raises:
        PrecfmError: a function does not say what it reads.
    """

    def can_exist(frame: str) -> bool:
        return frame in available or f"{frame.partition('.')[0]}.*" in available

    found = []
    for name, function in functions.items():
        needed: tuple[str, ...] = getattr(function, "needs", ())
        if any(map(can_exist, declared(function))) and all(map(can_exist, needed)):
            found.append(name)
    return sorted(found)


def frame(frames: Frames, name: str) -> pd.DataFrame:
    """The frame of that name, with its columns checked; an absent one is an empty one.

    Raises:
        PrecfmError: a column is missing.
    """
    columns, found = sources_of(name).columns, frames.get(name)
    if found is None or found.empty:
        return pd.DataFrame({column: pd.Series(dtype="object") for column in columns})
    missing = [column for column in columns if column not in found.columns]
    if missing:
        raise PrecfmError(f"{name}: column '{missing[0]}' is missing; the frame needs {', '.join(columns)}")
    return found


def needed(frames: Frames, name: str) -> pd.DataFrame:
    """The frame of that name, for what makes no sense without it.

    Raises:
        LeftOutError: the frame is absent or empty.
        PrecfmError: a column is missing.
    """
    found = frame(frames, name)
    if found.empty:
        raise LeftOutError(f"this experiment has no rows of {name.replace('_', ' ')}")
    return found
