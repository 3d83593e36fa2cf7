"""Maps on files of latents: what `precfm fit`, `transform` and `inverse` do, batch by batch."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import yaml
from torch import Tensor

from precfm.core.components import component
from precfm.core.errors import PrecfmError
from precfm.core.options import LISTED
from precfm.latents.reading import Latents
from precfm.latents.stored_tensors import SUFFIXES, stored_tensors
from precfm.latents.writing import replacing, write_latents
from precfm.preconditioners.base import Preconditioner
from precfm.preconditioners.saving import load, save


def fit_map(
    latents: Latents,
    spec: str | Mapping[str, Any],
    options: Sequence[str],
    out: Path,
    *,
    seed: int = 0,
    force: bool = False,
) -> Preconditioner:
    """Fit a map to latents and write it into one file.

    Maps with a closed form read the batches one by one; learned ones hold all rows.

    Args:
        latents: with labels, where the map needs them.
        spec: the map's registered name, or a mapping of that and options.
        options: as `NAME=VALUE`; they come before those of `spec`.
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
    asked: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
    for text in options:
        option, equals, value = text.partition("=")
        if option == "name":
            raise PrecfmError(f"option: got '{text}'; --map takes the name")
        if not equals or not option:
            raise PrecfmError(f"option: got '{text}'; NAME=VALUE is needed, such as exponent=0.25")
        try:
            asked[option] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise PrecfmError(f"option: got '{text}', whose value is no YAML") from None
    preconditioner: Preconditioner = component("preconditioners", asked, Preconditioner)
    if preconditioner.needs_metric:
        raise PrecfmError(
            f"preconditioners: got '{asked['name']}', which needs a decoder's metric; it is fitted in Python, by "
            "fit(x, metric=...)"
        )
    if preconditioner.needs_labels and latents.labels is None:
        raise PrecfmError(
            f"{latents.path}: has no labels, on which {asked['name']} depends; --labels FILE, a tensor 'labels' beside "
            "the latents, or a map without labels is needed"
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
    fitted = _loaded(preconditioner)
    if latents.shape[1:] != fitted.event_shape:
        raise PrecfmError(
            f"{latents.path}: has rows of shape {latents.shape[1:]}; {preconditioner} needs {fitted.event_shape}"
        )
    change = fitted.inverse if back else fitted.forward

    def mapped() -> Iterator[tuple[Tensor, Tensor | None]]:
        for rows, labels in latents.batches():
            yield change(rows, labels), labels

    write_latents(out, mapped(), len(latents), force=force)


def _loaded(path: Path) -> Preconditioner:
    """The saved map; a file of latents or a flow in its place is said to be one."""
    if (path / "flow.json").is_file():
        raise PrecfmError(f"{path}: holds a trained flow, of which `precfm sample` draws; a map is needed")
    if path.is_file() and path.suffix not in SUFFIXES:
        raise PrecfmError(
            f"{path}: ends in '{path.suffix}'; a map, FILE.safetensors of `precfm fit`, is needed"
        )
    if path.is_file() and path.suffix in SUFFIXES:
        try:
            held = ", ".join(map(str, stored_tensors(path).values()))
        except PrecfmError:  # damaged, or a map: `load` says which
            held = ""
        if held:
            held = shorten(held, LISTED // 2, placeholder=" ...")
            raise PrecfmError(
                f"{path}: holds no map but {held}; the order is MAP LATENTS OUT, and MAP is a file that `precfm fit` "
                "or `save` wrote"
            )
    return load(path)
