"""The recovery table: does a flow give every direction of the data its variance back?"""

import numpy as np
import pandas as pd

from precfm.report.formatting import seeds_text
from precfm.report.frames import Frames
from precfm.report.reads import needed, reads
from precfm.report.rows import at_final, groups, with_common_end
from precfm.report.summaries import long_form, lowest_quartile_count, summarised
from precfm.report.tables.blocks import (
    Block,
    Quantity,
    Table,
    method_cells,
    quantity_columns,
    steps_and_seeds,
)
from precfm.report.vocabulary import is_flow

_QUANTITIES = {
    "low_ratio": Quantity("ratio, lowest quartile → 1", "ratio"),
    "low_log_error": Quantity("mean |ln ratio|, lowest quartile ↓"),
    "log_error": Quantity("mean |ln ratio|, all directions ↓"),
    "worst_log_error": Quantity("largest |ln ratio| ↓"),
}


def tidy(frames: Frames) -> pd.DataFrame:
    """How far each method's variances are from the reference ones, at its final checkpoint.

    Returns:
        Columns dataset, method, step (the mean, where runs end apart), quantity, value, low, high, n.
    """
    values = per_seed_recovery(with_common_end(at_final(needed(frames, "recovery"))))
    keys = ["dataset", "method", "step", "quantity"]
    long = long_form(values, [*keys[:-1], "seed"], _QUANTITIES)
    return summarised(long, keys, long["quantity"] == "low_ratio")


def per_seed_recovery(recovery: pd.DataFrame) -> pd.DataFrame:
    """The quantities of this table for each run, from the ratio of variances along each reference direction.

    Args:
        recovery: columns dataset, method, seed, step, index, ratio.

    Returns:
        Columns dataset, method, seed, step, low_ratio (geometric mean over the lowest quartile),
        low_log_error, log_error, worst_log_error.
    """
    ascending = recovery.sort_values("index").astype({"ratio": float})
    keys = ["dataset", "method", "seed", "step"]
    grouped = ascending.groupby(keys)["ratio"]
    return pd.DataFrame([{**dict(zip(keys, key, strict=True)), **_errors(ratios)} for key, ratios in grouped])


def _errors(ratios: "pd.Series[float]") -> dict[str, float]:
    logs = np.log(ratios.to_numpy())
    low = logs[: lowest_quartile_count(len(logs))]
    return {
        "low_ratio": np.exp(low.mean()),
        "low_log_error": np.abs(low).mean(),
        "log_error": np.abs(logs).mean(),
        "worst_log_error": np.abs(logs).max(),
    }


@reads("recovery")
def build(frames: Frames) -> Table:
    """The recovery table as it is printed: one block per data set, a row per method."""
    data = tidy(frames)
    blocks = [
        Block(dataset, method_cells(steps_and_seeds(rows) | quantity_columns(rows, _QUANTITIES)))
        for (dataset,), rows in groups(data, "dataset")
    ]
    flows = data[data["method"].map(is_flow)]
    caption = (
        "Variance of the samples over variance of the reference along each eigenvector of the train split's covariance "
        "(of feature maps, whatever their rows, along those of the channels' covariance at each spatial frequency), "
        "summarised over directions: above 1 the samples are too wide, below 1 too narrow. The "
        "lowest quartile are the directions of smallest variance. Final checkpoint, mean over "
        f"{seeds_text((flows if len(flows) else data)['n'])} with the 95% t interval; ratios on the log "
        "scale with the interval in brackets. A single Gaussian per class scores well here: read it beside "
        "the image metrics."
    )
    return Table(data, blocks, caption)
