"""What a prediction of the noise or of the data stands for: a score, and a velocity."""

from torch import Tensor

from precfm.flows.paths import ProbabilityPath, per_sample


def score_from_noise(path: ProbabilityPath, noise: Tensor, t: Tensor) -> Tensor:
    """The score grad log p(x_t) that a noise prediction stands for, -noise / sigma_t.

    Args:
        path: the probability path.
        noise: predicted noise, shape (batch, *dim).
        t: times in [0, 1), shape (batch,); at t = 1 sigma_t is zero and the score infinite.

    Returns:
        The score, shape (batch, *dim).
    """
    return -noise / path.sigma(per_sample(t, noise))


def velocity_from_noise(path: ProbabilityPath, noise: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """The velocity that a noise prediction stands for, so that a score model can be sampled by the same ODE.

    Solving x_t = alpha_t x1 + sigma_t x0 for x1 gives alpha_t' (x_t - sigma_t x0) / alpha_t + sigma_t' x0.

    Args:
        path: the probability path.
        noise: predicted noise, shape (batch, *dim).
        x_t: point on the path, shape (batch, *dim).
        t: times in (0, 1], shape (batch,); at t = 0 alpha_t is zero and the velocity undetermined.

    Returns:
        The velocity, shape (batch, *dim).
    """
    t = per_sample(t, x_t)
    x1 = (x_t - path.sigma(t) * noise) / path.alpha(t)
    return path.d_alpha(t) * x1 + path.d_sigma(t) * noise


def velocity_from_data(
    path: ProbabilityPath, x1: Tensor, x_t: Tensor, t: Tensor, smallest_sigma: float
) -> Tensor:
    """The velocity that a prediction of the data stands for.

    Solving x_t = alpha_t x1 + sigma_t x0 for x0 gives alpha_t' x1 + sigma_t' (x_t - alpha_t x1) / sigma_t.

    Args:
        path: the probability path.
        x1: predicted data, shape (batch, *dim).
        x_t: point on the path, shape (batch, *dim).
        t: times in [0, 1], shape (batch,).
        smallest_sigma: what sigma_t is divided by at least; at t = 1 it is zero and the velocity undetermined.

    Returns:
        The velocity, shape (batch, *dim).
    """
    t = per_sample(t, x_t)
    noise = (x_t - path.alpha(t) * x1) / path.sigma(t).clamp(min=smallest_sigma)
    return path.d_alpha(t) * x1 + path.d_sigma(t) * noise
