"""Times a step of the trainer beside a plain loop that does the same, and seeds side by side beside one by one.

    python benchmarks/training.py                          # writes benchmarks/training.md

Both loops draw from the same law, and take the same steps: Adam, clipping off, a moving average of the weights, a
constant rate. They take turns, on one thread; a figure is the median of the rounds, in processor seconds, and a ratio
the median of the rounds' ratios.
"""

import copy
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from precfm.core.seeds import seeded_module
from precfm.flows.models.adapted import AdaptedNetwork
from precfm.flows.models.mlp import MLPVelocity
from precfm.flows.objectives import FlowMatching
from precfm.flows.paths import LinearPath
from precfm.training.batched import train_many
from precfm.training.options import TrainingOptions
from precfm.training.trainer import train

OUTPUT = Path(__file__).with_suffix(".md")
ROUNDS, SEEDS, ROWS = 3, 4, 2_000
MLP, UNET = {"steps": 100, "batch_size": 256}, {"steps": 4, "batch_size": 64}

Call = Callable[[], object]


def mlp() -> nn.Module:
    """256 x 3, for 64 numbers."""
    return MLPVelocity((64,), width=256, depth=3)


def unet() -> nn.Module:
    """Of diffusers, for 18 x 8 x 8: as block-DCT latents of images of 64 x 64."""
    network = UNet2DModel(
        sample_size=8, in_channels=18, out_channels=18, layers_per_block=1, norm_num_groups=8,
        block_out_channels=(64, 96), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return AdaptedNetwork(network, (18, 8, 8))


def plain_loop(module: nn.Module, x1: Tensor, steps: int, batch_size: int) -> None:
    """The same training without all that makes it resumable and checked."""
    average = copy.deepcopy(module).requires_grad_(False)
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3, weight_decay=0.0, fused=True)
    for _ in range(steps):
        batch = x1[torch.randint(len(x1), (batch_size,))]
        x0, t = torch.randn_like(batch), torch.rand(batch_size)
        time_of = t.view(-1, *[1] * (x1.ndim - 1))
        loss = (module(time_of * batch + (1 - time_of) * x0, t) - (batch - x0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(tuple(average.parameters()), tuple(module.parameters()), 0.001)


def loops(build: Callable[[], nn.Module], x1: Tensor, steps: int, batch_size: int) -> dict[str, Call]:
    """Our trainer, and a plain loop."""
    options = TrainingOptions(steps=steps, batch_size=batch_size, learning_rate=1e-3)
    objective = FlowMatching().prepare(LinearPath(), x1)
    return {
        "trainer": lambda: train(seeded_module(build, 0), objective, (x1,), options, seed=0),
        "plain loop": lambda: plain_loop(seeded_module(build, 0), x1, steps, batch_size),
    }


def seeds_together(x1: Tensor, steps: int, batch_size: int) -> dict[str, Call]:
    """Trainings of several seeds side by side, and one after the other."""
    options = TrainingOptions(steps=steps, batch_size=batch_size, learning_rate=1e-3)
    objective = FlowMatching().prepare(LinearPath(), x1)

    def modules() -> list[nn.Module]:
        return [seeded_module(mlp, seed) for seed in range(SEEDS)]

    def one_by_one() -> None:
        for seed, module in enumerate(modules()):
            train(module, objective, (x1,), options, seed=seed)

    return {
        "side by side": lambda: train_many(modules(), objective, (x1,), options, seeds=range(SEEDS)),
        "one by one": one_by_one,
    }


def rows_of(calls: dict[str, Call], steps: int) -> list[str]:
    """Milliseconds a step of each, and the ratio to the last."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.process_time()
            call()
            seconds[name].append(time.process_time() - start)
    peer = seconds[list(calls)[-1]]
    return [
        f"| {name} | {1e3 * statistics.median(found) / steps:.2f} | "
        f"{statistics.median(a / b for a, b in zip(found, peer, strict=True)):.2f} |"
        for name, found in seconds.items()
    ]


def main() -> None:
    """Measure, and write the tables."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(ROWS, 64, generator=generator)
    maps = torch.randn(ROWS, 18, 8, 8, generator=generator)
    parts = [
        ("MLP 256 x 3 on 64 numbers, batch 256", loops(mlp, vectors, **MLP), MLP["steps"]),
        ("U-Net of diffusers on 18 x 8 x 8, batch 64", loops(unet, maps, **UNET), UNET["steps"]),
        (f"{SEEDS} seeds of the MLP, a step of all", seeds_together(vectors, **MLP), MLP["steps"]),
    ]
    lines = ["# Training steps: measured times", "", *str(__doc__).split("\n\n")[2].splitlines()]
    for title, calls, steps in parts:
        peer = list(calls)[-1]
        lines += ["", f"{title}:", "", f"| loop | ms | to {peer} |", "| --- | ---: | ---: |"]
        lines += rows_of(calls, steps)
    lines += [
        "",
        f"With torch {version('torch')}, diffusers {version('diffusers')}, on one core without a GPU.",
    ]
    text = "\n".join(lines) + "\n"
    OUTPUT.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
