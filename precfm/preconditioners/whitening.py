"""Global whitening: one symmetric linear map for all data, full, tempered or shrunk."""

from typing import Annotated

from pydantic import Field

from precfm.core.errors import PrecfmError
from precfm.core.options import Neutral, Share, checked
from precfm.geometry.moments import Moments
from precfm.preconditioners.fit_data import FitData
from precfm.preconditioners.symmetric_affine import SymmetricAffine
from precfm.preconditioners.symmetric_power import Exponent, deficiency, power_flops, symmetric_power


class Whitening(SymmetricAffine):
    """Centres data and multiplies it by a power of its covariance, `z = c Sigma_1^(-exponent) (x - mean)`.

    With exponent 0.5 the mapped data has the identity as covariance. With a smaller exponent ("tempered") its
    condition number is `kappa^|1 - 2 exponent|`. The factor `c` keeps the mean variance of `z` at one.

    Arguments:
        exponent: 0.5 whitens fully, 0.25 half-way on the logarithmic scale; below 0 the data become worse
            conditioned, above 0.5 their spectrum turns over.
        shrinkage: weight in [0, 1] of the isotropic covariance `(trace(Sigma_1) / dim) I` in the one that is
            inverted; above 0, constant and dependent features are accepted, and noted.
        rows: fit on the first so many rows only, to study whitening from few samples; None takes all.

    References:
        | Preconditioned (Score and) Flow Matching (Ahamed et al., 2026), section 3
        | https://arxiv.org/abs/2603.02337

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(1000, 2, generator=generator) @ torch.tensor([[3.0, 1.0], [0.0, 0.1]])
        >>> z = Whitening().fit(x).forward(x)
        >>> bool(torch.allclose(z.T.cov(), torch.eye(2), atol=1e-4))
        True
    """

    @checked
    def __init__(
        self,
        exponent: Exponent = 0.5,
        shrinkage: Share = 0.0,
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
        cov = moments.covariance()
        self._set(moments.mean, symmetric_power(cov, self.exponent, self.shrinkage, "x:"))
        if self.shrinkage > 0:
            self.notes.append(f"covariance shrunk by {self.shrinkage:g} towards the isotropic one")
            if (why := deficiency(cov)) is not None:
                self.notes.append(f"x {why}; only the shrinkage makes the map invertible")
        return power_flops(moments.count, self.features)
