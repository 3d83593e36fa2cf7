"""Whitening under a covariance of low rank plus diagonal: for data with too many features for a matrix of them."""

from functools import partial
from typing import Annotated

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.options import Count, Neutral, Share, checked
from precfm.core.seeds import generator_for
from precfm.geometry.moments import Moments
from precfm.geometry.shrinkage import LARGEST_CONDITION_NUMBER
from precfm.preconditioners.closed_form import ByClass, ClosedForm
from precfm.preconditioners.inputs import summary

MOST_FEATURES = 4096  # of which the whole covariance is gathered, 134 MB; of more, a sketch
RANK = 64  # where none is given
SKETCH_PER_RANK = 4  # columns of the sketch for each leading direction


class LowRank(ClosedForm):
    """Standardises each feature, then whitens the leading directions of their correlations.

    With the standard deviations `D^(1/2)`, the leading eigenvectors `U` of the correlation matrix, their eigenvalues
    `lambda` and the mean `s^2` of the remaining ones,
    `z = (U diag(lambda)^(-1/2) U^T + (I - U U^T) / s) D^(-1/2) (x - mean)`: the covariance is taken for
    `D^(1/2) (U diag(lambda - s^2) U^T + s^2 I) D^(1/2)`, a diagonal plus a matrix of rank `rank`. It needs memory of
    order `rank * features`, and fewer rows than features suffice.

    Up to 4,096 features the eigenvectors are those of all correlations. Of more features a sketch of the covariance
    times `4 rank` random vectors is gathered in the same single pass, and the eigenvectors are those of its Nystroem
    approximation: the leading ones are good where eigenvalues fall quickly, and `lambda` is too small otherwise.

    Arguments:
        rank: number of leading directions, at most the features; None takes 64, or all of fewer features.
        shrinkage: weight of the identity in the correlations, from 0 to 1: eigenvalues draw near to 1.

    Raises:
        PrecfmError: by the fit, the rank is above the number of features.

    References:
        | Probabilistic Principal Component Analysis (Tipping & Bishop, 1999), eq. 8, here of standardised features
        | https://doi.org/10.1111/1467-9868.00196

        | Fixed-Rank Approximation of a Positive-Semidefinite Matrix from Streaming Data (Tropp et al., 2017),
        | algorithm 3; https://arxiv.org/abs/1706.05736

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> shared = torch.randn(2000, 1, generator=generator)
        >>> x = (shared + torch.randn(2000, 5, generator=generator)) * torch.arange(1.0, 6.0)
        >>> z = LowRank(rank=1).fit(x).forward(x)
        >>> bool(torch.allclose(z.T.cov(), torch.eye(5), atol=0.1))
        True
    """

    mean: Tensor
    scale: Tensor
    frame: Tensor
    factors: Tensor
    rest: Tensor

    @checked
    def __init__(self, rank: Count | None = None, shrinkage: Annotated[Share, Neutral(0.0)] = 0.0) -> None:
        super().__init__()
        self.rank, self.shrinkage = rank, shrinkage

    @property
    def num_parameters(self) -> int:
        """A mean and a scale per feature, an orthonormal `r`-frame (`r d - r (r + 1) / 2`), `r` variances, 1 scalar."""
        rank, features = self._kept, self.features
        frame = rank * features - rank * (rank + 1) // 2
        return 2 * features + frame + rank + (1 if rank < features else 0)

    @property
    def _kept(self) -> int:
        return min(self.rank or RANK, self.features)  # files hold ranks above the features, too

    def _allocate(self) -> None:
        zeros = self.anchor.new_zeros
        self._set(
            zeros(self.features),
            zeros(self.features),
            zeros(self.features, self._kept),
            zeros(self._kept),
            zeros(()),
        )

    def _set(self, mean: Tensor, scale: Tensor, frame: Tensor, factors: Tensor, rest: Tensor) -> None:
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.register_buffer("frame", frame)
        self.register_buffer("factors", factors)
        self.register_buffer("rest", rest)

    @property
    def _sketched(self) -> bool:
        return self.features > max(MOST_FEATURES, SKETCH_PER_RANK * self._kept)

    def _empty(self) -> Moments:
        if self.rank is not None and self.rank > self.features:
            raise PrecfmError(
                f"rank: got {self.rank}, but x has {self.features} features; take at most as many"
            )
        return Moments(products=partial(_sketch, self._test_vectors())) if self._sketched else Moments()

    def _test_vectors(self) -> Tensor:
        generator = generator_for(0, "test vectors")
        columns = SKETCH_PER_RANK * self._kept
        return torch.randn(self.features, columns, generator=generator, dtype=torch.float64).to(self.anchor)

    def _solve(self, moments: ByClass) -> int:
        (whole,) = moments.values()
        gathered = whole.covariance()
        variances = gathered[:, -1] if self._sketched else gathered.diagonal()
        constant = (variances * LARGEST_CONDITION_NUMBER <= variances.max()).nonzero().flatten().tolist()
        if constant:
            raise PrecfmError(
                f"x: is constant in feature {summary(constant)}, which cannot be scaled to variance 1; drop it, or use "
                "the preconditioner 'scalar'"
            )
        scale = variances.sqrt()
        if self._sketched:
            values, frame = _nystroem(
                gathered[:, :-1] / scale[:, None], self._test_vectors() * scale[:, None]
            )
        else:
            values, frame = torch.linalg.eigh(gathered / scale / scale[:, None])
        values, frame = values[-self._kept :].clamp(min=0), frame[:, -self._kept :]
        if self.shrinkage:
            values = (1 - self.shrinkage) * values + self.shrinkage
        others = self.features - self._kept
        rest = (self.features - values.sum()) / others if others else values.new_ones(())
        if min(float(values[0]), float(rest)) * LARGEST_CONDITION_NUMBER < float(values[-1]):
            usable = int((values * LARGEST_CONDITION_NUMBER >= values[-1]).sum())
            raise PrecfmError(
                f"rank: got {self._kept}, but the standardised x varies in no more than {usable} directions; more "
                f"rows, or a rank below {usable}, are needed"
            )
        self._set(whole.mean, scale, frame.contiguous(), values.rsqrt(), rest.rsqrt())
        self.notes.append(
            f"{self._kept} of {self.features} directions whitened; they hold {float(values.sum()) / self.features:.4f} "
            "of the variance of standardised features"
        )
        return self._flops(whole.count)

    def _flops(self, rows: int) -> int:
        features, columns = self.features, SKETCH_PER_RANK * self._kept
        if (
            self._sketched
        ):  # two products for each row; then two, a Cholesky factor and a singular decomposition
            return rows * features * (4 * columns + 4) + 10 * features * columns**2
        return 2 * rows * features + 2 * rows * features**2 + 9 * features**3

    def _forward(self, x: Tensor, classes: Tensor | None) -> Tensor:
        return self._stretched((x - self.mean) / self.scale, self.factors, self.rest)

    def _inverse(self, z: Tensor, classes: Tensor | None) -> Tensor:
        return self._stretched(z, 1 / self.factors, 1 / self.rest) * self.scale + self.mean

    def _stretched(self, rows: Tensor, leading: Tensor, rest: Tensor) -> Tensor:
        # frame (leading - rest) frame^T rows + rest rows: two products in all
        return ((rows @ self.frame) * (leading - rest)) @ self.frame.T + rows * rest

    def _log_abs_det(self, x: Tensor, classes: Tensor | None) -> Tensor:
        others = self.features - self._kept
        log_det = self.factors.log().sum() + others * self.rest.log() - self.scale.log().sum()
        return log_det.expand(len(x))


def _sketch(test_vectors: Tensor, centred: Tensor) -> Tensor:
    """The scatter of centred rows times the test vectors, and its diagonal as the last column."""
    return torch.cat([centred.T @ (centred @ test_vectors), centred.square().sum(dim=0)[:, None]], dim=1)


def _nystroem(product: Tensor, test_vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors, ascending, of `S W (W^T S W)^-1 (S W)^T`, for a matrix `S` known by `S W`.

    A small multiple of `W` is added to `S W` and its share taken off the eigenvalues, against cancellation.

    Args:
        product: `S W`, shape (dim, columns).
        test_vectors: `W`, shape (dim, columns).
    """
    shift = torch.finfo(product.dtype).eps * len(product) ** 0.5 * product.norm()
    shifted = product + shift * test_vectors
    core = test_vectors.T @ shifted
    factor = torch.linalg.cholesky((core + core.T) / 2)
    half = torch.linalg.solve_triangular(factor, shifted.T, upper=False).T
    vectors, roots, _ = torch.linalg.svd(half, full_matrices=False)
    return (roots.square() - shift).flip(0), vectors.flip(1)
