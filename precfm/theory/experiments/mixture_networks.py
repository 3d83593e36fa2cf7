"""Experiment: networks on a mixture: preconditioners beside compute-matched baselines (C5 to C7, C10).

The refutation test of the paper: in controlled mixtures, no better path conditioning or low-eigenvalue
recovery than compute-matched baselines.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import pandas as pd
import torch
from torch import Tensor

from precfm.core.options import Count, NotNegative, checked
from precfm.core.seeds import derived_seed
from precfm.datasets.synthetic import Mixture, mixture
from precfm.flows.compute import flops_per_step, matched_steps, matched_width, num_parameters
from precfm.flows.objectives import Network
from precfm.geometry.spectra import class_covariances, condition_number, covariance
from precfm.preconditioners.base import Preconditioner
from precfm.preconditioners.class_whitening import ClassWhitening
from precfm.preconditioners.identity import Identity
from precfm.preconditioners.low_capacity_flow import LowCapacityFlow
from precfm.preconditioners.normalizing_flow import NormalizingFlow
from precfm.preconditioners.scalar import Scalar
from precfm.preconditioners.whitening import Whitening
from precfm.theory.mixtures import SEPARATION, responsibilities
from precfm.theory.option_types import ConditionNumber, Levels, Several
from precfm.theory.trained_networks import (
    PATH,
    NetworkSetup,
    alone_samples,
    field_excess,
    generate,
    initial_network,
    late_loss,
    recovery_summary,
    train_network,
)
from precfm.training.options import TrainingOptions

REFERENCE_SIZE = 50_000
SKIP = "gaussian_skip"
Fitted: TypeAlias = Literal["whitening", "class_whitening", "normalizing_flow", "low_capacity_flow"]
Comparison: TypeAlias = tuple[list[dict[str, Any]], dict[str, Any]]
"""Rows of `components` and the row of `methods`, without their names."""


@dataclass(frozen=True)
class Problem:
    """What all methods share: the law, its samples, and what is asked of the flow.

    Attributes:
        law: the mixture.
        x: training data, shape (n, dim), float64.
        labels: components of the data, shape (n,).
        labelled: whether the flow is label-conditional.
        samples: number of generated samples.
        seed: seed of training and evaluation.
    """

    law: Mixture
    x: Tensor
    labels: Tensor
    labelled: bool
    samples: int
    seed: int

    @property
    def asked(self) -> Tensor | None:
        """Labels that the flow is trained with."""
        return self.labels if self.labelled else None

    @property
    def evaluation(self) -> int:
        """The seed of the evaluation."""
        return derived_seed(self.seed, "evaluation")

    @property
    def asked_of_samples(self) -> Tensor | None:
        """Labels that samples are asked for: of each component equally many, so that all errors have equal noise."""
        return torch.arange(self.samples) % self.num_classes if self.labelled else None

    @property
    def num_classes(self) -> int:
        """Classes of the network's condition."""
        return len(self.law.components) if self.labelled else 0


