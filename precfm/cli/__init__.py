"""The command line: `precfm VERB`. Reads arguments, calls the library, prints; nothing else."""

import typer

from precfm.cli import checking, making, recording, tools
from precfm.core.errors import one_sentence

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Preconditioned flow matching: pipeline and library.",
)
for commands in (making, checking, recording, tools):
    app.add_typer(commands.app)


def main() -> None:
    """Run the command line; a user's mistake is one sentence on standard error and exit code 1."""
    with one_sentence():
        app()
