"""Trained networks on data of known law: train, sample, and compare with the exact field and covariance.

Samples are `n` solutions of the ODE by the midpoint rule, shape (n, dim), float64; `seed` is that of the evaluation,
which methods that are compared share; `target` is what the network predicts: `velocity`, or `score` (then noise).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from torch import Tensor, nn

from precfm.core.seeds import generator_for, seeded_module
from precfm.datasets.synthetic import Gaussian, Mixture
from precfm.flows.models.base import VelocityNetwork
from precfm.flows.models.gaussian_skip import GaussianSkip
from precfm.flows.models.mlp import MLPVelocity
from precfm.flows.objectives import DenoisingScore, FlowMatching, Network, VelocityObjective
from precfm.flows.paths import LinearPath
from precfm.flows.sampling import evaluation_noise, integrate
from precfm.preconditioners.base import Preconditioner
from precfm.theory.linear_regression import Target
from precfm.theory.mixtures import ExactVelocity
from precfm.training.options import TrainingOptions
from precfm.training.trainer import train

PATH = LinearPath()
SOLVER_STEPS = 50
OBJECTIVES: dict[Target, Callable[[], VelocityObjective]] = {
    "velocity": FlowMatching,
    "score": DenoisingScore,
}


@dataclass(frozen=True)
class NetworkSetup:
    """How a network is built and trained.

    Attributes:
        width: units of each of the three hidden layers.
        target: what is regressed, at uniform times on the linear path; `score` in its noise form.
        training: how; without an average of the weights (`ema_decay=None`) what is seen is the descent itself.
        skip: what the Gaussian around the network knows of the data (see `GaussianSkip`); None: there is none.
    """

    width: int
    training: TrainingOptions
    target: Target = "velocity"
    skip: Literal["covariance", "classwise"] | None = None

    def build(self, dim: int, num_classes: int) -> VelocityNetwork:
        """The network, with weights from torch's global generator; a skip is not fitted yet."""
        network = MLPVelocity(dim, num_classes, width=self.width)
        return network if self.skip is None else GaussianSkip(network, PATH, skip=self.skip)

    def objective(self, z1: Tensor) -> VelocityObjective:
        """The objective, for data in the flow's space, shape (n, dim)."""
        return OBJECTIVES[self.target]().prepare(PATH, z1)


def initial_network(x: Tensor, labels: Tensor | None, setup: NetworkSetup, *, seed: int) -> VelocityNetwork:
    """The network before its training, with its skip fitted: behind a skip it is the fitted Gaussian's exact field.

    Args:
        x: data in the space of the flow, shape (n, dim).
        labels: classes from 0, shape (n,), or None for an unconditional network.
        setup: how.
        seed: seed of the initial weights.
    """
    classes = 0 if labels is None else int(labels.max()) + 1
    module = seeded_module(lambda: setup.build(x.shape[1], classes), seed)
    if isinstance(module, GaussianSkip):
        module.fit(x.float(), labels)
    return module


def train_network(
    x: Tensor,
    labels: Tensor | None,
    setup: NetworkSetup,
    *,
    seed: int,
    name: str,
    on_checkpoint: Callable[[int, nn.Module], None] | None = None,
) -> tuple[nn.Module, "pd.Series[float]"]:
    """Train a network on fixed data.

    Args:
        x: data in the space of the flow, shape (n, dim).
        labels: classes from 0, shape (n,), or None for an unconditional network.
        setup: how.
        seed: seed of the initial weights and of all steps.
        name: for the progress line.
        on_checkpoint: receives each of the training's checkpoints and the network then.

    Returns:
        The network, and its loss by step, from step 1.
    """
    z1 = x.float()
    module = initial_network(z1, labels, setup, seed=seed)
    data = (z1,) if labels is None else (z1, labels)
    result = train(
        module,
        setup.objective(z1),
        data,
        setup.training,
        seed=seed,
        on_checkpoint=on_checkpoint,
        name=name,
    )
    return module, result.history.set_index("step")["loss"]


