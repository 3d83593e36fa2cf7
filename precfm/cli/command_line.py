"""The command line: `precfm VERB`. Reads arguments, calls the library, prints; nothing else."""

import sys
from typing import Annotated

import typer

from precfm.cli.checking import app as checking
from precfm.cli.latents import app as latents
from precfm.cli.making import app as making
from precfm.cli.recording import app as recording
from precfm.cli.tools import app as tools
from precfm.core.errors import one_sentence

app = typer.Typer(
    name="precfm",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Preconditioned flow matching: pipeline and library.",
)
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
    """Run the command line; a user's mistake is one sentence on standard error and exit code 1."""
    with one_sentence():
        app(prog_name="precfm")
