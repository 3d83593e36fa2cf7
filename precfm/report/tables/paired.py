"""The paired table: each method minus the flow without preconditioning (`none`, else `scalar`), seed by seed."""

from collections.abc import Iterable
from dataclasses import asdict

import pandas as pd

from precfm.core.statistics import INDICATIVE_BELOW, holm, smallest_resolvable
from precfm.report.bootstrap import Bootstrap
from precfm.report.formatting import (
    count_text,
    estimate_texts,
    estimates_of,
    number_text,
    p_text,
    seeds_text,
)
from precfm.report.frames import Frames
from precfm.report.reads import LeftOutError, Row, frame, needed, reads, with_baseline
from precfm.report.rows import (
    PROTOCOL,
    RECORD_KEYS,
    UNPRECONDITIONED,
    baseline_of,
    baseline_text,
    groups,
    pair,
    per_seed,
)
from precfm.report.tables.blocks import Block, Table
from precfm.report.tables.metrics import extractor_text
from precfm.report.vocabulary import in_order, is_flow, method_label, metric_text, space_label


def tidy(frames: Frames) -> pd.DataFrame:
    """Paired differences to the baseline at the last checkpoint that both share (`precfm.report.rows.pair`).

    One baseline serves the whole table: the first of `UNPRECONDITIONED` that the experiment has. A data set without it
    is left out.

    Metrics whose best value is 1 are left out: a difference of such ratios has no good direction, and the
    table has their logarithmic errors instead.

    Returns:
        Columns dataset, method, baseline, step (of the method; the mean, where its runs end apart), metric, space,
        value (mean of method minus baseline), low, high, n, p (paired t test; all three joined with the bootstrap of
        the held-out rows, where there is one), p_holm (within this table), resolvable (smallest true difference that
        seeds alone find with 80% power), indicative (fewer than five seeds), and the protocol.
    """
    records = per_seed(needed(frames, "records"))
    values = records[records["method"].map(is_flow)]
    values = values[values["metric"].map(lambda metric: metric_text(metric).better != "one")]
    baseline = baseline_of(values, UNPRECONDITIONED)
    if baseline is None:
        raise LeftOutError(
            f"this experiment has none of the methods {' and '.join(UNPRECONDITIONED)} to compare with"
        )
    bootstrap, rows = Bootstrap(frame(frames, "bootstrap")), []
    for method in in_order(values["method"]):
        if method == baseline:
            continue
        for key, group in pair(values, method, baseline, RECORD_KEYS).groupby(RECORD_KEYS, sort=True):
            about = dict(zip(RECORD_KEYS, key, strict=True))
            estimate = bootstrap.difference(about, method, baseline, group)
            rows.append(
                {
                    **about,
                    "method": method,
                    "baseline": baseline,
                    "step": round(group["step"].mean()),
                    **asdict(estimate),
                    "resolvable": smallest_resolvable(group["value"] - group["value_baseline"]),
                    "indicative": estimate.n < INDICATIVE_BELOW,
                }
            )
    if not rows:
        raise LeftOutError(
            f"no training seed has both the method '{baseline}' and another one at a shared checkpoint"
        )
    data = pd.DataFrame(rows)
    data["p_holm"] = holm(data["p"].tolist())
    front = ["dataset", "method", "baseline", "step", "metric", "space", "value", "low", "high", "n"]
    return data[[*front, "p", "p_holm", "resolvable", "indicative", *PROTOCOL]]


def _behind(row: Row, column: str) -> Iterable[Row]:
    """Method and baseline; Holm's p, and so the whole row, rests on every test of the table."""
    return [{}] if column in ("", "p_holm") else with_baseline(row, column)


@reads("records", optional=("bootstrap",), behind=_behind)
def build(frames: Frames) -> Table:
    """The paired table as it is printed: one block per data set, feature space and extractor."""
    data = tidy(frames)
    baseline = str(data["baseline"].iloc[0])
    blocks = [
        Block(
            f"{dataset}: {space_label(space)}, method minus {method_label(baseline)}",
            _cells(rows),
            f"With {extractor_text(extractor)}.",
        )
        for (dataset, space, extractor), rows in groups(data, "dataset", "space", "extractor")
    ]
    caption = (
        f"Differences to the {baseline_text(baseline)}, paired by training seed "
        f"({seeds_text(data['n'])}): mean, 95% interval (the t interval over seeds, joined with the bootstrap of the "
        "held-out rows where there is one) and two-sided p, then p "
        f"adjusted by Holm over all {int(data['p'].notna().sum())} tests of this table. The last column is "
        "the smallest true difference that a test of the seeds alone finds with 80% power: a smaller one cannot be "
        "told from zero here. Negative is better under ↓, positive under ↑."
    )
    notes = []
    if data["indicative"].any():
        notes.append(f"* fewer than {INDICATIVE_BELOW} seeds: indicative at most.")
    return Table(data, blocks, caption, notes)


def _cells(rows: pd.DataFrame) -> pd.DataFrame:
    parts = []
    for (metric,), of_metric in groups(rows, "metric"):
        cells = pd.DataFrame(
            {
                "metric": metric_text(metric).head,
                "method": of_metric["method"].map(method_label),
                "steps": of_metric["step"].map(count_text),
                "seeds": of_metric["n"].astype(str) + of_metric["indicative"].map({True: "*", False: ""}),
                "difference": estimate_texts(estimates_of(of_metric)),
                "p": of_metric["p"].map(p_text),
                "p (Holm)": of_metric["p_holm"].map(p_text),
                "resolvable": of_metric["resolvable"].map(lambda value: number_text(value, digits=2)),
            }
        )
        parts.append(cells.set_index(of_metric["method"]).loc[in_order(of_metric["method"])])
    return pd.concat(parts)
