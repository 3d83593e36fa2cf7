"""What a file or folder that is given as latents is instead, and what a shape that is laid out otherwise looks like."""

from collections.abc import Collection
from pathlib import Path

from precfm.core.errors import PrecfmError

MAP_HEADER = "preconditioner"  # key in the header of a fitted map's file
# Files beside the tensors in folders that this library writes.
KINDS = {"preconditioner.json": "a fitted map", "flow.json": "a trained flow"}
# How torch's layers call their parameters and statistics.
PARAMETERS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
MOST_CHANNELS = 16  # of the last axis, for it to be taken for channels: autoencoders' latents have 4, 8, 16
MANY_COLUMNS = (
    16  # times the rows: more than data with too few rows often have, fewer than data turned round have
)


def require_no_other_kind(path: Path) -> None:
    """Refuse a folder that is known to hold something else.

    Raises:
        PrecfmError: it holds a map or a flow.
    """
    for name, kind in KINDS.items():
        if (path / name).is_file():
            raise PrecfmError(f"{path}: holds {kind}, as {name} says; latents, rows (n, *dim), are needed")


def map_in_place_of_latents(file: Path) -> PrecfmError:
    """The refusal of a fitted map's file."""
    return PrecfmError(
        f"{file}: holds a fitted map, which stands first in `precfm transform` and `inverse`; latents or features, "
        "rows (n, *dim), are needed here"
    )


def are_weights(names: Collection[str]) -> bool:
    """Whether tensors of these names look like the weights of a network."""
    return 2 * sum(name.rpartition(".")[2] in PARAMETERS for name in names) > len(names)


def layout_notes(shape: tuple[int, ...]) -> tuple[str, ...]:
    """What to look at where the shape of latents is that of another layout; no data is asked.

    Args:
        shape: of all latents, (rows, *dim).

    Example:
        >>> layout_notes((5000, 4, 32, 32)), layout_notes((300, 4096))
        ((), ())
        >>> "channels last" in layout_notes((5000, 32, 32, 4))[0]
        True
    """
    rows, *dim = shape
    if len(dim) == 3 and dim[0] == dim[1] > dim[2] and dim[2] <= MOST_CHANNELS:
        height, width, channels = dim
        return (
            f"rows of {height} x {width} x {channels} look like channels last, but are read as {height} channels of "
            f"{width} x {channels}; if so, --channels-last (channels_last= of open_latents, or "
            "x.permute(0, 3, 1, 2)) puts them first",
        )
    if len(dim) == 1 and dim[0] >= MANY_COLUMNS * rows:
        return (
            f"{rows:,} rows of {dim[0]:,} features: are these {dim[0]:,} rows of {rows:,} features, the wrong way "
            "round? If so, transpose them (x.T)",
        )
    return ()
