"""The method table: what every method costs, what it does to the space, and what comes out, in one row each."""

import pandas as pd

from precfm.report.formatting import (
    Block,
    Table,
    count_text,
    estimate_texts,
    estimates_of,
    method_cells,
    number_text,
    seeds_text,
)
from precfm.report.selection import (
    Frames,
    at_final,
    frame,
    needed,
    one_per_artifact,
    per_seed,
    summarised,
)
from precfm.report.tables.metrics import protocol_text
from precfm.report.vocabulary import FLOOR, in_order, is_flow, metric_text, spaces_in_order

# Quantity: (heading, how it is written).
_QUANTITIES = {
    "preconditioner_parameters": ("parameters, preconditioner", "count"),
    "flow_parameters": ("parameters, flow", "count"),
    "fit_flops": ("FLOPs to fit", "count"),
    "training_flops": ("FLOPs to train", "count"),
    "inverse_flops_per_sample": ("FLOPs to invert, per sample", "count"),
    "residual_condition_number": ("residual κ", "ratio"),
    "round_trip_error": ("round trip", "size"),
    "tail_round_trip_error": ("round trip, tails", "size"),
    "predicted_steps": ("predicted steps", "size"),
}
_METRICS = ("frechet", "eigenvalue_log_error_low")
_KEYS = ["dataset", "method", "quantity"]


def tidy(frames: Frames) -> pd.DataFrame:
    """Cost, conditioning and final metrics of every method, mean and interval over seeds.

    Args:
        frames: needs `budgets`; takes what there is of `preconditioners`, `predictors` and `records`.

    Returns:
        Columns dataset, method, quantity (a metric is written `<metric>, <space>`), value, low, high, n.

    Raises:
        LeftOutError: there are no budgets.
    """
    budgets = needed(frames, "budgets")
    trained = budgets["flops_per_step"].astype(float) * budgets["steps"].astype(float)
    fitted = one_per_artifact(frame(frames, "preconditioners"))
    records = final_records(frames)
    parts = [
        _long(budgets.assign(training_flops=trained)),
        _long(fitted.drop(columns=_QUANTITIES.keys() & budgets.columns, errors="ignore")),
        _long(frame(frames, "predictors")[["dataset", "method", "seed", "predicted_steps"]]),
        records.assign(quantity=records["column"])[[*_KEYS, "value"]],
    ]
    values = pd.concat([part for part in parts if not part.empty])
    return summarised(
        values, _KEYS, lambda group: _QUANTITIES.get(str(group["quantity"]), ("", ""))[1] == "ratio"
    )


def final_records(frames: Frames) -> pd.DataFrame:
    """The metrics of this table at each method's final checkpoint, with the `column` that each stands in.

    Numbers from different extractors never share a column: where a space has several, the column names them.
    """
    records = at_final(per_seed(frame(frames, "records")))
    shown = records["method"].map(lambda method: is_flow(method) or method == FLOOR).astype(bool)
    records = records[shown & records["metric"].isin(_METRICS)]
    extractors = records.groupby(["dataset", "metric", "space"])["extractor"].transform("nunique")
    suffix = (" `" + records["extractor"] + "`").where((extractors > 1).astype(bool), "")
    return records.assign(column=records["metric"] + ", " + records["space"] + suffix)


def _long(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per number of the quantities that the frame has."""
    names = [name for name in _QUANTITIES if name in rows.columns]
    long = rows.melt(["dataset", "method", "seed"], names, "quantity", "value").dropna(subset=["value"])
    return long.assign(value=long["value"].astype(float))[[*_KEYS, "value"]]


def build(frames: Frames) -> Table:
    """The method table as it is printed: one block per setting, a row per method."""
    data, records = tidy(frames), final_records(frames)
    blocks = []
    for dataset in sorted(data["dataset"].unique()):
        of_dataset, of_records = data[data["dataset"] == dataset], records[records["dataset"] == dataset]
        columns = {"seeds": _seeds(frames, str(dataset))}
        for quantity in _in_order(of_dataset["quantity"], of_records):
            head, texts = _column(quantity, of_dataset[of_dataset["quantity"] == quantity])
            columns[head] = texts
        cells = method_cells(in_order(of_dataset["method"]), columns)
        blocks.append(Block(str(dataset), cells, _protocols(of_records)))
    caption = (
        "Every method in one row: parameters and floating-point operations of preconditioner and flow; condition "
        "number of the data's covariance after the preconditioner; round-trip error on the data and in the tails, "
        "relative to the smallest standard deviation of the data; steps that the tangent kernel at the start of "
        "training predicts, where it was computed; and metrics at the last checkpoint. Mean over "
        f"{seeds_text(_counts(frames))} with the 95% t interval; condition numbers on the log scale with the interval "
        "in brackets; a number without an interval rests on one seed or does not vary. FLOPs are those of "
        "matrix products: the optimizer's (many for Muon), the pairing of optimal transport, a fit's validation and "
        "the decoder's metric do not count. Moments that a network holds (Gaussian skip) are no parameters. FLOPs to "
        "train do not hold those to fit. Matched baselines have no preconditioner but the scaling."
    )
    return Table(data, blocks, caption)


def _counts(frames: Frames) -> pd.Series:
    return needed(frames, "budgets").groupby(["dataset", "method"])["seed"].nunique()


def _seeds(frames: Frames, dataset: str) -> dict[str, str]:
    return {str(method): str(n) for method, n in _counts(frames)[dataset].items()}


def _in_order(quantities: pd.Series, records: pd.DataFrame) -> list[str]:
    """The columns: cost and conditioning as above, then metrics by space."""
    present = set(quantities)
    metrics = [
        column
        for metric in _METRICS
        for space in spaces_in_order(records["space"])
        for column in sorted(
            set(records["column"][(records["metric"] == metric) & (records["space"] == space)])
        )
    ]
    return [name for name in (*_QUANTITIES, *metrics) if name in present]


def _column(quantity: str, rows: pd.DataFrame) -> tuple[str, dict[str, str]]:
    """Heading, and formatted cells by method."""
    metric, _, where = quantity.partition(", ")
    head, kind = _QUANTITIES.get(quantity, (f"{metric_text(metric).head}, {where}", "metric"))
    if kind == "count":
        texts = [count_text(value) for value in rows["value"]]
    elif kind == "size":  # orders of magnitude matter here, not their spread
        texts = [number_text(value, digits=2) for value in rows["value"]]
    else:
        texts = estimate_texts(estimates_of(rows), multiplicative=kind == "ratio")
    return head, dict(zip(rows["method"], texts, strict=True))


def _protocols(records: pd.DataFrame) -> str:
    """The protocol of each space; those that agree in one sentence."""
    texts: dict[str, list[str]] = {}
    for space in spaces_in_order(records["space"]):
        for _, rows in records[records["space"] == space].groupby("extractor", sort=True):
            texts.setdefault(protocol_text(rows), []).append(space)
    return " ".join(f"{text.removesuffix('.')} ({', '.join(spaces)})." for text, spaces in texts.items())
