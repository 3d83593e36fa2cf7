"""Arguments that several commands take."""

from typing import Annotated

import typer

LARGEST_SEED = 2**63 - 1  # as of precfm.core.options.Seed, which needs pydantic

Seed = Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of everything random.")]
ExperimentName = Annotated[str, typer.Argument(help="An experiment: the name of a file in config/.")]
