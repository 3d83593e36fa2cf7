"""Samples of a saved flow into a file: what `precfm sample` does, in bounded memory."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.seeds import derived_seed
from precfm.latents.reading import read_labels
from precfm.latents.writing import write_latents
from precfm.preconditioned_flow import PreconditionedFlow

SAMPLES = 10_000  # at a time; the first so many are those of `PreconditionedFlow.sample`


def sample_file(
    folder: Path,
    count: int,
    out: Path,
    *,
    labels: Path | None = None,
    steps: int = 50,
    guidance: float = 1.0,
    seed: int = 0,
    force: bool = False,
) -> None:
    """Sample a saved flow and write the samples, with the labels that were asked for in a folder of shards.

    Args:
        folder: what `PreconditionedFlow.save` wrote.
        count: how many.
        out: a name as `precfm.latents.write_latents` takes it.
        labels: file of `count` classes; None leaves them to the flow, in the proportions of its training data.
        steps: of the solver.
        guidance: weight of classifier-free guidance; 1 is none.
        seed: of the noise.
        force: replace what is there.

    Raises:
        PrecfmError: the flow cannot be loaded, the labels do not fit, or `out` is taken.
    """
    if folder.is_file():
        raise PrecfmError(f"{folder}: is a file; the folder that a flow was saved to (flow.save) is needed")
    flow = PreconditionedFlow.load(folder)
    asked = None if labels is None else read_labels(labels)
    if asked is not None and len(asked) != count:
        raise PrecfmError(f"{labels}: holds {len(asked)} labels; {count} are needed, one per sample")

    def drawn() -> Iterator[tuple[Tensor, Tensor | None]]:
        for start in range(0, count, SAMPLES):
            size = min(SAMPLES, count - start)
            here = None if asked is None else asked[start : start + size]
            chunk = seed if start == 0 else derived_seed(seed, "samples", start)
            with torch.no_grad():
                yield flow.sample(size, here, seed=chunk, steps=steps, guidance=guidance), here

    write_latents(out, drawn(), count, force=force)
