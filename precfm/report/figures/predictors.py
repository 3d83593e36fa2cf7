"""Figure: what is known of a method before training against the Fréchet distance it ends at."""

import numpy as np

from precfm.report.correlations import spearman
from precfm.report.figures.axes import legend, letter, log_axes, method_entries, panels
from precfm.report.figures.shown import that_fit
from precfm.report.figures.style import Drawing, method_styles
from precfm.report.formatting import count_text, number_text
from precfm.report.frames import Frames
from precfm.report.predictor_values import PREDICTORS
from precfm.report.reads import reads
from precfm.report.rows import RECORD_KEYS, groups
from precfm.report.tables.predictors import ranked
from precfm.report.vocabulary import metric_text

_AXES = {
    "residual_condition_number": "residual $\\kappa$",
    "path_log_condition_number": "mean $\\ln\\,\\kappa(\\Sigma_t)$",
    "predicted_steps": "predicted steps",
}
_LOG = ("residual_condition_number", "predicted_steps")


@reads("predictors", "records", optional=("preconditioners", "path_conditioning"))
def draw(frames: Frames) -> Drawing:
    """One row of panels per classifier, one panel per predictor, one mark per method."""
    rows, others = that_fit(ranked(frames), 2 * len(PREDICTORS))
    parts, styles = list(groups(rows, *RECORD_KEYS)), method_styles(frames)
    figure, axes = panels(len(parts) * len(PREDICTORS), height=2.0, sharey="row")
    for position, ax in enumerate(axes):
        (_, metric, space, *_), group = parts[position // len(PREDICTORS)]
        predictor = list(PREDICTORS)[position % len(PREDICTORS)]
        for method, x, y in zip(group["method"], group[predictor], group["value"], strict=True):
            if np.isfinite(x) and (x > 0 or predictor not in _LOG):
                ax.plot([x], [y], **styles[method].line(linestyle="none", markersize=5))
        if predictor in _LOG:
            log_axes(ax, "x")
        ax.set(
            xlabel=_AXES[predictor],
            ylabel=metric_text(metric).head if position % len(PREDICTORS) == 0 else "",
        )
        correlation = number_text(float(spearman(group[predictor], group["value"])), digits=2)
        letter(ax, position, f"{space}, $\\rho$ = {correlation}")
    legend(figure, method_entries(list(rows["method"]), styles), linestyle="none", markersize=5)
    caption = (
        f"Final Fréchet distance of {rows['method'].nunique()} methods on {rows['dataset'].iloc[0]} (mean over "
        f"seeds, {count_text(rows['n_generated'].max())} samples against {count_text(rows['n_real'].max())} held-out "
        "images) against what is known without training their flows: condition number of the data after the "
        "preconditioner, mean of ln κ(Σₜ) along the path, and the steps that the tangent kernel of the untrained "
        "flow predicts until the residual is below an absolute threshold in the data; ρ: Spearman's rank correlation "
        "over methods. A method that is predicted to need no steps, or never to get there, counts in ρ and has no "
        f"mark. Intervals and partial correlations: table predictors.{others}"
    )
    return Drawing(figure, caption)
