"""What a GPU makes of the trainer: throughput, utilisation, idle time, memory, agreement with the CPU.

    python benchmarks/gpu.py                # on a machine with a GPU: writes benchmarks/gpu.md and benchmarks/gpu.json
    python benchmarks/gpu.py --tiny         # a few small steps, also on the CPU: whether the script works

Model FLOP utilisation is the FLOPs of a step, forward and backward, as torch counts them for the network as it is
(recomputed activations do not count), by the time of a step and by the rate of large bfloat16 matrix products measured
in the same run. The eager loop beside is the same network, float32 without TF32, Adam and moving average, random
numbers made on the GPU. Idle is the share of the time in which the GPU runs no kernel, by torch's profiler. With 20
seeds side by side, a step is one of all seeds.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from precfm.core.seeds import seeded_module
from precfm.flows.compute import flops_per_step, num_parameters
from precfm.flows.models.dit import DiTVelocity
from precfm.flows.models.mlp import MLPVelocity
from precfm.flows.models.unet import UNetVelocity
from precfm.flows.objectives import FlowMatching
from precfm.flows.paths import LinearPath
from precfm.training.batched import train_many
from precfm.training.options import TrainingOptions
from precfm.training.trainer import train

OUTPUT = Path(__file__).with_suffix(".md")
CLASSES, ROWS = 10, 20_000
LATENT, SMALL = (4, 32, 32), (4, 8, 8)


@dataclass(frozen=True)
class Case:
    """A network, its data, and how it is trained.

    Attributes:
        name: for the table.
        build: makes the network.
        shape: of one datum.
        batch: rows of a mini-batch.
        options: of the training, beside length and batch.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int
    options: dict[str, Any]


def cases(tiny: bool) -> list[Case]:
    """The networks of `church256` and `flowers256`, with their mini-batches, or small ones."""
    fast = {"precision": "bfloat16", "compile": not tiny}
    maps = {**fast, "channels_last": True}
    if tiny:
        return [
            Case("DiT", partial(DiTVelocity, SMALL, CLASSES, width=64, depth=1, heads=1), SMALL, 4, fast),
            Case("U-Net", partial(UNetVelocity, SMALL, CLASSES, width=8), SMALL, 4, maps),
        ]
    unet = partial(
        UNetVelocity, LATENT, CLASSES, width=128, multipliers=(1, 2, 2), layers=2, attention=(1, 2)
    )
    return [
        Case("DiT-B/2", partial(DiTVelocity, LATENT, CLASSES, size="B"), LATENT, 256, fast),
        Case("U-Net 128", unet, LATENT, 128, maps),
    ]


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(device: torch.device, size: int, repeats: int) -> float:
    """FLOPs per second of products of square bfloat16 matrices; the best of three rounds."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(4):  # the first warms up
        wait(device)
        start = time.perf_counter()
        for _ in range(repeats):
            a @ b
        wait(device)
        best = max(best, 2 * size**3 * repeats / (time.perf_counter() - start))
    return best


class Timed:
    """An objective that notes when its loss is asked for, from step `warm` on to step `end`, with the device idle.

    Args:
        objective: the objective.
        warm: steps before the clock starts.
        end: step at which it stops.
        device: of the training.
    """

    def __init__(self, objective: FlowMatching, warm: int, end: int, device: torch.device) -> None:
        self.draw, self._objective = objective.draw, objective
        self._marks, self._device, self._asked = (warm, end), device, 0
        self.times: list[float] = []

    def loss(self, *given: Any) -> Tensor:
        if self._asked in self._marks:
            wait(self._device)
            self.times.append(time.perf_counter())
        self._asked += 1
        return self._objective.loss(*given)

    @property
    def seconds_per_step(self) -> float:
        """Between the two marks."""
        return (self.times[1] - self.times[0]) / (self._marks[1] - self._marks[0])


def trained(case: Case, data: tuple[Tensor, ...], warm: int, steps: int, **options: Any) -> float:
    """Seconds a step of our trainer takes."""
    device = data[0].device
    module = seeded_module(case.build, 0).to(device)
    timed = Timed(FlowMatching().prepare(LinearPath(), data[0]), warm, warm + steps, device)
    how = TrainingOptions(steps=warm + steps + 1, batch_size=case.batch, **{**case.options, **options})
    train(module, timed, data, how, seed=0, name=case.name)
    return timed.seconds_per_step


def eager_loop(case: Case, data: tuple[Tensor, ...], warm: int, steps: int) -> float:
    """Seconds a step of a plain float32 loop takes."""
    (x1, labels), device = data, data[0].device
    module = seeded_module(case.build, 0).to(device).train()
    average = copy.deepcopy(module).requires_grad_(False)
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3, weight_decay=0.0, fused=True)
    torch.backends.cudnn.allow_tf32 = False
    start = 0.0
    for step in range(warm + steps):
        if step == warm:
            wait(device)
            start = time.perf_counter()
        rows = torch.randint(len(x1), (case.batch,), device=device)
        batch, t = x1[rows], torch.rand(case.batch, device=device)
        x0, at = torch.randn_like(batch), t.view(-1, *[1] * (x1.ndim - 1))
        loss = (module(at * batch + (1 - at) * x0, t, labels[rows]) - (batch - x0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(tuple(average.parameters()), tuple(module.parameters()), 0.001)
    wait(device)
    return (time.perf_counter() - start) / steps


def idle_share(case: Case, data: tuple[Tensor, ...], warm: int, steps: int) -> tuple[float, list[str]]:
    """The share of the time without a kernel, and what takes most of the rest; on a GPU alone."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        trained(case, data, warm, steps)
        wait(data[0].device)
    # The last `steps` of the run, which compiling and warming up have not disturbed.
    kernels = [each for each in seen.events() if each.device_type == torch.autograd.DeviceType.CUDA]
    spans = sorted((each.time_range.start, each.time_range.end) for each in kernels)
    first = spans[-1][1] - steps / (warm + steps) * (spans[-1][1] - spans[0][0]) / 2
    busy, reached = 0.0, first
    for start, end in spans:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    costs = sorted(seen.key_averages(), key=lambda each: each.self_device_time_total, reverse=True)[:8]
    total = sum(each.self_device_time_total for each in seen.key_averages())
    return 1 - busy / (spans[-1][1] - first), [
        f"{each.key[:70]}: {each.self_device_time_total / total:.1%}" for each in costs
    ]


