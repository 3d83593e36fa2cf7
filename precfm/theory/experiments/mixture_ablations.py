"""Experiment: networks on mixtures; (i) weights vary, (ii) one component's conditioning varies (C5)."""

from typing import Any, Literal

import pandas as pd

from precfm.datasets.synthetic import mixture
from precfm.seeds import derived_seed
from precfm.theory.experiments.mixture_networks import Problem, fit, train_and_compare
from precfm.theory.networks import Recipe


def run(
    *,
    dim: int = 16,
    condition_numbers: tuple[float, ...] = (1.0, 10.0, 100.0, 1e3),
    worst_weights: tuple[float, ...] = (0.05, 0.25, 0.7),
    worst_condition_numbers: tuple[float, ...] = (1.0, 10.0, 100.0),
    methods: tuple[Literal["none", "class_whitening"], ...] = ("none", "class_whitening"),
    separation: float = 4.0,
    steps: int = 2000,
    width: int = 128,
    data_size: int = 20_000,
    samples: int = 8000,
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Train label-conditional networks on mixtures that differ in one thing.

    Ablation `weights` varies the weight of the last, worst-conditioned component with covariances fixed;
    `conditioning` varies that component's condition number with equal weights. The case of equal weights and
    base condition numbers belongs to both and is trained once.

    Args:
        dim: dimension.
        condition_numbers: of the components, the worst last.
        worst_weights: weights of the last component.
        worst_condition_numbers: further condition numbers of the last component.
        methods: without and with per-class whitening.
        separation: radius of the sphere of the means.
        steps: optimizer steps.
        width: units of the three hidden layers.
        data_size: size of the data set.
        samples: generated samples, of all components in proportion to their weights.
        seed: seed of law, data, weights and training.

    Returns:
        `components`: (ablation, level, method, seed, component, condition_number, weight, share, ratio_low,
        log_error_low, log_error, excess).
    """
    others = len(condition_numbers) - 1
    equal = 1 / len(condition_numbers)
    cases = {("weights", w): (condition_numbers, w) for w in worst_weights}
    cases |= {("conditioning", k): ((*condition_numbers[:-1], k), equal) for k in worst_condition_numbers}
    rows: list[dict[str, Any]] = []
    for (ablation, level), (kappas, worst) in cases.items():
        weights = (*((1 - worst) / others,) * others, worst)
        law = mixture(dim, kappas, weights, separation=separation, seed=derived_seed(seed, "law"))
        x, labels = law.sample(data_size, derived_seed(seed, "data"))
        problem = Problem(law, x, labels, True, samples, seed)
        for method in methods:
            fitted = None if method == "none" else fit(method, problem)
            name = {"ablation": ablation, "level": level, "method": method, "seed": seed}
            found, _ = train_and_compare(
                problem, Recipe(width=width, steps=steps), fitted, f"{ablation} {level:g}, {method}"
            )
            for k, row in enumerate(found):
                rows.append(name | {"weight": float(law.weights[k])} | row)
                if ablation == "weights" and abs(level - equal) < 1e-9:
                    shared = {"ablation": "conditioning", "level": condition_numbers[-1]}
                    rows.append(name | shared | {"weight": float(law.weights[k])} | row)
    return {"components": pd.DataFrame(rows)}
