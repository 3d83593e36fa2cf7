"""How commands that run long are stopped."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def stoppable(said: str) -> Iterator[None]:
    """Let SIGINT and SIGTERM end a block cleanly, and the program with a sentence and exit code 130.

    Compiled code that a signal interrupts may raise an error of its own instead of KeyboardInterrupt, so that any
    error after a signal is taken for the stop. A signal that is ignored, as in the background, stays so.

    Args:
        said: what is told when it is stopped.

    Raises:
        typer.Exit: a signal came.
    """
    asked: list[int] = []

    def stop(number: int, _: object) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, stop)
        yield
    except (Exception, KeyboardInterrupt):
        if not asked:
            raise
        typer.echo(f"precfm: {said}", err=True)
        raise typer.Exit(128 + signal.SIGINT) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
