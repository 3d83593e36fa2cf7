"""Figure: conditioning of the probability path, kappa(Sigma_t) and effective rank over t."""

from precfm.report.figures.axes import curve, legend, letter, panels, spread_text
from precfm.report.figures.style import Drawing, method_styles
from precfm.report.frames import Frames
from precfm.report.reads import needed, reads
from precfm.report.rows import ALL, GEOMETRY, of_settings
from precfm.report.vocabulary import in_order


@reads("path_conditioning")
def draw(frames: Frames) -> Drawing:
    """Condition number over all classes, of the worst class, and effective rank, against t."""
    paths = of_settings(needed(frames, "path_conditioning"), GEOMETRY)
    paths = paths.assign(x=paths["t"].astype(float))
    overall = paths[paths["scope"] == ALL]
    keys = ["dataset", "method", "seed", "x"]
    worst = paths[paths["scope"] != ALL].groupby(keys, as_index=False)["condition_number"].max()
    parts = [
        (
            "$\\kappa(\\Sigma_t)$",
            "all classes",
            overall.assign(value=overall["condition_number"].astype(float)),
        )
    ]
    if not worst.empty:
        parts.append(
            (
                "$\\kappa(\\Sigma_t)$",
                "worst class",
                worst.assign(value=worst["condition_number"].astype(float)),
            )
        )
    parts.append(
        ("effective rank", "all classes", overall.assign(value=overall["effective_rank"].astype(float)))
    )
    styles = method_styles(frames)
    datasets = sorted(paths["dataset"].unique())
    figure, axes = panels(len(datasets), len(parts), height=2.35)
    for position, ax in enumerate(axes.flat):
        dataset, (label, scope, values) = datasets[position // len(parts)], parts[position % len(parts)]
        rank = label == "effective rank"
        rows = values[values["dataset"] == dataset]
        for place, method in enumerate(in_order(rows["method"])):
            marks = (0.02 + 0.03 * place, 0.21)  # few marks, shifted so that curves on top of each other show
            curve(ax, rows[rows["method"] == method], styles[method], log=not rank, markevery=marks)
        if not rank:
            ax.set_yscale("log")
        ax.set_xlim(0, 1)
        ax.set_xlabel("$t$ (0: noise, 1: data)")
        ax.set_ylabel(label)
        letter(ax, position, scope + (f", {dataset}" if len(datasets) > 1 else ""))
    legend(figure, [styles[method] for method in in_order(paths["method"])])
    caption = (
        "Conditioning of the path x_t = α_t x₁ + σ_t x₀ in the space in which each method's flow is "
        "trained: condition number of Σ_t over all classes, that of the worst single class, and effective "
        "rank (exponential of the entropy of the eigenvalues). At t = 0 every path is white noise. κ(Σ_t) "
        "depends on the overall scale of the data, which 'scalar' alone fixes. Geometric mean (rank: mean) "
        f"{spread_text(paths)}; a preconditioner without randomness is the same for every seed."
    )
    return Drawing(figure, caption)
