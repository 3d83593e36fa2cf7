"""The plateau table: is a metric still falling at the end of training?"""

import pandas as pd

from precfm.report.formatting import (
    Block,
    Table,
    count_text,
    estimate_texts,
    estimates_of,
    method_cells,
    seeds_text,
)
from precfm.report.selection import (
    LATE_CHECKPOINTS,
    PROTOCOL,
    RECORD_KEYS,
    Frames,
    LeftOutError,
    late_slopes,
    needed,
    per_seed,
    summarised,
)
from precfm.report.tables.metrics import extractor_text
from precfm.report.vocabulary import (
    in_order,
    is_flow,
    metric_text,
    metrics_in_order,
    space_label,
    spaces_in_order,
)

METRICS = ("frechet", "eigenvalue_log_error_low")
LATE_FROM = 0.2  # as for claim C9: checkpoints from this share of the last step on


def tidy(frames: Frames) -> pd.DataFrame:
    """Slope of ln(metric) per decade of training steps over the late checkpoints of each method.

    Args:
        frames: needs `records`.

    Returns:
        Columns dataset, method, metric, space, first and last (steps), checkpoints, value, low, high, n, and the
        protocol.

    Raises:
        LeftOutError: no method has its metrics at enough late checkpoints.
    """
    records = per_seed(needed(frames, "records"))
    flows = records[records["method"].map(is_flow) & records["metric"].isin(METRICS)]
    slopes = late_slopes(flows, ["method", *RECORD_KEYS], LATE_FROM)
    if slopes.empty:
        raise LeftOutError(f"no method has {LATE_CHECKPOINTS} checkpoints in the last part of its training")
    about = ["dataset", "method", "metric", "space", "first", "last", "checkpoints"]
    found = summarised(slopes, [*about, *PROTOCOL], lambda group: False)
    return found[[*about, "value", "low", "high", "n", *PROTOCOL]]


def build(frames: Frames) -> Table:
    """The table as it is printed: one block per setting, a column per metric and space."""
    data = tidy(frames)
    blocks = []
    for dataset in sorted(data["dataset"].unique()):
        of_dataset = data[data["dataset"] == dataset]
        for metric in metrics_in_order(of_dataset["metric"]):
            of_metric = of_dataset[of_dataset["metric"] == metric]
            blocks.append(_block(f"{dataset}: {metric_text(metric).label}", of_metric))
    caption = (
        "Slope of the logarithm of a metric per decade of training steps, over the checkpoints from a fifth of the "
        f"last step on (at least {LATE_CHECKPOINTS}): mean over {seeds_text(data['n'])} with the 95% t interval. Zero "
        "is a plateau, negative is still falling. Near the floor of its metric every curve is flat: read a slope "
        "beside the value that it ends at."
    )
    return Table(data, blocks, caption)


def _block(title: str, rows: pd.DataFrame) -> Block:
    columns = {"late steps": dict(zip(rows["method"], _ranges(rows), strict=True))}
    for space in spaces_in_order(rows["space"]):
        for extractor, of_space in rows[rows["space"] == space].groupby("extractor", sort=True):
            several = rows[rows["space"] == space]["extractor"].nunique() > 1
            head = space_label(space) + (f" `{extractor}`" if several else "")
            columns[head] = dict(zip(of_space["method"], estimate_texts(estimates_of(of_space)), strict=True))
    extractors = rows.drop_duplicates(["space", "extractor"]).sort_values(["space", "extractor"])
    note = "; ".join(
        f"{space_label(space)}: {extractor_text(extractor)}"
        for space, extractor in zip(extractors["space"], extractors["extractor"], strict=True)
    )
    return Block(title, method_cells(in_order(rows["method"]), columns), note + ".")


def _ranges(rows: pd.DataFrame) -> list[str]:
    numbers = zip(rows["first"], rows["last"], rows["checkpoints"], strict=True)
    return [f"{count_text(first)} to {count_text(last)} ({n} checkpoints)" for first, last, n in numbers]