def seeds_side_by_side(device: torch.device, seeds: int, warm: int, steps: int) -> tuple[float, float]:
    """Seconds of a step of all seeds of an MLP bed, and of one seed alone."""
    x1 = torch.randn(ROWS, 64, generator=torch.Generator().manual_seed(0)).to(device)
    modules = [
        seeded_module(lambda: MLPVelocity((64,), width=256, depth=3), seed).to(device)
        for seed in range(seeds)
    ]
    taken = []
    for several in (True, False):
        timed = Timed(FlowMatching().prepare(LinearPath(), x1), warm, warm + steps, device)
        options = TrainingOptions(steps=warm + steps + 1, batch_size=256)
        if several:
            train_many(modules, timed, (x1,), options, seeds=range(seeds))
        else:
            train(modules[0], timed, (x1,), options, seed=0)
        taken.append(timed.seconds_per_step)
    return taken[0], taken[1]


def agreement(device: torch.device, steps: int) -> dict[str, float]:
    """Largest relative difference of the losses on the CPU and on the device, by network, float32, eager."""
    networks: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
        "MLP": (lambda: MLPVelocity((64,), width=256, depth=3), (64,), 256),
        "U-Net": (lambda: UNetVelocity(SMALL, width=16), SMALL, 32),
    }
    differences = {}
    for name, (build, shape, batch) in networks.items():
        found = []
        for place in ("cpu", device):
            x1 = torch.randn(ROWS, *shape, generator=torch.Generator().manual_seed(0)).to(place)
            module, options = (
                seeded_module(build, 0).to(place),
                TrainingOptions(steps=steps, batch_size=batch),
            )
            result = train(
                module, FlowMatching().prepare(LinearPath(), x1), (x1,), options, seed=0, name=name
            )
            found.append(torch.tensor(result.history.loss))
        differences[name] = float(((found[0] - found[1]) / found[0]).abs().max())
    return differences


