"""Figure: low-eigenvalue error of trained networks, one factor at a time, with the solver's floor."""

import seaborn as sns

from precfm.report.figures.axes import panels
from precfm.report.figures.style import INK, REFERENCE, Drawing
from precfm.report.figures.theory_lines import ERROR_LOW, WHITENED, interval, legend_below, over_seeds
from precfm.report.frames import Frames
from precfm.report.reads import needed, reads

_COLOURS = {"none": INK, "whitening": WHITENED, "whitening alone": WHITENED, "exact field": REFERENCE}
_MARKS = ("o", "^", "x", "|")


@reads("trained_factors.summary")
def draw(frames: Frames) -> Drawing:
    """One row per level of a factor, one mark per method."""
    table = needed(frames, "trained_factors.summary")
    table = table.assign(
        cell=(table["factor"] + ": " + table["level"].astype(str)).replace("base: base", "base"),
        method=table["method"].replace({"exact:none": "exact field", "alone:whitening": "whitening alone"}),
    )
    figure, axes = panels(1, 1, height=0.9 + 0.24 * table["cell"].nunique())
    ax = axes[0, 0]
    ax.set_xscale("log")
    looks = {"hue": "method", "hue_order": list(_COLOURS), "palette": _COLOURS, "markers": list(_MARKS)}
    sns.pointplot(
        table,
        x="log_error_low",
        y="cell",
        errorbar=interval,
        err_kws={"linewidth": 0.8},
        linestyle="none",
        markersize=4,
        markeredgewidth=1,
        orient="y",
        legend=False,
        ax=ax,
        **looks,
    )
    ax.set(xlabel=ERROR_LOW, ylabel="")
    marks = zip(_COLOURS.items(), _MARKS, strict=True)
    about = {"linestyle": "none", "markersize": 6}
    legend_below(figure, {name: {"color": colour, "marker": mark, **about} for (name, colour), mark in marks})
    return Drawing(
        figure,
        "Mean |ln variance ratio| over the lowest quartile of directions; networks trained on Gaussian data, one "
        f"factor at a time around the base; geometric mean and 95% interval over {over_seeds(table)}. Exact field: "
        "the solver's floor.",
    )
