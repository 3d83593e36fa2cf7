"""Times training steps, fits and inverses beside what users have already, and the memory of streaming fits.

    make examples
    python benchmarks/library.py                           # writes benchmarks/library.md

All that is compared takes turns, on one thread; a figure is the median of the rounds, in processor seconds, and a ratio
the median of the rounds' ratios. Training steps: the same network, batch, optimizer (Adam, no moving average, no
schedule) and data for all; the other loops are written as their libraries' examples are. Zuko's flow has the same
architecture, rows and steps in a plain loop, without the early stopping, whose share of rows is nevertheless held out.
Fits compute in float64 whatever the data; inverses are those of maps moved to the type of the data, `p.to(dtype)`.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers import UNet2DModel
from flow_matching.path import AffineProbPath
from flow_matching.path.scheduler import CondOTScheduler
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torchcfm.conditional_flow_matching import ConditionalFlowMatcher
from zuko.flows import NICE

from precfm.core.seeds import seeded_module
from precfm.flows.models.adapted import AdaptedNetwork
from precfm.flows.models.mlp import MLPVelocity
from precfm.flows.objectives import FlowMatching
from precfm.flows.paths import LinearPath
from precfm.preconditioners.base import Preconditioner
from precfm.preconditioners.channel_whitening import ChannelWhitening
from precfm.preconditioners.class_whitening import ClassWhitening
from precfm.preconditioners.kronecker import Kronecker
from precfm.preconditioners.low_rank import LowRank
from precfm.preconditioners.normalizing_flow import NormalizingFlow
from precfm.preconditioners.per_channel import PerChannel
from precfm.preconditioners.per_frequency import PerFrequency
from precfm.preconditioners.projection import Projection
from precfm.preconditioners.scalar import Scalar
from precfm.preconditioners.whitening import Whitening
from precfm.training.options import TrainingOptions
from precfm.training.trainer import train

OUTPUT = Path(__file__).with_suffix(".md")
ROUNDS, STEPS, BATCH, DIM = 9, 300, 256, 64
FIT_ROWS, FEATURES, CLASSES = 60_000, 128, 10
UNET_STEPS, UNET_BATCH, FLOW_ROWS, FLOW_STEPS = 10, 16, 10_000, 300
SHAPE, SIZES = (4, 16, 16), (2_000, 8_000, 32_000)

PEER = "scikit-learn PCA(whiten=True)"

Call = Callable[[], object]


def mlp() -> nn.Module:
    """256 x 3, for vectors of `DIM`."""
    return MLPVelocity((DIM,), width=256, depth=3)


def unet() -> nn.Module:
    """Of diffusers, 2.2 million parameters, for latents (4, 32, 32)."""
    network = UNet2DModel(
        sample_size=32, in_channels=4, out_channels=4, layers_per_block=1, norm_num_groups=8,
        block_out_channels=(32, 64, 64), down_block_types=("DownBlock2D",) * 2 + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * 2,
    )  # fmt: skip
    return AdaptedNetwork(network, (4, 32, 32), 0)


def training_loops(
    x1: Tensor, build: Callable[[], nn.Module], steps: int, batch_size: int
) -> dict[str, Call]:
    """A training of so many steps by each library, of equal networks."""
    plain = AffineProbPath(scheduler=CondOTScheduler())
    matcher = ConditionalFlowMatcher(sigma=0.0)

    def network() -> nn.Module:
        return seeded_module(build, seed=0)

    def ours() -> None:
        module = network()
        options = TrainingOptions(steps=steps, batch_size=batch_size, learning_rate=1e-3, ema_decay=None)
        train(module, FlowMatching().prepare(LinearPath(), x1), (x1,), options, seed=0)

    def loop(points: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]) -> None:
        module = network()
        optimizer = torch.optim.Adam(module.parameters(), 1e-3)
        for _ in range(steps):
            t, x_t, target = points(x1[torch.randint(len(x1), (batch_size,))])
            loss = (module(x_t, t) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def of_torchcfm(batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        t, x_t, target = matcher.sample_location_and_conditional_flow(torch.randn_like(batch), batch)
        return t, x_t, target

    def of_flow_matching(batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        point = plain.sample(x_0=torch.randn_like(batch), x_1=batch, t=torch.rand(len(batch)))
        return point.t, point.x_t, point.dx_t

    return {
        "precfm": ours,
        "torchcfm": lambda: loop(of_torchcfm),
        "flow_matching": lambda: loop(of_flow_matching),
    }


def affine_maps(x: Tensor, labels: Tensor) -> tuple[dict[str, Call], dict[str, Call]]:
    """Fits and inverses of the maps with a closed form, and of scikit-learn's whitening."""
    array = x.numpy()
    peer = PCA(whiten=True).fit(array)
    white = peer.transform(array)
    maps: list[Preconditioner] = [
        Scalar(),
        PerChannel(),
        Whitening(),
        ClassWhitening(),
        Projection(),
        LowRank(),
    ]
    fits: dict[str, Call] = {PEER: lambda: PCA(whiten=True).fit(array)}
    inverses: dict[str, Call] = {PEER: lambda: peer.inverse_transform(white)}
    for each in maps:
        fits[type(each).__name__] = lambda each=each: each.fit(x, labels)
        fitted = type(each)(**each.options).fit(x, labels).to(x.dtype)
        inverses[type(each).__name__] = lambda fitted=fitted: fitted.inverse(x, labels)
    return fits, inverses


