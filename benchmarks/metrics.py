"""Times the metrics against torch-fidelity, torchmetrics and the hardware's floor, on the same features.

One piece at a time, each in a fresh process so that peak memory is its own:

    python benchmarks/metrics.py --quick                # small sizes, under a minute
    python benchmarks/metrics.py --n 10000 --dim 64     # one piece; rows replace those of the same piece
    python benchmarks/metrics.py --table                # benchmarks/metrics.md out of benchmarks/metrics.csv

The floor of a metric is the time that its unavoidable matrix products take at the rate that this machine
reaches for such a product, measured in the same process, in float64: for precision and recall three products of
n x dim by dim x n; for the Frechet distance two covariances (half of each product, since they are symmetric), one
product of two square factors and the eigenvalues of one matrix.
"""

import argparse
import math
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from precfm.metrics.frechet import frechet_distance
from precfm.metrics.kernels import kid
from precfm.metrics.neighbours import precision_recall

HERE = Path(__file__).parent
CSV, MARKDOWN = HERE / "metrics.csv", HERE / "metrics.md"
PACKAGES = ("torch", "numpy", "scipy", "torch-fidelity", "torchmetrics")
COLUMNS = ["metric", "n", "dim", "threads", "who", "seconds", "extra_mib", "value"]


def features(n: int, dim: int, seed: int) -> Tensor:
    """Correlated features with a decaying spectrum, like those of a network."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=torch.Generator().manual_seed(0)) / math.sqrt(dim)
    scale = torch.arange(1, dim + 1) ** -0.5
    noise = torch.randn(n, dim, generator=generator)
    return torch.nn.functional.gelu(noise * scale @ mixing * 4 + 0.1 * seed)


def memory_kib(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    raise ValueError(key)


def measured(function: Callable[[], float]) -> tuple[float, float, float]:
    """Seconds, peak memory beyond what was there (MiB) and value of one call."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory_kib("VmRSS")
    start = time.process_time()
    value = function()
    return time.process_time() - start, (memory_kib("VmHWM") - before) / 1024, value


