"""Arguments that several commands take."""

from typing import Annotated

import typer

ExperimentName = Annotated[str, typer.Argument(help="An experiment: the name of a file in config/.")]
