"""Experiment: networks on mixtures; weights vary, one component's conditioning varies, scale is controlled (C5)."""

from typing import Any, Literal

import pandas as pd

from precfm.core.seeds import derived_seed
from precfm.datasets.synthetic import Mixture, mixture
from precfm.theory import mixtures
from precfm.theory.experiments.mixture_networks import Problem, fit, train_and_compare
from precfm.theory.trained_networks import Recipe


def run(
    *,
    dim: int = 16,
    condition_numbers: tuple[float, ...] = (1.0, 10.0, 100.0, 1e3),
    worst_weights: tuple[float, ...] = (0.05, 0.25, 0.7),
    worst_condition_numbers: tuple[float, ...] = (1.0, 10.0, 100.0),
    control_condition_number: float | None = 1e3,
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
    base condition numbers belongs to both and is trained once. Case `scale` is another mixture, which crosses
    condition number and smallest variance (see `mixtures.scale_control`).

    Args:
        dim: dimension.
        condition_numbers: of the components, the worst last.
        worst_weights: weights of the last component.
        worst_condition_numbers: further condition numbers of the last component.
        control_condition_number: the larger condition number of case `scale`; None leaves it out.
        methods: without and with per-class whitening.
        separation: radius of the sphere of the means.
        steps: optimizer steps.
        width: units of the three hidden layers.
        data_size: size of the data set.
        samples: generated samples, of all components in proportion to their weights.
        seed: seed of law, data, weights and training.

    Returns:
        `components`: (ablation, level, method, seed, component, condition_number, smallest_variance, weight,
        share, ratio_low, log_error_low, log_error, excess).
    """
    others = len(condition_numbers) - 1
    equal = 1 / len(condition_numbers)
    own = derived_seed(seed, "law")
    cases: dict[tuple[str, float], Mixture] = {}
    for w in worst_weights:
        weights = (*((1 - w) / others,) * others, w)
        cases["weights", w] = mixture(dim, condition_numbers, weights, separation=separation, seed=own)
    for k in worst_condition_numbers:
        cases["conditioning", k] = mixture(dim, (*condition_numbers[:-1], k), separation=separation, seed=own)
    if control_condition_number is not None:
        control = mixtures.scale_control(dim, control_condition_number, separation=separation, seed=own)
        cases["scale", control_condition_number] = control
    rows: list[dict[str, Any]] = []
    for (ablation, level), law in cases.items():
        x, labels = law.sample(data_size, derived_seed(seed, "data"))
        problem = Problem(law, x, labels, True, samples, seed)
        for method in methods:
            fitted = None if method == "none" else fit(method, problem)
            name = {"ablation": ablation, "level": level, "method": method, "seed": seed}
            recipe = Recipe(width=width, steps=steps)
            found, _ = train_and_compare(problem, recipe, fitted, f"{ablation} {level:g}, {method}")
            for k, row in enumerate(found):
                row |= {
                    "smallest_variance": float(law.components[k].eigenvalues[0]),
                    "weight": float(law.weights[k]),
                }
                rows.append(name | row)
                if ablation == "weights" and abs(level - equal) < 1e-9:
                    rows.append(name | {"ablation": "conditioning", "level": condition_numbers[-1]} | row)
    return {"components": pd.DataFrame(rows)}
