"""Experiment: a few to long budgets of training on one Gaussian: a plateau, or only a delay (C7, C9)."""

from typing import Literal

import pandas as pd

from precfm.theory.experiments.trained_factors import Cell, Rows, run_cell
from precfm.theory.trained_networks import Recipe


def run(
    *,
    dim: int = 32,
    condition_number: float = 1e3,
    methods: tuple[Literal["none", "whitening"], ...] = ("none", "whitening"),
    checkpoints: tuple[int, ...] = (500, 1000, 2000, 5000, 10_000, 20_000),
    width: int = 128,
    data_size: int = 20_000,
    samples: int = 5000,
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Train once to the longest budget; the rate is constant, so a checkpoint is what a shorter run gives.

    Args:
        dim: dimension.
        condition_number: condition number of the data, whose covariance is rotated.
        methods: with which preconditioners.
        checkpoints: steps at which to sample, ascending.
        width: units of the three hidden layers.
        data_size: size of the data set.
        samples: generated samples.
        seed: seed of law, data, weights and training.

    Returns:
        `recovery` and `summary` as of `trained_factors`, with factor `budget`.
    """
    recipe = Recipe(width=width, steps=checkpoints[-1])
    rows = Rows()
    for method in methods:
        cell = Cell("budget", "base", dim, condition_number, True, recipe)
        run_cell(cell, method, checkpoints, data_size, samples, seed, rows)
    return rows.frames()
