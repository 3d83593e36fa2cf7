"""In which order a reader meets tables, figures and charts, and how they are headed."""

from collections.abc import Collection, Iterator

TABLE, FIGURE, CHART = "table", "figure", "chart"

# Sections with what belongs in them; whatever an experiment lacks is passed over.
_SECTIONS: dict[str, tuple[str, ...]] = {
    "Quality": ("table sides", "figure sample_grids", "table methods", "table metrics", "table paired"),
    "Course of training": (
        "figure training_curves",
        "figure metrics_vs_steps",
        "figure time_to_quality",
        "table time_to_quality",
        "table training",
        "table plateaus",
    ),
    "Variance along eigendirections": ("figure recovery", "figure radial", "table recovery"),
    "Latents and conditioning": (
        "table latents",
        "figure spectra",
        "figure path_conditioning",
        "table conditioning",
        "figure predictors",
        "table predictors",
    ),
    "Theory: controlled experiments": (
        "figure steps_against_kappa",
        "figure descent_curves",
        "figure mixture_descent",
        "figure mixture_methods",
        "figure mixture_ablations",
        "figure residual_bound",
        "figure residual_grid",
        "figure trained_factors",
        "figure trained_budgets",
        "table theory",
    ),
}
_FURTHER = "Further tables and figures"
_TITLES = {
    "table sides": "Three sides of quality",
    "table methods": "Methods",
    "table metrics": "All metrics",
    "table paired": "Differences to no preconditioning",
    "table time_to_quality": "Training FLOPs to equal quality",
    "figure time_to_quality": "Quality against training FLOPs",
    "table training": "Metrics at every checkpoint",
    "table plateaus": "Late slopes",
    "figure sample_grids": "Samples from shared noise",
    "figure metrics_vs_steps": "Metrics against training steps",
    "figure training_curves": "Training curves",
    "figure recovery": "Recovery of variances",
    "figure radial": "Recovery of radial power spectra",
    "table recovery": "Recovery of variances, in numbers",
    "table latents": "Latents",
    "figure spectra": "Spectra",
    "figure path_conditioning": "Conditioning along the path",
    "table conditioning": "Conditioning",
    "figure predictors": "Predictors of the final distance",
    "table predictors": "Predictors, rank correlations",
    "figure steps_against_kappa": "Steps against the condition number",
    "figure descent_curves": "Gradient descent, curves",
    "figure mixture_descent": "Gaussian mixtures: gradient descent",
    "figure mixture_methods": "Gaussian mixtures: methods",
    "figure mixture_ablations": "Gaussian mixtures: ablations",
    "figure residual_bound": "Imperfect preconditioners: linear fields",
    "figure residual_grid": "Imperfect preconditioners: networks",
    "figure trained_factors": "Trained networks: factors",
    "figure trained_budgets": "Trained networks: budgets",
    "table theory": "Statistics of the controlled experiments",
}


def title(item: str) -> str:
    """The heading of a table, figure or chart, named as `table sides`."""
    return _TITLES.get(item) or item.partition(" ")[2].replace("_", " ").capitalize()


def anchor(item: str) -> str:
    """The id of its place on the page."""
    return item.replace(" ", "-")


def in_reading_order(present: Collection[str]) -> Iterator[tuple[str, list[str]]]:
    """Sections with those of the tables, figures and charts that are present; unknown ones come last.

    Example:
        >>> list(in_reading_order(["table latents", "figure mine"]))
        [('Latents and conditioning', ['table latents']), ('Further tables and figures', ['figure mine'])]
    """
    known = {item for items in _SECTIONS.values() for item in items}
    further = tuple(sorted(item for item in present if item not in known))
    for section, items in {**_SECTIONS, _FURTHER: further}.items():
        if here := [item for item in items if item in present]:
            yield section, here
