"""Measures the peak memory of encoding images to shards, as the workflow's job does, at growing numbers of images.

    python benchmarks/encoding.py block_dct=100000 autoencoder_kl=10000    # brings these lines of the table up to date

One thread; each run in a process of its own, whose peak memory (libraries included) is given. Images are 64 x 64 in
colour, random bytes, already in shards; latents go to shards of 256 MiB. `autoencoder_kl` is a small one of that class,
with random weights. Seconds are of the processor.

Memory grows up to the first full shard of latents, 256 MiB, and little from there: what is held is that shard, and its
copy as bytes while it is written. Images are mapped, and a chunk of them, 64 MiB, is in memory; labels are read for the
shard alone. What remains of a slope is the allocator's, whose heap keeps gaps between the blocks of 25 MB of a batch.
Before, the last shard lived on in a variable while the next one was made: 256 MiB more from the second full shard on,
1.74 GiB at 200,000 images where it is 1.53 now. The million was measured on another machine than the rest, with
both of its cores at work besides.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch

from precfm.encoders.base import Encoder
from precfm.encoders.block_dct import BlockDCT
from precfm.encoders.kl_autoencoder import KLAutoencoder
from precfm.pipeline.job import Job
from precfm.pipeline.node import Node
from precfm.pipeline.shards import StoredRows

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow_scripts"))
from latents import Encoding

OUTPUT = Path(__file__).with_suffix(".md")
SIDE = 64
HEADS = ("encoder", "images", "seconds", "shards", "peak memory (GiB)")


def encoder(name: str) -> Encoder:
    """A fresh encoder."""
    if name == "block_dct":
        return BlockDCT(channels=3, image_size=SIDE)
    return KLAutoencoder(3, SIDE, width=8).eval().requires_grad_(False)


def job_in(folder: Path) -> Job:
    """What a script would write to."""
    return Job(Node("latents", "any", "0", {}, {}, "", "benchmark"), folder, folder / "scratch")


def drawn(folder: Path, rows: int) -> tuple[Path, ...]:
    """Images in shards."""

    def draw(start: int, stop: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(start)
        shape = (stop - start, 3, SIDE, SIDE)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        return {"images": images, "labels": torch.zeros(stop - start, dtype=torch.int64)}

    return job_in(folder).write_rows("images.safetensors", rows, 3 * SIDE**2, draw).paths


def measured(name: str, folder: Path, images: tuple[Path, ...], rows: int) -> tuple[str, ...]:
    """The line of the table for one encoder and number of images."""
    torch.set_num_threads(1)
    start = time.process_time()
    encoding = Encoding(encoder(name), "train", StoredRows(images), None, flips=False)
    made = job_in(folder).write_rows("train.safetensors", len(encoding), encoding.row_bytes, encoding.rows)
    seconds, shards = time.process_time() - start, len(made.paths)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return name, f"{rows:,}", f"{seconds:.0f}", str(shards), f"{peak:.2f}"


def main() -> None:
    """Measure what is asked for, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sizes", nargs="+", metavar="ENCODER=IMAGES")
    known: dict[tuple[str, str], tuple[str, ...]] = {}
    if OUTPUT.is_file():
        lines = [line for line in OUTPUT.read_text().splitlines() if line.startswith("| ")][2:]
        cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
        known = {(row[0], row[1]): row for row in cells}
    for size in parser.parse_args().sizes:
        name, rows = size.split("=")
        with (
            tempfile.TemporaryDirectory(dir=Path.cwd()) as folder,
            multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool,
        ):
            Path(folder, "scratch").mkdir()
            images = pool.apply(drawn, (Path(folder), int(rows)))
            row = pool.apply(measured, (name, Path(folder), images, int(rows)))
        print(*row, flush=True)
        known[row[0], row[1]] = row
        ordered = sorted(known.values(), key=lambda each: (each[0], int(each[1].replace(",", ""))))
        table = [
            f"| {' | '.join(HEADS)} |",
            "| --- | ---: | ---: | ---: | ---: |",
            *(f"| {' | '.join(each)} |" for each in ordered),
        ]
        about = (__doc__ or "").split("\n\n", 2)[2].strip()
        title = "# Streaming encoding: measured memory"
        OUTPUT.write_text(
            "\n".join([title, "", about, "", *table, "", f"With torch {version('torch')}.", ""])
        )


if __name__ == "__main__":
    main()
