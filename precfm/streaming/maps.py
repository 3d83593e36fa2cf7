"""Maps on files of latents: what `precfm fit`, `transform` and `inverse` do, batch by batch."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from precfm.core.components import component
from precfm.core.errors import PrecfmError
from precfm.latents.reading import Latents
from precfm.latents.writing import replacing, write_latents
from precfm.preconditioners.base import Preconditioner
from precfm.preconditioners.saving import load, save


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
    """Map latents by a saved map, or back, and write them; see `precfm.latents.write_latents`.

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
