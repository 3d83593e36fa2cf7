"""What held-out data says of a fitted preconditioner, without training a flow: conditioning, likelihood, round trip."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.options import Fraction, checked
from precfm.core.seeds import generator_for
from precfm.flows.paths import LinearPath
from precfm.geometry.spectra import covariance, eigen_spectrum, path_condition_numbers, require_positive
from precfm.preconditioners.base import Preconditioner
from precfm.preconditioners.round_trip import round_trip_error, stride, tail_round_trip_error

FOLDS = 5  # of the cross-validated eigenvalues
ROWS_PER_FEATURE = 2  # fewer held-out rows say nothing about the eigenvalues of a class
# Many, since kappa(Sigma_t) peaks near t = 1.
MIDPOINTS = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000


@dataclass(frozen=True)
class Score:
    """What held-out data says of a fitted preconditioner.

    Attributes:
        condition_number: of the mapped data.
        worst_class: label of the class whose mapped data is conditioned worst along the path; None without labels
            or where no class has enough rows.
        worst_class_condition_number: of its mapped data.
        classes_scored: number of classes with enough rows.
        negative_log_likelihood: mean over rows in nats, with `N(0, I)` as the density of the mapped data; None
            where the map has no determinant.
        round_trip_error: the larger of data and tails, in smallest standard deviations of the data; None where it
            is not finite.
        predicted_steps: `ln(1 / accuracy)` times the mean of `kappa(Sigma_t)` over t, of the worst class or else of
            all the data.
    """

    condition_number: float
    worst_class: int | None
    worst_class_condition_number: float | None
    classes_scored: int
    negative_log_likelihood: float | None
    round_trip_error: float | None
    predicted_steps: float


@checked
def score(
    preconditioner: Preconditioner,
    x: Tensor,
    labels: Tensor | None = None,
    *,
    accuracy: Fraction = 0.1,
    seed: int = 0,
) -> Score:
    """Score a fitted preconditioner on data that its fit has not seen; no flow is trained.

    Gradient descent at fixed t with the rate `1 / (2 lambda_max)` contracts the error along eigendirection i of
    `Sigma_t` by `1 - lambda_i / lambda_max` per step (claim C2), so the slowest direction needs about
    `ln(1 / accuracy) kappa(Sigma_t)` steps. The prediction is the mean over t of the linear path, of the worst class
    where there are labels. It looks at second moments only. One scalar first gives the mapped data a mean
    variance of one.

    Args:
        preconditioner: fitted.
        x: held-out data, shape (rows, *dim).
        labels: class indices, shape (rows,), or None.
        accuracy: part of the initial error that may remain, in (0, 1).
        seed: of the folds, and of the noise that stands for the tails.

    Raises:
        PrecfmError: there are fewer than two rows per feature, the mapped data is rank-deficient, or the
            preconditioner refuses the data.

    Example:
        >>> from precfm.preconditioners.scalar import Scalar
        >>> x = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([10.0, 1.0])
        >>> found = score(Scalar().fit(x[:1000]), x[1000:])
        >>> 90 < found.condition_number < 110
        True
    """
    require_rows(len(x), math.prod(x.shape[1:]))
    with torch.no_grad():
        z = preconditioner.forward(x.double(), labels).flatten(1)
        eigenvalues: dict[int | None, Tensor] = {None: cross_validated_eigenvalues(z, seed)}
        scale = eigenvalues[None].mean()
        if labels is not None:
            for label, count in zip(*torch.unique(labels, return_counts=True), strict=True):
                if int(count) >= ROWS_PER_FEATURE * z.shape[1]:
                    eigenvalues[int(label)] = cross_validated_eigenvalues(z[labels == label], seed)
        numbers = {scope: _condition_number(values) for scope, values in eigenvalues.items()}
        along = {scope: _mean_over_path(values / scale) for scope, values in eigenvalues.items()}
        classes = [scope for scope in along if scope is not None]
        worst = max(classes, key=along.__getitem__) if classes else None
        return Score(
            condition_number=numbers[None],
            worst_class=worst,
            worst_class_condition_number=None if worst is None else numbers[worst],
            classes_scored=len(classes),
            negative_log_likelihood=_negative_log_likelihood(preconditioner, x.double(), z, labels),
            round_trip_error=_round_trip(preconditioner, x, labels, seed),
            predicted_steps=math.log(1 / accuracy) * along[worst],
        )


def cross_validated_eigenvalues(z: Tensor, seed: int = 0) -> Tensor:
    """Eigenvalues of a covariance without the spread that sample eigenvalues have when rows are few.

    The i-th is the variance of left-out rows along the i-th eigenvector of the other rows' covariance, averaged over
    folds.

    Args:
        z: data, shape (rows, features).
        seed: of the folds.

    Returns:
        Shape (features,), float64, in the order of the eigenvectors, thus nearly ascending.

    References:
        | Optimal Data Splitting for Holdout Cross-Validation in Large Covariance Matrix Estimation
        | (Lamrani, Bongiorno & Potters, 2025), https://arxiv.org/abs/2503.15186
    """
    order = torch.randperm(len(z), generator=generator_for(seed, "folds")).to(z.device)
    squares = z.new_zeros(z.shape[1], dtype=torch.float64)
    for fold in range(FOLDS):
        left_out = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        left_out[order[fold::FOLDS]] = True
        others = z[~left_out].double()
        directions = eigen_spectrum(covariance(others)).eigenvectors
        squares += ((z[left_out].double() - others.mean(dim=0)) @ directions).square().sum(dim=0)
    return squares / len(z)


def require_rows(rows: int, features: int) -> None:
    """Refuse validation rows that are too few to say something of a spectrum.

    Raises:
        PrecfmError: there are fewer than `ROWS_PER_FEATURE` rows per feature.
    """
    if rows < ROWS_PER_FEATURE * features:
        raise PrecfmError(
            f"validation: got {rows} rows of {features} features; at least {ROWS_PER_FEATURE * features} are needed "
            "for a spectrum"
        )


def _condition_number(eigenvalues: Tensor) -> float:
    ascending = eigenvalues.sort().values
    require_positive(ascending)
    return float(ascending[-1] / ascending[0])


def _mean_over_path(eigenvalues: Tensor) -> float:
    """Mean over t of `kappa(Sigma_t)` on the linear path, for data with these eigenvalues."""
    times = MIDPOINTS.to(eigenvalues)
    return float(path_condition_numbers(torch.diag(eigenvalues), LinearPath(), times).mean())


def _negative_log_likelihood(
    preconditioner: Preconditioner, x: Tensor, z: Tensor, labels: Tensor | None
) -> float | None:
    if not preconditioner.has_log_det:
        return None
    gaussian = 0.5 * (z.square() + math.log(2 * math.pi)).sum(dim=1)
    return float((gaussian - preconditioner.log_abs_det_jacobian(x, labels)).mean())


def _round_trip(preconditioner: Preconditioner, x: Tensor, labels: Tensor | None, seed: int) -> float | None:
    """The larger error of data and tails, in the dtype of `x`; None where it is not finite."""
    every = stride(len(x))
    points, classes = x[::every], None if labels is None else labels[::every]
    errors = (
        round_trip_error(preconditioner, points, classes),
        tail_round_trip_error(preconditioner, points, classes, seed=seed),
    )
    return max(errors) if all(math.isfinite(error) for error in errors) else None