def late_loss(losses: "pd.Series[float]", step: int) -> float:
    """Mean loss over the last tenth of the steps up to `step`."""
    return float(losses.loc[step - max(step // 10, 1) + 1 : step].mean())


def generate(
    module: Network,
    preconditioner: Preconditioner,
    n: int,
    dim: int,
    labels: Tensor | None = None,
    *,
    target: Target = "velocity",
    seed: int = 0,
) -> Tensor:
    """Samples in data space: solve the ODE and map back.

    Args:
        module: the network, or an exact field.
        preconditioner: what maps the flow's space back to the data's, fitted.
        n: number of samples.
        dim: dimension.
        labels: classes to ask for, shape (n,), or None.
        target: of the network.
        seed: of the evaluation.
    """
    return preconditioner.inverse(_solved(module, n, dim, labels, target, seed), labels)


def alone_samples(
    preconditioner: Preconditioner, n: int, labels: Tensor | None = None, *, seed: int = 0
) -> Tensor:
    """What a map makes of noise by itself, without a flow behind it; arguments as of `generate`."""
    noise = evaluation_noise(n, preconditioner.features, seed).to(torch.float64)
    return preconditioner.inverse(noise, labels)


def exact_samples(law: Gaussian, whitened: bool, n: int, *, target: Target, seed: int = 0) -> Tensor:
    """What the same solver makes of the exact field: the floor that no network can beat.

    If `whitened`, it is solved in the space of exact whitening and mapped back.
    """
    inner = law
    if whitened:
        inner = Gaussian(torch.ones_like(law.eigenvalues), law.basis, torch.zeros_like(law.mean))
    velocity = ExactVelocity(Mixture(torch.ones(1, dtype=torch.float64), (inner,)), PATH)

    def noise(x_t: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        # What the exact velocity stands for: x_t = t x1 + (1 - t) x0 and v = x1 - x0.
        return x_t - t[:, None] * velocity(x_t, t, y)

    z1 = _solved(velocity if target == "velocity" else noise, n, law.dim, None, target, seed)
    return law.mean + ((z1 @ law.basis) * law.eigenvalues.sqrt()) @ law.basis.T if whitened else z1


def _solved(module: Network, n: int, dim: int, labels: Tensor | None, target: Target, seed: int) -> Tensor:
    """Samples in the flow's space, shape (n, dim), float64."""
    objective = OBJECTIVES[target]()
    z0 = evaluation_noise(n, dim, seed) * objective.start_scale(PATH)
    field = objective.velocity(module, PATH)
    z1 = integrate(field, z0, labels, solver="midpoint", steps=SOLVER_STEPS, t0=objective.start)
    return z1.to(torch.float64)


def variance_ratios(samples: Tensor, law: Gaussian) -> Tensor:
    """Variance of the samples along each eigenvector of the law, over its eigenvalue, shape (dim,)."""
    centred = samples - samples.mean(0)
    return (centred @ law.basis).square().mean(0) / law.eigenvalues


def recovery_summary(ratios: Tensor) -> dict[str, float]:
    """Summary of variance ratios in the order of ascending eigenvalues.

    Returns:
        ratio_low: geometric mean over the lowest quartile (at least one direction); log_error_low: mean |log
        ratio| over it; log_error: over all directions.
    """
    logs = ratios.log()
    low = logs[: max(1, -(-len(logs) // 4))]
    return {
        "ratio_low": float(low.mean().exp()),
        "log_error_low": float(low.abs().mean()),
        "log_error": float(logs.abs().mean()),
    }


def field_excess(
    module: Network, law: Mixture, labelled: bool, *, n: int = 4000, times: int = 20, seed: int = 0
) -> Tensor:
    """Mean squared distance of a velocity network to the exact field, by component.

    Times are the midpoints of `times` equal intervals of [0, 1], with `n` points of the path at each. The exact field
    is that of the labels if the network is `labelled`, else the mixture's marginal one.

    Returns:
        Excess risk given each component, shape (components,), float64.
    """
    exact = ExactVelocity(law, PATH)
    x1, labels = law.sample(n, seed)
    x0 = torch.randn(x1.shape, generator=generator_for(seed, "excess noise"), dtype=torch.float64)
    asked = labels if labelled else None
    squares = torch.zeros(n, dtype=torch.float64)
    with torch.no_grad():
        for t in (torch.arange(times, dtype=torch.float64) + 0.5) / times:
            x_t = t * x1 + (1 - t) * x0
            time = t.expand(n)
            found = module(x_t.float(), time.float(), asked).to(torch.float64)
            squares += (found - exact(x_t, time, asked)).square().sum(1) / times
    return torch.stack([squares[labels == k].mean() for k in range(len(law.components))])
