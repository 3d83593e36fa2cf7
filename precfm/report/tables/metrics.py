"""The metric table: every method at its final checkpoint, each feature space in a block of its own."""

from collections.abc import Iterable

import pandas as pd

from precfm.report.formatting import count_text, estimate_texts, estimates_of, seeds_text
from precfm.report.frames import Frames
from precfm.report.reads import needed, reads
from precfm.report.rows import NO_EXTRACTOR, PROTOCOL, at_final, groups, per_seed, with_common_end
from precfm.report.summaries import summarised
from precfm.report.tables.blocks import Block, Table, method_cells, steps_and_seeds
from precfm.report.vocabulary import FLOOR, is_flow, metric_text, space_label


def tidy(frames: Frames) -> pd.DataFrame:
    """Mean and interval over training seeds per data set, method, metric, space and protocol.

    Returns:
        Columns dataset, method, step, metric, space, value, low, high, n, n_real, n_generated, reference,
        extractor; the final checkpoint of each method (the mean step, where its runs end apart).
    """
    return summarise(with_common_end(at_final(per_seed(needed(frames, "records")))))


def summarise(values: pd.DataFrame) -> pd.DataFrame:
    """Mean and interval over seeds of one value per seed; ratios are averaged on the log scale."""
    keys = ["dataset", "method", "step", "metric", "space"]
    ratios = values["metric"].map(lambda metric: metric_text(metric).multiplicative)
    found = summarised(values, [*keys, *PROTOCOL], ratios)
    return found[[*keys, "value", "low", "high", "n", *PROTOCOL]]


@reads("records")
def build(frames: Frames) -> Table:
    """The metric table as it is printed: one block per data set, feature space and extractor."""
    data = tidy(frames)
    blocks = [
        Block(f"{dataset}: {space_label(space)}", _cells(rows), protocol_text(rows))
        for (dataset, space, _), rows in groups(data, "dataset", "space", "extractor")
    ]
    flows = data[data["method"].map(is_flow)]
    caption = (
        "Every method at its final checkpoint: mean over training seeds with the 95% t interval "
        f"({seeds_text((flows if len(flows) else data)['n'])}; ratios are averaged on the log scale, "
        "interval in brackets; a number without one rests on one seed or does not vary). A training seed refits the "
        "preconditioner and the flow; encoder, classifiers, evaluation labels and noise are the same for all, and so "
        "are the held-out rows, whose choice the interval leaves out (the table of sides joins it). "
        "A flow matched in FLOPs ends at another step for every seed: the mean is given. "
        "The floor compares independent draws of the train split with the reference split; a method alone is "
        "the preconditioner applied to Gaussian noise, without a flow. Arrows point to better values."
    )
    return Table(data, blocks, caption)


def _cells(rows: pd.DataFrame) -> pd.DataFrame:
    columns = steps_and_seeds(rows)
    for (metric,), of_metric in groups(rows, "metric"):
        text = metric_text(metric)
        column = columns.setdefault(text.head, {})
        texts = estimate_texts(estimates_of(of_metric), multiplicative=text.multiplicative)
        for method, cell in zip(of_metric["method"], texts, strict=True):
            column[method] = f"{column[method]} / {cell}" if method in column else cell
    return method_cells(columns)


def protocol_text(rows: pd.DataFrame) -> str:
    """The protocol of rows with one extractor in words; where rows differ, which row has which."""
    flows = rows[rows["method"].map(is_flow)]
    main = flows if len(flows) else rows
    text = (
        f"Protocol: {_counts(main['n_real'])} real images ({_names(main['reference'])} split), "
        f"{_counts(main['n_generated'])} generated; {extractor_text(rows['extractor'].iloc[0])}."
    )
    floor = rows[rows["method"] == FLOOR]
    if len(flows) and len(floor) and set(floor["n_generated"]) != set(main["n_generated"]):
        text += (
            f" Floor: {_counts(floor['n_generated'])} images of the train split in place of generated ones."
        )
    if main["n_generated"].nunique() > 1 or main["n_real"].nunique() > 1 or main["reference"].nunique() > 1:
        text += " Rows with different counts or splits are not comparable."
    return text


def extractor_text(extractor: str) -> str:
    """Which feature extractor, by its hash; latent coordinates have none."""
    return "no feature extractor" if extractor == NO_EXTRACTOR else f"feature extractor `{extractor}`"


def _counts(values: Iterable[float]) -> str:
    return " or ".join(count_text(value) for value in sorted(set(values)))


def _names(values: Iterable[str]) -> str:
    return ", ".join(f"`{value}`" for value in sorted(set(values)))
