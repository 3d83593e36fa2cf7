"""Experiment: descent on mixtures with linear experts, by component, with two ablations (C5)."""

import itertools
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from precfm.datasets.synthetic import Mixture, mixture
from precfm.paths import LinearPath
from precfm.seeds import derived_seed, generator_for
from precfm.theory import measured, mixtures
from precfm.theory.experiments.linear_grid import checkpoints

PATH = LinearPath()


@dataclass(frozen=True)
class Case:
    """One mixture: what is varied, at which level, and what follows for weights and condition numbers."""

    ablation: str
    level: float
    condition_numbers: tuple[float, ...]
    weights: tuple[float, ...]
    separation: float


def run(
    *,
    dim: int = 8,
    condition_numbers: tuple[float, ...] = (1.0, 10.0, 100.0, 1e3),
    worst_weights: tuple[float, ...] = (0.05, 0.25, 0.7),
    worst_condition_numbers: tuple[float, ...] = (1.0, 10.0, 100.0, 1e3, 1e4),
    separations: tuple[float, ...] = (1.0, 4.0, 16.0),
    t: float = 0.95,
    regimes: tuple[Literal["labels", "responsibilities"], ...] = ("labels", "responsibilities"),
    samples: int = 1024,
    steps: int = 1000,
    rate: float = 0.5,
    seeds: int = 5,
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Fit linear experts to mixtures by gradient descent on samples and watch each component.

    The last component is the worst-conditioned one. Ablation `weights` varies its weight (the others share
    the rest) with covariances fixed, `conditioning` varies its condition number with weights fixed and equal,
    `separation` moves the means apart. All of a seed's cases share rotations and mean directions.

    Args:
        dim: dimension of the data.
        condition_numbers: of the components, the worst last.
        worst_weights: weights of the last component in the first ablation.
        worst_condition_numbers: its condition numbers in the second.
        separations: radii of the sphere of the means in the third; 4 elsewhere.
        t: time.
        regimes: `labels`: experts chosen by the label; `responsibilities`: unconditional, by posterior
            probability.
        samples: samples of each fit.
        steps: steps of gradient descent.
        rate: step size times the largest eigenvalue of the features' second moment.
        seeds: mixtures for each case.
        seed: seed of everything.

    Returns:
        `components`: (regime, ablation, level, seed, step, component, condition_number, weight, excess
        measured, exact by recursion on the samples' moments, theory in closed form for labels and NaN
        otherwise, share of the weighted total, relative to the start), and `conditioning` at time t: (regime,
        ablation, level, seed, condition_number of the features, whole of the mixture's covariance, worst of
        the components).
    """
    others = len(condition_numbers) - 1
    equal = (1 / len(condition_numbers),) * len(condition_numbers)
    cases = [
        Case("weights", w, condition_numbers, (*((1 - w) / others,) * others, w), 4.0) for w in worst_weights
    ]
    cases += [
        Case("conditioning", k, (*condition_numbers[:-1], k), equal, 4.0) for k in worst_condition_numbers
    ]
    cases += [Case("separation", s, condition_numbers, equal, s) for s in separations]
    looks = checkpoints(steps)
    components: list[dict[str, Any]] = []
    conditioning: list[dict[str, Any]] = []
    for case, regime, s in itertools.product(cases, regimes, range(seeds)):
        own = derived_seed(seed, "mixture", s)
        law = mixture(dim, case.condition_numbers, case.weights, separation=case.separation, seed=own)
        name = {"regime": regime, "ablation": case.ablation, "level": case.level, "seed": s}
        rows, kappas = _descend(law, regime, t, samples, looks, rate, own)
        components += [name | row for row in rows]
        conditioning.append(name | kappas)
    return {"components": pd.DataFrame(components), "conditioning": pd.DataFrame(conditioning)}


def _descend(
    law: Mixture, regime: str, t: float, samples: int, looks: list[int], rate: float, seed: int
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows of one fit, and the condition numbers of its problem."""
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
    spectrum = torch.linalg.eigvalsh(torch.einsum("k,kij->ij", weights, moments))
    eta = rate / float(spectrum[-1])
    steps = torch.tensor(looks)
    exact = mixtures.descent_of_moments(moments, -best, eta, steps, weights)
    theory = torch.full_like(exact, torch.nan)
    if regime == "labels":
        theory = mixtures.labelled_excess(law, time, PATH, eta, steps)
    start = torch.zeros_like(best)[None]
    walk = measured.descend(features[None], (x1 - x0)[None], start, torch.tensor([eta]).to(best), looks)
    found = torch.stack([_excess(field[0] - best, groups) for _, field in walk])
    shares = weights * found / (weights * found).sum(1, keepdim=True)
    rows = [
        {
            "step": step,
            "component": k,
            "condition_number": law.components[k].condition_number,
            "weight": float(law.weights[k]),
            "excess": float(found[look, k]),
            "exact": float(exact[look, k]),
            "theory": float(theory[look, k]),
            "share": float(shares[look, k]),
            "relative": float(found[look, k] / found[0, k]),
        }
        for (look, step), k in itertools.product(enumerate(looks), range(count))
    ]
    whole = torch.linalg.eigvalsh(PATH.cov_t(law.cov, time))
    each = mixtures.component_problems(law, time, PATH).variance
    return rows, {
        "condition_number": float(spectrum[-1] / spectrum[0]),
        "whole": float(whole[-1] / whole[0]),
        "worst": float((each.amax(1) / each.amin(1)).max()),
    }


def _excess(error: Tensor, groups: list[Tensor]) -> Tensor:
    """Mean squared error of each component's samples, relative to the best field, shape (components,)."""
    return torch.stack([(group @ error.T).square().sum(1).mean() for group in groups])
