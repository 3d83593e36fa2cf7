"""Figure: conditioning of the probability path, kappa(Sigma_t) and effective rank over t."""

import itertools

from precfm.report.bases import basis_text
from precfm.report.figures.axes import curve, legend, letter, log_axes, method_entries, panels
from precfm.report.figures.shown import GEOMETRY, compared_text, of_first_setting, of_own_map, that_fit
from precfm.report.figures.style import Drawing, method_styles
from precfm.report.frames import Frames
from precfm.report.reads import needed, reads
from precfm.report.rows import ALL
from precfm.report.vocabulary import in_order


@reads("path_conditioning")
def draw(frames: Frames) -> Drawing:
    """Condition number over all classes, of the worst class, and effective rank, against t."""
    paths, repeated = of_own_map(of_first_setting(needed(frames, "path_conditioning"), GEOMETRY))
    paths, others = that_fit(paths.assign(x=paths["t"].astype(float)), 3)
    overall = paths[paths["scope"] == ALL]
    keys = ["dataset", "method", "seed", "x"]
    worst = paths[paths["scope"] != ALL].groupby(keys, as_index=False)["condition_number"].max()
    parts = [("all classes", "condition_number", overall), ("worst class", "condition_number", worst)]
    parts = [*parts[: 1 if worst.empty else 2], ("all classes", "effective_rank", overall)]
    styles, datasets = method_styles(frames), sorted(paths["dataset"].unique())
    figure, axes = panels(len(datasets) * len(parts), columns=len(parts), height=2.2)
    for position, (dataset, (scope, quantity, values)) in enumerate(itertools.product(datasets, parts)):
        ax, log = axes[position], quantity == "condition_number"
        rows = values[values["dataset"] == dataset].assign(
            value=lambda part, name=quantity: part[name].astype(float)
        )
        if log:
            log_axes(ax, "y")
        for place, method in enumerate(in_order(rows["method"])):
            marks = (0.02 + 0.03 * place, 0.21)  # few marks, shifted so that curves on top of each other show
            curve(ax, rows[rows["method"] == method], styles[method], log=log, markevery=marks)
        ax.set(xlim=(0, 1), xlabel="$t$ (0: noise, 1: data)")
        ax.set_ylabel("$\\kappa(\\Sigma_t)$" if log else "effective rank")
        letter(ax, position, scope + (f", {dataset}" if len(datasets) > 1 else ""))
    legend(figure, method_entries(list(paths["method"]), styles))
    caption = (
        "Conditioning of the path x_t = α_t x₁ + σ_t x₀ that a flow learns, in the space behind the map of each "
        f"method: {compared_text(paths)}. Condition number of Σ_t over all classes, that of the worst single class, "
        "and effective rank (exponential of the entropy of the eigenvalues); geometric mean over seeds (rank: mean). "
        "A preconditioner without randomness is the same for every seed. At t = 0 every path is white noise. κ(Σ_t) "
        f"depends on the overall scale of the data, which 'scalar' alone fixes.{basis_text(paths)}{repeated}{others}"
    )
    return Drawing(figure, caption)
