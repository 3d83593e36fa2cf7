"""Probability paths: how noise x0 and data x1 mix into x_t, and what covariance x_t then has.

A path is x_t = alpha_t x1 + sigma_t x0 with noise at t = 0 and data at t = 1.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor


class ProbabilityPath(ABC):
    """An affine Gaussian path x_t = alpha_t x1 + sigma_t x0 from noise (t = 0) to data (t = 1).

    A path has no state. Its four schedules take a tensor of times in [0, 1] and return a tensor of its shape.

    References:
        Flow Matching for Generative Modeling (Lipman et al., 2022), https://arxiv.org/abs/2210.02747
    """

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Weight of the data, 0 at t = 0 and 1 at t = 1; shape of `t`."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Weight of the noise, 1 at t = 0 and 0 at t = 1; shape of `t`."""

    @abstractmethod
    def d_alpha(self, t: Tensor) -> Tensor:
        """Time derivative of `alpha`; shape of `t`."""

    @abstractmethod
    def d_sigma(self, t: Tensor) -> Tensor:
        """Time derivative of `sigma`; shape of `t`."""

    def sample(self, x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Points on the path and the velocity with which they pass.

        Args:
            x0: noise, shape (batch, *dim).
            x1: data, shape (batch, *dim).
            t: times in [0, 1], shape (batch,).

        Returns:
            `x_t` = alpha_t x1 + sigma_t x0 and `velocity` = alpha_t' x1 + sigma_t' x0, both (batch, *dim).
        """
        t = per_sample(t, x1)
        x_t = self.alpha(t) * x1 + self.sigma(t) * x0
        velocity = self.d_alpha(t) * x1 + self.d_sigma(t) * x0
        return x_t, velocity

    def cov_t(self, cov_data: Tensor, t: Tensor | float) -> Tensor:
        """Covariance of x_t under independent coupling: Sigma_t = alpha_t^2 Sigma_1 + sigma_t^2 I.

        Args:
            cov_data: Sigma_1, the covariance of the data, shape (dim, dim).
            t: one time, or times of any shape.

        Returns:
            Sigma_t in float64, shape (*t.shape, dim, dim).

        References:
            Preconditioned (Score and) Flow Matching (Ahamed et al., 2026), https://arxiv.org/abs/2603.02337
        """
        cov_data = cov_data.to(torch.float64)
        times = torch.as_tensor(t, dtype=torch.float64, device=cov_data.device)[..., None, None]
        identity = torch.eye(cov_data.shape[-1], dtype=torch.float64, device=cov_data.device)
        return self.alpha(times) ** 2 * cov_data + self.sigma(times) ** 2 * identity


class LinearPath(ProbabilityPath):
    """The straight line of flow matching: alpha_t = t, sigma_t = 1 - t, velocity x1 - x0.

    References:
        Flow Straight and Fast (Liu et al., 2022), https://arxiv.org/abs/2209.03003

    Example:
        >>> x_t, velocity = LinearPath().sample(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([0.25]))
        >>> x_t.tolist(), velocity.tolist()
        ([[0.25, 0.25]], [[1.0, 1.0]])
    """

    def alpha(self, t: Tensor) -> Tensor:
        """Weight of the data, t."""
        return t

    def sigma(self, t: Tensor) -> Tensor:
        """Weight of the noise, 1 - t."""
        return 1 - t

    def d_alpha(self, t: Tensor) -> Tensor:
        """Time derivative of `alpha`, 1."""
        return torch.ones_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        """Time derivative of `sigma`, -1."""
        return -torch.ones_like(t)


class VariancePreservingPath(ProbabilityPath):
    """The trigonometric path alpha_t = sin(pi t / 2), sigma_t = cos(pi t / 2), so alpha_t^2 + sigma_t^2 = 1.

    Data of unit covariance keep it along the whole path.

    References:
        Building Normalizing Flows with Stochastic Interpolants (Albergo and Vanden-Eijnden, 2022),
        https://arxiv.org/abs/2209.15571
    """

    def alpha(self, t: Tensor) -> Tensor:
        """Weight of the data, sin(pi t / 2)."""
        return torch.sin(math.pi / 2 * t)

    def sigma(self, t: Tensor) -> Tensor:
        """Weight of the noise, cos(pi t / 2)."""
        # This sine is exactly zero at t = 1; the cosine of a rounded pi / 2 is not, and negative in float32.
        return torch.sin(math.pi / 2 * (1 - t))

    def d_alpha(self, t: Tensor) -> Tensor:
        """Time derivative of `alpha`, pi / 2 cos(pi t / 2)."""
        return math.pi / 2 * self.sigma(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        """Time derivative of `sigma`, -pi / 2 sin(pi t / 2)."""
        return -math.pi / 2 * self.alpha(t)


def per_sample(t: Tensor, x: Tensor) -> Tensor:
    """Give times of shape (batch,) the trailing axes that let them scale samples of shape (batch, *dim)."""
    return t.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
