"""Gaussian mixtures: exact fields, linear experts by label or by responsibility, what slows their descent.

At time t component k of the mixture is N(alpha mu_k, S_k), S_k = alpha^2 Sigma_k + sigma^2 I, with weight
w_k. The optimal velocity is v(x) = sum_k g_k(x) (A_k (x - alpha mu_k) + alpha' mu_k), where g are the
responsibilities and A_k the optimum of component k alone. It is linear in the features f_k(x) = g_k(x) (x -
alpha mu_k, 1), so that the theory of least squares applies with the second moment of f in the place of
Sigma_t:

* With labels, g is the label. The second moment is block-diagonal with blocks w_k S_k, so direction i of
  component k contracts by (1 - 2 eta w_k lambda_ki): weight and variance enter as a product.
* Without labels, g overlaps; the blocks couple, less so the better the components are separated.
* One linear field for all sees only the covariance of the whole mixture, which does average.

So the statement that the worst-conditioned component controls (C5) needs experts (labels, or a field rich
enough to separate components), and "worst" is smallest w_k lambda_min,k: a rare component of good
conditioning can be the slowest, and so can an isotropic one of small variance. `scale_control` is the mixture
that tells the two apart.

Everywhere `law` is the data's law, `t` one time, `x` points of shape (batch, dim), float64; in the closed forms of
descent `learning_rate` is eta and `steps` are numbers of steps, shape (n,).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.datasets.synthetic import Gaussian, Mixture, mixture, spectrum
from precfm.flows.paths import ProbabilityPath
from precfm.theory.linear_regression import LinearProblem, linear_problem

SEPARATION = 4.0  # radius of the sphere of the means where it is not varied, in root mean variances


@dataclass(frozen=True)
class ExactVelocity:
    """The velocity that flow matching converges to for data of known law; a `Network` for `integrate`.

    With labels it is the conditional field of the label's component, without them the marginal field of the
    mixture.
    """

    law: Mixture
    path: ProbabilityPath

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Velocity at x_t, shape (batch, dim), in the dtype of x_t; all t must be equal."""
        x, time = x_t.to(torch.float64), t.reshape(-1)[0].to(torch.float64)
        each = torch.stack([conditional_velocity(c, x, time, self.path) for c in self.law.components], dim=1)
        if labels is None:
            gate = responsibilities(self.law, x, time, self.path)
        else:
            gate = torch.nn.functional.one_hot(labels, len(self.law.components)).to(x)
        return torch.einsum("nk,nkd->nd", gate, each).to(x_t.dtype)


def conditional_velocity(law: Gaussian, x: Tensor, t: Tensor, path: ProbabilityPath) -> Tensor:
    """E[x1' | x_t = x] for one Gaussian: A* (x - alpha mu) + alpha' mu.

    Its eigenvalues must be positive if t = 1. Shape (batch, dim).
    """
    problem = linear_problem(law.eigenvalues, t, path)
    centred = x - path.alpha(t) * law.mean
    velocity: Tensor = (centred @ law.basis * problem.optimum) @ law.basis.T + path.d_alpha(t) * law.mean
    return velocity


def responsibilities(law: Mixture, x: Tensor, t: Tensor, path: ProbabilityPath) -> Tensor:
    """Probability of each component given x_t = x, shape (batch, components), float64."""
    logs = []
    for weight, component in zip(law.weights, law.components, strict=True):
        variance = path.alpha(t) ** 2 * component.eigenvalues + path.sigma(t) ** 2
        white = (x - path.alpha(t) * component.mean) @ component.basis / variance.sqrt()
        logs.append(weight.log() - 0.5 * white.square().sum(1) - 0.5 * variance.log().sum())
    return torch.stack(logs, dim=1).softmax(1)


def expert_features(law: Mixture, x: Tensor, gate: Tensor, t: Tensor, path: ProbabilityPath) -> Tensor:
    """f_k(x) = g_k(x) (x - alpha mu_k, 1), side by side for all components, (batch, components (dim + 1))."""
    means = torch.stack([component.mean for component in law.components])
    centred = x[:, None, :] - path.alpha(t) * means
    with_one = torch.cat([centred, torch.ones_like(centred[..., :1])], dim=2)
    return (gate[..., None] * with_one).flatten(1)


def component_problems(law: Mixture, t: Tensor, path: ProbabilityPath) -> LinearProblem:
    """The regression of each component alone, shape (components, dim)."""
    return linear_problem(torch.stack([component.eigenvalues for component in law.components]), t, path)


