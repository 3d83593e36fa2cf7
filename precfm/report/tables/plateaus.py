"""The plateau table: is a metric still falling at the end of training?"""

import pandas as pd

from precfm.report.formatting import count_text, seeds_text
from precfm.report.frames import Frames
from precfm.report.judges import DISTANCES
from precfm.report.reads import LeftOutError, needed, reads
from precfm.report.rows import PROTOCOL, RECORD_KEYS, groups, per_seed, with_common_end
from precfm.report.summaries import LATE_CHECKPOINTS, late_slopes, summarised
from precfm.report.tables.blocks import Block, Table, by_method, estimate_column, method_cells
from precfm.report.tables.metrics import extractor_text
from precfm.report.vocabulary import is_flow, metric_text, space_label

METRICS = (*DISTANCES, "eigenvalue_log_error_low")
LATE_FROM = 0.2  # as for claim C9: checkpoints from this share of the last step on


def tidy(frames: Frames) -> pd.DataFrame:
    """Slope of ln(metric) per decade of training steps over the late checkpoints of each method.

    Returns:
        Columns dataset, method, metric, space, first and last (steps), checkpoints, value, low, high, n, and the
        protocol.
    """
    records = per_seed(needed(frames, "records"))
    flows = records[records["method"].map(is_flow) & records["metric"].isin(METRICS)]
    slopes = late_slopes(with_common_end(flows), ["method", *RECORD_KEYS], LATE_FROM)
    if slopes.empty:
        raise LeftOutError(f"no method has {LATE_CHECKPOINTS} checkpoints in the last part of its training")
    about = ["dataset", "method", "metric", "space", "first", "last", "checkpoints"]
    found = summarised(slopes, [*about, *PROTOCOL])
    return found[[*about, "value", "low", "high", "n", *PROTOCOL]]


@reads("records")
def build(frames: Frames) -> Table:
    """The table as it is printed: one block per setting and metric, a column per space."""
    data = tidy(frames)
    blocks = [
        _block(f"{dataset}: {metric_text(metric).label}", rows)
        for (dataset, metric), rows in groups(data, "dataset", "metric")
    ]
    caption = (
        "Slope of the logarithm of a metric per decade of training steps, over the checkpoints from a fifth of the "
        f"last step on (at least {LATE_CHECKPOINTS}): mean over {seeds_text(data['n'])} with the 95% t interval. Zero "
        "is a plateau, negative is still falling. Near the floor of its metric every curve is flat: read a slope "
        "beside the value that it ends at."
    )
    return Table(data, blocks, caption)


def _block(title: str, rows: pd.DataFrame) -> Block:
    columns = {"late steps": by_method(rows, _ranges(rows))}
    extractors = rows.groupby("space")["extractor"].nunique()
    notes = []
    for (space, extractor), part in groups(rows, "space", "extractor"):
        head = space_label(space) + (f" `{extractor}`" if extractors[space] > 1 else "")
        columns[head] = estimate_column(part)
        notes.append(f"{space_label(space)}: {extractor_text(extractor)}")
    return Block(title, method_cells(columns), "; ".join(notes) + ".")


def _ranges(rows: pd.DataFrame) -> list[str]:
    numbers = zip(rows["first"], rows["last"], rows["checkpoints"], strict=True)
    return [f"{count_text(first)} to {count_text(last)} ({n} checkpoints)" for first, last, n in numbers]