def product_rate(dim: int, dtype: torch.dtype) -> float:
    """Multiply-adds per second of the product of (2048, dim) and (dim, 2048), the best of several."""
    left, right = torch.randn(2048, dim, dtype=dtype), torch.randn(dim, 2048, dtype=dtype)
    best = math.inf
    for _ in range(8):
        start = time.process_time()
        for _ in range(max(1, 2048 // dim)):
            left @ right
        best = min(best, (time.process_time() - start) / max(1, 2048 // dim))
    return 2048 * 2048 * dim / best


def frechet_floor(n: int, dim: int) -> float:
    rank = min(n, dim)
    covariances = 0.0 if n < dim else float(n) * dim * dim
    products = covariances + float(rank) * dim * rank + 0.5 * float(rank) ** 3
    rate = product_rate(min(dim, 2048), torch.float64)
    square = torch.randn(rank, rank, dtype=torch.float64)
    symmetric = square @ square.T
    start = time.process_time()
    torch.linalg.eigvalsh(symmetric)
    return products / rate + time.process_time() - start


def fidelity_frechet(x: Tensor, y: Tensor) -> float:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    first, second = fid_features_to_statistics(x.double()), fid_features_to_statistics(y.double())
    return float(fid_statistics_to_metric(first, second, False)["frechet_inception_distance"])


class _Features(nn.Module):
    """Features posing as an extractor, so that torchmetrics' own class is what is timed."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_features = dim

    def forward(self, x: Tensor) -> Tensor:
        return x


def torchmetrics_frechet(x: Tensor, y: Tensor) -> float:
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_Features(x.shape[1]), input_img_size=(1, 1, 1)).set_dtype(
        torch.float64
    )
    for features_, real in ((y, True), (x, False)):
        for block in features_.split(1000):
            metric.update(block, real=real)
    return float(metric.compute())


def fidelity_precision_recall(x: Tensor, y: Tensor) -> float:
    from torch_fidelity.metric_prc import calculate_precision_recall_part

    return sum(calculate_precision_recall_part(x, y, 3, 10000))


def own_precision_recall(x: Tensor, y: Tensor) -> float:
    shares = precision_recall(x, y, 3)
    return shares.precision + shares.recall


def fidelity_kid(x: Tensor, y: Tensor) -> float:
    from torch_fidelity.metric_kid import kid_features_to_metric

    result = kid_features_to_metric(
        x,
        y,
        kid_subsets=100,
        kid_subset_size=1000,
        kid_kernel="poly",
        kid_kernel_poly_degree=3,
        kid_kernel_poly_coef0=1.0,
        rng_seed=2020,
        verbose=False,
    )
    return float(result["kernel_inception_distance_mean"])


def torchmetrics_kid(x: Tensor, y: Tensor) -> float:
    from torchmetrics.image.kid import poly_mmd

    random = np.random.RandomState(2020)
    subsets = [[random.choice(len(z), 1000, replace=False) for z in (x, y)] for _ in range(100)]
    return float(torch.stack([poly_mmd(y[b], x[a]) for a, b in subsets]).mean())


def piece(n: int, dim: int, *, peers: bool, metrics: tuple[str, ...]) -> pd.DataFrame:
    """All timings of one size."""
    x, y = features(n, dim, 1), features(n, dim, 2)
    calls: dict[str, dict[str, Callable[[], float]]] = {
        "frechet": {
            "precfm": lambda: frechet_distance(x, y, few_samples="allow"),
            "torch-fidelity": lambda: fidelity_frechet(x, y),
            "torchmetrics": lambda: torchmetrics_frechet(x, y),
        },
        "precision-recall": {
            "precfm": lambda: own_precision_recall(x, y),
            "torch-fidelity": lambda: fidelity_precision_recall(x, y),
        },
        "kid": {
            "precfm (all pairs, float64)": lambda: kid(x, y).value,
            "torch-fidelity (100 subsets of 1000, float32)": lambda: fidelity_kid(x, y),
            "torchmetrics (100 subsets of 1000, float32)": lambda: torchmetrics_kid(x, y),
        },
    }
    floors = {
        "frechet": lambda: frechet_floor(n, dim),
        "precision-recall": lambda: 3.0 * n * n * dim / product_rate(dim, torch.float64),
    }
    rows = []
    warm = features(1100, 8, 1)
    for call in (
        fidelity_frechet,
        torchmetrics_frechet,
        fidelity_precision_recall,
        fidelity_kid,
        torchmetrics_kid,
    ):
        call(warm, warm)  # imports and first calls are nobody's time
    for metric in metrics:
        if metric in floors:
            rows.append(
                [metric, n, dim, torch.get_num_threads(), "floor", floors[metric](), math.nan, math.nan]
            )
        for who, call in calls[metric].items():
            if not who.startswith("precfm") and not peers:
                continue
            rows.append([metric, n, dim, torch.get_num_threads(), who, *measured(call)])
            print(rows[-1], flush=True)
    return pd.DataFrame(rows, columns=COLUMNS)


def table(rows: pd.DataFrame) -> str:
    """The rows as Markdown, with ratios to this project and to the floor."""
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    lines = [
        "# Metrics: measured times",
        "",
        f"Made by `python benchmarks/metrics.py`; {versions}.",
        "",
        "Processor seconds of one call (on one thread the wall time of an idle machine; other processes",
        "disturb them by some 10 to 20%). `x ours` is the time over that of this project's first row, and",
        "`x floor` that over the unavoidable matrix products (see the script's docstring); memory is the",
        "peak beyond the features.",
        "",
        "| metric | n | dim | threads | who | seconds | x ours | x floor | peak MiB | value |",
        "| --- | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (metric, n, dim, threads), group in rows.groupby(["metric", "n", "dim", "threads"], sort=True):
        ours = group.loc[group["who"].str.startswith("precfm"), "seconds"].iloc[0]
        floor = group.loc[group["who"] == "floor", "seconds"].min()
        for row in group.itertuples():
            of_floor = f"{row.seconds / floor:.2f}" if floor == floor else ""
            memory = f"{row.extra_mib:.0f}" if row.extra_mib == row.extra_mib else ""
            value = f"{row.value:.8g}" if row.value == row.value else ""
            lines.append(
                f"| {metric} | {n} | {dim} | {threads} | {row.who} | {row.seconds:.3g} | "
                f"{row.seconds / ours:.2f} | {of_floor} | {memory} | {value} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=10000, help="rows of each feature set")
    parser.add_argument("--dim", type=int, default=64, help="width of the features")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--metrics", default="frechet,precision-recall", help="also: kid")
    parser.add_argument("--no-peers", action="store_true", help="this project and the floor only")
    parser.add_argument("--quick", action="store_true", help="n 2000, dim 64, every metric; records nothing")
    parser.add_argument("--table", action="store_true", help="write the table and stop")
    options = parser.parse_args()
    if not options.table:
        torch.set_num_threads(options.threads)
        if options.quick:
            print(table(piece(2000, 64, peers=True, metrics=("frechet", "precision-recall", "kid"))))
            return
        metrics = tuple(options.metrics.split(","))
        rows = piece(options.n, options.dim, peers=not options.no_peers, metrics=metrics)
        if CSV.exists():
            key = ["metric", "n", "dim", "threads"]
            old = pd.read_csv(CSV)
            known = set(map(tuple, rows[key].to_numpy()))
            rows = pd.concat([old[[tuple(row) not in known for row in old[key].to_numpy()]], rows])
        rows.to_csv(CSV, index=False)
    MARKDOWN.write_text(table(pd.read_csv(CSV)))


if __name__ == "__main__":
    main()
