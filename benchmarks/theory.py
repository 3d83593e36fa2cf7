"""Seconds of the full linear grid, batched, beside a plain loop over its problems (CPU seconds, for a busy machine).

    python benchmarks/theory.py [--threads 1] [--loop-problems 6]

The grid is 6 condition numbers x 5 times x 2 targets x 2 paths x 5 seeds, 2,000 steps, d = 64: gradient descent and
stochastic descent, each with and without preconditioner. The loop descends on one problem after the other with the
same autograd step; it is run on a few problems and multiplied up.
"""

import argparse
import time

import torch

from precfm.datasets.synthetic import rotation, spectrum
from precfm.theory.experiments import linear_grid
from precfm.theory.sampled_regression import matched_normals, path_weights

PROBLEMS, STEPS, DIM, BATCH = 600, 2000, 64, 32


def loop_seconds(problems: int) -> float:
    """Seconds of CPU of the plain loop over all problems, from a few: both algorithms, without preconditioner."""
    started = time.process_time()
    generator = torch.Generator().manual_seed(0)
    weights = path_weights("linear", "velocity", 0.9)
    for seed in range(problems):
        basis, root = rotation(DIM, seed), spectrum(DIM, 1e3).sqrt()
        pairs = matched_normals([seed], DIM)
        for stochastic in (False, True):
            field = torch.zeros(DIM, DIM, dtype=torch.float64, requires_grad=True)
            x0, x1 = pairs[0][0], (pairs[1][0] * root) @ basis.T
            for _ in range(STEPS):
                if stochastic:
                    x0, normal = torch.randn(2, BATCH, DIM, generator=generator, dtype=torch.float64)
                    x1 = (normal * root) @ basis.T
                x_t, y = weights[0] * x1 + weights[1] * x0, weights[2] * x1 + weights[3] * x0
                loss = (x_t @ field.T - y).square().sum() / len(x_t)
                (gradient,) = torch.autograd.grad(loss, field)
                with torch.no_grad():
                    field -= 0.01 * gradient
    return (time.process_time() - started) / problems * PROBLEMS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--loop-problems", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    total = 0.0
    for path in ("linear", "variance_preserving"):  # as two jobs, on two cores, about half of this
        wall, cpu = time.perf_counter(), time.process_time()
        tables = linear_grid.run(paths=(path,))
        cpu = time.process_time() - cpu
        total += cpu
        print(f"batched, {path}: {time.perf_counter() - wall:.0f} s, {cpu:.0f} s of CPU", flush=True)
        agreement = tables["agreement"]
        print(
            f"  worst deviation {agreement['worst_deviation'].max():.1e}, covered {agreement['covered'].mean():.3f}"
        )
    loop = loop_seconds(options.loop_problems)
    print(
        f"batched, whole grid: {total:.0f} s of CPU; plain loop, without preconditioner: {loop:.0f} s (extrapolated)"
    )


if __name__ == "__main__":
    main()
