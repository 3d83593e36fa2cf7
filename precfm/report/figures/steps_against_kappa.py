"""Figure: steps to accuracy against kappa(Sigma_t), for the slowest direction and for the total."""

import itertools

import numpy as np
import seaborn as sns

from precfm.report.figures.axes import letter, panels
from precfm.report.figures.style import INK, REFERENCE, Drawing
from precfm.report.figures.theory_lines import legend_below
from precfm.report.frames import Frames
from precfm.report.reads import needed, reads

QUANTITIES = {"lowest": "slowest direction", "total": "total excess risk"}
_COLOURS = {"GD": INK, "GD, with P": "#0173b2", "SGD": "#de8f05", "SGD, with P": "#029e73"}
_MARKS = dict(zip(_COLOURS, "o^sv", strict=True))


@reads("steps_to_accuracy.steps")
def draw(frames: Frames) -> Drawing:
    """One row of panels per quantity, one column per target, one mark per setting."""
    table = needed(frames, "steps_to_accuracy.steps")
    with_map = table["preconditioned"].astype(bool).map({False: "", True: ", with P"})
    table = table.assign(kind=table["algorithm"].map({"descent": "GD", "stochastic": "SGD"}) + with_map)
    line = np.geomspace(10, max(table["condition_number_t"].max(), 20), 50)
    targets = [name for name in ("velocity", "score") if name in set(table["target"])]
    figure, axes = panels(2, len(targets), height=2.0, sharex=True)
    for position, (quantity, target) in enumerate(itertools.product(QUANTITIES, targets)):
        ax = axes.flat[position]
        counts = table[f"counts_{quantity}"].astype(bool) & np.isfinite(table[quantity])
        cells = table[counts & (table["target"] == target)].groupby(["kind", "path", "t", "condition_number"])
        means = cells[["condition_number_t", quantity]].mean().reset_index()
        looks = {"hue": "kind", "palette": _COLOURS, "style": "kind", "markers": _MARKS, "s": 16}
        sns.scatterplot(
            means, x="condition_number_t", y=quantity, alpha=0.8, linewidth=0, legend=False, ax=ax, **looks
        )
        ax.plot(line, 1.15 * line, color=REFERENCE, linewidth=0.9, zorder=0)
        ax.set(xscale="log", yscale="log", ylabel="steps to accuracy" if target == targets[0] else "")
        ax.set_xlabel("condition number of Sigma_t" if quantity == "total" else "")
        letter(ax, position, f"{target}: {QUANTITIES[quantity]}")
    marks = {"linestyle": "none", "markersize": 3.0}
    legend_below(
        figure, {name: {"color": _COLOURS[name], "marker": _MARKS[name], **marks} for name in _COLOURS}
    )
    return Drawing(
        figure,
        "Steps until the excess risk has fallen to the goal, relative to its start, against the condition number of "
        "Sigma_t; mean over seeds of every setting (condition number, t, path). Grey: proportional to kappa. Settings "
        "whose goal is within four times the noise floor of stochastic descent are left out.",
    )
