"""How a command line is run: whatever its user does wrong is one sentence."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from precfm.core.errors import PrecfmError, one_sentence


def run(app: typer.Typer, name: str) -> None:
    """Run a command line; a user's mistake is one sentence on standard error and an exit code above 0.

    Args:
        app: the commands.
        name: of the program, as its user calls it.
    """
    with one_sentence():
        try:
            code = app(prog_name=name, standalone_mode=False)
        except Exception as error:  # of the parser, whose classes are Typer's own or Click's, by version
            if not hasattr(error, "format_message"):
                raise
            context = getattr(error, "ctx", None)
            if said := error.format_message().rstrip("."):  # empty where help was printed, without arguments
                remedy = f"`{context.command_path if context else name} --help` says what is right"
                typer.echo(f"precfm: {said}; {remedy}", err=True)
            code = getattr(error, "exit_code", 1)
        sys.exit(code or 0)


@contextmanager
def called(**names: object) -> Iterator[None]:
    """Say what the library refuses by the names that the user of a command has given.

    Args:
        names: for an argument of the library, the option or the file that stands for it.
    """
    try:
        yield
    except PrecfmError as error:
        argument, colon, rest = str(error).partition(":")
        if not colon or argument not in names:
            raise
        raise type(error)(f"{names[argument]}:{rest}") from error
