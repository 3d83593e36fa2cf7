"""Figure: steps to accuracy against kappa(Sigma_t), for the slowest direction and for the total."""

import numpy as np

from precfm.report.figures.axes import letter, panels
from precfm.report.figures.style import INK, REFERENCE, Drawing
from precfm.report.frames import Frames
from precfm.report.reads import needed, reads

QUANTITIES = {"lowest": "slowest direction", "total": "total excess risk"}
_LOOKS = {
    ("descent", False): ("GD", "o", INK),
    ("descent", True): ("GD, with P", "^", "#0173b2"),
    ("stochastic", False): ("SGD", "s", "#de8f05"),
    ("stochastic", True): ("SGD, with P", "v", "#029e73"),
}


@reads("steps_to_accuracy.steps")
def draw(frames: Frames) -> Drawing:
    """One row of panels per quantity, one column per target, one mark per setting.

    Args:
        frames: needs `steps_to_accuracy.steps`.

    Raises:
        LeftOutError: there are no steps.
    """
    table = needed(frames, "steps_to_accuracy.steps")
    table = table.assign(preconditioned=table["preconditioned"].astype(bool))
    targets = [name for name in ("velocity", "score") if name in set(table["target"])]
    figure, axes = panels(2, len(targets), height=2.0, sharex=True)
    for row, (quantity, text) in enumerate(QUANTITIES.items()):
        axes[row, 0].set_ylabel("steps to accuracy")
        shown = table[table[f"counts_{quantity}"].astype(bool) & np.isfinite(table[quantity])]
        for column, target in enumerate(targets):
            ax = axes[row, column]
            for (algorithm, preconditioned), (label, mark, colour) in _LOOKS.items():
                part = shown[(shown["algorithm"] == algorithm) & (shown["target"] == target)]
                cells = part[part["preconditioned"] == preconditioned].groupby(
                    ["path", "t", "condition_number"]
                )
                means = cells[["condition_number_t", quantity]].mean()
                style = {"marker": mark, "color": colour, "markersize": 3.0, "linestyle": "none"}
                ax.plot(means["condition_number_t"], means[quantity], label=label, alpha=0.8, **style)
            line = np.geomspace(10, max(table["condition_number_t"].max(), 20), 50)
            ax.plot(line, 1.15 * line, color=REFERENCE, linewidth=0.9, zorder=0)
            ax.set(xscale="log", yscale="log")
            letter(ax, row * len(targets) + column, f"{target}: {text}")
    for ax in axes[-1]:
        ax.set_xlabel("condition number of Sigma_t")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return Drawing(
        figure,
        "Steps until the excess risk has fallen to the goal, relative to its start, against the condition number of "
        "Sigma_t; mean over seeds of every setting (condition number, t, path). Grey: proportional to kappa. Settings "
        "whose goal is within four times the noise floor of stochastic descent are left out.",
    )
