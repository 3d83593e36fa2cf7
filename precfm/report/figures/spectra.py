"""Figure: spectra of the data and of the spaces the flows are trained in; decoder sensitivity."""

import itertools
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from precfm.report.figures.axes import curve, legend, letter, panels, spread_text
from precfm.report.figures.style import INK, REFERENCE, Drawing, method_styles
from precfm.report.formatting import number_text
from precfm.report.frames import Frames
from precfm.report.reads import needed, reads
from precfm.report.rows import ALL, GEOMETRY, of_settings
from precfm.report.vocabulary import in_order

_TITLES = {"data": "data", "flow": "space of the flow", "decoder": "decoder sensitivity"}
_LABELS = {
    "data": "eigenvalue $\\lambda_i$ of $\\Sigma_1$",
    "flow": "eigenvalue $\\lambda_i$",
    "decoder": "image SSE per $1\\sigma$",
}
_DATA: dict[str, Any] = {"color": INK, "marker": "o", "markersize": 2.6, "linewidth": 1.1}


@reads("spectra")
def draw(frames: Frames) -> Drawing:
    """Eigenvalues against their rank: data and its classes, the space of each method, decoder sensitivity."""
    spectra = of_settings(needed(frames, "spectra"), GEOMETRY)
    spectra = spectra.assign(x=spectra["index"].astype(int) + 1, value=spectra["eigenvalue"].astype(float))
    data = spectra[spectra["space"] == "data"].drop_duplicates(["dataset", "scope", "index"])
    flow = spectra[(spectra["space"] == "flow") & (spectra["scope"] == ALL)]
    decoder = data[(data["scope"] == ALL) & data["decoder_sensitivity"].notna()]
    parts = {"data": data, "flow": flow, "decoder": decoder}
    parts = {name: rows for name, rows in parts.items() if not rows.empty}
    styles, datasets = method_styles(frames), sorted(spectra["dataset"].unique())
    figure, axes = panels(len(datasets), len(parts), height=2.35)
    of_eigenvalues = []
    for position, (dataset, part) in enumerate(itertools.product(datasets, parts)):
        ax, rows = axes.flat[position], parts[part][parts[part]["dataset"] == dataset]
        ax.set(yscale="log", xlabel="eigendirection $i$", ylabel=_LABELS[part])
        letter(ax, position, _TITLES[part], dataset if part == "data" else "")
        if part == "decoder":
            ax.plot(rows["x"], rows["decoder_sensitivity"], **_DATA)
            continue
        of_eigenvalues.append(ax)
        if part == "data":
            _data_panel(ax, rows)
        for method in in_order(rows["method"]) if part == "flow" else ():
            look = {"markersize": 2.4, "markeredgewidth": 0}
            curve(ax, rows[rows["method"] == method], styles[method], log=True, **look)
    limits = [limit for ax in of_eigenvalues for limit in ax.get_ylim()]
    for ax in of_eigenvalues:  # the same eigenvalues at the same height before and after
        ax.set_ylim(min(limits), max(limits))
    if "flow" in parts:
        legend(figure, [styles[method] for method in in_order(flow["method"])])
    return Drawing(figure, _caption(parts))


def _data_panel(ax: Axes, rows: pd.DataFrame) -> None:
    classes, overall = rows[rows["scope"] != ALL], rows[rows["scope"] == ALL]
    for position, (_, of_class) in enumerate(classes.groupby("scope")):
        label = "single classes" if position == 0 else None
        ax.plot(of_class["x"], of_class["value"], color=REFERENCE, linewidth=0.6, alpha=0.8, label=label)
    if not overall.empty:
        kappa = number_text(overall["value"].max() / overall["value"].min())
        ax.plot(overall["x"], overall["value"], label=f"all classes ($\\kappa$ = {kappa})", **_DATA)
    ax.legend(loc="lower right", handlelength=1.4, borderaxespad=0.2)


def _caption(parts: dict[str, pd.DataFrame]) -> str:
    text = "Eigenvalues of the covariance in ascending order (i = 1: smallest variance)"
    if "data" in parts:
        text += "; of the data, over all classes and in each class"
    if "flow" in parts:
        text += (
            "; of the space in which each method's flow is trained (geometric mean "
            f"{spread_text(parts['flow'])}, on the log scale)"
        )
    if "decoder" in parts:
        text += (
            "; and how far the decoded image moves (sum of squared errors) per standard deviation along each "
            "eigendirection of the data: a direction the decoder ignores cannot count in an image metric"
        )
    return text + "."
