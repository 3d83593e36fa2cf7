"""Progress: a bar on a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from tqdm import tqdm

LINE_EVERY_SECONDS = 10.0


class Progress(Protocol):
    """What a long loop tells the one who waits for it."""

    def update(self, n: int = 1) -> object:
        """Say that `n` more steps are done."""

    def set(self, **values: Any) -> None:
        """Show current values, for example the loss."""


class _Bar:
    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def update(self, n: int = 1) -> object:
        return self._bar.update(n)

    def set(self, **values: Any) -> None:
        self._bar.set_postfix(values, refresh=False)


class _Lines:
    def __init__(self, total: int, description: str, initial: int) -> None:
        self._total, self._description, self._done = total, description, initial
        self._values: dict[str, Any] = {}
        self._last = time.monotonic()

    def update(self, n: int = 1) -> None:
        self._done += n
        now = time.monotonic()
        if now - self._last >= LINE_EVERY_SECONDS or self._done >= self._total:
            self._last = now
            values = " ".join(f"{name}={value}" for name, value in self._values.items())
            print(
                f"{self._description}: {self._done}/{self._total} {values}".rstrip(),
                file=sys.stderr,
                flush=True,
            )

    def set(self, **values: Any) -> None:
        self._values = values


@contextmanager
def progress_bar(total: int, description: str, initial: int = 0) -> Iterator[Progress]:
    """Show the progress of a loop on standard error.

    Args:
        total: number of steps of the whole loop.
        description: what is being done.
        initial: steps already done, for example before a resume.

    Yields:
        An object with `update(n)` and `set(**values)`.
    """
    if sys.stderr.isatty():
        with tqdm(total=total, initial=initial, desc=description, leave=False) as bar:
            yield _Bar(bar)
    else:
        yield _Lines(total, description, initial)