def measure(device: torch.device, tiny: bool) -> dict[str, Any]:
    """All numbers, as plain data."""
    warm, steps = (1, 2) if tiny else (20, 60)
    rate = matrix_rate(device, 64 if tiny else 8192, 2 if tiny else 50)
    gpu = device.type == "cuda"
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if gpu else "cpu",
        "torch": torch.__version__,
        "matrix_tflops": rate / 1e12,
        "networks": [],
    }
    for case in cases(tiny):
        rows = 64 if tiny else ROWS
        x1 = torch.randn(rows, *case.shape, generator=torch.Generator().manual_seed(0)).to(device)
        data = x1, torch.arange(rows, device=device) % CLASSES
        network = seeded_module(case.build, 0).to(device)
        flops = flops_per_step(network, FlowMatching().prepare(LinearPath(), x1), data, case.batch)
        if gpu:
            torch.cuda.reset_peak_memory_stats(device)
        ours = trained(case, data, warm, steps)
        peak = torch.cuda.max_memory_allocated(device) / 2**30 if gpu else None
        eager = eager_loop(case, data, warm, steps)
        idle, costs = idle_share(case, data, warm, steps) if gpu else (None, [])
        report["networks"].append(
            {
                "name": case.name,
                "parameters": num_parameters(network),
                "batch": case.batch,
                "tflops_per_step": flops / 1e12,
                "ms_per_step": 1e3 * ours,
                "rows_per_second": case.batch / ours,
                "utilisation": flops / ours / rate,
                "eager_ms": 1e3 * eager,
                "speedup": eager / ours,
                "idle": idle,
                "peak_gib": peak,
                "costs": costs,
                "options": {key: value for key, value in asdict(case).items() if key == "options"},
            }
        )
    together, alone = seeds_side_by_side(device, 2 if tiny else 20, warm, steps)
    report["seeds"] = {"number": 2 if tiny else 20, "ms_of_all": 1e3 * together, "ms_of_one": 1e3 * alone}
    report["agreement"] = {
        "steps": 5 if tiny else 1000,
        "largest_differences": agreement(device, 5 if tiny else 1000),
    }
    return report


def text_of(report: dict[str, Any]) -> str:
    """The report as a page."""
    lines = ["# The trainer on a GPU: measured", "", *str(__doc__).split("\n\n")[2].splitlines(), ""]
    lines += [
        f"{report['device']}, torch {report['torch']}, {report['matrix_tflops']:.3g} bfloat16 TFLOP/s.",
        "",
    ]
    lines += [
        "| network | parameters | batch | ms a step | rows/s | utilisation | idle | to eager float32 | GiB |"
    ]
    lines += ["| --- |" + " ---: |" * 8]
    for each in report["networks"]:
        idle, peak = (("" if each[key] is None else f"{each[key]:.3g}") for key in ("idle", "peak_gib"))
        lines.append(
            f"| {each['name']} | {each['parameters']:,} | {each['batch']} | {each['ms_per_step']:.3g} | "
            f"{each['rows_per_second']:.0f} | {each['utilisation']:.2f} | {idle} | {each['speedup']:.2f} | {peak} |"
        )
    seeds, close = report["seeds"], report["agreement"]
    lines += [
        "",
        f"{seeds['number']} seeds of an MLP (256 x 3, batch 256) side by side: {seeds['ms_of_all']:.3g} ms a step",
    ]
    lines[-1] += f" of all; one alone {seeds['ms_of_one']:.3g} ms."
    lines += [
        "",
        f"Losses of {close['steps']} steps in float32, eager, on the GPU and on the CPU differ by at most",
    ]
    apart = [f"{each:.2g} of themselves ({name})" for name, each in close["largest_differences"].items()]
    lines[-1] += f" {' and '.join(apart)}."
    for each in report["networks"]:
        lines += (
            ["", f"Most of the time of {each['name']}: {'; '.join(each['costs'])}."] if each["costs"] else []
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure; on a GPU write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="a few small steps")
    tiny = parser.parse_args().tiny
    if not tiny and not torch.cuda.is_available():
        sys.exit("torch finds no GPU here; --tiny tries the script on the processor")
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    report = measure(device, tiny)
    if not tiny:
        OUTPUT.write_text(text_of(report), encoding="utf-8")
        OUTPUT.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(text_of(report))


if __name__ == "__main__":
    main()
