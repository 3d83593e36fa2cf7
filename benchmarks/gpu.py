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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from precfm.core.seeds import seeded_module
from precfm.flows.compute import flops_per_step, num_parameters
from precfm.flows.models.adapted import AdaptedNetwork
from precfm.flows.models.mlp import MLPVelocity
from precfm.flows.objectives import FlowMatching
from precfm.flows.paths import LinearPath
from precfm.training.batched import train_many
from precfm.training.options import TrainingOptions
from precfm.training.trainer import train

OUTPUT = Path(__file__).with_suffix(".md")
CLASSES, ROWS = 10, 20_000


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


def dit(size: int, layers: int, heads: int) -> nn.Module:
    """DiT of diffusers on 4 x size x size, patches of 2, heads of 64; 12 layers of 12 heads are DiT-B."""
    from diffusers import DiTTransformer2DModel

    network = DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=64, in_channels=4, out_channels=4, num_layers=layers,
        patch_size=2, sample_size=size, dropout=0.0, num_embeds_ada_norm=CLASSES,
    )  # fmt: skip
    return AdaptedNetwork(network, (4, size, size), CLASSES)


def unet(size: int, width: int) -> nn.Module:
    """U-Net of diffusers on 4 x size x size, three levels, attention at the last."""
    from diffusers import UNet2DModel

    network = UNet2DModel(
        sample_size=size, in_channels=4, out_channels=4, layers_per_block=2, num_class_embeds=CLASSES,
        block_out_channels=(width, 2 * width, 2 * width), norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return AdaptedNetwork(network, (4, size, size), CLASSES)


def cases(tiny: bool) -> list[Case]:
    """What is measured."""
    fast = {"precision": "bfloat16", "compile": not tiny}
    if tiny:
        return [
            Case("DiT", lambda: dit(8, 1, 1), (4, 8, 8), 4, fast),
            Case("U-Net", lambda: unet(8, 8), (4, 8, 8), 4, {**fast, "channels_last": True}),
        ]
    return [
        Case("DiT-B/2", lambda: dit(32, 12, 12), (4, 32, 32), 256, fast),
        Case("U-Net 128", lambda: unet(32, 128), (4, 32, 32), 256, {**fast, "channels_last": True}),
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


def agreement(device: torch.device, steps: int) -> float:
    """Largest relative difference of the losses of an MLP on the CPU and on the device, float32, eager."""
    found = []
    for place in ("cpu", device):
        x1 = torch.randn(ROWS, 64, generator=torch.Generator().manual_seed(0)).to(place)
        module = seeded_module(lambda: MLPVelocity((64,), width=256, depth=3), 0).to(place)
        objective = FlowMatching().prepare(LinearPath(), x1)
        result = train(module, objective, (x1,), TrainingOptions(steps=steps), seed=0)
        found.append(torch.tensor(result.history.loss))
    return float(((found[0] - found[1]) / found[0]).abs().max())


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
        "largest_difference": agreement(device, 5 if tiny else 1000),
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
    lines[-1] += f" {close['largest_difference']:.2g} of themselves."
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
