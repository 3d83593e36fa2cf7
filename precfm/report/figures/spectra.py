"""Figure: spectra of the data and of the spaces the flows are trained in; decoder sensitivity."""

import pandas as pd
from matplotlib.axes import Axes

from precfm.report.figures.axes import curve, legend, letter, panels, spread_text
from precfm.report.figures.style import INK, REFERENCE, Drawing, MethodStyle, method_styles
from precfm.report.formatting import number_text
from precfm.report.frames import Frames
from precfm.report.reads import needed, reads
from precfm.report.rows import ALL, GEOMETRY, of_settings
from precfm.report.vocabulary import in_order

_TITLES = {"data": "data", "flow": "space of the flow", "decoder": "decoder sensitivity"}


@reads("spectra")
def draw(frames: Frames) -> Drawing:
    """Eigenvalues against their rank: data and its classes, the space of each method, decoder sensitivity."""
    spectra = of_settings(needed(frames, "spectra"), GEOMETRY)
    spectra = spectra.assign(x=spectra["index"].astype(int) + 1, value=spectra["eigenvalue"].astype(float))
    data = spectra[spectra["space"] == "data"].drop_duplicates(["dataset", "scope", "index"])
    flow = spectra[(spectra["space"] == "flow") & (spectra["scope"] == ALL)]
    decoder = data[(data["scope"] == ALL) & data["decoder_sensitivity"].notna()]
    parts = {
        name: rows for name, rows in (("data", data), ("flow", flow), ("decoder", decoder)) if not rows.empty
    }
    styles = method_styles(frames)
    datasets = sorted(spectra["dataset"].unique())
    figure, axes = panels(len(datasets), len(parts), height=2.35)
    for position, ax in enumerate(axes.flat):
        dataset, part = datasets[position // len(parts)], list(parts)[position % len(parts)]
        rows = parts[part][parts[part]["dataset"] == dataset]
        ax.set_yscale("log")
        ax.set_xlabel("eigendirection $i$")
        letter(ax, position, _TITLES[part] + (f", {dataset}" if part == "data" else ""))
        if part == "data":
            _data_panel(ax, rows)
        elif part == "flow":
            _flow_panel(ax, rows, styles)
        else:
            ax.plot(
                rows["x"], rows["decoder_sensitivity"], color=INK, marker="o", markersize=2.6, linewidth=1.1
            )
            ax.set_ylabel("image SSE per $1\\sigma$")
    _share_range(
        [ax for ax, part in zip(axes.flat, list(parts) * len(datasets), strict=True) if part != "decoder"]
    )
    if "flow" in parts:
        legend(figure, [styles[method] for method in in_order(flow["method"])])
    return Drawing(figure, _caption(parts))


def _data_panel(ax: Axes, rows: pd.DataFrame) -> None:
    classes = rows[rows["scope"] != ALL]
    for position, (_, of_class) in enumerate(classes.groupby("scope")):
        label = "single classes" if position == 0 else None
        ax.plot(of_class["x"], of_class["value"], color=REFERENCE, linewidth=0.6, alpha=0.8, label=label)
    overall = rows[rows["scope"] == ALL]
    if not overall.empty:
        kappa = number_text(overall["value"].max() / overall["value"].min())
        ax.plot(
            overall["x"],
            overall["value"],
            color=INK,
            marker="o",
            markersize=2.6,
            linewidth=1.2,
            label=f"all classes ($\\kappa$ = {kappa})",
        )
    ax.set_ylabel("eigenvalue $\\lambda_i$ of $\\Sigma_1$")
    ax.legend(loc="lower right", handlelength=1.4, borderaxespad=0.2)


def _flow_panel(ax: Axes, rows: pd.DataFrame, styles: dict[str, MethodStyle]) -> None:
    for method in in_order(rows["method"]):
        curve(
            ax,
            rows[rows["method"] == method],
            styles[method],
            log=True,
            markersize=2.4,
            markeredgewidth=0,
        )
    ax.set_ylabel("eigenvalue $\\lambda_i$")


def _share_range(axes: list[Axes]) -> None:
    """The same eigenvalues at the same height before and after."""
    lows, highs = zip(*(ax.get_ylim() for ax in axes), strict=True)
    for ax in axes:
        ax.set_ylim(min(lows), max(highs))


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
