"""The predictor table: which number, known without training the flow, ranks the methods as their results do?"""

from dataclasses import asdict

import pandas as pd

from precfm.report.correlations import partial_spearman, resampled, spearman
from precfm.report.formatting import MISSING, interval_text, number_text
from precfm.report.frames import Frames
from precfm.report.judges import by_judges
from precfm.report.predictor_values import PREDICTORS, RANKED_METHODS, beside_results
from precfm.report.reads import LeftOutError, needed, reads
from precfm.report.rows import RECORD_KEYS, groups, per_seed
from precfm.report.tables.blocks import Block, Table
from precfm.report.tables.metrics import extractor_text
from precfm.report.vocabulary import metric_text, space_label

# Each predictor beside the one that is held fixed: conditioning against the kernel's time, and the reverse.
CONTROLS = {
    "residual_condition_number": "predicted_steps",
    "path_log_condition_number": "predicted_steps",
    "predicted_steps": "residual_condition_number",
}


def ranked(frames: Frames) -> pd.DataFrame:
    """All predictors of each method beside its final metric, for the settings with enough methods.

    Returns:
        Columns `RECORD_KEYS`, method, value and those of `PREDICTORS`.
    """
    needed(frames, "predictors")
    records = per_seed(needed(frames, "records"))
    both = beside_results(by_judges(records), frames, list(PREDICTORS))
    counts = both.groupby(RECORD_KEYS)["method"].transform("nunique")
    enough: pd.DataFrame = both[(counts >= RANKED_METHODS).astype(bool)]
    if enough.empty:
        most = int(counts.max()) if len(counts) else 0
        raise LeftOutError(
            f"a rank correlation needs {RANKED_METHODS} methods with all predictors in one setting; the most is {most}"
        )
    return enough


def tidy(frames: Frames) -> pd.DataFrame:
    """Spearman and partial Spearman correlations of each predictor with the final metric, over methods.

    Returns:
        Columns `RECORD_KEYS`, predictor, controlled_for (empty: nothing), value, low, high (bootstrap over methods),
        n (methods).
    """
    rows = []
    for key, group in ranked(frames).sort_values("method").groupby(RECORD_KEYS, sort=True):
        for predictor, control in CONTROLS.items():
            plain = resampled(spearman, group[predictor], group["value"])
            partial = resampled(partial_spearman, group[predictor], group["value"], group[control])
            for controlled, found in (("", plain), (control, partial)):
                about = {"predictor": predictor, "controlled_for": controlled}
                rows.append({**dict(zip(RECORD_KEYS, key, strict=True)), **about, **asdict(found)})
    return pd.DataFrame(rows).drop(columns="p")


@reads("predictors", "records", optional=("preconditioners", "path_conditioning"))
def build(frames: Frames) -> Table:
    """The table as it is printed: one block per setting and space."""
    data = tidy(frames)
    blocks = []
    for (dataset, metric, space, *_, extractor), rows in groups(data, *RECORD_KEYS):
        cells = pd.DataFrame(
            {
                "predictor": rows["predictor"].map(PREDICTORS),
                "controlling for": rows["controlled_for"].map({**PREDICTORS, "": MISSING}),
                "Spearman": rows["value"].map(number_text),
                "95% interval": list(map(interval_text, rows["low"], rows["high"])),
                "methods": rows["n"].astype(str),
            }
        )
        note = f"{metric_text(metric).label} with {extractor_text(extractor)}."
        blocks.append(Block(f"{dataset}: {space_label(space)}", cells, note))
    caption = (
        "Rank correlation over methods of what is known without training the flow with the final Fréchet distance "
        "(means over seeds): condition number of the data after the preconditioner, mean of ln κ(Σₜ) along the path, "
        "and the steps that the tangent kernel of the untrained flow predicts until the residual is below an absolute "
        "threshold in the data (infinity ranks last). Condition numbers are of the held-out split. Positive: "
        "lower is better, as claimed. Partial correlations hold the ranks of the other predictor "
        "fixed. Intervals: percentiles of a bootstrap over methods, rough for few methods. Matched baselines are left "
        "out."
    )
    return Table(data, blocks, caption, _left_out(frames, data))


def _left_out(frames: Frames, data: pd.DataFrame) -> list[str]:
    others = sorted(set(needed(frames, "predictors")["dataset"]) - set(data["dataset"]))
    reason = f"fewer than {RANKED_METHODS} methods with all predictors"
    return [f"{reason}: {', '.join(map(str, others))}."] if others else []
