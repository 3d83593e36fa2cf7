"""Centring followed by a symmetric matrix: what whitening, projection and decoder-metric coordinates share."""

from torch import Tensor

from precfm.preconditioners.base import Preconditioner
from precfm.preconditioners.symmetric_power import SymmetricMap


class SymmetricAffine(Preconditioner):
    """The map `z = matrix (x - mean)` with a symmetric matrix; a subclass finds both in `_fit`.

    Attributes:
        mean: mean of the training data, shape (features,).
        matrix: the linear map, shape (features, features).
        inverse_matrix: its inverse, shape (features, features).
        log_det: log determinant of `matrix`, shape ().
    """

    mean: Tensor
    matrix: Tensor
    inverse_matrix: Tensor
    log_det: Tensor

    @property
    def num_parameters(self) -> int:
        """The mean and a symmetric matrix."""
        return self.features + self.features * (self.features + 1) // 2

    def _allocate(self) -> None:
        zeros = self.anchor.new_zeros
        square = zeros(self.features, self.features)
        self._set(zeros(self.features), SymmetricMap(square, square.clone(), zeros(())))

    def _set(self, mean: Tensor, power: SymmetricMap) -> None:
        """Register the four buffers."""
        self.register_buffer("mean", mean)
        for name, value in power._asdict().items():
            self.register_buffer(name, value)

    def _forward(self, x: Tensor, classes: Tensor | None) -> Tensor:
        return (x - self.mean) @ self.matrix

    def _inverse(self, z: Tensor, classes: Tensor | None) -> Tensor:
        return (z @ self.inverse_matrix).add_(self.mean)

    def _log_abs_det(self, x: Tensor, classes: Tensor | None) -> Tensor:
        return self.log_det.expand(len(x))
