"""Experiment: networks on a mixture: preconditioners beside compute-matched baselines (C5 to C7, C10).

The refutation test of the paper: in controlled mixtures, no better path conditioning or low-eigenvalue
recovery than compute-matched baselines.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from precfm.core.seeds import derived_seed
from precfm.datasets.synthetic import Mixture, mixture
from precfm.flows.compute import flops_per_step, matched_steps, matched_width, num_parameters
from precfm.flows.sampling import evaluation_labels
from precfm.geometry.spectra import class_covariances, condition_number, covariance
from precfm.preconditioners.base import Preconditioner
from precfm.preconditioners.class_whitening import ClassWhitening
from precfm.preconditioners.normalizing_flow import NormalizingFlow
from precfm.preconditioners.whitening import Whitening
from precfm.theory import mixtures
from precfm.theory.trained_networks import (
    PATH,
    Recipe,
    field_excess,
    generate,
    late_loss,
    recovery_summary,
    train_flow,
)


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
    def num_classes(self) -> int:
        """Classes of the network's condition."""
        return len(self.law.components) if self.labelled else 0


def run(
    *,
    dim: int = 16,
    condition_numbers: tuple[float, ...] = (1.0, 10.0, 100.0, 1e3),
    separation: float = 4.0,
    regimes: tuple[Literal["labels", "marginal"], ...] = ("labels", "marginal"),
    preconditioners: tuple[Literal["whitening", "class_whitening", "normalizing_flow"], ...] = (
        "whitening",
        "class_whitening",
        "normalizing_flow",
    ),
    baselines: bool = True,
    steps: int = 3000,
    width: int = 128,
    flow_steps: int = 1500,
    data_size: int = 20_000,
    samples: int = 8000,
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Train a flow without and with each preconditioner, and for each a wider and a longer network without.

    `<method>-P` has at least as many parameters as flow and preconditioner together, `<method>-F` at least as
    many training operations. Two baselines that come out equal are trained once and listed under both names.
    Class whitening needs labels and is left out of the regime `marginal`.

    Args:
        dim: dimension.
        condition_numbers: of the components, equally weighted, the worst last.
        separation: radius of the sphere of the means.
        regimes: `labels`: label-conditional networks; `marginal`: unconditional ones.
        preconditioners: which ones.
        baselines: train their matched baselines too.
        steps: optimizer steps of the flow.
        width: units of the three hidden layers.
        flow_steps: most steps of the normalizing flow's fit.
        data_size: size of the data set.
        samples: generated samples, of all components.
        seed: seed of law, data, weights and training.

    Returns:
        `components`: (regime, method, seed, component, condition_number, ratio_low, log_error_low, log_error,
        excess: of the field in data space, NaN with a preconditioner); `methods`: (regime, method, seed,
        width, steps, parameters, preconditioner_parameters, loss, kappa of the flow's space, kappa_worst of
        its classes). Method `floor` is an independent draw of the law of equal size.
    """
    law = mixture(dim, condition_numbers, separation=separation, seed=derived_seed(seed, "law"))
    x, labels = law.sample(data_size, derived_seed(seed, "data"))
    base = Recipe(width=width, steps=steps)
    components: list[dict[str, Any]] = []
    methods: list[dict[str, Any]] = []
    for regime in regimes:
        problem = Problem(law, x, labels, regime == "labels", samples, seed)
        name = {"regime": regime, "seed": seed}
        trained: dict[Recipe, tuple[list[dict[str, Any]], dict[str, Any]]] = {}
        baseline_recipes = {"none": base}
        for method in preconditioners:
            if method == "class_whitening" and not problem.labelled:
                continue
            fitted = fit(method, problem, flow_steps)
            rows, facts = train_and_compare(problem, base, fitted, method)
            components += [name | {"method": method} | row for row in rows]
            methods.append(name | {"method": method} | facts)
            if baselines:
                wider, longer = matched_recipes(problem, base, fitted)
                baseline_recipes |= {f"{method}-P": wider, f"{method}-F": longer}
        for baseline, recipe in baseline_recipes.items():
            if recipe not in trained:
                trained[recipe] = train_and_compare(problem, recipe, None, baseline)
            rows, facts = trained[recipe]
            components += [name | {"method": baseline} | row for row in rows]
            methods.append(name | {"method": baseline} | facts)
        drawn = law.sample(samples, derived_seed(seed, "floor"))
        rows = compare(problem, *drawn, excess=None)
        components += [name | {"method": "floor"} | row for row in rows]
    return {"components": pd.DataFrame(components), "methods": pd.DataFrame(methods)}


def fit(method: str, problem: Problem, flow_steps: int = 1500) -> Preconditioner:
    """A fitted preconditioner; the normalizing flow is conditional where the network is."""
    made: Preconditioner
    if method == "whitening":
        made = Whitening()
    elif method == "class_whitening":
        made = ClassWhitening()
    else:
        made = NormalizingFlow(conditional=problem.labelled, steps=flow_steps)
    return made.fit(problem.x, problem.asked, seed=problem.seed)


def matched_recipes(problem: Problem, base: Recipe, fitted: Preconditioner) -> tuple[Recipe, Recipe]:
    """The wider and the longer recipe that match a flow with this preconditioner."""
    dim, classes = problem.law.dim, problem.num_classes
    width = matched_width(
        lambda width: replace(base, width=width).build(dim, classes), base.width, fitted.num_parameters
    )
    data = (problem.x.float(), problem.labels) if problem.labelled else (problem.x.float(),)
    each = flops_per_step(base.build(dim, classes), base.loss, data, base.batch_size)
    return replace(base, width=width), replace(
        base, steps=matched_steps(base.steps, each, fitted.flops_per_fit)
    )


def train_and_compare(
    problem: Problem, recipe: Recipe, fitted: Preconditioner | None, name: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Train one flow, sample it, and compare every component with its law.

    Args:
        problem: law, data and regime.
        recipe: how to train.
        fitted: preconditioner, or None.
        name: for the progress line.

    Returns:
        Rows of `components` and the row of `methods`, without their names.
    """
    z = problem.x if fitted is None else fitted.forward(problem.x, problem.asked)
    module, losses = train_flow(z, problem.asked, recipe, seed=problem.seed, name=name)
    evaluation = derived_seed(problem.seed, "evaluation")
    asked = evaluation_labels(problem.samples, problem.labels, evaluation) if problem.labelled else None
    made = generate(module, fitted, problem.samples, problem.law.dim, asked, seed=evaluation)
    # Without labels, the exact posterior says which component a sample belongs to.
    labels = assigned(problem.law, made) if asked is None else asked
    excess = None
    if fitted is None:
        excess = field_excess(module, problem.law, problem.labelled, seed=evaluation)
    by_class = [condition_number(cov) for cov in class_covariances(z, problem.labels).values()]
    facts = {
        "width": recipe.width,
        "steps": recipe.steps,
        "parameters": num_parameters(module),
        "preconditioner_parameters": 0 if fitted is None else fitted.num_parameters,
        "loss": late_loss(losses, recipe.steps),
        "kappa": condition_number(covariance(z)),
        "kappa_worst": max(by_class),
    }
    return compare(problem, made, labels, excess), facts


def assigned(law: Mixture, x: Tensor) -> Tensor:
    """The most probable component of each point, shape (n,)."""
    one = torch.tensor(1.0, dtype=torch.float64)
    return mixtures.responsibilities(law, x, one, PATH).argmax(1)


def compare(problem: Problem, made: Tensor, labels: Tensor, excess: Tensor | None) -> list[dict[str, Any]]:
    """One row for each component: variance along its eigenvectors, relative to the law's.

    Without labels, generated samples are assigned to components, which cuts off tails; so the reference is
    then a large draw of the law that is assigned in the same way, not the component's eigenvalues.
    """
    law = problem.law
    if not problem.labelled:
        reference, _ = law.sample(50_000, derived_seed(problem.seed, "reference"))
        reference_labels = assigned(law, reference)
        labels = assigned(law, made)
    rows = []
    for k, component in enumerate(law.components):
        mine = made[labels == k]
        if len(mine) < 2:
            ratios = torch.full((law.dim,), torch.nan, dtype=torch.float64)
        else:
            variance = (mine @ component.basis).var(0)
            exact = component.eigenvalues
            if not problem.labelled:
                exact = (reference[reference_labels == k] @ component.basis).var(0)
            ratios = variance / exact
        row = {"component": k, "condition_number": component.condition_number, "share": len(mine) / len(made)}
        rows.append(
            row | recovery_summary(ratios) | {"excess": float("nan") if excess is None else float(excess[k])}
        )
    return rows
