"""Figure: spectra of the data and of the spaces the flows are trained in; decoder sensitivity."""

import pandas as pd
from matplotlib.axes import Axes

from precfm.report.bases import basis_text, has_covariances
from precfm.report.figures.axes import (
    RANK,
    curve,
    legend,
    letter,
    log_axes,
    method_entries,
    name_lines,
    panels,
)
from precfm.report.figures.shown import (
    GEOMETRY,
    MAX_METHODS,
    compared_text,
    of_first_setting,
    of_own_map,
    that_fit,
)
from precfm.report.figures.style import REFERENCE, Drawing, method_styles
from precfm.report.figures.theory_lines import SHADES, shaded
from precfm.report.formatting import number_text
from precfm.report.frames import Frames
from precfm.report.reads import needed, reads
from precfm.report.rows import ALL
from precfm.report.summaries import condition_number
from precfm.report.vocabulary import in_order

_SENSITIVITY = (
    "Decoder sensitivity: how far the decoded image moves (sum of squared errors) per standard deviation along each "
    "eigendirection of the data; a direction that the decoder ignores cannot count in an image metric."
)


@reads("spectra")
def draw(frames: Frames) -> Drawing:
    """Eigenvalues by rank: of the data, in the space of each method, and what the decoder makes of each direction."""
    spectra = of_first_setting(needed(frames, "spectra"), GEOMETRY)
    sizes = spectra.groupby(["dataset", "space", "scope"])["index"].transform("max") + 1
    spectra = spectra.assign(
        x=1 - (spectra["index"] + 0.5) / sizes, value=spectra["eigenvalue"].astype(float)
    )
    data = spectra[spectra["space"] == "data"].drop_duplicates(["dataset", "scope", "index"])
    names = sorted(data["dataset"].unique())[:MAX_METHODS]
    data = data[data["dataset"].isin(names) & ((data["scope"] == ALL) | (len(names) == 1))]
    flow, repeated = of_own_map(spectra[(spectra["space"] == "flow") & (spectra["scope"] == ALL)])
    flow, others = that_fit(flow[flow["dataset"] == flow["dataset"].min()])
    decoder = data.assign(value=data["decoder_sensitivity"])[data["decoder_sensitivity"].notna()]
    shown = {
        "data": (data, "eigenvalue $\\lambda_i$ of $\\Sigma_1$"),
        "space of the flow": (flow, "eigenvalue $\\lambda_i$"),
        "decoder sensitivity": (decoder, "image SSE per $1\\sigma$"),
    }
    parts = {name: part for name, part in shown.items() if not part[0].empty}
    figure, axes = panels(len(parts), height=2.4)
    styles = method_styles(frames)
    for position, (ax, (name, (rows, label))) in enumerate(zip(axes, parts.items(), strict=True)):
        log_axes(ax, "y")
        ax.set(xlim=(0, 1), xlabel=RANK, ylabel=label)
        letter(ax, position, name)
        if name != "decoder sensitivity":  # the same eigenvalues at the same height before and after
            eigenvalues = pd.concat([data, flow])["value"]
            ax.set_ylim(eigenvalues.min() / 1.5, eigenvalues.max() * 1.5)
        if name != "space of the flow":
            _of_data(ax, rows)
        for method in in_order(rows["method"]) if name == "space of the flow" else ():
            curve(ax, rows[rows["method"] == method], styles[method], log=True, markevery=0.2)
    if not flow.empty:
        legend(figure, method_entries(list(flow["method"]), styles))
    kappas = data[data["scope"] == ALL].groupby("dataset")["value"].apply(condition_number)
    compared = f"{compared_text(flow)}; geometric means" if len(flow) else ", ".join(kappas.index)
    texts = [f"{dataset} {number_text(kappa)}" for dataset, kappa in kappas.items()]
    shown_rows = pd.concat([data, flow])
    of_covariance, directions = "", "directions"
    if has_covariances(shown_rows):
        of_covariance, directions = " of the covariance", "eigendirections"
    caption = (
        f"Spectra{of_covariance}: which variances the data have along their "
        f"{directions}{', and which a flow meets behind the map of each method' if len(flow) else ''} "
        f"({compared}). Condition numbers of the data: {', '.join(texts) or 'not measured'}. "
        f"{'Grey: single classes. ' if len(texts) == 1 else ''}{_SENSITIVITY if len(decoder) else ''}"
    )
    caption = caption.rstrip() + basis_text(shown_rows) + repeated + others
    return Drawing(figure, caption)


def _of_data(ax: Axes, rows: pd.DataFrame) -> None:
    """A line for each data set, with its name where there are several; of a single one its classes, too."""
    whole, ends = rows[rows["scope"] == ALL], {}
    datasets = sorted(whole["dataset"].unique())
    for _, of_class in rows[rows["scope"] != ALL].groupby("scope"):
        ax.plot(of_class["x"], of_class["value"], color=REFERENCE, linewidth=0.6)
    for dataset, colour in shaded(datasets, first=1 if len(datasets) > 1 else len(SHADES) - 1).items():
        line = whole[whole["dataset"] == dataset]
        ax.plot(line["x"], line["value"], color=colour, linewidth=1.2)
        ends[dataset] = (line["x"].iloc[0], line["value"].iloc[0], colour)
    if len(datasets) > 1:
        name_lines(ax, ends)
