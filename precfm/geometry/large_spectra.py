"""Spectra and condition numbers of data with many features, or with few rows for their features.

A sample covariance tells little of its smallest eigenvalue where rows are few, and a decomposition of it is out of
reach where features are many. So every number here comes with what it is of.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.seeds import generator_for
from precfm.geometry.frequencies import frequency_variances
from precfm.geometry.moments import rows_per_block
from precfm.geometry.spectra import condition_number, covariance, eigen_spectrum, require_positive

MOST_FEATURES = 2048  # of which a covariance is decomposed: 34 MB, seconds
ROWS_PER_FEATURE = 2  # of maps; with fewer, chance alone shows a condition number above 34
PRECISION = 1e-7  # of the mean eigenvalue, at which Lanczos stops
RESTARTS = 30

Basis: TypeAlias = Literal["covariance", "frequencies", "features"]
"""What variances are of: all directions; the channels at each spatial frequency; the features as they are."""


class KnownSpectrum(NamedTuple):
    """Variances that the rows of a data set determine.

    Attributes:
        eigenvalues: ascending, shape (features,), float64.
        basis: of what.
    """

    eigenvalues: Tensor
    basis: Basis


@dataclass(frozen=True)
class ExtremeEigenvalues:
    """The ends of the spectrum of a sample covariance, with errors.

    Attributes:
        smallest: not below the smallest eigenvalue.
        largest: not above the largest one.
        smallest_error: norm of the residual: some eigenvalue is that near to `smallest`.
        largest_error: the same of `largest`.
    """

    smallest: float
    largest: float
    smallest_error: float = 0.0
    largest_error: float = 0.0

    @property
    def bracket(self) -> tuple[float, float]:
        """The condition number is at least the first, and at most the second if no eigenvalue was overlooked."""
        below = self.smallest - self.smallest_error
        at_most = (self.largest + self.largest_error) / below if below > 0 else float("inf")
        return self.largest / self.smallest, at_most


@dataclass(frozen=True)
class KnownCondition:
    """A condition number, and what it is of.

    Attributes:
        value: the number.
        note: a sentence on what it is, or None for the plain one of the sample covariance.
    """

    value: float
    note: str | None = None


def determines_covariance(x: Tensor) -> bool:
    """Whether the rows of `x` suffice for a covariance of all features: more of them, of maps twice as many."""
    features = x[0].numel() if len(x) else 0
    return len(x) >= ROWS_PER_FEATURE * features if x.ndim > 2 else len(x) > features


def decomposable(x: Tensor) -> bool:
    """Whether `x` determines a covariance that is small enough for its eigenvectors."""
    return x.ndim > 1 and determines_covariance(x) and x[0].numel() <= MOST_FEATURES


def known_spectrum(x: Tensor) -> KnownSpectrum:
    """The eigenvalues of the covariance where the rows determine it and it is small enough, else `frequency_variances`.

    Args:
        x: data, shape (n, *dim), n of at least 2; maps as (n, channels, *positions).

    Raises:
        PrecfmError: there are fewer than 2 rows, or a number is not finite.

    Example:
        >>> x = torch.randn(100, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> known_spectrum(x).basis, known_spectrum(x[:, :1, 0]).basis
        ('frequencies', 'covariance')
    """
    if decomposable(x):
        return KnownSpectrum(eigen_spectrum(covariance(x)).eigenvalues, "covariance")
    return KnownSpectrum(frequency_variances(x), "frequencies" if x.ndim > 2 else "features")


def known_condition(x: Tensor) -> KnownCondition:
    """Condition number of the covariance of `x`, or of that part of it which the rows determine.

    Args:
        x: data, shape (n, *dim), n of at least 2; maps as (n, channels, *positions).

    Raises:
        PrecfmError: there are fewer than 2 rows, a number is not finite, or some direction has no variance.
    """
    features = x[0].numel() if len(x) else 0
    if not determines_covariance(x):
        values, basis = known_spectrum(x)
        require_positive(values)
        of = "the channels at each spatial frequency" if basis == "frequencies" else "single features"
        return KnownCondition(
            float(values[-1] / values[0]),
            f"{len(x):,} rows do not determine a covariance of {features:,} features: the condition number is that of "
            f"the variances of {of}, at most that of all directions",
        )
    if features <= MOST_FEATURES:
        return KnownCondition(condition_number(covariance(x)))
    at_least, at_most = extreme_eigenvalues(x).bracket
    return KnownCondition(
        at_least,
        f"the condition number of {features:,} features was found by Lanczos iteration: between {at_least:.4g} and "
        f"{at_most:.4g}",
    )


def extreme_eigenvalues(x: Tensor) -> ExtremeEigenvalues:
    """Smallest and largest eigenvalue of the sample covariance, by Lanczos iteration: products with the rows alone.

    Args:
        x: data, shape (n, *dim), more rows than features, at least 3 features.

    Returns:
        The ends, with residual norms. Memory is that of some dozen rows.

    Raises:
        PrecfmError: there are no more rows than features, so that the smallest is not determined, or too few features.

    References:
        | ARPACK Users' Guide (Lehoucq, Sorensen & Yang, 1998), the implicitly restarted Lanczos method
        | https://doi.org/10.1137/1.9780898719628

        | The Symmetric Eigenvalue Problem (Parlett, 1998), section 4.5, for the residual as a bound on the error

    Example:
        >>> x = torch.randn(500, 40, generator=torch.Generator().manual_seed(0)) * torch.linspace(1, 9, 40)
        >>> found = extreme_eigenvalues(x)
        >>> exact = torch.linalg.eigvalsh(x.double().T.cov())
        >>> abs(found.smallest - float(exact[0])) <= found.smallest_error
        True
    """
    features = x[0].numel() if len(x) else 0
    if len(x) <= features or features < 3:
        raise PrecfmError(
            f"x: has {len(x)} rows of {features} features, which do not determine the smallest eigenvalue of their "
            "covariance by Lanczos iteration; more rows than features, and at least 3 features, are needed"
        )
    blocks = torch.split(x.detach().flatten(1), rows_per_block(features))
    mean = torch.stack([block.double().sum(0) for block in blocks]).sum(0) / len(x)

    def product(vector: np.ndarray) -> np.ndarray:
        v = torch.from_numpy(vector.reshape(-1).copy()).to(mean)
        total = torch.zeros_like(mean)
        for block in blocks:
            centred = block.double() - mean
            total += centred.T @ (centred @ v)
        return (total / (len(x) - 1)).cpu().numpy()

    start = torch.randn(features, generator=generator_for(0, "lanczos"), dtype=torch.float64).numpy()
    # ARPACK takes a start to the range of the operator, and so overlooks an eigenvalue 0 unless all are shifted.
    shift = float(sum((block.double() - mean).square().sum() for block in blocks)) / (len(x) - 1) / features

    def shifted(vector: np.ndarray) -> np.ndarray:
        return product(vector) + shift * vector.reshape(-1)

    operator = LinearOperator((features, features), matvec=shifted, dtype=np.float64)

    def end(which: str) -> tuple[float, float]:
        """The best unit vector that the iteration finds, its variance and residual."""
        columns = min(features - 1, 64)
        try:
            options = {"k": 1, "v0": start, "ncv": columns, "maxiter": RESTARTS, "tol": PRECISION}
            vector = eigsh(operator, which=which, **options)[1][:, 0]
        except ArpackNoConvergence:
            vector = _ritz_vector(operator, start, columns * 4, which)
        image = product(vector)
        value = float(vector @ image)
        return value, float(np.linalg.norm(image - value * vector))

    smallest, smallest_error = end("SA")
    largest, largest_error = end("LA")
    if not smallest > features * torch.finfo(torch.float64).eps * largest:
        raise PrecfmError("x: has a direction without variance; drop constant or dependent features")
    return ExtremeEigenvalues(smallest, largest, smallest_error, largest_error)


def _ritz_vector(operator: LinearOperator, start: np.ndarray, columns: int, which: str) -> np.ndarray:
    """The Ritz vector at one end of a Krylov space, fully orthogonalised: what is left where ARPACK gives nothing."""
    columns = min(columns, len(start))
    basis = np.zeros((columns, len(start)))
    images = np.zeros_like(basis)
    vector = start
    for index in range(columns):
        for _ in range(2):
            vector = vector - basis[:index].T @ (basis[:index] @ vector)
        basis[index] = vector / np.linalg.norm(vector)
        images[index] = vector = operator.matvec(basis[index])
    weights = np.linalg.eigh(basis @ images.T)[1][:, 0 if which == "SA" else -1]
    found: np.ndarray = basis.T @ weights
    return found
