"""Times a training step of a U-Net beside a plain loop, and that of its skips; counts operations of larger networks.

    python benchmarks/networks.py                           # writes benchmarks/networks.md

All that is compared takes turns, on one thread, in processor seconds; a ratio is the median of the rounds' ratios.
Operations are counted on tensors without content, so that no GPU is needed.
"""

import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from precfm.core.registry import build
from precfm.core.seeds import seeded_module
from precfm.flows.compute import flops_of, num_parameters
from precfm.flows.models.unet import FASTEST, UNetVelocity
from precfm.preconditioned_flow import PreconditionedFlow
from precfm.preconditioners.scalar import Scalar
from precfm.training.options import TrainingOptions
from precfm.training.trainer import train

OUTPUT = Path(__file__).with_suffix(".md")
SHAPE, CLASSES, ROWS, BATCH = (18, 8, 8), 5, 1600, 64
ROUNDS, STEPS = 3, 12  # of fewer steps, the start of a training shows
SKIPS = {
    "Gaussian, by frequency": {"name": "gaussian_skip", "directions": "frequency"},
    "Gaussian, by patches": {"name": "gaussian_skip", "directions": "patches"},
    "mixture of 5, by frequency": {"name": "mixture_skip", "components": 5, "directions": "frequency"},
}
COUNTED = {
    "U-Net, 128 channels": {
        "name": "unet",
        "width": 128,
        "multipliers": (1, 2, 2),
        "layers": 2,
        "attention": (1, 2),
    },
    "DiT-S/2": {"name": "dit", "size": "S"},
    "DiT-B/2": {"name": "dit", "size": "B"},
}
COUNTED_SHAPES = ((4, 32, 32), (16, 64, 64))

Call = Callable[[], object]


def data() -> tuple[Tensor, Tensor]:
    """Maps whose channels have falling variances, as block-DCT latents have."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, -1, SHAPE[0])[:, None, None]
    return torch.randn(ROWS, *SHAPE, generator=generator) * scales, torch.arange(ROWS) % CLASSES


def plain_loop(network: UNetVelocity, x1: Tensor, labels: Tensor) -> Call:
    """Steps of the diffusers network inside, in a loop as its users write it."""
    unet: nn.Module = network.unet
    optimizer = torch.optim.Adam(unet.parameters(), 1e-3)

    def run() -> None:
        for _ in range(STEPS):
            rows = torch.randint(len(x1), (BATCH,))
            x, t = x1[rows], torch.rand(BATCH)
            noise, time_ = torch.randn_like(x), t[:, None, None, None]
            predicted = unet(time_ * x + (1 - time_) * noise, t * FASTEST, class_labels=labels[rows]).sample
            loss = (predicted - (x - noise)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def trained(flow: PreconditionedFlow) -> Call:
    """Steps of a prepared flow by the trainer; without a moving average, which the plain loop lacks, too."""
    options = TrainingOptions(steps=STEPS, batch_size=BATCH, ema_decay=None, save_every=0)
    return lambda: train(flow.network, flow.objective, flow.data, options, seed=0)


def seconds(run: Call) -> float:
    """Processor seconds of a step."""
    start = time.process_time()
    run()
    return (time.process_time() - start) / STEPS


def compared(first: Call, second: Call) -> tuple[float, float, float]:
    """Medians of both, and of the ratio of the second to the first."""
    first(), second()
    pairs = [(seconds(first), seconds(second)) for _ in range(ROUNDS)]
    medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
    return medians[0], medians[1], statistics.median(after / before for before, after in pairs)


def step_rows() -> list[str]:
    """Lines of the table of steps."""
    x1, labels = data()
    scale = Scalar().fit(x1)

    def flow(*wrappers: dict[str, object]) -> PreconditionedFlow:
        return PreconditionedFlow(scale, model="unet", wrappers=wrappers).prepare(x1, labels)

    plain = flow()
    network = seeded_module(lambda: UNetVelocity(SHAPE, CLASSES), 0)
    own = trained(plain)
    loop, ours, ratio = compared(plain_loop(network, *plain.data), own)
    rows = [f"| plain loop | {loop:.3f} | |", f"| precfm's trainer | {ours:.3f} | {ratio:.2f} |"]
    for name, wrapper in SKIPS.items():
        _, with_skip, ratio = compared(own, trained(flow(wrapper)))
        rows.append(f"| with a skip: {name} | {with_skip:.3f} | {ratio:.2f} of the trainer's |")
    return rows


def counted(spec: dict[str, object], shape: tuple[int, ...]) -> tuple[int, int]:
    """Parameters, and operations of a training step for a row: forward and backward."""
    with torch.device("meta"):
        network = build("models", spec, shape=shape, num_classes=CLASSES)
        x_t, t, labels = torch.zeros(1, *shape), torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    return num_parameters(network), flops_of(lambda: network(x_t, t, labels).square().sum().backward())


def main() -> None:
    torch.set_num_threads(1)
    parameters = num_parameters(UNetVelocity(SHAPE, CLASSES)) / 1e6
    lines = [
        "# Networks for feature maps: measured times and counted operations",
        "",
        f"Made by `python benchmarks/networks.py`; torch {version('torch')}, diffusers {version('diffusers')}.",
        f"The default U-Net ({parameters:.2f} million parameters) on maps of {' x '.join(map(str, SHAPE))}, "
        f"mini-batches of {BATCH}, one thread;",
        f"processor seconds of a training step, medians of {ROUNDS} rounds of {STEPS} steps that took turns.",
        "",
        "| step | s | ratio |",
        "| --- | ---: | ---: |",
        *step_rows(),
        "",
        "Floating point operations of a training step for one row, forward and backward (multiplications and additions",
        "apart), as torch counts them; the U-Net has levels of 128, 256 and 256 channels with two blocks each, and",
        "attention at the lower two.",
        "",
        "| network | maps | million parameters | 10^9 operations |",
        "| --- | --- | ---: | ---: |",
    ]
    for name, spec in COUNTED.items():
        for shape in COUNTED_SHAPES:
            size, flops = counted(spec, shape)
            maps = " x ".join(map(str, shape))
            lines.append(f"| {name} | {maps} | {size / 1e6:.1f} | {flops / 1e9:.1f} |")
    OUTPUT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
