"""The training table: every metric at every checkpoint."""

import pandas as pd

from precfm.report.formatting import count_text, estimate_texts, estimates_of, seeds_text
from precfm.report.frames import Frames
from precfm.report.reads import LeftOutError, needed, reads
from precfm.report.rows import groups, per_seed, with_a_course, with_common_end
from precfm.report.tables.blocks import Block, Table, method_cells
from precfm.report.tables.metrics import extractor_text, summarise
from precfm.report.vocabulary import is_flow, metric_text, space_label


def tidy(frames: Frames) -> pd.DataFrame:
    """Mean and interval over seeds of every metric that a run of its method has at two checkpoints or more.

    Returns:
        Columns dataset, method, step (of the last, where runs end apart, the mean), metric, space, value, low, high, n,
        and the protocol.
    """
    records = per_seed(needed(frames, "records"))
    flows = records[records["method"].map(is_flow)]
    curves = with_a_course(flows)
    if curves.empty:
        raise LeftOutError("no method has a metric at more than one checkpoint")
    return summarise(with_common_end(curves))


@reads("records")
def build(frames: Frames) -> Table:
    """The training table as it is printed: one block per data set, metric and space."""
    data = tidy(frames)
    blocks = [
        Block(
            f"{dataset}: {metric_text(metric).head}, {space_label(space)}",
            _cells(metric, rows),
            f"With {extractor_text(extractor)}.",
        )
        for (dataset, metric, space, extractor), rows in groups(
            data, "dataset", "metric", "space", "extractor"
        )
    ]
    caption = (
        "Metrics at each checkpoint (columns: training steps of the flow), mean over "
        f"{seeds_text(data['n'])} with the 95% t interval; ratios on the log scale with the interval in "
        "brackets. A checkpoint with fewer seeds than the others carries its number of seeds in parentheses."
    )
    return Table(data, blocks, caption)


def _cells(metric: str, rows: pd.DataFrame) -> pd.DataFrame:
    texts = estimate_texts(estimates_of(rows), multiplicative=metric_text(metric).multiplicative)
    most = rows.groupby("method")["n"].transform("max")
    columns = {count_text(step): dict[str, str]() for step in sorted(rows["step"].unique())}
    for method, step, text, n, full in zip(rows["method"], rows["step"], texts, rows["n"], most, strict=True):
        column, cell = columns[count_text(step)], text + (f" ({n})" if n < full else "")
        column[method] = f"{column[method]} / {cell}" if method in column else cell
    return method_cells(columns)
