"""The table of the three sides of quality: perceptual, second moments and likelihood, side by side for every method."""

from collections.abc import Collection
from dataclasses import asdict

import pandas as pd

from precfm.core.metric_names import COMPONENTS, FRECHET_IN_COMPONENTS
from precfm.report.bootstrap import Bootstrap
from precfm.report.formatting import number_text, seeds_text
from precfm.report.frames import Frames
from precfm.report.judges import FRECHET, Place, judges_text, places, whitened_text
from precfm.report.reads import LeftOutError, frame, needed, reads
from precfm.report.rows import PROTOCOL, at_final, groups, per_seed, with_common_end
from precfm.report.tables.blocks import Block, Columns, Table, estimate_column, method_cells, steps_and_seeds
from precfm.report.tables.metrics import extractor_text
from precfm.report.vocabulary import (
    LIKELIHOOD,
    is_decoded,
    is_flow,
    is_judge,
    judge_label,
    method_label,
    metric_text,
    spaces_in_order,
)

# By metric and space, in the order of the columns behind those of the judges: side and heading.
_OF_LATENTS = {
    ("eigenvalue_log_error_low", "latent"): ("second moments", metric_text("eigenvalue_log_error_low").head),
    (FRECHET, "latent-whitened"): ("second moments", "Fréchet, whitened ↓"),
    (FRECHET_IN_COMPONENTS, "latent-whitened"): (
        "second moments",
        f"Fréchet, whitened, {COMPONENTS} components ↓",
    ),
    (LIKELIHOOD, "latent"): ("likelihood", metric_text(LIKELIHOOD).head),
    ("nearer_train", "latent"): ("copying", metric_text("nearer_train").head),
}
_HEADS = {FRECHET: "Fréchet", "kid": "KID", FRECHET_IN_COMPONENTS: f"Fréchet, {COMPONENTS} components"}
_ESTIMATED = (
    " Likelihoods that are not exact rest on random vectors, and the interval holds their error: those of a flow's "
    "trace are drawn anew for each row, and those of a map's log-determinant, which all rows share, are resampled "
    "beside the rows."
)
_KEYS = ["dataset", "method", "metric", "space", *PROTOCOL]


def columns(found: Collection[Place]) -> dict[Place, tuple[str, str]]:
    """The columns of the table: by metric and space the side that it is of, and its heading.

    Args:
        found: the metrics and spaces of some records; of judges the KID only where there is no Frechet distance.
    """
    of_judges = {}
    for behind_decoder in (False, True):
        for metric, head in _HEADS.items():
            spaces = [space for name, space in found if name == metric and is_judge(space)]
            for space in spaces_in_order(spaces):
                small = metric != "kid" or (FRECHET, space) not in found
                if small and is_decoded(space) == behind_decoder:
                    of_judges[metric, space] = ("perceptual", f"{head}, {judge_label(space)} ↓")
    return {**of_judges, **{place: text for place, text in _OF_LATENTS.items() if place in found}}


def tidy(frames: Frames) -> pd.DataFrame:
    """The numbers of all sides at each method's final checkpoint, mean over seeds (over draws for the floor).

    Returns:
        Columns dataset, method, step (the mean, where runs end apart), side, metric, space, value, low, high (seeds and
        bootstrap joined), n, median, smallest, largest (of the runs), and the protocol.
    """
    final = at_final(per_seed(needed(frames, "records")))
    ends = with_common_end(final)["step"]
    bootstrap, rows = Bootstrap(frame(frames, "bootstrap")), []
    shown = {str(dataset): columns(places(runs)) for dataset, runs in final.groupby("dataset")}
    for key, runs in final.groupby(_KEYS, sort=True):
        about = dict(zip(_KEYS, key, strict=True))
        column = shown[str(about["dataset"])].get((str(about["metric"]), str(about["space"])))
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
    data, records = tidy(frames), frame(frames, "records")
    likelihoods = records[records["metric"] == LIKELIHOOD]
    estimated = (
        "note" in likelihoods and likelihoods["note"].fillna("").ne("").any()
    )  # says the standard errors
    blocks = [
        Block(dataset, method_cells(_columns(rows)), _note(rows))
        for (dataset,), rows in groups(data, "dataset")
    ]
    flows = data[data["method"].map(is_flow)]
    caption = (
        f"Three sides of quality, never merged. Perceptual: {judges_text(data, 'independent ')}, against held-out "
        "images, and against held-out images that have gone through encoder and decoder. Second moments: mean |ln "
        "variance ratio| along the quarter of directions with the smallest variance, "
        f"and the {whitened_text(data)}. Likelihood: mean negative log-likelihood of held-out "
        "latents, in nats, in the space before the map. Last, the share of samples nearer to a training than to a "
        "held-out row, of equally many. Training rows lie nearer to any smooth model that was fitted to them, so that "
        "a share above one half is no sign of copying by itself: compare it with whitenings alone, which hold moments "
        "and cannot copy; the floor, made of training rows, has none. A method alone is its map applied to noise, or "
        "its skip without a network; the floor is the mean of independent draws of the train split. Final checkpoint, "
        f"mean over {seeds_text((flows if len(flows) else data)['n'])} with the 95% interval that joins the scatter of "
        "seeds with the bootstrap of the held-out rows, where there is one; without an interval it rests on one run."
    ) + (_ESTIMATED if estimated else "")
    return Table(data, blocks, caption)


def _columns(rows: pd.DataFrame) -> Columns:
    texts = steps_and_seeds(rows)
    for (metric, space), (_, head) in columns(places(rows)).items():
        of_column = rows[(rows["metric"] == metric) & (rows["space"] == space)]
        for _, part in groups(of_column, *PROTOCOL):
            column = texts.setdefault(head, {})
            for method, cell in estimate_column(part).items():
                column[method] = f"{column[method]} / {cell}" if method in column else cell
    return texts


def _note(rows: pd.DataFrame) -> str:
    own = [is_judge(space) and not is_decoded(space) for space in rows["space"]]
    judges = rows[own]
    texts = [
        f"{judge_label(space)}: {extractor_text(extractor)}"
        for (space, extractor), _ in groups(judges, "space", "extractor")
    ]
    judged = "; ".join(texts) + "." if texts else ""
    return " ".join(filter(None, [judged, _scattered(rows)]))


def _scattered(rows: pd.DataFrame) -> str:
    """The runs behind each mean that is smaller than half its interval, as where one of them diverges."""
    wide = rows[(rows["high"] - rows["low"]) / 2 > rows["value"].abs()]
    heads = columns(places(rows))
    texts = [
        f"{method_label(row['method'])}, {heads[row['metric'], row['space']][1].removesuffix(' ↓')}: "
        f"{number_text(row['median'])} ({number_text(row['smallest'])} to {number_text(row['largest'])})"
        for _, row in wide.iterrows()
    ]
    about = "Median (range) over seeds where half the interval is larger than the mean"
    return f"{about}: {'; '.join(texts)}." if texts else ""
