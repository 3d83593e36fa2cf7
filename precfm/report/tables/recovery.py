"""The recovery table: does a flow give every direction of the data its variance back?"""

import numpy as np
import pandas as pd

from precfm.report.formatting import (
    Block,
    Table,
    estimate_texts,
    estimates_of,
    method_cells,
    seeds_text,
    steps_and_seeds,
)
from precfm.report.selection import Frames, at_final, lowest_quartile_count, needed, summarised
from precfm.report.vocabulary import in_order, is_flow

# Quantity: (heading, is it averaged on the log scale).
_QUANTITIES = {
    "low_ratio": ("ratio, lowest quartile → 1", True),
    "low_log_error": ("mean |ln ratio|, lowest quartile ↓", False),
    "log_error": ("mean |ln ratio|, all directions ↓", False),
    "worst_log_error": ("largest |ln ratio| ↓", False),
}


def tidy(frames: Frames) -> pd.DataFrame:
    """How far each method's variances are from the reference ones, at its final checkpoint.

    Args:
        frames: needs `recovery`.

    Returns:
        Columns dataset, method, step, quantity, value, low, high, n.

    Raises:
        LeftOutError: there are no rows of recovery.
    """
    values = per_seed_recovery(at_final(needed(frames, "recovery")))
    keys = ["dataset", "method", "step"]
    long = values.melt([*keys, "seed"], list(_QUANTITIES), "quantity", "value")
    return summarised(long, [*keys, "quantity"], lambda group: _QUANTITIES[str(group["quantity"])][1])


def per_seed_recovery(recovery: pd.DataFrame) -> pd.DataFrame:
    """The quantities of this table for each run, from the ratio of variances along each reference direction.

    Args:
        recovery: columns dataset, method, seed, step, index, ratio.

    Returns:
        Columns dataset, method, seed, step, low_ratio (geometric mean over the lowest quartile),
        low_log_error, log_error, worst_log_error.
    """
    keys = ["dataset", "method", "seed", "step"]
    rows = []
    for key, group in recovery.groupby(keys, sort=True):
        ascending = group.sort_values("index")["ratio"].to_numpy(dtype=np.float64)
        logs = np.log(ascending)
        low = logs[: lowest_quartile_count(len(logs))]
        quantities = {
            "low_ratio": np.exp(low.mean()),
            "low_log_error": np.abs(low).mean(),
            "log_error": np.abs(logs).mean(),
            "worst_log_error": np.abs(logs).max(),
        }
        rows.append({**dict(zip(keys, key, strict=True)), **quantities})
    return pd.DataFrame(rows, columns=[*keys, *_QUANTITIES])


def build(frames: Frames) -> Table:
    """The recovery table as it is printed: one block per data set, a row per method."""
    data = tidy(frames)
    blocks = []
    for dataset in sorted(data["dataset"].unique()):
        of_dataset = data[data["dataset"] == dataset]
        columns = steps_and_seeds(of_dataset)
        for quantity, (head, logarithmic) in _QUANTITIES.items():
            rows = of_dataset[of_dataset["quantity"] == quantity]
            texts = estimate_texts(estimates_of(rows), multiplicative=logarithmic)
            columns[head] = dict(zip(rows["method"], texts, strict=True))
        blocks.append(Block(str(dataset), method_cells(in_order(of_dataset["method"]), columns)))
    flows = data[data["method"].map(is_flow)]
    caption = (
        "Variance of the samples over variance of the reference along each eigenvector of the reference "
        "covariance, summarised over directions: above 1 the samples are too wide, below 1 too narrow. The "
        "lowest quartile are the directions of smallest variance. Final checkpoint, mean over "
        f"{seeds_text((flows if len(flows) else data)['n'])} with the 95% t interval; ratios on the log "
        "scale with the interval in brackets. A single Gaussian per class scores well here: read it beside "
        "the image metrics."
    )
    return Table(data, blocks, caption)
