"""Experiment: networks on mixtures; weights vary, one component's conditioning varies, scale is controlled (C5)."""

from typing import Any, Literal

import pandas as pd

from precfm.core.options import Count, Fraction, NotNegative, checked
from precfm.core.seeds import derived_seed
from precfm.theory.experiments.mixture_networks import Problem, fitted, train_and_compare
from precfm.theory.mixtures import SEPARATION, ablations
from precfm.theory.option_types import ConditionNumber, Levels, Several
from precfm.theory.trained_networks import NetworkSetup
from precfm.training.options import TrainingOptions


@checked
def run(
    *,
    dim: Count = 16,
    condition_numbers: Several[ConditionNumber] = (1.0, 10.0, 100.0, 1e3),
    worst_weights: Levels[Fraction] = (0.05, 0.25, 0.8),
    worst_condition_numbers: Levels[ConditionNumber] = (1.0, 10.0, 100.0),
    control_condition_number: ConditionNumber | None = 1e3,
    methods: Several[Literal["none", "class_whitening"]] = ("none", "class_whitening"),
    separation: NotNegative = SEPARATION,
    steps: Count = 2000,
    width: Count = 128,
    data_size: Count = 20_000,
    samples: Count = 8000,
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Train label-conditional networks on mixtures that differ in one thing.

    The mixtures are those of `precfm.theory.mixtures.ablations`. The one of equal weights and base condition
    numbers belongs to `weights` and to `conditioning` and is trained once.

    Args:
        worst_weights: weights of the last component.
        worst_condition_numbers: further condition numbers of the last component.
        control_condition_number: the larger condition number of case `scale`; None leaves it out.
        methods: without and with per-class whitening.
        separation: radius of the sphere of the means.

    Returns:
        `components`: (ablation, level, method, seed, component, condition_number, smallest_variance, weight,
        share, ratio_low, log_error_low, log_error, excess).
    """
    laws = ablations(
        dim,
        condition_numbers,
        weights=worst_weights,
        worst_condition_numbers=worst_condition_numbers,
        control_condition_number=control_condition_number,
        separation=separation,
        seed=derived_seed(seed, "law"),
    )
    equal = 1 / len(condition_numbers)
    setup = NetworkSetup(width, TrainingOptions(steps=steps, ema_decay=None))
    rows: list[dict[str, Any]] = []
    for (ablation, level), law in laws.items():
        x, labels = law.sample(data_size, derived_seed(seed, "data"))
        problem = Problem(law, x, labels, True, samples, seed)
        for method in methods:
            name = {"ablation": ablation, "level": level, "method": method, "seed": seed}
            title = f"{ablation} {level:g}, {method}"
            found, _ = train_and_compare(problem, setup, fitted(method, problem), title)
            for row in found:
                rows.append(name | row)
                if ablation == "weights" and abs(level - equal) < 1e-9:
                    rows.append(name | {"ablation": "conditioning", "level": condition_numbers[-1]} | row)
    return {"components": pd.DataFrame(rows)}
