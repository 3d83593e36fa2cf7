"""The examples: other libraries' own loops, run as they are written, with few steps."""

import runpy
from pathlib import Path

import pytest
import torch

from precfm.preconditioners.per_channel import PerChannel
from precfm.preconditioners.whitening import Whitening

EXAMPLES = Path(__file__).parents[1] / "examples"
VECTORS = torch.randn(300, 6, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -2, 6)
MAPS = torch.randn(100, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("library", "x1", "preconditioner"),
    [
        ("torchcfm", VECTORS, Whitening()),
        ("flow_matching", VECTORS, Whitening()),
        ("diffusers", MAPS, PerChannel()),
    ],
)
def test_loops_of_other_libraries_train_behind_a_map(library, x1, preconditioner):
    pytest.importorskip(library, reason=f"{library} is not installed (make examples)")
    example = runpy.run_path(str(EXAMPLES / f"{library}_loop.py"))
    samples = example["train_and_sample"](x1, preconditioner, steps=3, n=5)
    assert samples.shape == (5, *x1.shape[1:])
    assert bool(samples.isfinite().all())
