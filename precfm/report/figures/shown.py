"""What a figure shows and what its caption says is left to the tables: by rule, whatever the outcome."""

from collections.abc import Iterator, Sequence

import pandas as pd

from precfm.report.figures.style import BAND_FROM
from precfm.report.formatting import seeds_text
from precfm.report.vocabulary import in_order, method_label, split_matched

MAX_PANELS = 6
MAX_METHODS = 9  # beside their matched baselines: as many as there are colours

# The first setting that there is. Claims count the tuned one where there is one; the maps are the same in all, and the
# plain one has most of them; tuned ones rarely keep checkpoints.
DECIDING = ("tuned", "plain", "long")
GEOMETRY = ("plain", "tuned", "long")
COURSES = ("long", "plain", "tuned")

# What is drawn in one panel where all methods in one would hide each other.
FAMILIES = {
    "linear maps": (
        *("none", "scalar", "per_channel", "channel_whitening", "kronecker", "low_rank", "per_frequency"),
        *("whitening", "class_whitening"),
    ),
    "learned maps": ("normalizing_flow", "low_capacity_flow"),
    "skips": ("gaussian_skip", "mixture_skip"),
}
OTHERS = "other methods"


def of_first_setting(rows: pd.DataFrame, settings: Sequence[str] = DECIDING) -> pd.DataFrame:
    """The rows of the first of these settings that there is, for a figure that would grow with every ablation.

    Rows without a setting, which are of the data, belong to all of them. All rows, if there is none of these settings.
    """
    found = set(rows["setting"].dropna()) if "setting" in rows.columns else set()
    chosen = next((setting for setting in settings if setting in found), None)
    return rows if chosen is None else rows[rows["setting"].isin([chosen]) | rows["setting"].isna()]


def of_own_map(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows without methods whose map is that of another one before them, as the skips have, and a caption's words.

    Args:
        rows: with columns method and artifact, the one that the map's diagnostics come from.
    """
    maps: dict[tuple[str, ...], list[str]] = {}
    for method in in_order(rows["method"]):
        maps.setdefault(tuple(sorted(rows[rows["method"] == method]["artifact"].unique())), []).append(method)
    same = [methods for methods in maps.values() if len(methods) > 1]
    texts = [f"{', '.join(map(method_label, others))} as {method_label(first)}" for first, *others in same]
    repeated = {method for _, *others in same for method in others}
    return rows[~rows["method"].isin(repeated)], f" Same map: {'; '.join(texts)}." if texts else ""


def that_fit(rows: pd.DataFrame, panels_each: int = 1) -> tuple[pd.DataFrame, str]:
    """The rows of as many data sets and methods as a figure holds, in the order of all reports.

    Args:
        rows: with columns dataset and method.
        panels_each: of a data set.

    Returns:
        The rows, and what a caption says of the others; empty if all are there.
    """
    datasets = sorted(rows["dataset"].unique())
    methods = list(dict.fromkeys(split_matched(method)[0] for method in in_order(rows["method"])))
    room, bases = (
        max(MAX_PANELS // panels_each, 1),
        rows["method"].map(lambda method: split_matched(method)[0]),
    )
    kept = rows["dataset"].isin(datasets[:room]) & bases.isin(methods[:MAX_METHODS])
    others = [*datasets[room:], *map(method_label, methods[MAX_METHODS:])]
    return rows[kept], f" In the tables alone: {', '.join(others)}." if others else ""


def family(method: str) -> str:
    """The kind of a method, a matched baseline's that of its method.

    Example:
        >>> family("whitening"), family("normalizing_flow-P"), family("ours")
        ('linear maps', 'learned maps', 'other methods')
    """
    base = split_matched(method)[0]
    return next((name for name, methods in FAMILIES.items() if base in methods), OTHERS)


def by_family(rows: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Data set, family and rows of the methods of each family that there is; rows with columns dataset and method."""
    families = rows["method"].map(family)
    for dataset in sorted(rows["dataset"].unique()):
        for name in (*FAMILIES, OTHERS):
            part = rows[(rows["dataset"] == dataset) & (families == name)]
            if len(part):
                yield dataset, name, part


def compared_text(rows: pd.DataFrame) -> str:
    """How a caption begins to say what is compared: methods, data sets, seeds and spread.

    Args:
        rows: with columns dataset, method and seed.
    """
    matched = rows["method"].map(lambda method: bool(split_matched(method)[1]))
    count = rows["method"][~matched].nunique()
    methods = f"{count} method{'' if count == 1 else 's'}" + " and their matched baselines" * bool(
        matched.any()
    )
    seeds = rows.groupby("method")["seed"].nunique()
    few = "each one a thin line" if seeds.max() > 1 else "without interval"
    spread = "mean, band: 95% t interval" if seeds.max() >= BAND_FROM else few
    return f"{methods} on {', '.join(sorted(rows['dataset'].unique()))}, {seeds_text(seeds)} ({spread})"