def ablations(
    dim: int,
    condition_numbers: Sequence[float],
    *,
    weights: Sequence[float],
    worst_condition_numbers: Sequence[float],
    control_condition_number: float | None,
    separations: Sequence[float] = (),
    separation: float = SEPARATION,
    seed: int = 0,
) -> dict[tuple[str, float], Mixture]:
    """Mixtures that differ in one thing; all share rotations and mean directions.

    The last component is the worst-conditioned one. `weights` varies its weight (the others share the rest) with
    covariances fixed, `conditioning` varies its condition number with weights equal, `separation` moves the means
    apart. `scale` is another mixture, see `scale_control`.

    Args:
        dim: dimension.
        condition_numbers: of the components, the worst last.
        weights: of the last component.
        worst_condition_numbers: of the last component.
        control_condition_number: the larger condition number of `scale`; None leaves it out.
        separations: radii of the sphere of the means.
        separation: the radius where it is not varied.
        seed: seed of the rotations and means.

    Returns:
        Mixtures by ablation and level.
    """
    others = len(condition_numbers) - 1
    laws: dict[tuple[str, float], Mixture] = {}
    for weight in weights:
        shares = (*((1 - weight) / others,) * others, weight)
        laws["weights", weight] = mixture(dim, condition_numbers, shares, separation=separation, seed=seed)
    for worst in worst_condition_numbers:
        laws["conditioning", worst] = mixture(
            dim, (*condition_numbers[:-1], worst), separation=separation, seed=seed
        )
    for radius in separations:
        laws["separation", radius] = mixture(dim, condition_numbers, separation=radius, seed=seed)
    if control_condition_number is not None:
        laws["scale", control_condition_number] = scale_control(
            dim, control_condition_number, separation=separation, seed=seed
        )
    return laws


def scale_control(
    dim: int, condition_number: float, *, separation: float = SEPARATION, seed: int = 0
) -> Mixture:
    """Four equally frequent components that cross the condition number with the smallest variance.

    At mean variance one, a larger condition number means a smaller smallest variance. Here each of the condition
    numbers 1 and kappa occurs with each of two smallest variances: 1, and that of kappa's spectrum of mean one.

    Args:
        dim: dimension.
        condition_number: kappa, above 1.
        separation: radius of the sphere of the means.
        seed: seed of the rotations and means.

    Returns:
        A mixture whose components have (condition number, smallest variance) = (1, 1), (1, small), (kappa,
        small), (kappa, 1) in this order.

    Raises:
        PrecfmError: the condition number leaves nothing to cross.

    Example:
        >>> law = scale_control(4, 100.0)
        >>> [round(float(c.eigenvalues.min() / c.eigenvalues.max()), 9) for c in law.components]
        [1.0, 1.0, 0.01, 0.01]
    """
    if condition_number <= 1:
        raise PrecfmError(f"condition_number: got {condition_number}; the control of scale needs one above 1")
    small = float(spectrum(dim, condition_number)[0])
    kappas, scales = (1.0, 1.0, condition_number, condition_number), (1.0, small, 1.0, 1 / small)
    return mixture(dim, kappas, scales=scales, separation=separation, seed=seed)


def labelled_excess(
    law: Mixture, t: Tensor, path: ProbabilityPath, learning_rate: float, steps: Tensor
) -> Tensor:
    """Excess risk of every component under descent on label-conditional experts from zero, in closed form.

    The slopes of component k contract by (1 - 2 eta w_k lambda_ki); its bias, whose feature has second moment
    w_k and is uncorrelated with the centred inputs, by (1 - 2 eta w_k) from || alpha' mu_k ||^2.

    Returns:
        Excess risk given each component (not weighted), shape (n, components).
    """
    problem = component_problems(law, t, path)
    exponent = 2 * steps.to(torch.float64)[:, None, None]
    weights = law.weights[:, None]
    slopes = problem.variance * problem.optimum**2
    slopes = slopes * (1 - 2 * learning_rate * weights * problem.variance).abs() ** exponent
    means = torch.stack([component.mean for component in law.components])
    bias = path.d_alpha(t) ** 2 * means.square().sum(1, keepdim=True)
    bias = bias * (1 - 2 * learning_rate * weights).abs() ** exponent
    return slopes.sum(-1) + bias.sum(-1)


def lowest_relative_excess(
    law: Mixture, t: Tensor, path: ProbabilityPath, learning_rate: float, steps: Tensor
) -> Tensor:
    """Excess risk along every component's direction of lowest variance, relative to its start.

    (1 - 2 eta w_k lambda_min,k)^(2n) for descent on label-conditional experts: the condition number does not
    occur, and the component enters by its weight times its smallest variance at time t alone.

    Returns:
        Shape (n, components).
    """
    slowest = law.weights * component_problems(law, t, path).variance.amin(1)
    factor: Tensor = (1 - 2 * learning_rate * slowest).abs() ** (2 * steps.to(torch.float64)[:, None])
    return factor


def descent_of_moments(
    moments: Tensor, error: Tensor, learning_rate: float, steps: Tensor, weights: Tensor
) -> Tensor:
    """Excess risk of every component under descent on any features, given their second moments.

    With G = sum_k w_k G_k, G_k = E[f f^T | k], the error obeys E = E_0 (I - 2 eta G)^n, and component k's
    excess risk is tr(E G_k E^T): exact for given moments, for overlapping features too.

    Args:
        moments: G_k, shape (components, features, features).
        error: E_0, shape (dim, features).
        learning_rate: eta.
        steps: numbers of steps, shape (n,).
        weights: w, shape (components,).

    Returns:
        Excess risk given each component (not weighted), shape (n, components).
    """
    values, vectors = torch.linalg.eigh(torch.einsum("k,kij->ij", weights, moments))
    factors = (1 - 2 * learning_rate * values) ** steps.to(torch.float64)[:, None]
    errors = torch.einsum("of,fg,ng->nog", error, vectors, factors)
    rotated = vectors.T @ moments @ vectors
    return torch.einsum("nog,kgh,noh->nk", errors, rotated, errors)
