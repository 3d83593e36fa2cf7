"""Centring followed by a symmetric matrix: what global whitening and projection have in common."""

import torch
from torch import Tensor

from precfm.preconditioners.base import Preconditioner


class SymmetricAffine(Preconditioner):
    """The map `z = matrix (x - mean)` with a symmetric matrix; subclasses fit the four buffers.

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

    def _allocate(self) -> None:
        features = self.features
        self.register_buffer("mean", torch.zeros(features).to(self.anchor))
        self.register_buffer("matrix", torch.zeros(features, features).to(self.anchor))
        self.register_buffer("inverse_matrix", torch.zeros(features, features).to(self.anchor))
        self.register_buffer("log_det", torch.zeros(()).to(self.anchor))

    def _forward(self, x: Tensor, classes: Tensor | None) -> Tensor:
        return (x - self.mean) @ self.matrix

    def _inverse(self, z: Tensor, classes: Tensor | None) -> Tensor:
        return z @ self.inverse_matrix + self.mean

    def _log_abs_det(self, x: Tensor, classes: Tensor | None) -> Tensor:
        return self.log_det.expand(len(x))
