"""Which noise meets which data in a mini-batch."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def optimal_coupling(x0: Tensor, x1: Tensor, labels: Tensor | None) -> Tensor:
    """Noise re-ordered so that, within each class of the batch, it meets the data at the least squared distance.

    The assignment is exact. It stays within the class, so that noise given a label is still N(0, I): pairing
    across classes would teach the flow that some noise belongs to some classes, which sampling does not know.

    Args:
        x0: noise, shape (batch, *dim).
        x1: data, shape (batch, *dim).
        labels: class of each sample, shape (batch,), or None for one class. On an accelerator they and the
            samples are copied to the host, where the assignment is computed.

    Returns:
        The rows of `x0` in another order, shape (batch, *dim).

    References:
        | Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport
        | (Tong et al., 2023), https://arxiv.org/abs/2302.00482
        | Multisample Flow Matching: Straightening Flows with Minibatch Couplings (Pooladian et al., 2023)
        | https://arxiv.org/abs/2304.14772

    Example:
        >>> noise, data = torch.tensor([[5.0], [-5.0]]), torch.tensor([[-1.0], [1.0]])
        >>> optimal_coupling(noise, data, None).tolist(), optimal_coupling(noise, data, torch.arange(2)).tolist()
        ([[-5.0], [5.0]], [[5.0], [-5.0]])
    """
    noise, data = (x.detach().flatten(1).cpu().double().numpy() for x in (x0, x1))
    classes = np.zeros(len(noise), dtype=np.int64) if labels is None else labels.cpu().numpy()
    order = np.arange(len(noise))
    for label in np.unique(classes):
        rows = np.flatnonzero(classes == label)
        # The norms in |x1 - x0|^2 do not depend on the pairing: the least distance is the largest product.
        order[rows] = rows[linear_sum_assignment(data[rows] @ noise[rows].T, maximize=True)[1]]
    return x0[torch.from_numpy(order).to(x0.device)]
