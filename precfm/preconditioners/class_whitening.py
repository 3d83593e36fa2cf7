"""Whitening class by class: each has its own mean and covariance; small classes lean on the pooled one."""

import torch
from torch import Tensor

from precfm.core.options import NotNegative, checked
from precfm.geometry.moments import Moments
from precfm.preconditioners.closed_form import ByClass, ClosedForm
from precfm.preconditioners.symmetric_power import (
    Exponent,
    Shrinkage,
    SymmetricMap,
    deficiency,
    few_rows,
    power_flops,
    require_rows,
    symmetric_power,
)


class ClassWhitening(ClosedForm):
    """Whitens every class with its own mean and covariance, `z = c_y Sigma_y^(-exponent) (x - mean_y)`.

    A class with fewer than `rows_per_feature * dim` rows has too few for a covariance of its own. Its
    covariance becomes `w Sigma_pooled + (1 - w) Sigma_y` with `w = 1 - rows / (rows_per_feature * dim)`,
    where `Sigma_pooled` is the covariance within classes, pooled over all of them. The notes say which
    classes.

    Arguments:
        exponent: as in `Whitening`; 0.5 whitens each class fully.
        shrinkage: as in `Whitening`, applied to each class after the pooling; `auto` takes the mixture for one of
            as many rows as their weights are worth, `1 / sum_i w_i^2`.
        rows_per_feature: rows per feature below which a class is mixed with the pooled covariance; 0 never
            mixes.

    References:
        | Regularized Discriminant Analysis (Friedman, 1989), for mixing with the pooled covariance
        | https://doi.org/10.1080/01621459.1989.10478752

        | Survey Sampling (Kish, 1965), section 11.7, for the rows that weights are worth

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> labels = torch.arange(200) % 2
        >>> x = torch.randn(200, 2, generator=generator) * (1 + 9 * labels[:, None]) + 5 * labels[:, None]
        >>> z = ClassWhitening(shrinkage=0).fit(x, labels).forward(x, labels)
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
        shrinkage: Shrinkage = "auto",
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

    def _solve(self, moments: ByClass) -> int:
        rows = sum(each.count for each in moments.values())
        freedom = rows - len(moments)
        scatter = torch.stack([each.scatter for each in moments.values()]).sum(dim=0)
        pooled = scatter / max(freedom, 1)
        powers = [self._power(label, each, pooled, freedom) for label, each in moments.items()]
        columns = [torch.stack(column) for column in zip(*powers, strict=True)]
        self._set(torch.stack([each.mean for each in moments.values()]), *columns)
        if self.shrinkage == "auto":
            worth = {label: self._worth(each.count, freedom) for label, each in moments.items()}
            fewest = min(worth, key=worth.__getitem__)
            self.notes.extend(few_rows(worth[fewest], self.features, "auto", f"class {fewest} of x"))
        elif self.shrinkage > 0:
            self.notes.append(
                f"each class's covariance shrunk by {self.shrinkage:g} towards the isotropic one"
            )
        return sum(power_flops(each.count, self.features) for each in moments.values())

    def _power(self, label: int, moments: Moments, pooled: Tensor, freedom: int) -> SymmetricMap:
        rows, weight = moments.count, self._pooled_weight(moments.count)
        if weight > 0:
            self.notes.append(
                f"class {label} has {rows} rows of {self.features} features: covariance {weight:.2f} of "
                f"the pooled one and {1 - weight:.2f} of its own"
            )
        require_rows(freedom + 1 if weight > 0 else rows, self.features, self.shrinkage, f"x: class {label}")
        # A class of one row has no covariance: its scatter is zero.
        mixed = weight * pooled + (1 - weight) * moments.scatter / max(rows - 1, 1)
        if self.shrinkage not in (0, "auto") and (why := deficiency(mixed)) is not None:
            self.notes.append(f"class {label} of x {why}; only the shrinkage makes its map invertible")
        return symmetric_power(
            mixed, self.exponent, self.shrinkage, f"x: class {label}", self._worth(rows, freedom)
        )

    def _pooled_weight(self, rows: int) -> float:
        """Weight of the pooled covariance for a class of so many rows."""
        enough = self.rows_per_feature * self.features
        return max(0.0, 1 - rows / enough) if enough > 0 else 0.0

    def _worth(self, rows: int, freedom: int) -> int:
        """How many equally weighted rows the mixture for a class of so many rows is worth."""
        weight = self._pooled_weight(rows)
        other = weight / (freedom + 1)
        own = other + (1 - weight) / rows
        return round(1 / (rows * own**2 + (freedom + 1 - rows) * other**2))

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
