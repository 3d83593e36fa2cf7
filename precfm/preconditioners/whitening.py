"""Global whitening: one symmetric linear map for all data, full, tempered or shrunk."""

from typing import Annotated

from pydantic import Field

from precfm.core.errors import PrecfmError
from precfm.core.options import Neutral, checked
from precfm.geometry.moments import Moments
from precfm.preconditioners.closed_form import ByClass, OfMoments
from precfm.preconditioners.fit_data import FitData
from precfm.preconditioners.symmetric_affine import SymmetricAffine
from precfm.preconditioners.symmetric_power import (
    Exponent,
    Shrinkage,
    deficiency,
    few_rows,
    power_flops,
    require_rows,
    symmetric_power,
)


class Whitening(OfMoments, SymmetricAffine):
    """Centres data and multiplies it by a power of its covariance, `z = c Sigma_1^(-exponent) (x - mean)`.

    With exponent 0.5 the mapped data has the identity as covariance, up to the shrinkage. With a smaller exponent
    ("tempered") its condition number is `kappa^|1 - 2 exponent|`. The factor `c` keeps the mean variance of `z` at one.

    What counts is the condition number on rows that the fit has not seen, which without shrinkage is
    `((1 + s) / (1 - s))^2` with `s = sqrt(dim / rows)`: 34 with two rows per feature, 3.7 with ten. Below ten the notes
    say so.

    Arguments:
        exponent: 0.5 whitens fully, 0.25 half-way on the logarithmic scale; below 0 the data become worse
            conditioned, above 0.5 their spectrum turns over.
        shrinkage: `auto` replaces each eigenvalue by the variance that fresh rows are estimated to have along its
            eigenvector (`precfm.geometry.shrinkage.fresh_variances`), and accepts fewer rows than features; constant
            and dependent features are refused. A number in [0, 1] is the weight of the isotropic covariance
            `(trace(Sigma_1) / dim) I` in the one that is inverted; above 0, those are accepted, too, and noted.
        rows: fit on the first so many rows only, to study whitening from few samples; None takes all.

    References:
        | Preconditioned (Score and) Flow Matching (Ahamed et al., 2026), section 3
        | https://arxiv.org/abs/2603.02337

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(1000, 2, generator=generator) @ torch.tensor([[3.0, 1.0], [0.0, 0.1]])
        >>> z = Whitening().fit(x).forward(x)
        >>> bool(torch.allclose(z.T.cov(), torch.eye(2), atol=1e-2))
        True
    """

    @checked
    def __init__(
        self,
        exponent: Exponent = 0.5,
        shrinkage: Shrinkage = "auto",
        rows: Annotated[Annotated[int, Field(ge=2)] | None, Neutral(None)] = None,
    ) -> None:
        super().__init__()
        self.exponent, self.shrinkage, self.rows = exponent, shrinkage, rows

    def _fit(self, data: FitData) -> int:
        moments, rows = Moments(), 0
        for batch, _ in data.batches:
            moments.update(batch if self.rows is None else batch[: max(self.rows - rows, 0)])
            rows += len(batch)
        if self.rows is not None:
            if self.rows > rows:
                raise PrecfmError(f"rows: got {self.rows}; x has only {rows}")
            self.notes.append(f"fitted on the first {self.rows} of {rows} rows")
        return self._solve({0: moments})

    def _finish(self) -> None:
        if self.rows is not None:
            raise PrecfmError(f"rows: got {self.rows}; only fit knows first rows, so None is needed")
        super()._finish()

    def _solve(self, moments: ByClass) -> int:
        (whole,) = moments.values()
        require_rows(whole.count, self.features, self.shrinkage, "x:")
        cov = whole.covariance()
        self._set(whole.mean, symmetric_power(cov, self.exponent, self.shrinkage, "x:", whole.count))
        self.notes.extend(few_rows(whole.count, self.features, self.shrinkage, "x"))
        if self.shrinkage not in (0, "auto"):
            self.notes.append(f"covariance shrunk by {self.shrinkage:g} towards the isotropic one")
            if whole.count >= self.features and (why := deficiency(cov)) is not None:
                self.notes.append(f"x {why}; only the shrinkage makes the map invertible")
        return power_flops(whole.count, self.features)
