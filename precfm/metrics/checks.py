"""What every metric demands of its feature matrices, and how a violation is reported."""

import numpy as np
import torch
from torch import Tensor

from precfm.core.errors import PrecfmError

Features = Tensor | np.ndarray


def feature_matrix(features: Features, name: str, *, minimum: int = 2, finite: bool = True) -> Tensor:
    """A checked feature matrix: two-dimensional, floating point, finite, with enough rows.

    Args:
        features: real numbers, shape (n, dim); a tensor on any device, or an array.
        name: what to call the matrix in an error, for example "generated" or a file name.
        minimum: fewest rows that the caller can use.
        finite: whether to look at every entry; False for callers that notice a bad one anyhow.

    Returns:
        The features as a detached tensor of shape (n, dim), not copied if they were one already.

    Raises:
        PrecfmError: wrong number of dimensions, complex or empty features, too few rows, or an entry that is
            not finite (the error names its row and column).
    """
    tensor = torch.as_tensor(features).detach()
    if tensor.device.type == "mps":
        tensor = tensor.cpu()  # that device has no float64
    if tensor.ndim != 2 or tensor.shape[1] == 0:
        raise PrecfmError(f"{name}: features have shape {tuple(tensor.shape)}; a matrix (n, dim) is needed")
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise PrecfmError(f"{name}: features have type {tensor.dtype}; real numbers are needed")
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.float64)
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.to(torch.float32)
    if len(tensor) < minimum:
        raise PrecfmError(f"{name}: {len(tensor)} rows; at least {minimum} are needed")
    # A sum is finite only if all of its terms are: one pass, no mask or copy of the matrix's size.
    if finite and not bool(torch.isfinite(tensor.sum())):
        for start in range(0, len(tensor), 4096):
            bad = (~torch.isfinite(tensor[start : start + 4096])).nonzero()
            if len(bad):
                row, column = int(bad[0, 0]) + start, int(bad[0, 1])
                value = float(tensor[row, column])
                raise PrecfmError(
                    f"{name}: row {row}, column {column} is {value}; every feature must be finite"
                )
    return tensor


def column_means(features: Tensor) -> Tensor:
    """Mean of each column in float64, shape (dim,), without a float64 copy of the whole matrix."""
    parts = [block.sum(0, dtype=torch.float64) for block in torch.split(features, 2048)]
    return torch.stack(parts).sum(0) / len(features)


def feature_pair(
    generated: Features,
    reference: Features,
    *,
    minimum: int = 2,
    finite: bool = True,
    names: tuple[str, str] = ("generated", "reference"),
) -> tuple[Tensor, Tensor]:
    """Two checked feature matrices of the same width on the same device.

    Raises:
        PrecfmError: one of them is unusable (see `feature_matrix`), their widths or devices differ.
    """
    first = feature_matrix(generated, names[0], minimum=minimum, finite=finite)
    second = feature_matrix(reference, names[1], minimum=minimum, finite=finite)
    if first.shape[1] != second.shape[1]:
        raise PrecfmError(
            f"{names[0]} has {first.shape[1]} features per row and {names[1]} has {second.shape[1]}; "
            "both must come from the same extractor"
        )
    if first.device != second.device:
        raise PrecfmError(
            f"{names[0]} is on {first.device} and {names[1]} on {second.device}; move one of them"
        )
    return first, second
