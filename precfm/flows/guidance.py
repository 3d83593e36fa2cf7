"""Classifier-free guidance: samples that show their class more clearly, and vary less."""

import torch
from torch import Tensor

from precfm.flows.objectives import Network


def guided(field: Network, weight: float, null_class: int) -> Network:
    """The velocity v_null + weight (v_y - v_null): with 1 that of the class, with 0 that of no class.

    Args:
        field: velocity that also knows points of no class, since labels were dropped in training.
        weight: of the class; above 1 for guidance.
        null_class: the label that stands for no class.

    Returns:
        A field that evaluates the given one twice for each point, in one batch; it needs labels.

    References:
        Classifier-Free Diffusion Guidance (Ho and Salimans, 2022), eq. 6 with w = weight - 1,
        https://arxiv.org/abs/2207.12598
    """

    def mixed(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        both = torch.cat([labels, torch.full_like(labels, null_class)])
        of_class, of_none = field(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
        return of_none + weight * (of_class - of_none)

    return mixed
