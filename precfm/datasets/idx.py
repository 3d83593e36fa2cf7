"""The idx file format of MNIST and its relatives, read strictly."""

import gzip
import zlib
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from precfm.core.errors import PrecfmError

LARGEST = 2**30  # bytes; MNIST has 5e7, and a broken header must not ask for all memory
_UNSIGNED_BYTE = 0x08


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an idx file of unsigned bytes; one whose name ends in `.gz` is decompressed on the way.

    The format: two zero bytes, the type of the elements (0x08: unsigned byte), the number of dimensions, each
    dimension as a big-endian 32-bit integer, then the elements in row-major order and nothing more.

    Args:
        path: the file.

    Returns:
        Array of the shape that the file's header states.

    Raises:
        PrecfmError: the file is missing, is no such file, is truncated, or has bytes to spare.

    References:
        LeCun, Cortes, Burges, "The MNIST database of handwritten digits", section "File formats".
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            return _read(path, stream)  # type: ignore[arg-type]
    except FileNotFoundError:
        raise PrecfmError(f"{path}: there is no such file; fetch the data first") from None
    except (OSError, EOFError, zlib.error) as error:
        raise PrecfmError(f"{path}: cannot be read ({error}); delete it and fetch the data again") from None


def _read(path: Path, stream: BinaryIO) -> NDArray[np.uint8]:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] != _UNSIGNED_BYTE or magic[3] == 0:
        raise PrecfmError(
            f"{path}: begins with {magic.hex() or 'nothing'}, an idx file of unsigned bytes with 0000080N"
        )
    header = stream.read(4 * magic[3])
    if len(header) < 4 * magic[3]:
        raise PrecfmError(f"{path}: the header is truncated, {magic[3]} dimensions were announced")
    shape = tuple(int(size) for size in np.frombuffer(header, ">u4"))
    expected = prod(shape)
    if expected > LARGEST:
        raise PrecfmError(
            f"{path}: the header announces {expected} bytes, more than the {LARGEST} that are read"
        )
    content = stream.read(expected + 1)
    if len(content) != expected:
        found = f"only {len(content)}" if len(content) < expected else "more"
        raise PrecfmError(
            f"{path}: the header announces {expected} bytes for shape {shape}, but there are {found}"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)
