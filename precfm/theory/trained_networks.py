"""Trained networks on data of known law: train, sample, and compare the covariance with the exact one."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from torch import Tensor, nn

from precfm.core.seeds import generator_for, seeded_module
from precfm.datasets.synthetic import Gaussian, Mixture
from precfm.flows.models.mlp import MLPVelocity
from precfm.flows.objectives import Network, denoising_score_loss, flow_matching_loss, velocity_from_noise
from precfm.flows.paths import LinearPath
from precfm.flows.sampling import evaluation_noise, integrate
from precfm.preconditioners.base import Preconditioner
from precfm.theory.mixtures import ExactVelocity
from precfm.training.trainer import TrainingOptions, train

PATH = LinearPath()
SOLVER_STEPS = 50
SCORE_START = 0.02  # where sampling of a score model starts: at t = 0 noise does not determine a velocity


@dataclass(frozen=True)
class Recipe:
    """How a network is built and trained; the rest is what `TrainingOptions` has.

    Attributes:
        width: units of each hidden layer.
        depth: hidden layers.
        steps: optimizer steps.
        batch_size: rows of each step.
        learning_rate: constant.
        optimizer: Adam (decoupled weight decay) or plain stochastic gradient descent.
        weight_decay: strength of the weight decay.
        target: what is regressed; `score` in its noise form.
    """

    width: int = 128
    depth: int = 3
    steps: int = 5000
    batch_size: int = 256
    learning_rate: float = 1e-3
    optimizer: Literal["adam", "sgd"] = "adam"
    weight_decay: float = 0.0
    target: Literal["velocity", "score"] = "velocity"

    def build(self, dim: int, num_classes: int) -> MLPVelocity:
        """The network, with weights from torch's global generator."""
        return MLPVelocity(dim, num_classes, width=self.width, depth=self.depth)

    def options(self, checkpoints: tuple[int, ...] = ()) -> TrainingOptions:
        """The trainer's options."""
        return TrainingOptions(
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            optimizer=self.optimizer,
            weight_decay=self.weight_decay,
            checkpoints=checkpoints,
        )

    def loss(self, module: nn.Module, batch: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """The plain recipe's loss: uniform times on the linear path."""
        labels = batch[1] if len(batch) > 1 else None
        loss = flow_matching_loss if self.target == "velocity" else denoising_score_loss
        return loss(module, PATH, batch[0], labels, generator)


def train_flow(
    x: Tensor,
    labels: Tensor | None,
    recipe: Recipe,
    *,
    seed: int,
    name: str,
    checkpoints: tuple[int, ...] = (),
    on_checkpoint: Callable[[int, nn.Module], None] | None = None,
) -> tuple[nn.Module, "pd.Series[float]"]:
    """Train a network on fixed data.

    Args:
        x: data in the space of the flow, shape (n, dim).
        labels: classes from 0, shape (n,), or None for an unconditional network.
        recipe: how.
        seed: seed of the initial weights and of all steps.
        name: for the progress line.
        checkpoints: steps at which `on_checkpoint` is called.
        on_checkpoint: receives the step and the network.

    Returns:
        The network, and its loss by step, from step 1.
    """
    classes = 0 if labels is None else int(labels.max()) + 1
    module = seeded_module(lambda: recipe.build(x.shape[1], classes), seed)
    data = (x.float(),) if labels is None else (x.float(), labels)
    result = train(
        module,
        recipe.loss,
        data,
        recipe.options(checkpoints),
        seed=seed,
        on_checkpoint=on_checkpoint,
        name=name,
    )
    return module.eval(), result.history.set_index("step")["loss"]


def late_loss(losses: "pd.Series[float]", step: int) -> float:
    """Mean loss over the last tenth of the steps up to `step`."""
    return float(losses.loc[step - max(step // 10, 1) + 1 : step].mean())


def generate(
    module: Network,
    preconditioner: Preconditioner | None,
    n: int,
    dim: int,
    labels: Tensor | None = None,
    *,
    target: str = "velocity",
    seed: int = 0,
) -> Tensor:
    """Samples in data space, float64: solve the ODE by the midpoint rule and map back.

    A score model starts at t = 0.02, from noise of the variance that x_t has there for data of variance one.

    Args:
        module: the network, or an exact field.
        preconditioner: what maps the flow's space back to the data's; None for none.
        n: number of samples.
        dim: dimension.
        labels: classes to ask for, shape (n,), or None.
        target: what the network predicts: `velocity`, or `score` (then noise).
        seed: evaluation seed; methods that are compared share it.

    Returns:
        Samples, shape (n, dim).
    """
    z0, start, field = evaluation_noise(n, dim, seed), 0.0, module
    if target == "score":
        start = SCORE_START
        z0 = z0 * math.hypot(start, 1 - start)

        def field(x_t: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
            return velocity_from_noise(PATH, module(x_t, t, y), x_t, t)

    z1 = integrate(field, z0, labels, solver="midpoint", steps=SOLVER_STEPS, t0=start).to(torch.float64)
    return z1 if preconditioner is None else preconditioner.inverse(z1, labels)


def exact_samples(law: Gaussian, whitened: bool, n: int, *, target: str, seed: int = 0) -> Tensor:
    """What the same solver makes of the exact field: the floor that no network can beat.

    Args:
        law: the data's law.
        whitened: solve in the whitened space (exact whitening) and map back.
        n: number of samples.
        target: `velocity` or `score`: where the solver starts.
        seed: evaluation seed.

    Returns:
        Samples, shape (n, dim), float64.
    """
    dim = law.dim
    inner = (
        Gaussian(torch.ones_like(law.eigenvalues), law.basis, torch.zeros_like(law.mean)) if whitened else law
    )
    exact = ExactVelocity(Mixture(torch.ones(1, dtype=torch.float64), (inner,)), PATH)
    if target == "score":

        def field(x_t: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
            # The noise that the exact velocity stands for: x_t = t x1 + (1 - t) x0 and v = x1 - x0.
            return x_t - t[:, None] * exact(x_t, t, y)

        z = generate(field, None, n, dim, target="score", seed=seed)
    else:
        z = generate(exact, None, n, dim, seed=seed)
    return z if not whitened else law.mean + ((z @ law.basis) * law.eigenvalues.sqrt()) @ law.basis.T


def variance_ratios(samples: Tensor, law: Gaussian) -> Tensor:
    """Variance of the samples along each eigenvector of the law, over its eigenvalue, shape (dim,)."""
    centred = samples.to(torch.float64) - samples.to(torch.float64).mean(0)
    return (centred @ law.basis).square().mean(0) / law.eigenvalues


def recovery_summary(ratios: Tensor) -> dict[str, float]:
    """Summary of variance ratios in the order of ascending eigenvalues.

    Args:
        ratios: shape (dim,).

    Returns:
        ratio_low: geometric mean over the lowest quartile (at least one direction); log_error_low: mean |log
            ratio|
        over it; log_error: over all directions.
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

    Times are the midpoints of equal intervals of [0, 1], and the points are drawn from the path.

    Args:
        module: the network, in data space.
        law: the data's law.
        labelled: whether the network is label-conditional; else the exact field is the mixture's marginal
            one.
        n: points for each time.
        times: number of times.
        seed: evaluation seed.

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
