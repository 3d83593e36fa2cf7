"""What may predict how good a method becomes, known without training its flow: one number per method."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from precfm.report.frames import Frames
from precfm.report.reads import frame
from precfm.report.rows import ALL, RECORD_KEYS, at_final
from precfm.report.summaries import logarithms
from precfm.report.vocabulary import is_flow, split_matched

RANKED_METHODS = 8  # a rank correlation over fewer says nothing

# How each is written; all are claimed to be better where they are lower.
PREDICTORS = {
    "residual_condition_number": "residual κ",
    "path_log_condition_number": "mean ln κ(Σₜ)",
    "predicted_steps": "predicted steps",
}
# The frame that each comes from.
FRAME_OF = {
    "residual_condition_number": "preconditioners",
    "path_log_condition_number": "path_conditioning",
    "predicted_steps": "predictors",
}


def predictor_values(frames: Frames, name: str) -> pd.DataFrame:
    """One predictor for each method, the mean over its seeds (of the logarithm, for a condition number).

    Args:
        frames: needs the frame that the predictor comes from; empty without it.
        name: one of `PREDICTORS`.

    Returns:
        Columns dataset, method and `name`, to nine digits, so that equal qualities tie instead of being ranked by
        rounding errors; rows without a number are left out.

    Raises:
        PrecfmError: a condition number is not positive.
    """
    rows = frame(frames, FRAME_OF[name])
    if name == "path_log_condition_number":
        rows = rows[rows["scope"] == ALL]
        values = logarithms(rows["condition_number"], "a condition number")
    else:
        rows = rows.dropna(subset=[name])
        values = rows[name].astype(float)
        if name == "residual_condition_number":
            values = logarithms(values, name)
    means = rows.assign(value=values).groupby(["dataset", "method"])["value"].mean()
    if name == "residual_condition_number":
        means = means.map(np.exp)
    return means.map(lambda value: float(f"{value:.9g}")).rename(name).reset_index()


def beside_results(values: pd.DataFrame, frames: Frames, names: Sequence[str]) -> pd.DataFrame:
    """Predictors of each method beside its final metric: means over seeds, one row per method.

    Seeds of one method are no independent observations of its quality. Matched baselines are left out: they repeat
    a quality with another amount of compute.

    Args:
        values: one value per seed, as from `per_seed`.
        frames: where the predictors come from.
        names: of `PREDICTORS`; a method that lacks one is left out.

    Returns:
        Columns `RECORD_KEYS`, method, value and `names`.
    """
    own = values["method"].map(lambda method: is_flow(method) and not split_matched(method)[1])
    final = at_final(values[own.astype(bool)])
    both = final.groupby([*RECORD_KEYS, "method"])["value"].mean().reset_index()
    for name in names:
        both = both.merge(predictor_values(frames, name), on=["dataset", "method"])
    return both
