"""The command line: `precfm VERB`. Reads arguments, calls the library, prints; nothing else."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from precfm.cli.checking import MISUSES
from precfm.cli.checking import app as checking
from precfm.cli.latents import app as latents
from precfm.cli.making import app as making
from precfm.cli.recording import app as recording
from precfm.cli.running import run
from precfm.cli.tools import app as tools
from precfm.cli.tools import data_app
from precfm.core.errors import PrecfmError

app = typer.Typer(
    name="precfm",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Preconditioned flow matching: pipeline and library.",
)


def _in_checkout(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command that is refused outside of a checkout, with the exit code of its misuse."""

    @wraps(command)
    def checked(*args: Any, **kwargs: Any) -> Any:
        from precfm.pipeline.experiments import require_checkout

        try:
            require_checkout()
        except PrecfmError as error:
            typer.echo(f"precfm: {error}", err=True)
            raise typer.Exit(MISUSES.get(command, 1)) from None
        return command(*args, **kwargs)

    return checked


for commands in (making, checking, recording, data_app):
    for command in commands.registered_commands:
        assert command.callback is not None
        command.callback = _in_checkout(command.callback)
for commands in (latents, making, checking, recording, tools):
    app.add_typer(commands)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"precfm {sys.modules['precfm'].__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """What may stand before a verb."""


def main() -> None:
    """Run the command line; a user's mistake is one sentence on standard error and an exit code above 0."""
    run(app, "precfm")
