"""How ill-conditioned data is, overall and per class, as tables: spectra, and conditioning along a path."""

import pandas as pd
import torch
from torch import Tensor

from precfm.geometry.spectra import (
    ProbabilityPath,
    class_covariances,
    covariance,
    effective_rank,
    eigen_spectrum,
    normalise_scale,
    path_condition_numbers,
)

TIMES = tuple(float(t) for t in torch.linspace(0, 1, 41).tolist())


def scoped_covariances(x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Covariances of all data ("all") and of each class ("class-<i>"), each (dim, dim) in float64."""
    by_class = {f"class-{label}": cov for label, cov in class_covariances(x, labels).items()}
    return {"all": covariance(x), **by_class}


def spectrum_frame(x: Tensor, labels: Tensor, space: str, sensitivity: Tensor | None = None) -> pd.DataFrame:
    """Eigenvalues of the covariances, smallest first.

    Args:
        x: data, shape (batch, *dim).
        labels: shape (batch,), int64.
        space: `data` or `flow`, written into the table.
        sensitivity: decoder sensitivity per eigendirection of the overall covariance, shape (dim,), or None.

    Returns:
        Columns scope, space, index, eigenvalue, decoder_sensitivity (NaN where there is none).
    """
    frames = []
    for scope, cov in scoped_covariances(x, labels).items():
        values = eigen_spectrum(cov).eigenvalues
        column = sensitivity.tolist() if scope == "all" and sensitivity is not None else float("nan")
        rows = {"index": range(len(values)), "eigenvalue": values.tolist(), "decoder_sensitivity": column}
        frames.append(pd.DataFrame({"scope": scope, "space": space, **rows}))
    return pd.concat(frames, ignore_index=True)


def path_frame(
    x: Tensor, labels: Tensor, path: ProbabilityPath, times: tuple[float, ...] = TIMES
) -> pd.DataFrame:
    """Condition number and effective rank of Sigma_t along a path, with the overall scale of the data fixed.

    The scale of all data is fixed once (mean variance one), because kappa(Sigma_t) depends on it.

    Args:
        x: data in the space where the flow runs, shape (batch, *dim).
        labels: shape (batch,), int64.
        path: the probability path.
        times: where to look.

    Returns:
        Columns scope, t, condition_number, effective_rank.
    """
    covariances = scoped_covariances(x, labels)
    scale = covariances["all"].diagonal().mean() / normalise_scale(covariances["all"]).diagonal().mean()
    at = torch.tensor(times, dtype=torch.float64)
    frames = []
    for scope, cov in covariances.items():
        identity = torch.eye(len(cov), dtype=torch.float64)
        ranks = [effective_rank(path.alpha(t) ** 2 * cov / scale + path.sigma(t) ** 2 * identity) for t in at]
        numbers = path_condition_numbers(cov / scale, path, at).tolist()
        columns = {"t": times, "condition_number": numbers, "effective_rank": ranks}
        frames.append(pd.DataFrame({"scope": scope, **columns}))
    return pd.concat(frames, ignore_index=True)