@checked
def run(
    *,
    dim: Count = 16,
    condition_numbers: Several[ConditionNumber] = (1.0, 10.0, 100.0, 1e3),
    separation: NotNegative = SEPARATION,
    regimes: Several[Literal["labels", "unlabelled"]] = ("labels", "unlabelled"),
    preconditioners: Several[Fitted] = (
        "whitening",
        "class_whitening",
        "normalizing_flow",
        "low_capacity_flow",
    ),
    matched: Levels[Fitted] = ("class_whitening", "normalizing_flow", "low_capacity_flow"),
    steps: Count = 3000,
    width: Count = 128,
    flow_steps: Count = 1500,
    data_size: Count = 20_000,
    samples: Count = 8000,
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Train a flow without and with each preconditioner, and what is set against them.

    * `<method>-P` has no preconditioner but centre and one scale, and at least as many parameters as flow and
      preconditioner together; `<method>-F` at least as many training operations. Baselines that come out equal are
      trained once and listed under each name.
    * `gaussian_skip` has the information of whitening in an unchanged space (centre and one scale): the fitted
      Gaussian's exact field as a skip around the network, that of each class with labels, else that of all data.
    * `alone:<method>` is what a map makes of noise, or a skip without its trained network: no merit of a flow.

    Class whitening needs labels and is left out of the regime `unlabelled`.

    Args:
        separation: radius of the sphere of the means.
        regimes: `labels`: label-conditional networks; `unlabelled`: networks and maps that see no labels.
        preconditioners: which ones.
        matched: those whose matched baselines are trained.
        flow_steps: most steps of a learned map's fit.

    Returns:
        `components`: (regime, method, seed, component, condition_number, smallest_variance, weight, share of the
        samples, ratio_low, log_error_low, log_error, excess: of the field in data space, NaN but for networks without
        map and skip); `methods`: (regime, method, seed, width, steps, parameters, preconditioner_parameters, loss,
        kappa of the flow's space, kappa_worst of its classes) of what is trained. Method `floor` is an independent draw
        of the law of equal size. With labels, equally many samples are asked of each component.
    """
    law = mixture(dim, condition_numbers, separation=separation, seed=derived_seed(seed, "law"))
    x, labels = law.sample(data_size, derived_seed(seed, "data"))
    base = NetworkSetup(width, TrainingOptions(steps=steps, ema_decay=None))
    components: list[dict[str, Any]] = []
    methods: list[dict[str, Any]] = []
    for regime in regimes:
        problem = Problem(law, x, labels, regime == "labels", samples, seed)
        scalar = fitted("scalar", problem)
        unconditioned: dict[str, NetworkSetup] = {}
        results: dict[str, Comparison] = {}
        untrained: dict[str, list[dict[str, Any]]] = {}
        for method in preconditioners:
            if method == "class_whitening" and not problem.labelled:
                continue
            preconditioner, asked = fitted(method, problem, flow_steps), problem.asked_of_samples
            results[method] = train_and_compare(problem, base, preconditioner, method)
            made = alone_samples(preconditioner, samples, asked, seed=problem.evaluation)
            untrained[f"alone:{method}"] = compared(problem, made, asked)
            if method in matched:
                wider, longer = matched_setups(problem, base, preconditioner)
                unconditioned |= {f"{method}-P": wider, f"{method}-F": longer}
        skip = replace(base, skip="classwise" if problem.labelled else "covariance")
        results[SKIP] = train_and_compare(problem, skip, scalar, SKIP)
        initial = initial_network(scalar.forward(x), problem.asked, skip, seed=seed)
        untrained[f"alone:{SKIP}"] = sampled_and_compared(problem, initial, scalar)
        results["none"] = train_and_compare(problem, base, fitted("none", problem), "none")
        trained: dict[NetworkSetup, Comparison] = {}
        for baseline, setup in unconditioned.items():
            if setup not in trained:
                trained[setup] = train_and_compare(problem, setup, scalar, baseline)
            results[baseline] = trained[setup]
        untrained["floor"] = compared(problem, *law.sample(samples, derived_seed(seed, "floor")))
        for listed, (rows, facts) in results.items():
            name = {"regime": regime, "seed": seed, "method": listed}
            components += [name | row for row in rows]
            methods.append(name | facts)
        for listed, rows in untrained.items():
            components += [{"regime": regime, "seed": seed, "method": listed} | row for row in rows]
    return {"components": pd.DataFrame(components), "methods": pd.DataFrame(methods)}


def fitted(
    method: Fitted | Literal["none", "scalar"], problem: Problem, flow_steps: int = 1500
) -> Preconditioner:
    """A fitted preconditioner; the learned ones are conditional where the network is."""
    made: dict[str, Preconditioner] = {
        "none": Identity(),
        "scalar": Scalar(),
        "whitening": Whitening(shrinkage=0.0),
        "class_whitening": ClassWhitening(shrinkage=0.0),
        "normalizing_flow": NormalizingFlow(conditional=problem.labelled, steps=flow_steps),
        "low_capacity_flow": LowCapacityFlow(conditional=problem.labelled, steps=flow_steps),
    }
    return made[method].fit(problem.x, problem.asked, seed=problem.seed)


def matched_setups(
    problem: Problem, base: NetworkSetup, preconditioner: Preconditioner
) -> tuple[NetworkSetup, NetworkSetup]:
    """The wider and the longer setup that match a flow with this preconditioner."""
    dim, classes = problem.law.dim, problem.num_classes
    width = matched_width(
        lambda width: replace(base, width=width).build(dim, classes),
        base.width,
        preconditioner.num_parameters,
    )
    z1, training = problem.x.float(), base.training
    data = (z1, problem.labels) if problem.labelled else (z1,)
    each = flops_per_step(base.build(dim, classes), base.objective(z1), data, training.batch_size)
    steps = matched_steps(training.steps, each, preconditioner.flops_per_fit)
    longer = TrainingOptions(**{**training.model_dump(), "steps": steps})
    return replace(base, width=width), replace(base, training=longer)


def train_and_compare(
    problem: Problem, setup: NetworkSetup, preconditioner: Preconditioner, name: str
) -> Comparison:
    """Train one flow, sample it, and compare every component with its law.

    Args:
        problem: law, data and regime.
        setup: how to train.
        preconditioner: a fitted one.
        name: for the progress line.
    """
    z = preconditioner.forward(problem.x, problem.asked)
    module, losses = train_network(z, problem.asked, setup, seed=problem.seed, name=name)
    excess = None
    if isinstance(preconditioner, Identity):
        excess = field_excess(module, problem.law, problem.labelled, seed=problem.evaluation)
    by_class = [condition_number(cov) for cov in class_covariances(z, problem.labels).values()]
    facts = {
        "width": setup.width,
        "steps": setup.training.steps,
        "parameters": num_parameters(module),
        "preconditioner_parameters": preconditioner.num_parameters,
        "loss": late_loss(losses, setup.training.steps),
        "kappa": condition_number(covariance(z)),
        "kappa_worst": max(by_class),
    }
    return sampled_and_compared(problem, module, preconditioner, excess), facts


def sampled_and_compared(
    problem: Problem, module: Network, preconditioner: Preconditioner, excess: Tensor | None = None
) -> list[dict[str, Any]]:
    """Sample a network behind a map, and compare; `excess` as of `compared`."""
    asked = problem.asked_of_samples
    dim, seed = problem.law.dim, problem.evaluation
    made = generate(module, preconditioner, problem.samples, dim, asked, seed=seed)
    return compared(problem, made, asked, excess)


def compared(
    problem: Problem, made: Tensor, labels: Tensor | None, excess: Tensor | None = None
) -> list[dict[str, Any]]:
    """One row for each component: variance along its eigenvectors, relative to the law's.

    Without labels, the exact posterior says which component a sample belongs to, which cuts off tails; so the
    reference is then a large draw of the law that is assigned in the same way, not the component's eigenvalues.

    Args:
        problem: law and regime.
        made: samples, shape (n, dim).
        labels: their components, shape (n,); not used in the regime without labels.
        excess: excess risk of the field given each component, shape (components,), or None.
    """
    law = problem.law
    exact = [component.eigenvalues for component in law.components]
    if not problem.labelled or labels is None:
        labels = _assigned(law, made)
        reference, _ = law.sample(REFERENCE_SIZE, derived_seed(problem.seed, "reference"))
        exact = _variances(law, reference, _assigned(law, reference))
    return [
        {
            "component": k,
            "condition_number": law.components[k].condition_number,
            "smallest_variance": float(law.components[k].eigenvalues[0]),
            "weight": float(law.weights[k]),
            "share": int((labels == k).sum()) / len(made),
            **recovery_summary(variances / wanted),
            "excess": float("nan") if excess is None else float(excess[k]),
        }
        for k, (variances, wanted) in enumerate(zip(_variances(law, made, labels), exact, strict=True))
    ]


def _assigned(law: Mixture, x: Tensor) -> Tensor:
    """The most probable component of each point, shape (n,)."""
    return responsibilities(law, x, torch.tensor(1.0, dtype=torch.float64), PATH).argmax(1)


def _variances(law: Mixture, x: Tensor, labels: Tensor) -> list[Tensor]:
    """Variances of each component's points along its eigenvectors, each (dim,); NaN for fewer than two."""
    groups = [(x[labels == k] @ component.basis) for k, component in enumerate(law.components)]
    none = torch.full((law.dim,), torch.nan, dtype=torch.float64)
    return [group.var(0) if len(group) > 1 else none for group in groups]
