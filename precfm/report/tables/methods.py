"""The method table: what every method costs, what it does to the space, and what comes out, in one row each."""

from collections.abc import Iterable

import pandas as pd

from precfm.report.bases import residual_basis_text
from precfm.report.formatting import seeds_text
from precfm.report.frames import Frames
from precfm.report.judges import DISTANCES
from precfm.report.reads import Row, frame, needed, reads
from precfm.report.rows import at_final, groups, one_per_artifact, per_seed
from precfm.report.summaries import long_form, summarised
from precfm.report.tables.blocks import Block, Columns, Quantity, Table, method_cells, quantity_columns
from precfm.report.tables.metrics import protocol_text
from precfm.report.vocabulary import FLOOR, is_flow, metric_text

_QUANTITIES = {
    "preconditioner_parameters": Quantity("parameters, preconditioner", "count"),
    "flow_parameters": Quantity("parameters, flow", "count"),
    "fitted_numbers": Quantity("numbers fitted, skip", "count"),
    "fit_flops": Quantity("FLOPs to fit", "count"),
    "training_flops": Quantity("FLOPs to train", "count"),
    "inverse_flops_per_sample": Quantity("FLOPs to invert, per sample", "count"),
    "residual_condition_number": Quantity("residual κ", "ratio"),
    "round_trip_error": Quantity("round trip", "size"),
    "tail_round_trip_error": Quantity("round trip, tails", "size"),
    "predicted_steps": Quantity("predicted steps", "size"),
}
_METRICS = (*DISTANCES, "eigenvalue_log_error_low")


def tidy(frames: Frames) -> pd.DataFrame:
    """Cost, conditioning and final metrics of every method, mean and interval over seeds.

    Returns:
        Columns dataset, method, quantity (a metric is written `<metric>, <space>`), value, low, high, n.
    """
    budgets = needed(frames, "budgets")
    trained = budgets["flops_per_step"].astype(float) * budgets["steps"].astype(float)
    fitted = one_per_artifact(frame(frames, "preconditioners"))
    fitted = fitted.drop(columns=_QUANTITIES.keys() & budgets.columns, errors="ignore")
    costs = [budgets.assign(training_flops=trained), fitted, frame(frames, "predictors")]
    parts = [long_form(rows, ["dataset", "method", "seed"], _QUANTITIES) for rows in costs]
    parts.append(final_records(frames).rename(columns={"column": "quantity"}))
    values = pd.concat([part for part in parts if not part.empty])
    ratios = [name for name, quantity in _QUANTITIES.items() if quantity.multiplicative]
    return summarised(values, ["dataset", "method", "quantity"], values["quantity"].isin(ratios))


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


def _behind(row: Row, column: str) -> Iterable[Row]:
    """Its method; beside the floor all others, since the table is one of flows and not made without any."""
    return [row] if is_flow(str(row["method"])) else [{"dataset": row["dataset"]}]


@reads("budgets", optional=("preconditioners", "predictors", "records"), behind=_behind)
def build(frames: Frames) -> Table:
    """The method table as it is printed: one block per setting, a row per method."""
    data, records = tidy(frames), final_records(frames)
    seeds = needed(frames, "budgets").groupby(["dataset", "method"])["seed"].nunique()
    blocks = []
    for (dataset,), rows in groups(data, "dataset"):
        of_dataset = records[records["dataset"] == dataset]
        columns: Columns = {"seeds": {method: str(n) for method, n in seeds[dataset].items()}}
        columns |= quantity_columns(rows, {**_QUANTITIES, **_metric_quantities(of_dataset)})
        blocks.append(Block(dataset, method_cells(columns), _protocols(of_dataset)))
    caption = (
        "Every method in one row: parameters and floating-point operations of preconditioner and flow; condition "
        "number of the data's covariance after the preconditioner; round-trip error on the data and in the tails, "
        "relative to the smallest standard deviation of the data; steps that the tangent kernel at the start of "
        f"training predicts, where it was computed; and metrics at the last checkpoint. Mean over {seeds_text(seeds)} "
        "with the 95% t interval of the scatter of seeds; condition numbers on the log scale with the interval in "
        "brackets; a number without an interval rests on one seed or does not vary. FLOPs to train are those of "
        "matrix products and convolutions, and the element-wise ones that a wrapper around the network declares (the "
        "mixture skip does); FLOPs to invert are those of matrix products; FLOPs to fit are those of moments, "
        "decompositions, a learned map's training steps and a mixture's iterations. The optimizer's (many for Muon), "
        "the pairing of optimal transport, a learned map's validation and the decoder's metric do not count. Moments "
        "that a skip holds are no parameters; those of a mixture are counted beside. FLOPs to train do not hold "
        "those to fit. Matched baselines have no preconditioner but the scaling."
    ) + residual_basis_text(frame(frames, "preconditioners"))
    return Table(data, blocks, caption)


def _metric_quantities(records: pd.DataFrame) -> dict[str, Quantity]:
    """A column for each metric, space and, where a space has several, extractor."""
    found = {}
    for (metric, _, column), _ in groups(records, "metric", "space", "column"):
        where = column.removeprefix(f"{metric}, ")
        found[column] = Quantity(f"{metric_text(metric).head}, {where}")
    return found


def _protocols(records: pd.DataFrame) -> str:
    """The protocol of each space; those that agree in one sentence."""
    texts: dict[str, list[str]] = {}
    for (space, _), rows in groups(records, "space", "extractor"):
        texts.setdefault(protocol_text(rows), []).append(space)
    return " ".join(f"{text.removesuffix('.')} ({', '.join(spaces)})." for text, spaces in texts.items())
