"""Do other libraries' own training loops recover low variances, plain and behind a whitening?

    make examples
    python benchmarks/low_variances.py                          # writes benchmarks/low_variances.md

The loops are those of `examples/`, unchanged, on a Gaussian of 16 dimensions with condition number 1e4. A cell is the
variance of 10,000 samples over the true one along a principal direction, mean over training seeds.
"""

import runpy
from importlib.metadata import version
from pathlib import Path

import torch

from precfm import Identity, Whitening, gaussian

OUTPUT = Path(__file__).with_suffix(".md")
EXAMPLES = Path(__file__).parents[1] / "examples"
DIM, CONDITION_NUMBER, ROWS, STEPS, SEEDS, SMALLEST = 16, 1e4, 20_000, 4000, (0, 1, 2), 5


def main() -> None:
    """Train each loop with and without the map, and write the table."""
    torch.set_num_threads(1)
    law = gaussian(dim=DIM, condition_number=CONDITION_NUMBER)
    x1 = law.sample(ROWS, seed=0).float()
    variances, directions = torch.linalg.eigh(law.cov)
    rows = []
    for library in ("torchcfm", "flow_matching"):
        train_and_sample = runpy.run_path(str(EXAMPLES / f"{library}_loop.py"))["train_and_sample"]
        for name, preconditioner in (("plain", Identity), ("whitening", Whitening)):
            found = []
            for seed in SEEDS:
                samples = train_and_sample(x1, preconditioner(), steps=STEPS, seed=seed).double()
                found.append((samples @ directions).var(dim=0)[:SMALLEST] / variances[:SMALLEST])
            cells = " | ".join(f"{ratio:.2f}" for ratio in torch.stack(found).mean(dim=0).tolist())
            rows.append(f"| {library} {version(library)}, {name} | {cells} |")
            print(rows[-1])
    heads = " | ".join(f"direction {position}" for position in range(1, SMALLEST + 1))
    OUTPUT.write_text(
        "Sampled over true variance along the five directions of smallest variance: "
        f"a Gaussian of {DIM} dimensions with condition number {CONDITION_NUMBER:g}, {ROWS:,} rows, {STEPS:,} steps of "
        f"each library's own loop, mean over {len(SEEDS)} seeds; 1 is right. "
        f"Written by `python benchmarks/low_variances.py` with torch {version('torch')}.\n\n"
        f"| loop | {heads} |\n| --- |{' ---: |' * SMALLEST}\n" + "\n".join(rows) + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
