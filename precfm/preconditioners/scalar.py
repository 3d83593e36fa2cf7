"""Centring and one scalar: fixes the scale of the data and leaves its condition number as it is."""

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.geometry.moments import Moments
from precfm.preconditioners.closed_form import ByClass, ClosedForm


class Scalar(ClosedForm):
    """Centres the data and divides it by one scalar, so that the mean variance of a feature is one.

    The map is `z = (x - mean) / scale` with `scale^2 = trace(Sigma_1) / dim`. It does not change
    `kappa(Sigma_1)`; it changes `kappa(Sigma_t)`, because the noise has unit variance. So it is the fair
    baseline for maps that also fix the scale.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 0.0], [2.0, 2.0]])
        >>> round(float(Scalar().fit(x).forward(x).var(dim=0).mean()), 5)
        1.0
    """

    mean: Tensor
    scale: Tensor

    @property
    def num_parameters(self) -> int:
        """One mean per feature and the scale."""
        return self.features + 1

    def _allocate(self) -> None:
        self.register_buffer("mean", torch.zeros(self.features).to(self.anchor))
        self.register_buffer("scale", torch.ones(()).to(self.anchor))

    def _empty(self) -> Moments:
        return Moments(diagonal=True)

    def _solve(self, moments: ByClass) -> int:
        (whole,) = moments.values()
        mean_variance = whole.covariance().mean()
        if not float(mean_variance) > 0:
            raise PrecfmError("x: has variance 0 in every feature; a scale needs rows that differ")
        self.register_buffer("mean", whole.mean)
        self.register_buffer("scale", mean_variance.sqrt())
        return 4 * whole.count * self.features

    def _forward(self, x: Tensor, classes: Tensor | None) -> Tensor:
        return (x - self.mean) / self.scale

    def _inverse(self, z: Tensor, classes: Tensor | None) -> Tensor:
        return z * self.scale + self.mean

    def _log_abs_det(self, x: Tensor, classes: Tensor | None) -> Tensor:
        return (-self.features * self.scale.log()).expand(len(x))
