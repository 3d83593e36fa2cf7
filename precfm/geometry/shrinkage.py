"""Shrinkage of sample eigenvalues: what the variance along sample eigenvectors is on fresh rows."""

import torch
from torch import Tensor

# Beyond this condition number float32 data cannot make the round trip: its precision 6e-8 times the ratio of
# the extreme standard deviations, 1e6, is no longer small. So such a covariance counts as rank-deficient.
LARGEST_CONDITION_NUMBER = 1e12
CHUNK = 1024  # eigenvalues whose kernels are evaluated at once, so that memory stays of order dim


def fresh_variances(eigenvalues: Tensor, rows: float) -> Tensor:
    """Variances that fresh rows have along the eigenvectors of a sample covariance, by quadratic-inverse shrinkage.

    The largest sample eigenvalues exceed them and the smallest fall short of them, the more the fewer rows. The
    estimate needs nothing but the eigenvalues and the number of rows, and keeps their sum. Unlike a mixture with the
    isotropic covariance (Ledoit & Wolf, 2004; OAS), it does not drown small variances: with 256 features, a condition
    number of 1e4 and 512 rows, the condition number of fresh rows behind a whitening is 21 with it, 405 with OAS, 35
    without shrinkage, and 21 with the true variances along the same eigenvectors.

    With about as many rows as features the lowest eigenvalues lie further apart than the kernel is wide, and each is
    taken for a variance of its own, far too small. Their number is the distance at which the ratio of neighbours of a
    Wishart matrix's lowest eigenvalues, `1 + 2 / k` for the k-th (squared zeros of a Bessel function), meets the
    kernel's width; these get the variance of the first beyond. Measured with 256 features and 257 to 265 rows, this
    takes the condition number on fresh rows from up to 2,900 to within a tenth of that with the true variances.

    Args:
        eigenvalues: of a sample covariance, ascending and not negative, shape (dim,), float64; some positive.
        rows: number of rows behind it, at least 2; an effective number where rows weigh differently.

    Returns:
        The variances, shape (dim,), float64; not always ascending.

    References:
        | Quadratic shrinkage for large covariance matrices (Ledoit & Wolf, 2022), section 4, in Bernoulli 28 (3)
        | https://doi.org/10.3150/20-BEJ1315

    Example:
        >>> rows = torch.randn(60, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> sample = torch.linalg.eigvalsh(rows.T.cov())
        >>> shrunk = fresh_variances(sample, rows=60)
        >>> [round(float(values.max() / values.min()), 1) for values in (sample, shrunk)]
        [73.5, 2.5]
    """
    features = len(eigenvalues)
    rank = int((eigenvalues * LARGEST_CONDITION_NUMBER >= eigenvalues[-1]).sum())
    # Where rows lack, they are as many as the rank, since centring takes one.
    freedom = rank if rank < features else max(rows - 1, features)
    ratio = features / freedom
    width = min(ratio, 1 / ratio) ** 0.7 / features**0.35
    inverse = 1 / eigenvalues[features - rank :]
    modulus = torch.cat([_squared_modulus(part, inverse, width) for part in torch.split(inverse, CHUNK)])
    if rank < features:
        null = 1 / ((ratio - 1) * inverse.mean())
        variances = torch.cat([null.expand(features - rank), 1 / (inverse * modulus[:, 1])])
    else:
        denominator = (1 - ratio) ** 2 + 2 * ratio * (1 - ratio) * modulus[:, 0] + ratio**2 * modulus[:, 1]
        variances = 1 / (inverse * denominator)
    unresolved = int(max(0, round(2 * features**0.35) - abs(freedom - features)))
    variances = variances.clamp(min=float(variances[min(unresolved, features - 1)]) if unresolved else 0.0)
    return variances * (eigenvalues.sum() / variances.sum())


def _squared_modulus(part: Tensor, inverse: Tensor, width: float) -> Tensor:
    """Smoothed Stieltjes transform of the inverse eigenvalues at some of them: real part and squared modulus."""
    apart = inverse - part[:, None]
    scaled = inverse / (apart.square() + (width * inverse).square())
    real, imaginary = (scaled * apart).mean(dim=1), (scaled * width * inverse).mean(dim=1)
    return torch.stack([real, real.square() + imaginary.square()], dim=1)
