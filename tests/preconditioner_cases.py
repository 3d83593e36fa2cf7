"""The cases of the contract, one or more per registered preconditioner, and ill-conditioned data to fit them to."""

import math
from typing import Any

import torch
from torch import Tensor

from precfm.core.registry import load as registered
from precfm.preconditioners.base import Preconditioner

SHAPE = (2, 3)
FEATURES = 6
CLASSES = (2, 5, 7)
ROOT = torch.randn(3, FEATURES, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
METRIC = ROOT.T @ ROOT  # of rank 3, rotated against the data; used by maps that need one
TINY_FLOW: dict[str, Any] = {"steps": 60, "width": 16, "validate_every": 20, "batch_size": 64}

Case = tuple[str, dict[str, Any]]
FLOW_LAST: Case = (
    "composition",
    {"stages": ({"name": "per_channel"}, {"name": "normalizing_flow", **TINY_FLOW})},
)
CASES: list[Case] = [
    ("none", {}),
    ("scalar", {}),
    ("per_channel", {}),
    ("channel_whitening", {}),
    ("channel_whitening", {"exponent": 0.25, "shrinkage": 0.1}),
    ("per_frequency", {}),
    ("per_frequency", {"shrinkage": "auto"}),
    ("kronecker", {}),
    ("kronecker", {"exponent": 0.25, "shrinkage": 0}),
    ("low_rank", {}),
    ("low_rank", {"rank": 2, "shrinkage": 0.1}),
    ("whitening", {}),
    ("whitening", {"shrinkage": 0}),
    ("whitening", {"exponent": 0.25}),
    ("whitening", {"shrinkage": 0.1}),
    ("whitening", {"rows": 60}),
    ("per_class", {"map": "channel_whitening"}),
    ("per_class", {"map": {"name": "per_frequency", "exponent": 0.25}, "rows_per_channel": 200.0}),
    ("class_whitening", {}),
    ("class_whitening", {"shrinkage": 0}),
    ("class_whitening", {"exponent": 0.25, "shrinkage": 0.1}),
    ("normalizing_flow", TINY_FLOW),
    ("normalizing_flow", {**TINY_FLOW, "kind": "autoregressive"}),
    ("normalizing_flow", {**TINY_FLOW, "kind": "spline", "steps": 20}),
    ("normalizing_flow", {**TINY_FLOW, "conditional": False}),
    ("low_capacity_flow", TINY_FLOW),
    ("low_capacity_flow", {**TINY_FLOW, "conditional": False, "tolerance": 1e-3}),
    ("conv_normalizing_flow", TINY_FLOW),
    ("conv_normalizing_flow", {**TINY_FLOW, "conditional": False, "before": "channel_whitening"}),
    ("conv_low_capacity_flow", {**TINY_FLOW, "width": 4}),
    ("mixture_flow", {"components": 3, "solver_steps": 40}),
    ("mixture_flow", {"components": 3, "solver_steps": 40, "conditional": False}),
    ("projection", {}),
    ("projection", {"rank": 2}),
    ("decoder_metric", {}),
    ("decoder_metric", {"floor": 1.0}),
    ("composition", {"stages": ({"name": "class_whitening"}, {"name": "scalar"})}),
    FLOW_LAST,
]


def case_id(case: Case) -> str:
    name, options = case
    return "-".join([name, *(f"{key}={value}" for key, value in options.items() if key not in TINY_FLOW)])


def make(case: Case) -> Preconditioner:
    name, options = case
    preconditioner: Preconditioner = registered("preconditioners", name)(**options)
    return preconditioner


def ill_conditioned(rows: int, seed: int, kappa: float = 1e4) -> tuple[Tensor, Tensor]:
    """A curved mixture of three classes with a rotated spectrum and a mean; shape (rows, 2, 3), float64."""
    source = torch.Generator().manual_seed(seed)
    fixed = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(FEATURES, FEATURES, generator=fixed, dtype=torch.float64))[0]
    centres = torch.randn(len(CLASSES), FEATURES, generator=fixed, dtype=torch.float64)
    stds = torch.logspace(0, -0.5 * math.log10(kappa), FEATURES, dtype=torch.float64)
    positions = torch.arange(rows) % len(CLASSES)
    noise = torch.randn(rows, FEATURES, generator=source, dtype=torch.float64)
    noise[:, 1] += 0.5 * (noise[:, 0].square() - 1)
    x = ((noise + centres[positions]) * stds) @ basis.T + 0.5
    return x.reshape(rows, *SHAPE), torch.tensor(CLASSES)[positions]
