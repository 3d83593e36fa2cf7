"""How ill-conditioned data is, overall and per class, as tables: spectra, and conditioning along a path."""

import pandas as pd
import torch
from torch import Tensor

from precfm.geometry.large_spectra import determines_covariance, known_spectrum
from precfm.geometry.spectra import (
    ProbabilityPath,
    covariance,
    effective_rank,
    normalise_scale,
    path_condition_numbers,
    require_positive,
    rows_by_class,
)

AT_EACH_TIME = 512  # features up to which a covariance is decomposed for each time, and not once
TIMES = tuple(float(t) for t in torch.linspace(0, 1, 41).tolist())


def scopes(x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """All rows ("all") and those of each class ("class-<i>").

    Raises:
        PrecfmError: the lengths differ, or a class has fewer than two rows.
    """
    return {"all": x, **{f"class-{label}": rows for label, rows in rows_by_class(x, labels).items()}}


def spectrum_frame(x: Tensor, labels: Tensor, space: str, sensitivity: Tensor | None = None) -> pd.DataFrame:
    """Eigenvalues of the covariances, smallest first.

    Args:
        x: data, shape (batch, *dim).
        labels: shape (batch,), int64.
        space: `data` or `flow`, written into the table.
        sensitivity: decoder sensitivity per eigendirection of the overall covariance, shape (dim,), or None.

    Returns:
        Columns scope, space, index, eigenvalue, decoder_sensitivity (NaN where there is none); and basis where it is
        not the covariance's eigenvectors everywhere, see `precfm.geometry.large_spectra.known_spectrum`.
    """
    frames = []
    for scope, part in scopes(x, labels).items():
        values, basis = known_spectrum(part)
        column = sensitivity.tolist() if scope == "all" and sensitivity is not None else float("nan")
        rows = {"index": range(len(values)), "eigenvalue": values.tolist(), "decoder_sensitivity": column}
        frames.append(pd.DataFrame({"scope": scope, "space": space, **rows, "basis": basis}))
    return _joined(frames)


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
        Columns scope, t, condition_number, effective_rank; and basis, as in `spectrum_frame`.
    """
    parts, at = scopes(x, labels), torch.tensor(times, dtype=torch.float64)
    decomposed = x[0].numel() <= AT_EACH_TIME
    scale = None
    frames = []
    for scope, part in parts.items():
        if decomposed and determines_covariance(part):
            basis, cov = "covariance", covariance(part)
            if scale is None:
                scale = cov.diagonal().mean() / normalise_scale(cov).diagonal().mean()
            identity = torch.eye(len(cov), dtype=torch.float64)
            ranks = [
                effective_rank(path.alpha(t) ** 2 * cov / scale + path.sigma(t) ** 2 * identity) for t in at
            ]
            numbers = path_condition_numbers(cov / scale, path, at)
        else:
            values, basis = known_spectrum(part)
            require_positive(values)
            scale = values.mean() if scale is None else scale
            data, noise = path.alpha(at).square(), path.sigma(at).square()
            on_path = data[:, None] * values / scale + noise[:, None]
            shares = on_path / on_path.sum(1, keepdim=True)
            ranks = torch.special.entr(shares).sum(1).exp().tolist()
            numbers = on_path[:, -1] / on_path[:, 0]
        columns = {"t": times, "condition_number": numbers.tolist(), "effective_rank": ranks}
        frames.append(pd.DataFrame({"scope": scope, **columns, "basis": basis}))
    return _joined(frames)


def _joined(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """One table; what its variances are of is said where that is no covariance."""
    whole = pd.concat(frames, ignore_index=True)
    return whole.drop(columns="basis") if (whole["basis"] == "covariance").all() else whole
