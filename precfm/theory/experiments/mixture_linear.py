"""Experiment: descent on mixtures with linear experts, by component, with ablations and a control (C5)."""

import itertools
from typing import Any, Literal, TypeAlias

import pandas as pd
import torch
from torch import Tensor

from precfm.core.options import Count, Fraction, NotNegative, Share, checked
from precfm.core.seeds import derived_seed, generator_for
from precfm.datasets.synthetic import Mixture
from precfm.flows.paths import LinearPath
from precfm.theory import mixtures
from precfm.theory.experiments.linear_grid import checkpoints
from precfm.theory.measured_descent import FixedSamples, descend
from precfm.theory.option_types import ConditionNumber, Levels, Several

PATH = LinearPath()
Regime: TypeAlias = Literal["labels", "responsibilities"]


@checked
def run(
    *,
    dim: Count = 8,
    condition_numbers: Several[ConditionNumber] = (1.0, 10.0, 100.0, 1e3),
    worst_weights: Levels[Fraction] = (0.05, 0.25, 0.8),
    worst_condition_numbers: Levels[ConditionNumber] = (1.0, 10.0, 100.0, 1e3, 1e4),
    separations: Levels[NotNegative] = (1.0, 4.0, 16.0),
    control_condition_number: ConditionNumber | None = 1e3,
    t: Share = 0.95,
    regimes: Several[Regime] = ("labels", "responsibilities"),
    samples: Count = 1024,
    steps: Count = 1000,
    rate: Fraction = 0.5,
    seeds: Count = 5,
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Fit linear experts to mixtures by gradient descent on samples and watch each component.

    The mixtures are those of `precfm.theory.mixtures.ablations`.

    Args:
        worst_weights: weights of the last component in the first ablation.
        worst_condition_numbers: its condition numbers in the second.
        separations: radii of the sphere of the means in the third; 4 elsewhere.
        control_condition_number: the larger condition number of case `scale`; None leaves it out.
        t: time.
        regimes: `labels`: experts chosen by the label; `responsibilities`: unconditional, by posterior
            probability.
        samples: samples of each fit.
        steps: steps of gradient descent.
        rate: step size times the largest eigenvalue of the features' second moment.
        seeds: mixtures for each case.

    Returns:
        `components`: (regime, ablation, level, seed, step, component, condition_number, smallest_variance,
        weight, excess measured, exact by recursion on the samples' moments, theory in closed form for labels and
        NaN otherwise, share of the weighted total, relative to the start, lowest: the same for the direction of
        lowest variance alone, theory_lowest).
    """
    own = [derived_seed(seed, "mixture", s) for s in range(seeds)]
    laws = [
        mixtures.ablations(
            dim,
            condition_numbers,
            weights=worst_weights,
            worst_condition_numbers=worst_condition_numbers,
            separations=separations,
            control_condition_number=control_condition_number,
            seed=each,
        )
        for each in own
    ]
    rows: list[dict[str, Any]] = []
    for case, regime, s in itertools.product(laws[0], regimes, range(seeds)):
        name = {"regime": regime, "ablation": case[0], "level": case[1], "seed": s}
        found = _descend(laws[s][case], regime, t, samples, checkpoints(steps), rate, own[s])
        rows += [name | row for row in found]
    return {"components": pd.DataFrame(rows)}


def _descend(
    law: Mixture, regime: Regime, t: float, samples: int, looks: tuple[int, ...], rate: float, seed: int
) -> list[dict[str, Any]]:
    """Rows of one fit."""
    time = torch.tensor(t, dtype=torch.float64)
    x1, labels = law.sample(samples, seed)
    x0 = torch.randn(x1.shape, generator=generator_for(seed, "noise"), dtype=torch.float64)
    x_t = t * x1 + (1 - t) * x0
    count = len(law.components)
    if regime == "labels":
        gate = torch.nn.functional.one_hot(labels, count).to(x_t)
    else:
        gate = mixtures.responsibilities(law, x_t, time, PATH)
    features = mixtures.expert_features(law, x_t, gate, time, PATH)
    best = torch.linalg.lstsq(features, x1 - x0).solution.T
    groups = [features[labels == k] for k in range(count)]
    moments = torch.stack([group.T @ group / max(len(group), 1) for group in groups])
    weights = torch.tensor([len(group) / samples for group in groups], dtype=torch.float64)
    eta = rate / float(torch.linalg.eigvalsh(torch.einsum("k,kij->ij", weights, moments))[-1])
    steps = torch.tensor(looks)
    exact = mixtures.descent_of_moments(moments, -best, eta, steps, weights)
    theory = theory_lowest = torch.full_like(exact, torch.nan)
    if regime == "labels":
        theory = mixtures.labelled_excess(law, time, PATH, eta, steps)
        theory_lowest = mixtures.lowest_relative_excess(law, time, PATH, eta, steps)
    start = torch.zeros_like(best)[None]
    fitted = FixedSamples(features[None], (x1 - x0)[None])
    errors = [field[0] - best for field in descend(fitted, start, torch.tensor([eta]).to(best), looks)]
    found = torch.stack([_excess(error, groups) for error in errors])
    lowest = torch.stack([_lowest(error, groups, law) for error in errors])
    shares = weights * found / (weights * found).sum(1, keepdim=True)
    return [
        {
            "step": step,
            "component": k,
            "condition_number": law.components[k].condition_number,
            "smallest_variance": float(law.components[k].eigenvalues[0]),
            "weight": float(law.weights[k]),
            "excess": float(found[look, k]),
            "exact": float(exact[look, k]),
            "theory": float(theory[look, k]),
            "share": float(shares[look, k]),
            "relative": float(found[look, k] / found[0, k]),
            "lowest": float(lowest[look, k] / lowest[0, k]),
            "theory_lowest": float(theory_lowest[look, k]),
        }
        for (look, step), k in itertools.product(enumerate(looks), range(count))
    ]


def _excess(error: Tensor, groups: list[Tensor]) -> Tensor:
    """Mean squared error of each component's samples, relative to the best field, shape (components,)."""
    return torch.stack([(group @ error.T).square().sum(1).mean() for group in groups])


def _lowest(error: Tensor, groups: list[Tensor], law: Mixture) -> Tensor:
    """The same for the part of each component's own features along its lowest variance, (components,)."""
    parts = []
    for k, (component, group) in enumerate(zip(law.components, groups, strict=True)):
        own = slice(k * (law.dim + 1), k * (law.dim + 1) + law.dim)
        along = (group[:, own] @ component.basis[:, 0]).square().mean()
        parts.append(along * (error[:, own] @ component.basis[:, 0]).square().sum())
    return torch.stack(parts)
