"""Times fits of maps for feature maps to as many as a million of them, drawn as they are read, and their memory.

    python benchmarks/streaming.py kronecker=1000000 low_rank=100000    # brings these lines of streaming.md up to date

One thread; each fit in a process of its own, whose peak memory (libraries included) is given. Rows are 4 x 32 x 32
float32, in batches of 500: white noise, summed along both axes. Seconds are of the processor. Drawing takes a part of
them, which is given, too; the solution at the end (eigen-decompositions) takes the same for any number of rows.
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from precfm.core.components import component
from precfm.preconditioners.base import Preconditioner

OUTPUT = Path(__file__).with_suffix(".md")
SHAPE, BATCH = (4, 32, 32), 500
HEADS = ("map", "rows", "seconds", "of these: drawing", "of these: solving", "peak memory (GiB)")


def batches(rows: int) -> Iterator[Tensor]:
    """Synthetic feature maps, made when they are asked for."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(rows // BATCH):
        yield torch.randn(BATCH, *SHAPE, generator=generator).cumsum(-1).cumsum(-2)


def measured(name: str, rows: int) -> tuple[str, ...]:
    """The line of the table for one map."""
    torch.set_num_threads(1)
    drawing, drawn = 0.0, 0.0

    def timed() -> Iterator[Tensor]:
        nonlocal drawing, drawn
        source, start = batches(rows), time.process_time()
        for batch in source:
            drawing += time.process_time() - start
            yield batch
            start = time.process_time()
        drawn = start

    start = time.process_time()
    fitted: Preconditioner = component("preconditioners", name, Preconditioner)
    fitted.fit(timed())
    end = time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return name, f"{rows:,}", f"{end - start:.0f}", f"{drawing:.0f}", f"{end - drawn:.1f}", f"{peak:.2f}"


def main() -> None:
    """Measure what is asked for, each map as it is done, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("fits", nargs="+", metavar="MAP=ROWS")
    spawned = multiprocessing.get_context("spawn")
    for text in parser.parse_args().fits:
        name, _, rows = text.partition("=")
        with spawned.Pool(1) as pool:
            line = pool.apply(measured, (name, int(rows)))
        old = OUTPUT.read_text(encoding="utf-8").splitlines() if OUTPUT.exists() else []
        lines = [each for each in old if each.startswith("| ") and not each.startswith(("| map ", "| --- "))]
        kept = [each for each in lines if not each.startswith(f"| {line[0]} | {line[1]} |")]
        table = [HEADS, ("---", *["---:"] * (len(HEADS) - 1))]
        text = "\n".join(
            ["# Streamed fits: measured times and memory", "", (__doc__ or "").split("\n\n")[2], ""]
            + [f"| {' | '.join(row)} |" for row in table]
            + sorted([*kept, f"| {' | '.join(line)} |"])
            + ["", f"With torch {version('torch')}."]
        )
        OUTPUT.write_text(text + "\n", encoding="utf-8")
        print(*line, sep=", ", flush=True)


if __name__ == "__main__":
    main()
