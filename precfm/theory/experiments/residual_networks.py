"""Experiment: residual condition number x width x weight decay: does geometry outweigh capacity?"""

import itertools
from typing import Any

import pandas as pd

from precfm.core.options import Count, NotNegative, checked
from precfm.core.seeds import derived_seed
from precfm.datasets.synthetic import gaussian
from precfm.preconditioners.identity import Identity
from precfm.theory.option_types import ConditionNumber, Several
from precfm.theory.trained_networks import (
    NetworkSetup,
    generate,
    late_loss,
    recovery_summary,
    train_network,
    variance_ratios,
)
from precfm.training.options import TrainingOptions


@checked
def run(
    *,
    dim: Count = 16,
    residual_kappas: Several[ConditionNumber] = (1.0, 10.0, 100.0, 1e3),
    widths: Several[Count] = (32, 64, 128),
    weight_decays: Several[NotNegative] = (0.0, 0.1, 1.0),
    steps: Count = 1500,
    data_size: Count = 20_000,
    samples: Count = 5000,
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Train a network on every cell of the grid; data have the residual condition number that a map leaves.

    Args:
        residual_kappas: condition numbers of the (rotated) data in the flow's space.
        widths: units of the three hidden layers.
        weight_decays: strengths of Adam's decoupled weight decay.

    Returns:
        `grid`: (residual_kappa, width, weight_decay, seed, ratio_low, log_error_low, log_error, loss).
    """
    rows: list[dict[str, Any]] = []
    for kappa, width, decay in itertools.product(residual_kappas, widths, weight_decays):
        law = gaussian(dim, kappa, seed=derived_seed(seed, "law"))
        x = law.sample(data_size, derived_seed(seed, "data"))
        setup = NetworkSetup(width, TrainingOptions(steps=steps, weight_decay=decay, ema_decay=None))
        title = f"kappa {kappa:g}, width {width}, decay {decay:g}"
        module, losses = train_network(x, None, setup, seed=seed, name=title)
        made = generate(module, Identity().fit(x), samples, dim, seed=derived_seed(seed, "evaluation"))
        name = {"residual_kappa": kappa, "width": width, "weight_decay": decay, "seed": seed}
        rows.append(name | recovery_summary(variance_ratios(made, law)) | {"loss": late_loss(losses, steps)})
    return {"grid": pd.DataFrame(rows)}
