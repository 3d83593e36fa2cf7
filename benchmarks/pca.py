"""Times the fit of the encoder `pca` beside scikit-learn's, and beside the matrix product that both need.

    python benchmarks/pca.py                           # sizes of MNIST; writes benchmarks/pca.md
    python benchmarks/pca.py --images FILE.npy         # uint8, shape (n, channels, size, size)

scikit-learn's `PCA(svd_solver="covariance_eigh")` gets the pixels in [0, 1] as float32 and as float64; what it costs to
make them is not counted. Processor seconds on one thread, the best of several calls that take turns; memory is the peak
beyond what was there.
"""

import argparse
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from sklearn import decomposition
from threadpoolctl import threadpool_limits
from torch import Tensor

from precfm.encoders.pca import PCA

OUTPUT = Path(__file__).with_suffix(".md")
ROUNDS, COMPONENTS = 5, 64


def synthetic(n: int, size: int) -> Tensor:
    """Blurred noise: bytes whose spectrum decays as that of images does."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(n, 1, size, size, generator=generator)
    blurred = torch.nn.functional.avg_pool2d(noise, 5, stride=1, padding=2)
    return (128 + 300 * blurred).clamp(0, 255).to(torch.uint8)


def memory_kib(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def measured(function: Callable[[], object]) -> tuple[float, float]:
    """Processor seconds, and peak memory beyond what was there (MiB), of one call."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, start = memory_kib("VmRSS"), time.process_time()
    function()
    return time.process_time() - start, (memory_kib("VmHWM") - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--n", type=int, default=60_000)
    parser.add_argument("--size", type=int, default=28)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = (
        torch.from_numpy(np.load(options.images, allow_pickle=False))
        if options.images
        else synthetic(options.n, options.size)
    )
    n, channels, size, _ = images.shape
    single = (images.flatten(1).float() / 255).numpy()
    double = single.astype(np.float64)
    ours = PCA(channels, size, components=COMPONENTS)
    theirs = {
        kind: decomposition.PCA(COMPONENTS, svd_solver="covariance_eigh") for kind in ("float32", "float64")
    }
    matrix = torch.from_numpy(single)
    calls: dict[str, Callable[[], object]] = {
        "precfm, exact moments": lambda: ours.fit(images),
        "scikit-learn, float32": lambda: theirs["float32"].fit(single),
        "scikit-learn, float64": lambda: theirs["float64"].fit(double),
        "the product alone, float32": lambda: matrix.T @ matrix,
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    peaks: dict[str, list[float]] = {name: [] for name in calls}
    PCA(1, 4, components=1).fit(synthetic(20, 4))  # loading libraries is nobody's time or memory
    with threadpool_limits(1):
        for _ in range(ROUNDS):
            for name, call in calls.items():
                took, peak = measured(call)
                seconds[name].append(took)
                peaks[name].append(peak)
    own = min(seconds["precfm, exact moments"])
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "scikit-learn", "numpy"))
    source = options.images.stem if options.images else "Synthetic images"
    lines = [
        "# Principal components: measured times",
        "",
        f"Made by `python benchmarks/pca.py`; {versions}.",
        f"{source}: {n:,} x {channels * size**2}, {COMPONENTS} components.",
        "Processor seconds of a fit on one thread, the best and the worst of "
        f"{ROUNDS} that took turns; memory is the peak beyond the input.",
        "",
        "| who | seconds | worst | x ours | peak MiB |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, each in seconds.items():
        best = min(each)
        lines.append(f"| {name} | {best:.2f} | {max(each):.2f} | {best / own:.2f} | {max(peaks[name]):.0f} |")
    for kind, fitted in theirs.items():
        cosines = np.abs((fitted.components_ * ours.axes.T.numpy()).sum(1))
        lines += [
            "",
            f"Smallest cosine between our axes and scikit-learn's in {kind}: 1 - {1 - cosines.min():.1e}.",
        ]
    OUTPUT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
