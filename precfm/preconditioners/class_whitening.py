"""Whitening class by class: each has its own mean and covariance; small classes lean on the pooled one."""

import torch
from torch import Tensor

from precfm.core.options import NotNegative, Share, checked
from precfm.geometry.moments import Moments
from precfm.preconditioners.base import Preconditioner
from precfm.preconditioners.fit_data import FitData
from precfm.preconditioners.symmetric_power import (
    Exponent,
    SymmetricMap,
    deficiency,
    power_flops,
    symmetric_power,
)


class ClassWhitening(Preconditioner):
    """Whitens every class with its own mean and covariance, `z = c_y Sigma_y^(-exponent) (x - mean_y)`.

    A class with fewer than `rows_per_feature * dim` rows has too few for a covariance of its own. Its
    covariance becomes `w Sigma_pooled + (1 - w) Sigma_y` with `w = 1 - rows / (rows_per_feature * dim)`,
    where `Sigma_pooled` is the covariance within classes, pooled over all of them. The notes say which
    classes.

    Arguments:
        exponent: as in `Whitening`; 0.5 whitens each class fully.
        shrinkage: as in `Whitening`, applied to each class after the pooling.
        rows_per_feature: rows per feature below which a class is mixed with the pooled covariance; 0 never
            mixes.

    References:
        | Regularized Discriminant Analysis (Friedman, 1989), for mixing with the pooled covariance
        | https://doi.org/10.1080/01621459.1989.10478752

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> labels = torch.arange(200) % 2
        >>> x = torch.randn(200, 2, generator=generator) * (1 + 9 * labels[:, None]) + 5 * labels[:, None]
        >>> z = ClassWhitening().fit(x, labels).forward(x, labels)
        >>> bool(torch.allclose(z[labels == 1].T.cov(), torch.eye(2), atol=1e-4))
        True
    """

    needs_labels = True

    means: Tensor
    matrices: Tensor
    inverse_matrices: Tensor
    log_dets: Tensor

    @checked
    def __init__(
        self,
        exponent: Exponent = 0.5,
        shrinkage: Share = 0.0,
        rows_per_feature: NotNegative = 5.0,
    ) -> None:
        super().__init__()
        self.exponent, self.shrinkage, self.rows_per_feature = exponent, shrinkage, rows_per_feature

    @property
    def num_parameters(self) -> int:
        """One mean and one symmetric matrix per class."""
        return len(self.classes) * (self.features + self.features * (self.features + 1) // 2)

    def _allocate(self) -> None:
        count, features = len(self.classes), self.features
        zeros = self.anchor.new_zeros
        square = zeros(count, features, features)
        self._set(zeros(count, features), square, square.clone(), zeros(count))

    def _set(self, means: Tensor, matrices: Tensor, inverse_matrices: Tensor, log_dets: Tensor) -> None:
        self.register_buffer("means", means)
        self.register_buffer("matrices", matrices)
        self.register_buffer("inverse_matrices", inverse_matrices)
        self.register_buffer("log_dets", log_dets)

    def _fit(self, data: FitData) -> int:
        by_class = data.class_moments()
        rows = sum(moments.count for moments in by_class.values())
        scatter = torch.stack([moments.scatter for moments in by_class.values()]).sum(dim=0)
        pooled = scatter / max(rows - len(by_class), 1)
        powers = [self._power(label, moments, pooled) for label, moments in by_class.items()]
        columns = [torch.stack(column) for column in zip(*powers, strict=True)]
        self._set(torch.stack([moments.mean for moments in by_class.values()]), *columns)
        if self.shrinkage > 0:
            self.notes.append(
                f"each class's covariance shrunk by {self.shrinkage:g} towards the isotropic one"
            )
        return sum(power_flops(moments.count, self.features) for moments in by_class.values())

    def _power(self, label: int, moments: Moments, pooled: Tensor) -> SymmetricMap:
        rows, enough = moments.count, self.rows_per_feature * self.features
        weight = max(0.0, 1 - rows / enough) if enough > 0 else 0.0
        if weight > 0:
            self.notes.append(
                f"class {label} has {rows} rows of {self.features} features: covariance {weight:.2f} of "
                f"the pooled one and {1 - weight:.2f} of its own"
            )
        # A class of one row has no covariance: its scatter is zero.
        mixed = weight * pooled + (1 - weight) * moments.scatter / max(rows - 1, 1)
        if self.shrinkage > 0 and (why := deficiency(mixed)) is not None:
            self.notes.append(f"class {label} of x {why}; only the shrinkage makes its map invertible")
        return symmetric_power(mixed, self.exponent, self.shrinkage, f"x: class {label}")

    def _forward(self, x: Tensor, classes: Tensor | None) -> Tensor:
        return self._by_class(x, classes, self.matrices, before=-self.means, after=None)

    def _inverse(self, z: Tensor, classes: Tensor | None) -> Tensor:
        return self._by_class(z, classes, self.inverse_matrices, before=None, after=self.means)

    def _log_abs_det(self, x: Tensor, classes: Tensor | None) -> Tensor:
        assert classes is not None
        return self.log_dets[classes]

    @staticmethod
    def _by_class(
        rows: Tensor, classes: Tensor | None, matrices: Tensor, before: Tensor | None, after: Tensor | None
    ) -> Tensor:
        """Shift, multiply and shift each row by the numbers of its class.

        One product per class that occurs: a product per row gathers a (batch, dim, dim) tensor. Only a compiled graph,
        and the single row that `torch.vmap` sees, cannot ask which classes occur.
        """
        assert classes is not None
        shifted = rows if before is None else rows + before[classes]
        if torch.compiler.is_compiling() or len(rows) == 1:
            mapped = (shifted[:, None] @ matrices[classes])[:, 0]
        else:
            mapped = torch.zeros_like(rows)
            for position in torch.unique(classes).tolist():
                chosen = (classes == position).nonzero().flatten()
                mapped[chosen] = shifted[chosen] @ matrices[position]
        return mapped if after is None else mapped + after[classes]