def normalizing_flows(x: Tensor) -> tuple[dict[str, Call], dict[str, Call]]:
    """Fits and inverses of a coupling flow, ours and zuko's own."""
    white = Whitening().fit(x).forward(x)

    def theirs() -> nn.Module:
        flow = NICE(DIM, transforms=3, hidden_features=(128, 128), activation=nn.SiLU)
        optimizer = torch.optim.Adam(flow.parameters(), 1e-3)
        for _ in range(FLOW_STEPS):
            loss = -flow().log_prob(white[torch.randint(len(white), (256,))]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return flow

    def ours() -> NormalizingFlow:
        return NormalizingFlow(steps=FLOW_STEPS, batch_size=256).fit(x)

    fitted, double = ours(), theirs().double()
    z = white.double()
    return {"fit, precfm": ours, "zuko, fit": theirs}, {
        "inverse, precfm": lambda: fitted.inverse(z),
        "zuko, inverse in float64": lambda: double().transform.inv(z),
    }


def in_turns(calls: dict[str, Call]) -> dict[str, list[float]]:
    """Processor seconds of each call in every round; a round before them warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_number in range(ROUNDS + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if round_number:
                seconds[name].append(time.process_time() - start)
    return seconds


def rows_of(seconds: dict[str, list[float]], peer: str, scale: float = 1e3) -> list[str]:
    """A line of the table for each call: median, and ratio to the peer."""
    return [
        f"| {name} | {scale * statistics.median(found):.3g} | "
        f"{statistics.median(a / b for a, b in zip(found, seconds[peer], strict=True)):.2f} |"
        for name, found in seconds.items()
    ]


def streaming(shape: tuple[int, ...], rows: int) -> Iterator[Tensor]:
    """Batches of synthetic feature maps, made when they are asked for."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(rows // 500):
        yield torch.randn(500, *shape, generator=generator).cumsum(-1).cumsum(-2)


def peak_mib(call: Call) -> float:
    """Peak memory beyond what was there."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak

    def kib(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key))

    before = kib("VmRSS")
    call()
    return (kib("VmHWM") - before) / 1024


def kept_digits() -> list[str]:
    """What the time of a fit buys: condition numbers on fresh rows whose mean is far from zero."""
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.logspace(0, -3, FEATURES, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(FEATURES, FEATURES, generator=generator, dtype=torch.float64)).Q
    fit_rows, fresh = (
        torch.randn(FIT_ROWS, FEATURES, generator=generator, dtype=torch.float64) * spectrum @ rotation
        for _ in range(2)
    )
    lines = ["| mean, over the largest standard deviation | scikit-learn | ours |", "| ---: | ---: | ---: |"]
    for mean in (0, 1, 10, 100):
        x, new = (fit_rows + mean).float(), (fresh + mean).float()
        maps = (
            PCA(whiten=True).fit(x.numpy()).transform(new.numpy()),
            Whitening().fit(x).transform(new).numpy(),
        )
        kappas = [torch.linalg.cond(torch.from_numpy(z).double().T.cov()) for z in maps]
        lines.append(f"| {mean} | " + " | ".join(f"{float(kappa):.3g}" for kappa in kappas) + " |")
    return lines


def main() -> None:
    """Measure, and write the tables."""
    torch.set_num_threads(1)
    # First, since later ones find memory that is free already.
    memory = ["", f"Peak memory (MiB) of fits to batches of 500 rows of {SHAPE}, beyond what was there:", ""]
    memory += ["| map |" + "".join(f" {rows:,} rows |" for rows in SIZES), "| --- |" + " ---: |" * len(SIZES)]
    for kind in (PerChannel, ChannelWhitening, PerFrequency, Kronecker, LowRank, Whitening):
        kind().fit(streaming(SHAPE, 2_000))  # loading libraries is nobody's memory
        peaks = [peak_mib(lambda rows=rows, kind=kind: kind().fit(streaming(SHAPE, rows))) for rows in SIZES]
        memory.append(f"| {kind.__name__} |" + "".join(f" {peak:.0f} |" for peak in peaks))
    generator = torch.Generator().manual_seed(0)
    x1 = torch.randn(FIT_ROWS, DIM, generator=generator) * torch.logspace(0, -2, DIM)
    lines = ["# The library: measured times and memory", "", str(__doc__).split("\n\n")[2], ""]
    lines += [f"A training of {STEPS} steps, MLP 256 x 3, batch {BATCH}, {DIM} features:", ""]
    lines += ["| loop | ms | to torchcfm |", "| --- | ---: | ---: |"]
    lines += rows_of(in_turns(training_loops(x1, mlp, STEPS, BATCH)), "torchcfm")
    maps4 = torch.randn(2_000, 4, 32, 32, generator=generator)
    lines += [
        "",
        f"A training of {UNET_STEPS} steps, diffusers' U-Net on 4 x 32 x 32, batch {UNET_BATCH}:",
        "",
    ]
    lines += ["| loop | ms | to torchcfm |", "| --- | ---: | ---: |"]
    lines += rows_of(in_turns(training_loops(maps4, unet, UNET_STEPS, UNET_BATCH)), "torchcfm")

    wide = torch.randn(FIT_ROWS, FEATURES, generator=generator) * torch.logspace(0, -2, FEATURES)
    labels = torch.arange(FIT_ROWS) % CLASSES
    with threadpool_limits(1):
        for precision in (torch.float64, torch.float32):
            for what, calls in zip(("Fit", "Inverse"), affine_maps(wide.to(precision), labels), strict=True):
                lines += [
                    "",
                    f"{what}, {FIT_ROWS:,} x {FEATURES} {str(precision).removeprefix('torch.')}:",
                    "",
                ]
                lines += ["| map | ms | to scikit-learn |", "| --- | ---: | ---: |"]
                lines += rows_of(in_turns(calls), PEER)

    lines += [
        "",
        f"Condition number on fresh rows behind a whitening, {FIT_ROWS:,} x {FEATURES} float32 of 1e6:",
        "",
    ]
    lines += kept_digits()

    lines += [
        "",
        f"A coupling flow on {FLOW_ROWS:,} x {DIM} float32, {FLOW_STEPS} steps of 256 rows; its inverse:",
        "",
    ]
    lines += ["| flow | ms | to zuko |", "| --- | ---: | ---: |"]
    fit, inverse = normalizing_flows(x1[:FLOW_ROWS])
    for calls in (fit, inverse):
        lines += rows_of(in_turns(calls), next(name for name in calls if name.startswith("zuko")))

    lines += [*memory, "", "Fits to as many as a million rows of (4, 32, 32): [streaming.md](streaming.md)."]
    names = ("torch", "scikit-learn", "numpy", "torchcfm", "flow_matching", "diffusers", "zuko")
    lines += ["", f"With {', '.join(f'{name} {version(name)}' for name in names)}."]
    text = "\n".join(lines) + "\n"
    OUTPUT.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
