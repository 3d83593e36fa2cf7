"""The table of the three sides of quality: perceptual, second moments and likelihood, side by side for every method."""

from dataclasses import asdict

import pandas as pd

from precfm.report.bootstrap import Bootstrap
from precfm.report.formatting import number_text, seeds_text
from precfm.report.frames import Frames
from precfm.report.reads import LeftOutError, frame, needed, reads
from precfm.report.rows import PROTOCOL, at_final, groups, per_seed, with_common_end
from precfm.report.tables.blocks import Block, Columns, Table, estimate_column, method_cells, steps_and_seeds
from precfm.report.tables.metrics import extractor_text
from precfm.report.vocabulary import decoded, is_flow, method_label, metric_text

_JUDGES = ("classifier-0", "classifier-1")
# By metric and space, in the order of the columns: the side that it is of, and its heading.
COLUMNS = {
    **{("frechet", space): ("perceptual", f"Fréchet, judge {k} ↓") for k, space in enumerate(_JUDGES)},
    **{
        ("frechet", decoded(space)): ("perceptual", f"Fréchet, judge {k}, decoded ↓")
        for k, space in enumerate(_JUDGES)
    },
    ("eigenvalue_log_error_low", "latent"): ("second moments", metric_text("eigenvalue_log_error_low").head),
    ("frechet", "latent-whitened"): ("second moments", "Fréchet, whitened ↓"),
    ("nll", "latent"): ("likelihood", metric_text("nll").head),
    ("nearer_train", "latent"): ("copying", metric_text("nearer_train").head),
}
_KEYS = ["dataset", "method", "metric", "space", *PROTOCOL]


def tidy(frames: Frames) -> pd.DataFrame:
    """The numbers of all sides at each method's final checkpoint, mean over seeds (over draws for the floor).

    Returns:
        Columns dataset, method, step (the mean, where runs end apart), side, metric, space, value, low, high (seeds and
        bootstrap joined), n, median, smallest, largest (of the runs), and the protocol.
    """
    final = at_final(per_seed(needed(frames, "records")))
    ends = with_common_end(final)["step"]
    bootstrap, rows = Bootstrap(frame(frames, "bootstrap")), []
    for key, runs in final.groupby(_KEYS, sort=True):
        about = dict(zip(_KEYS, key, strict=True))
        column = COLUMNS.get((str(about["metric"]), str(about["space"])))
        if column is None:
            continue
        found = asdict(bootstrap.mean(about, str(about["method"]), runs))
        values = runs["value"]
        found |= {"median": values.median(), "smallest": values.min(), "largest": values.max()}
        rows.append({**about, "step": ends[runs.index[0]], "side": column[0], **found})
    if not rows:
        raise LeftOutError("this experiment has none of the metrics of the three sides")
    front = ["dataset", "method", "step", "side", "metric", "space", "value", "low", "high", "n"]
    front += ["median", "smallest", "largest"]
    return pd.DataFrame(rows)[[*front, *PROTOCOL]]


@reads("records", optional=("bootstrap",))
def build(frames: Frames) -> Table:
    """The table as it is printed: one block per data set and recipe, a row per method, maps alone, and the floor."""
    data = tidy(frames)
    blocks = [
        Block(dataset, method_cells(_columns(rows)), _note(rows))
        for (dataset,), rows in groups(data, "dataset")
    ]
    flows = data[data["method"].map(is_flow)]
    caption = (
        "Three sides of quality, never merged. Perceptual: Fréchet distance in the features of two independent "
        "classifiers (judges), against held-out images, and against held-out images that have gone through encoder and "
        "decoder. Second moments: mean |ln variance ratio| along the quarter of directions with the smallest variance, "
        "and the Fréchet distance in whitened latent coordinates. Likelihood: mean negative log-likelihood of held-out "
        "latents, in nats, in the space before the map. Last, the share of samples nearer to a training than to a "
        "held-out row, of equally many. Training rows lie nearer to any smooth model that was fitted to them, so that "
        "a share above one half is no sign of copying by itself: compare it with whitenings alone, which hold moments "
        "and cannot copy; the floor, made of training rows, has none. A method alone is its map applied to noise, or "
        "its skip without a network; the floor is the mean of independent draws of the train split. Final checkpoint, "
        f"mean over {seeds_text((flows if len(flows) else data)['n'])} with the 95% interval that joins the scatter of "
        "seeds with the bootstrap of the held-out rows, where there is one; without an interval it rests on one run."
    )
    return Table(data, blocks, caption)


def _columns(rows: pd.DataFrame) -> Columns:
    columns = steps_and_seeds(rows)
    for (metric, space), (_, head) in COLUMNS.items():
        of_column = rows[(rows["metric"] == metric) & (rows["space"] == space)]
        for _, part in groups(of_column, *PROTOCOL):
            column = columns.setdefault(head, {})
            for method, cell in estimate_column(part).items():
                column[method] = f"{column[method]} / {cell}" if method in column else cell
    return columns


def _note(rows: pd.DataFrame) -> str:
    judges = rows[rows["space"].isin(_JUDGES)]
    texts = [
        f"judge {_JUDGES.index(space)}: {extractor_text(extractor)}"
        for (space, extractor), _ in groups(judges, "space", "extractor")
    ]
    judged = "; ".join(texts) + "." if texts else ""
    return " ".join(filter(None, [judged, _scattered(rows)]))


def _scattered(rows: pd.DataFrame) -> str:
    """The runs behind each mean that is smaller than half its interval, as where one of them diverges."""
    wide = rows[(rows["high"] - rows["low"]) / 2 > rows["value"].abs()]
    texts = [
        f"{method_label(row['method'])}, {COLUMNS[row['metric'], row['space']][1].removesuffix(' ↓')}: "
        f"{number_text(row['median'])} ({number_text(row['smallest'])} to {number_text(row['largest'])})"
        for _, row in wide.iterrows()
    ]
    about = "Median (range) over seeds where half the interval is larger than the mean"
    return f"{about}: {'; '.join(texts)}." if texts else ""
