"""Experiment: residual condition number x width x weight decay: does geometry outweigh capacity?"""

import itertools
from typing import Any

import pandas as pd

from precfm.core.seeds import derived_seed
from precfm.datasets.synthetic import gaussian
from precfm.theory.trained_networks import (
    Recipe,
    generate,
    late_loss,
    recovery_summary,
    train_flow,
    variance_ratios,
)


def run(
    *,
    dim: int = 16,
    residual_kappas: tuple[float, ...] = (1.0, 10.0, 100.0, 1e3),
    widths: tuple[int, ...] = (32, 64, 128),
    weight_decays: tuple[float, ...] = (0.0, 0.1, 1.0),
    steps: int = 1500,
    data_size: int = 20_000,
    samples: int = 5000,
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Train a network on every cell of the grid; data have the residual condition number that a map leaves.

    Args:
        dim: dimension.
        residual_kappas: condition numbers of the (rotated) data in the flow's space.
        widths: units of the three hidden layers.
        weight_decays: strengths of Adam's decoupled weight decay.
        steps: optimizer steps.
        data_size: size of the data set.
        samples: generated samples.
        seed: seed of law, data, weights and training.

    Returns:
        `grid`: (residual_kappa, width, weight_decay, seed, ratio_low, log_error_low, log_error, loss).
    """
    rows: list[dict[str, Any]] = []
    for kappa, width, decay in itertools.product(residual_kappas, widths, weight_decays):
        law = gaussian(dim, kappa, seed=derived_seed(seed, "law"))
        x = law.sample(data_size, derived_seed(seed, "data"))
        recipe = Recipe(width=width, weight_decay=decay, steps=steps)
        module, losses = train_flow(
            x, None, recipe, seed=seed, name=f"kappa {kappa:g}, width {width}, decay {decay:g}"
        )
        made = generate(module, None, samples, dim, seed=derived_seed(seed, "evaluation"))
        name = {"residual_kappa": kappa, "width": width, "weight_decay": decay, "seed": seed}
        rows.append(name | recovery_summary(variance_ratios(made, law)) | {"loss": late_loss(losses, steps)})
    return {"grid": pd.DataFrame(rows)}
