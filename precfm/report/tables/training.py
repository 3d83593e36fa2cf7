"""The training table: every metric at every checkpoint."""

import pandas as pd

from precfm.report.formatting import (
    MISSING,
    Block,
    Table,
    count_text,
    estimate_texts,
    estimates_of,
    seeds_text,
)
from precfm.report.selection import Frames, LeftOutError, needed, per_seed
from precfm.report.tables.metrics import extractor_text, summarise
from precfm.report.vocabulary import (
    in_order,
    is_flow,
    method_label,
    metric_text,
    metrics_in_order,
    space_label,
    spaces_in_order,
)


def tidy(frames: Frames) -> pd.DataFrame:
    """Mean and interval over seeds of every metric that was taken at two checkpoints or more.

    Args:
        frames: needs `records`.

    Returns:
        Columns dataset, method, step, metric, space, value, low, high, n, and the protocol.

    Raises:
        LeftOutError: no metric was taken at more than one checkpoint.
    """
    records = per_seed(needed(frames, "records"))
    flows = records[records["method"].map(is_flow)]
    checkpoints = flows.groupby(["dataset", "metric", "space", "extractor"])["step"].transform("nunique")
    curves = flows[checkpoints > 1]
    if curves.empty:
        raise LeftOutError("no metric was taken at more than one checkpoint")
    return summarise(curves)


def build(frames: Frames) -> Table:
    """The training table as it is printed: one block per data set, metric and space."""
    data = tidy(frames)
    blocks = []
    for dataset in sorted(data["dataset"].unique()):
        of_dataset = data[data["dataset"] == dataset]
        for metric in metrics_in_order(of_dataset["metric"]):
            of_metric = of_dataset[of_dataset["metric"] == metric]
            for space in spaces_in_order(of_metric["space"]):
                for extractor, rows in of_metric[of_metric["space"] == space].groupby("extractor", sort=True):
                    title = f"{dataset}: {metric_text(metric).head}, {space_label(space)}"
                    blocks.append(Block(title, _cells(metric, rows), f"With {extractor_text(extractor)}."))
    caption = (
        "Metrics at each checkpoint (columns: training steps of the flow), mean over "
        f"{seeds_text(data['n'])} with the 95% t interval; ratios on the log scale with the interval in "
        "brackets. A checkpoint with fewer seeds than the others carries its number of seeds in parentheses."
    )
    return Table(data, blocks, caption)


def _cells(metric: str, rows: pd.DataFrame) -> pd.DataFrame:
    texts = estimate_texts(estimates_of(rows), multiplicative=metric_text(metric).multiplicative)
    seeds = rows.groupby("method")["n"].transform("max")
    texts = [
        text + (f" ({n})" if n < most else "") for text, n, most in zip(texts, rows["n"], seeds, strict=True)
    ]
    cells: dict[tuple[str, int], list[str]] = {}
    for method, step, text in zip(rows["method"], rows["step"], texts, strict=True):
        cells.setdefault((method, step), []).append(text)
    steps = sorted(rows["step"].unique())
    return pd.DataFrame(
        [
            {
                "method": method_label(method),
                **{count_text(step): " / ".join(cells.get((method, step), [MISSING])) for step in steps},
            }
            for method in in_order(rows["method"])
        ]
    )
