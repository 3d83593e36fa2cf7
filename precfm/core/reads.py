"""What a table, a figure or a claim's statistic is made of: the frames that it reads, declared beside its code.

The audit follows the declaration from a published number to the artifacts that it was made from.
"""

from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def reads(*frames: str) -> Callable[[Function], Function]:
    """Declare the data frames that a function reads.

    Args:
        frames: names of data frames, as `records`, or `<experiment>.<table>` for those of the theory.

    Returns:
        A decorator; it leaves the function as it is, and a decorator that wraps it keeps the declaration.

    Example:
        >>> @reads("records", "linear_grid.curves")
        ... def build(frames): ...
        >>> frames_read_by(build)
        ('records', 'linear_grid.curves')
    """

    def declare(function: Function) -> Function:
        function.reads = frames  # type: ignore[attr-defined]
        return function

    return declare


def frames_read_by(function: Callable[..., Any]) -> tuple[str, ...]:
    """The frames that a function declares with `reads`.

    Raises:
        AttributeError: it declares none.
    """
    declared: tuple[str, ...] = function.reads  # type: ignore[attr-defined]
    return declared
