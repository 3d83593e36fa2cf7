"""The velocity that a network can learn from data: the exact conditional mean for a smoothed version of them."""

import math

import torch
from torch import Tensor

from precfm.flows.paths import ProbabilityPath
from precfm.geometry.spectra import covariance, eigen_spectrum


def smoothed_velocity(path: ProbabilityPath, x_t: Tensor, t: Tensor, centres: Tensor) -> Tensor:
    """The velocity E[u | x_t] that flow matching would learn if the data were a smoothed version of `centres`.

    What a network can learn is a conditional mean, which real data do not tell: the sampled target holds noise
    that no network removes, and the exact mean over a finite sample is memory. So the data are taken as a kernel
    density estimate with Gaussian kernels in the shape of their covariance Sigma, of Silverman's width h, shrunk
    such that mean and covariance stay those of the data: x1 = m + a (c_i - m) + a h Sigma^(1/2) z with
    a^2 = 1 / (1 + h^2). For this mixture the mean is exact.

    Args:
        path: the probability path.
        x_t: points on the path, shape (n, dim).
        t: their times, shape (n,), below 1.
        centres: data, shape (m, dim), m at least 2.

    Returns:
        The velocity, shape (n, dim), float64.

    References:
        Silverman, Density Estimation for Statistics and Data Analysis (1986), sections 4.3.2 and 6.4.1.
    """
    rows, points, times = centres.double(), x_t.double(), t.double()
    count, dim = rows.shape
    variances, directions = eigen_spectrum(covariance(rows))
    width = (4 / (count * (dim + 2))) ** (1 / (dim + 4))
    shrunk = 1 / (1 + width**2)
    means = (rows.mean(dim=0) + math.sqrt(shrunk) * (rows - rows.mean(dim=0))) @ directions
    spread = shrunk * width**2 * variances.clamp(min=0)
    velocities = []
    for point, time in zip(points @ directions, times, strict=True):
        alpha, sigma, d_alpha, d_sigma = (
            f(time) for f in (path.alpha, path.sigma, path.d_alpha, path.d_sigma)
        )
        variance = alpha**2 * spread + sigma**2
        offsets = point - alpha * means
        weights = torch.softmax(-(offsets.square() / variance).sum(dim=1) / 2, dim=0)
        gain = (alpha * d_alpha * spread + sigma * d_sigma) / variance
        velocities.append(weights @ (d_alpha * means + gain * offsets))
    return torch.stack(velocities) @ directions.T


def learnable_velocity(
    path: ProbabilityPath,
    x_t: Tensor,
    t: Tensor,
    labels: Tensor | None,
    data: Tensor,
    labels_of_data: Tensor | None,
) -> Tensor:
    """`smoothed_velocity` of each point's own class; of all data without labels, or where a class has few rows.

    Args:
        path: the probability path.
        x_t: points on the path, shape (n, dim).
        t: their times, shape (n,), below 1.
        labels: their classes, shape (n,), or None.
        data: shape (m, dim).
        labels_of_data: classes, shape (m,), or None.

    Returns:
        The velocity, shape (n, dim), float64.
    """
    if labels is None or labels_of_data is None:
        return smoothed_velocity(path, x_t, t, data)
    target = torch.empty_like(x_t, dtype=torch.float64)
    for label in torch.unique(labels).tolist():
        here, rows = labels == label, data[labels_of_data == label]
        enough = len(rows) > data.shape[1]
        target[here] = smoothed_velocity(path, x_t[here], t[here], rows if enough else data)
    return target
