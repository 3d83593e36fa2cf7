"""What every metric demands of its feature matrices, and how a violation is reported."""

import numpy as np
import torch
from torch import Tensor

from precfm.core.errors import PrecfmError

Features = Tensor | np.ndarray


def feature_matrix(features: Features, name: str) -> Tensor:
    """A checked feature matrix: two-dimensional, real, finite, with at least two rows.

    Args:
        features: shape (n, dim); a tensor on any device, or an array.
        name: what to call the matrix in an error, for example "generated" or a file name.

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
    if len(tensor) < 2:
        raise PrecfmError(f"{name}: {len(tensor)} rows; at least 2 are needed")
    # A sum is finite only if all of its terms are: one pass, no mask of the matrix's size.
    if not bool(torch.isfinite(tensor.sum(dtype=torch.float64))):
        row, column = (~torch.isfinite(tensor)).nonzero()[0].tolist()
        value = float(tensor[row, column])
        raise PrecfmError(f"{name}: row {row}, column {column} is {value}; every feature must be finite")
    return tensor


def feature_pair(
    generated: Features, reference: Features, names: tuple[str, str] = ("generated", "reference")
) -> tuple[Tensor, Tensor]:
    """Two checked feature matrices of the same width on the same device.

    Raises:
        PrecfmError: one of them is unusable (see `feature_matrix`), their widths or devices differ.
    """
    first, second = feature_matrix(generated, names[0]), feature_matrix(reference, names[1])
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
