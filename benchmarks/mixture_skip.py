"""Times a training step with the mixture skip beside the plain network's.

    python benchmarks/mixture_skip.py                           # writes benchmarks/mixture_skip.md

Both take turns, a block of steps each, on one thread. The ratio is that of the fastest blocks; where other work slows
the machine, the median of the ratios of two blocks that follow each other says how much.
"""

import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from precfm.core.seeds import generator_for, seeded_module
from precfm.flows.models.base import VelocityNetwork
from precfm.flows.models.mixture_skip import MixtureSkip
from precfm.flows.models.mlp import MLPVelocity
from precfm.flows.objectives import FlowMatching
from precfm.flows.paths import LinearPath

OUTPUT = Path(__file__).with_suffix(".md")
DIM, CLASSES, ROWS, BATCH = 64, 10, 20_000, 256
WIDTHS, COMPONENTS = (256, 512), (1, 10, 40)
ROUNDS, STEPS = 20, 8


def data() -> tuple[Tensor, Tensor]:
    """Clusters of a decaying spectrum, as a principal component analysis gives them."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(ROWS) % CLASSES
    centres = torch.randn(CLASSES * 20, DIM, generator=generator)
    cluster = labels * 20 + torch.randint(20, (ROWS,), generator=generator)
    rows = centres[cluster] + torch.randn(ROWS, DIM, generator=generator)
    return rows * torch.logspace(0, -1, DIM), labels


def steps_of(network: VelocityNetwork, x1: Tensor, labels: Tensor) -> Callable[[], float]:
    """A function that takes `STEPS` training steps and says how much processor time one took, in seconds."""
    objective = FlowMatching().prepare(LinearPath(), x1)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, fused=True)
    draws = objective.draw(BATCH, generator_for(0, "benchmark"))
    batch = x1[:BATCH], labels[:BATCH]

    def run() -> float:
        start = time.process_time()
        for _ in range(STEPS):
            loss = objective.loss(network, batch, draws)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return (time.process_time() - start) / STEPS

    return run


def main() -> None:
    torch.set_num_threads(1)
    x1, labels = data()
    rows = []
    for width in WIDTHS:

        def network(width: int = width) -> MLPVelocity:
            return seeded_module(lambda: MLPVelocity(DIM, CLASSES, width=width, depth=3), 0)

        plain = steps_of(network(), x1, labels)
        for components in COMPONENTS:
            model = MixtureSkip(network(), LinearPath(), components=components)
            start = time.process_time()
            model.fit(x1, labels)
            fit = time.process_time() - start
            skip = steps_of(model, x1, labels)
            plain(), skip()
            pairs = [(plain(), skip()) for _ in range(ROUNDS)]
            best = [min(column) * 1e3 for column in zip(*pairs, strict=True)]
            median = statistics.median(second / first for first, second in pairs)
            rows.append(
                f"| {width} | {components} | {best[0]:.2f} | {best[1]:.2f} | {best[1] / best[0]:.2f} | {median:.2f} | "
                f"{fit:.1f} |"
            )
    lines = [
        "# Mixture skip: measured times",
        "",
        f"Made by `python benchmarks/mixture_skip.py`; torch {version('torch')}, scikit-learn "
        f"{version('scikit-learn')}.",
        f"MLP of 3 hidden layers, {DIM} dimensions, {CLASSES} classes, mini-batches of {BATCH}; processor time on",
        f"one thread of a training step, the best of {ROUNDS} blocks of {STEPS} steps that took turns, and of the",
        f"mixture's fit to {ROWS:,} rows.",
        "",
        "| width | components a class | plain, ms | with skip, ms | ratio | median ratio | fit, s |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *rows,
    ]
    OUTPUT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
