"""No preconditioning: the map that changes nothing, so that "none" is a method like any other."""

from torch import Tensor

from precfm.preconditioners.base import Preconditioner
from precfm.preconditioners.fit_data import FitData


class Identity(Preconditioner):
    """The identity map, `z = x`.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
        >>> Identity().fit(x).forward(x)
        tensor([[1., 2.],
                [3., 5.]])
    """

    round_trip_tolerance = 0.0

    @property
    def num_parameters(self) -> int:
        """Zero: nothing is fitted."""
        return 0

    def _allocate(self) -> None:
        pass

    def _fit(self, data: FitData) -> int:
        for _ in data.batches:  # checked as they pass
            pass
        return 0

    def _forward(self, x: Tensor, classes: Tensor | None) -> Tensor:
        return x

    def _inverse(self, z: Tensor, classes: Tensor | None) -> Tensor:
        return z

    def _log_abs_det(self, x: Tensor, classes: Tensor | None) -> Tensor:
        return x.new_zeros(len(x))
