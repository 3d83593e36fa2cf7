"""Projection: whitens the principal subspace and scales everything else by one scalar; still invertible."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.options import Count, checked
from precfm.geometry.shrinkage import LARGEST_CONDITION_NUMBER
from precfm.geometry.spectra import eigen_spectrum
from precfm.preconditioners.closed_form import ByClass, OfMoments
from precfm.preconditioners.symmetric_affine import SymmetricAffine
from precfm.preconditioners.symmetric_power import power_flops, symmetric_map


class Projection(OfMoments, SymmetricAffine):
    """Whitens the directions of largest variance, and gives the complement a mean variance of one.

    With `U` the leading eigenvectors of the covariance, `lambda` their eigenvalues and `s^2` the mean
    variance of the complement, `z = (U diag(lambda)^(-1/2) U^T + (I - U U^T) / s) (x - mean)`. Nothing is
    discarded. The spread inside the complement stays as it is, so noise-like directions are not blown up one
    by one as in whitening. Data without any variance in the complement is accepted: `s^2` is then the
    smallest leading eigenvalue, and the notes say so.

    Arguments:
        rank: number of leading directions; None chooses the fewest that hold `explained` of the variance.
        explained: share of the variance, in (0, 1], that chooses the rank.

    References:
        | Probabilistic Principal Component Analysis (Tipping & Bishop, 1999), whose model of the
        | covariance is the same: the complement has the mean of the remaining eigenvalues as variance (eq. 8)
        | https://doi.org/10.1111/1467-9868.00196

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(1000, 3, generator=generator) * torch.tensor([5.0, 0.2, 0.1])
        >>> z = Projection(rank=1).fit(x).forward(x)
        >>> [round(float(variance), 2) for variance in z.var(dim=0)]
        [1.0, 1.6, 0.4]
    """

    leading: Tensor

    @checked
    def __init__(
        self,
        rank: Count | None = None,
        explained: Annotated[float, Field(gt=0, le=1)] = 0.9,
    ) -> None:
        super().__init__()
        self.rank, self.explained = rank, explained

    @property
    def num_parameters(self) -> int:
        """The mean, an orthonormal `r`-frame (`r d - r (r + 1) / 2`), `r` variances, 1 scalar."""
        rank, features = int(self.leading), self.features
        return features + rank * features - rank * (rank + 1) // 2 + rank + (1 if rank < features else 0)

    def _allocate(self) -> None:
        super()._allocate()
        self._set_rank(0)

    def _set_rank(self, rank: int) -> None:
        self.register_buffer("leading", torch.tensor(rank, device=self.anchor.device))

    def _solve(self, moments: ByClass) -> int:
        (whole,) = moments.values()
        eigenvalues, eigenvectors = eigen_spectrum(whole.covariance())
        eigenvalues = eigenvalues.clamp(min=0)
        largest = float(eigenvalues[-1])
        if not largest > 0:
            raise PrecfmError("x: has variance 0 in every feature; a scale needs rows that differ")
        rank = self._chosen_rank(eigenvalues)
        complement = self.features - rank
        leading = eigenvalues[complement:]
        if float(leading[0]) * LARGEST_CONDITION_NUMBER < largest:
            usable = int(torch.count_nonzero(eigenvalues * LARGEST_CONDITION_NUMBER >= largest))
            raise PrecfmError(
                f"rank: got {rank}, but x varies in only {usable} of {self.features} directions; a rank up to "
                f"{usable} is needed"
            )
        variances = eigenvalues.clone()
        if complement:
            mean_variance = eigenvalues[:complement].mean()
            if float(mean_variance) * LARGEST_CONDITION_NUMBER < largest:
                mean_variance = leading[0]
                self.notes.append(
                    f"x does not vary in the {complement} directions of the complement: they are scaled like "
                    "the last leading one"
                )
            variances[:complement] = mean_variance
        self._set(whole.mean, symmetric_map(variances.rsqrt(), eigenvectors))
        self._set_rank(rank)
        self.notes.append(
            f"{rank} of {self.features} directions whitened; they hold "
            f"{float(leading.sum() / eigenvalues.sum()):.4f} of the variance"
        )
        return power_flops(whole.count, self.features)

    def _chosen_rank(self, eigenvalues: Tensor) -> int:
        """The rank asked for, or the fewest directions that hold the asked share of the variance."""
        if self.rank is not None:
            if self.rank > self.features:
                raise PrecfmError(f"rank: got {self.rank}; x has only {self.features} features")
            return self.rank
        shares = eigenvalues.flip(0).cumsum(0) / eigenvalues.sum()
        # One last rounding error must not add a direction of no variance.
        enough = shares >= self.explained - 1e-12
        return int(torch.count_nonzero(~enough)) + 1
