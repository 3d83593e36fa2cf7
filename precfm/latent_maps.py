"""Maps and flows on files of latents: what `precfm fit`, `transform`, `inverse` and `sample` do, in bounded memory."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from precfm.core.components import component
from precfm.core.errors import PrecfmError
from precfm.core.seeds import derived_seed
from precfm.latent_files import Latents, read_labels, replacing, write_latents
from precfm.preconditioned_flow import PreconditionedFlow
from precfm.preconditioners.base import Preconditioner
from precfm.preconditioners.saving import load, save

SAMPLES = 10_000  # at a time; the first so many are those of `PreconditionedFlow.sample`


def fit_map(
    latents: Latents, name: str, options: Sequence[str], out: Path, *, seed: int = 0, force: bool = False
) -> Preconditioner:
    """Fit a map to latents and write it into one file.

    Maps with a closed form read the batches one by one; learned ones hold all rows.

    Args:
        latents: with labels, where the map needs them.
        name: of the map in the registry.
        options: as `NAME=VALUE`.
        out: the file; it ends in .safetensors.
        seed: of everything random in the fit.
        force: replace what is there.

    Returns:
        The fitted map.

    Raises:
        PrecfmError: the name or an option is wrong, `out` is taken or has another ending, or data or labels do not fit.
    """
    if out.suffix != ".safetensors":
        raise PrecfmError(f"{out}: ends in '{out.suffix}'; '.safetensors' is needed")
    spec: dict[str, Any] = {"name": name}
    for text in options:
        option, equals, value = text.partition("=")
        if not equals or not option:
            raise PrecfmError(f"option: got '{text}'; NAME=VALUE is needed, such as exponent=0.25")
        try:
            spec[option] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise PrecfmError(f"option: got '{text}', whose value is no YAML") from None
    preconditioner: Preconditioner = component("preconditioners", spec, Preconditioner)
    if preconditioner.needs_labels and latents.labels is None:
        raise PrecfmError(
            f"{latents.path}: has no labels, on which {name} depends; --labels FILE, a tensor 'labels' beside the "
            "latents, or a map without labels is needed"
        )
    with replacing(out, force=force) as part:
        preconditioner.fit(latents.batches(), seed=seed)
        save(preconditioner, part)
    return preconditioner


def map_file(
    preconditioner: Path, latents: Latents, out: Path, *, back: bool = False, force: bool = False
) -> None:
    """Map latents by a saved map, or back, and write them; see `precfm.latent_files.write_latents`.

    Raises:
        PrecfmError: the map cannot be loaded or is of other latents, labels are missing or new, or `out` is taken.
    """
    fitted = load(preconditioner)
    if latents.shape[1:] != fitted.event_shape:
        raise PrecfmError(
            f"{latents.path}: has rows of shape {latents.shape[1:]}; {preconditioner} needs {fitted.event_shape}"
        )
    change = fitted.inverse if back else fitted.forward

    def mapped() -> Iterator[tuple[Tensor, Tensor | None]]:
        for rows, labels in latents.batches():
            yield change(rows, labels), labels

    write_latents(out, mapped(), len(latents), force=force)


def sample_file(
    folder: Path,
    count: int,
    out: Path,
    *,
    labels: Path | None = None,
    steps: int = 50,
    seed: int = 0,
    force: bool = False,
) -> None:
    """Sample a saved flow and write the samples, with the labels that were asked for in a folder of shards.

    Args:
        folder: what `PreconditionedFlow.save` wrote.
        count: how many.
        out: a name as `precfm.latent_files.write_latents` takes it.
        labels: file of `count` classes; None leaves them to the flow, in the proportions of its training data.
        steps: of the solver.
        seed: of the noise.
        force: replace what is there.

    Raises:
        PrecfmError: the flow cannot be loaded, the labels do not fit, or `out` is taken.
    """
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
                yield flow.sample(size, here, seed=chunk, steps=steps), here

    write_latents(out, drawn(), count, force=force)
