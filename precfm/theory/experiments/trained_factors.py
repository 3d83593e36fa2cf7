"""Experiment: trained networks on Gaussians, one factor at a time, with and without whitening."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from precfm.core.seeds import derived_seed
from precfm.datasets.synthetic import Gaussian, gaussian
from precfm.geometry.spectra import covariance, normalise_scale, path_condition_numbers
from precfm.preconditioners.base import Preconditioner
from precfm.preconditioners.whitening import Whitening
from precfm.theory.trained_networks import (
    PATH,
    Recipe,
    exact_samples,
    generate,
    late_loss,
    recovery_summary,
    train_flow,
    variance_ratios,
)

KAPPA_TIMES = (0.5, 0.9, 1.0)


@dataclass(frozen=True)
class Cell:
    """One setting: which factor leaves its base value, and all that defines the data and the training."""

    factor: str
    level: str
    dim: int
    condition_number: float
    rotated: bool
    recipe: Recipe


def run(
    *,
    dim: int = 32,
    condition_number: float = 1e3,
    condition_numbers: tuple[float, ...] = (10.0, 100.0, 1e4),
    dims: tuple[int, ...] = (16, 64),
    factors: tuple[str, ...] = ("condition number", "dimension", "axes", "target", "optimizer"),
    methods: tuple[Literal["none", "whitening"], ...] = ("none", "whitening"),
    steps: int = 5000,
    width: int = 128,
    sgd_learning_rate: float = 0.05,
    data_size: int = 20_000,
    samples: int = 5000,
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Vary one factor at a time around (dim, condition_number, rotated, velocity, Adam).

    The base setting itself is a checkpoint of `trained_budgets`. Data are a fixed set of independent samples;
    the flow and whatever preconditioner share them.

    Args:
        dim: base dimension.
        condition_number: base condition number.
        condition_numbers: levels of the factor `condition number`.
        dims: levels of the factor `dimension`.
        factors: which factors to vary: also `axes` (aligned instead of rotated), `target` (score instead of
            velocity), `optimizer` (stochastic gradient descent instead of Adam), and `base`.
        methods: with which preconditioners.
        steps: optimizer steps.
        width: units of the three hidden layers.
        sgd_learning_rate: learning rate of stochastic gradient descent; Adam's is 1e-3.
        data_size: size of the data set.
        samples: generated samples.
        seed: seed of law, data, weights and training.

    Returns:
        `recovery`: variance ratios (factor, level, method, seed, step, direction, eigenvalue, ratio);
        `summary`: (factor, level, method, seed, step, ratio_low, log_error_low, log_error, loss, kappa_0.5,
        kappa_0.9, kappa_1.0 of the flow's space); method `exact:<method>` is the solver's floor.
    """
    base = Recipe(width=width, steps=steps)
    cells = []
    if "base" in factors:
        cells.append(Cell("base", "base", dim, condition_number, True, base))
    if "condition number" in factors:
        cells += [Cell("condition number", f"{k:g}", dim, k, True, base) for k in condition_numbers]
    if "dimension" in factors:
        cells += [Cell("dimension", str(d), d, condition_number, True, base) for d in dims]
    if "axes" in factors:
        cells.append(Cell("axes", "aligned", dim, condition_number, False, base))
    if "target" in factors:
        score = replace(base, target="score")
        cells.append(Cell("target", "score", dim, condition_number, True, score))
    if "optimizer" in factors:
        sgd = replace(base, optimizer="sgd", learning_rate=sgd_learning_rate)
        cells.append(Cell("optimizer", "sgd", dim, condition_number, True, sgd))
    rows = Rows()
    for cell in cells:
        for method in methods:
            run_cell(cell, method, (steps,), data_size, samples, seed, rows)
    return rows.frames()


class Rows:
    """The two tables of a trained experiment, while they grow."""

    def __init__(self) -> None:
        self._recovery: list[dict[str, Any]] = []
        self._summary: list[dict[str, Any]] = []

    def add(self, name: dict[str, Any], ratios: Tensor, law: Gaussian, more: dict[str, float]) -> None:
        """One evaluation: `name` says of what."""
        values = zip(law.eigenvalues.tolist(), ratios.tolist(), strict=True)
        self._recovery += [
            name | {"direction": i, "eigenvalue": value, "ratio": ratio}
            for i, (value, ratio) in enumerate(values)
        ]
        self._summary.append(name | recovery_summary(ratios) | more)

    def frames(self) -> dict[str, pd.DataFrame]:
        """The tables."""
        return {"recovery": pd.DataFrame(self._recovery), "summary": pd.DataFrame(self._summary)}


def run_cell(
    cell: Cell,
    method: str,
    checkpoints: tuple[int, ...],
    data_size: int,
    samples: int,
    seed: int,
    rows: Rows,
) -> None:
    """Train one network, evaluate it at its checkpoints, and the exact field beside it.

    Args:
        cell: the setting.
        method: `none` or `whitening`.
        checkpoints: steps at which to sample.
        data_size: size of the data set.
        samples: generated samples.
        seed: seed of everything.
        rows: where the results go.
    """
    law = gaussian(cell.dim, cell.condition_number, rotated=cell.rotated, seed=derived_seed(seed, "law"))
    x = law.sample(data_size, derived_seed(seed, "data"))
    preconditioner: Preconditioner | None = None if method == "none" else Whitening().fit(x)
    z = x if preconditioner is None else preconditioner.forward(x)
    kappas = path_condition_numbers(normalise_scale(covariance(z)), PATH, torch.tensor(KAPPA_TIMES))
    more = {f"kappa_{t:g}": float(k) for t, k in zip(KAPPA_TIMES, kappas, strict=True)}
    name = {"factor": cell.factor, "level": cell.level, "method": method, "seed": seed}
    target, evaluation = cell.recipe.target, derived_seed(seed, "evaluation")

    def evaluate(step: int, module: nn.Module) -> None:
        made = generate(module.eval(), preconditioner, samples, cell.dim, target=target, seed=evaluation)
        ratios.append((step, variance_ratios(made, law)))

    ratios: list[tuple[int, Tensor]] = []
    _, losses = train_flow(
        z,
        None,
        cell.recipe,
        seed=seed,
        name=f"{cell.factor} {cell.level}, {method}",
        checkpoints=checkpoints,
        on_checkpoint=evaluate,
    )
    for step, values in ratios:
        rows.add(name | {"step": step}, values, law, more | {"loss": late_loss(losses, step)})
    made = exact_samples(law, method != "none", samples, target=target, seed=evaluation)
    floor = name | {"method": f"exact:{method}", "step": 0}
    rows.add(floor, variance_ratios(made, law), law, more | {"loss": float("nan")})
