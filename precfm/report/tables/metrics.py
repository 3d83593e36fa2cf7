"""The metric table: every method at its final checkpoint, each feature space in a block of its own."""

from collections.abc import Iterable

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
from precfm.report.selection import NO_EXTRACTOR, PROTOCOL, Frames, at_final, needed, per_seed
from precfm.report.statistics import geometric_estimate, t_estimate
from precfm.report.vocabulary import (
    FLOOR,
    in_order,
    is_flow,
    method_label,
    metric_text,
    metrics_in_order,
    space_label,
    spaces_in_order,
)


def tidy(frames: Frames) -> pd.DataFrame:
    """Mean and interval over training seeds per data set, method, metric, space and protocol.

    Args:
        frames: needs `records`.

    Returns:
        Columns dataset, method, step, metric, space, value, low, high, n, n_real, n_generated, reference,
        extractor; the final checkpoint of each method.

    Raises:
        LeftOutError: there are no records.
    """
    return summarise(at_final(per_seed(needed(frames, "records"))))


def summarise(values: pd.DataFrame) -> pd.DataFrame:
    """Mean and interval over seeds of one value per seed; ratios are averaged on the log scale."""
    keys = ["dataset", "method", "step", "metric", "space", *PROTOCOL]
    rows = []
    for key, group in values.groupby(keys, sort=True):
        named = dict(zip(keys, key, strict=True))
        multiplicative = metric_text(str(named["metric"])).multiplicative
        estimate = (geometric_estimate if multiplicative else t_estimate)(group["value"])
        rows.append(
            {**named, "value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}
        )
    front = ["dataset", "method", "step", "metric", "space", "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=[*front, *PROTOCOL])


def build(frames: Frames) -> Table:
    """The metric table as it is printed: one block per data set, feature space and extractor."""
    data = tidy(frames)
    blocks = []
    for dataset in sorted(data["dataset"].unique()):
        of_dataset = data[data["dataset"] == dataset]
        for space in spaces_in_order(of_dataset["space"]):
            of_space = of_dataset[of_dataset["space"] == space]
            blocks += [
                _block(str(dataset), space, of_extractor)
                for _, of_extractor in of_space.groupby("extractor", sort=True)
            ]
    flows = data[data["method"].map(is_flow)]
    caption = (
        "Every method at its final checkpoint: mean over training seeds with the 95% t interval "
        f"({seeds_text((flows if len(flows) else data)['n'])}; ratios are averaged on the log scale, "
        "interval in brackets; a number without one rests on one seed or does not vary). A training seed refits the "
        "preconditioner and the flow; autoencoder, classifiers, evaluation labels and noise are the same "
        "for all. The floor compares the train split with the reference split; a method alone is the "
        "preconditioner applied to Gaussian noise, without a flow. Arrows point to better values."
    )
    return Table(data, blocks, caption)


def _block(dataset: str, space: str, rows: pd.DataFrame) -> Block:
    methods = in_order(rows["method"])
    columns: dict[str, dict[str, list[str]]] = {}
    for metric in metrics_in_order(rows["metric"]):
        text, of_metric = metric_text(metric), rows[rows["metric"] == metric]
        cells = estimate_texts(estimates_of(of_metric), multiplicative=text.multiplicative)
        column = columns.setdefault(text.head, {})
        for method, cell in zip(of_metric["method"], cells, strict=True):
            column.setdefault(method, []).append(cell)
    lines = []
    for method in methods:
        of_method = rows[rows["method"] == method]
        line = {
            "method": method_label(method),
            "steps": count_text(of_method["step"].max()) if is_flow(method) else MISSING,
            "seeds": str(int(of_method["n"].max())),
        }
        line |= {head: " / ".join(column.get(method, [MISSING])) for head, column in columns.items()}
        lines.append(line)
    return Block(f"{dataset}: {space_label(space)}", pd.DataFrame(lines), _protocol(rows))


def _protocol(rows: pd.DataFrame) -> str:
    """The protocol of a block in words; where rows differ, which row has which."""
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
