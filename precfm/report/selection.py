"""Which numbers a table, a figure or a verdict is made of: columns, final checkpoints, seeds, pairs."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from precfm.core.errors import PrecfmError
from precfm.core.statistics import geometric_estimate, slope, t_estimate
from precfm.report.vocabulary import split_matched

Frames = Mapping[str, pd.DataFrame]

# Two numbers may be compared only if all of these are equal.
PROTOCOL = ("n_real", "n_generated", "reference", "extractor")
RECORD_KEYS = ["dataset", "metric", "space", *PROTOCOL]
GEOMETRY = ("plain",)  # settings whose preconditioners are drawn: the others have the same
TRAINED = ("plain", "tuned", "long")  # settings whose curves are drawn
ALL = "all"  # the scope of all classes together
NO_EXTRACTOR = "none"  # how a latent space, which needs none, is written
LATE_CHECKPOINTS = 3  # a late slope rests on at least as many

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "records": (
        "dataset",
        "method",
        "seed",
        "step",
        "metric",
        "space",
        "value",
        "n_real",
        "n_generated",
        "reference",
        "evaluation_seed",
        "extractor",
    ),
    "spectra": (
        "dataset",
        "method",
        "seed",
        "scope",
        "space",
        "index",
        "eigenvalue",
        "decoder_sensitivity",
        "artifact",
    ),
    "path_conditioning": (
        "dataset",
        "method",
        "seed",
        "scope",
        "t",
        "condition_number",
        "effective_rank",
        "artifact",
    ),
    "recovery": ("dataset", "method", "seed", "step", "index", "eigenvalue", "ratio"),
    "preconditioners": (
        "dataset",
        "method",
        "seed",
        "num_parameters",
        "flops_per_fit",
        "residual_condition_number",
        "round_trip_error",
        "tail_round_trip_error",
        "notes",
        "artifact",
    ),
    "budgets": (
        "dataset",
        "method",
        "seed",
        "flow_parameters",
        "preconditioner_parameters",
        "flops_per_step",
        "fit_flops",
        "inverse_flops_per_sample",
        "steps",
        "matched_width",
        "matched_steps",
    ),
    "predictors": (
        "dataset",
        "method",
        "seed",
        "kernel_condition_number",
        "kernel_effective_condition",
        "initial_residual",
        "predicted_steps",
        "threshold",
    ),
    "history": ("dataset", "method", "seed", "step", "loss"),
    "theory_statistics": ("claim", "statistic", "value", "low", "high", "n", "note"),
}


class LeftOutError(Exception):
    """An experiment has nothing for this table or figure; the message is the reason."""


def frame(frames: Frames, name: str) -> pd.DataFrame:
    """The frame of that name, with its columns checked; an absent one is an empty one.

    Args:
        frames: data frames by name.
        name: one of `COLUMNS`.

    Raises:
        PrecfmError: a column is missing.
    """
    found = frames.get(name)
    if found is None or found.empty:
        return pd.DataFrame({column: pd.Series(dtype="object") for column in COLUMNS[name]})
    missing = [column for column in COLUMNS[name] if column not in found.columns]
    if missing:
        raise PrecfmError(
            f"{name}: column '{missing[0]}' is missing; the frame needs {', '.join(COLUMNS[name])}"
        )
    return found


def needed(frames: Frames, name: str) -> pd.DataFrame:
    """The frame of that name, for an item that makes no sense without it.

    Raises:
        LeftOutError: the frame is empty.
        PrecfmError: a column is missing.
    """
    found = frame(frames, name)
    if found.empty:
        raise LeftOutError(f"this experiment has no rows of {name.replace('_', ' ')}")
    return found


def of_settings(rows: pd.DataFrame, settings: Sequence[str]) -> pd.DataFrame:
    """The rows of these settings, for a figure that would grow with every ablation; all rows if there are none."""
    if "setting" not in rows.columns or not rows["setting"].isin(settings).any():
        return rows
    return rows[rows["setting"].isin(settings)]


def per_seed(records: pd.DataFrame) -> pd.DataFrame:
    """One value per training seed: the mean over evaluation seeds, everything else equal.

    A missing extractor becomes `NO_EXTRACTOR`, so that it groups like any other name.

    Raises:
        PrecfmError: a value is not finite.
    """
    values = records.copy()
    values["value"] = values["value"].astype(float)
    bad = values[~np.isfinite(values["value"])]
    if not bad.empty:
        row = bad.iloc[0]
        raise PrecfmError(
            f"records: {row['metric']} of {row['method']}, seed {row['seed']}, step {row['step']} is "
            f"{row['value']}; every record must be finite"
        )
    values["extractor"] = values["extractor"].fillna(NO_EXTRACTOR).replace("", NO_EXTRACTOR).astype(str)
    keys = [column for column in COLUMNS["records"] if column not in ("value", "evaluation_seed")]
    return values.groupby(keys, sort=True)["value"].mean().reset_index()


def summarised(
    values: pd.DataFrame, keys: Sequence[str], logarithmic: Callable[[Mapping[str, object]], bool]
) -> pd.DataFrame:
    """Mean and 95% t interval of the column `value` in each group.

    Args:
        values: one value per seed or fit; columns `keys` and value.
        keys: the columns that tell groups apart.
        logarithmic: whether a group, given as its keys with their values, is averaged on the log scale.

    Returns:
        Columns `keys`, value, low, high, n, sorted by the keys.
    """
    rows = []
    for key, group in values.groupby(list(keys), sort=True):
        named = dict[str, object](zip(keys, key, strict=True))
        estimate = (geometric_estimate if logarithmic(named) else t_estimate)(group["value"])
        numbers = {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}
        rows.append({**named, **numbers})
    return pd.DataFrame(rows, columns=[*keys, "value", "low", "high", "n"])


def one_per_artifact(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the first seed of each artifact: what has no randomness is listed for every seed, but is one.

    Args:
        rows: with columns dataset, method, seed, artifact.
    """
    first = rows.groupby(["dataset", "method", "artifact"], dropna=False)["seed"].transform("min")
    return rows.loc[rows["seed"] == first]


def final_steps(rows: pd.DataFrame) -> pd.Series:
    """The final checkpoint of each method: the last step that all of its seeds reached.

    So a method whose first seeds were trained for longer is still compared at the step where all seeds are.

    Args:
        rows: with columns dataset, method, seed, step.

    Returns:
        Steps, indexed by (dataset, method).
    """
    steps = {}
    for key, of_method in rows.groupby(["dataset", "method"]):
        reached = of_method.groupby("step")["seed"].nunique()
        steps[key] = int(reached[reached == of_method["seed"].nunique()].index.max())
    index = pd.MultiIndex.from_tuples(list(steps), names=["dataset", "method"])
    return pd.Series(list(steps.values()), index=index, dtype="int64")


def at_final(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of each method's final checkpoint."""
    if rows.empty:
        return rows
    final = final_steps(rows).rename("final_step")
    steps = rows.merge(final, left_on=["dataset", "method"], right_index=True, how="left")["final_step"]
    return rows.loc[rows["step"] == steps]


def pair(values: pd.DataFrame, method: str, baseline: str, keys: Sequence[str]) -> pd.DataFrame:
    """Values of a method beside those of a baseline with the same seed and the same protocol.

    Both are taken at the last checkpoint that all their seeds share. A baseline with as many training FLOPs
    (`-F`) exists to be trained for longer, so against it each is taken at its own final checkpoint.

    Args:
        values: one value per seed; columns dataset, method, seed, value, `keys`, and step if there are
            checkpoints.
        method: the method.
        baseline: what it is compared with.
        keys: the columns that must agree beside the seed.

    Returns:
        Columns `keys`, seed, value, value_baseline, and step (of the method) if there are checkpoints.
    """
    both = values[values["method"].isin([method, baseline])]
    steps = ["step"] if "step" in values.columns else []
    if steps and not both.empty:
        own = split_matched(baseline)[1] == "-F"
        parts = [at_final(rows) if own else _at_shared(rows) for _, rows in both.groupby("dataset")]
        both = pd.concat(parts)
    on = [*keys, "seed"]
    theirs = both[both["method"] == baseline][[*on, "value"]]
    merged = both[both["method"] == method].merge(theirs, on=on, suffixes=("", "_baseline"))
    return merged[[*on, "value", "value_baseline", *steps]].sort_values(on, ignore_index=True)


def _at_shared(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of one data set at the last step that every run in them reached, if there is one."""
    runs = len(rows[["method", "seed"]].drop_duplicates())
    reached = rows[["step", "method", "seed"]].drop_duplicates().groupby("step").size()
    shared: pd.DataFrame = rows[rows["step"] == reached[reached == runs].index.max()]
    return shared


def with_training_flops(values: pd.DataFrame, budgets: pd.DataFrame) -> pd.DataFrame:
    """What each row's run had cost by its step: `flops`, the fit of the preconditioner and the steps of the flow.

    Args:
        values: with columns dataset, method, seed, step.
        budgets: the frame of that name; rows without a budget are left out.
    """
    costs = budgets[["dataset", "method", "seed", "fit_flops", "flops_per_step"]]
    merged = values.merge(costs, on=["dataset", "method", "seed"])
    flops = merged["fit_flops"].astype(float) + merged["step"].astype(float) * merged[
        "flops_per_step"
    ].astype(float)
    return merged.drop(columns=["fit_flops", "flops_per_step"]).assign(flops=flops)


def late_slopes(values: pd.DataFrame, keys: Sequence[str], late_from: float) -> pd.DataFrame:
    """Slope of ln(value) per decade of steps for each run, over the late checkpoints that its group shares.

    Args:
        values: one positive value per run and checkpoint; columns `keys`, method, seed, step, value.
        keys: the columns that tell groups apart.
        late_from: late checkpoints are those from this share of the shared last step on.

    Returns:
        The columns of `values` but step, with value the slope, and first, last (steps) and checkpoints; groups
        with fewer than `LATE_CHECKPOINTS` late checkpoints are missing.

    Raises:
        PrecfmError: a value is not positive.
    """
    rows = []
    for _, group in values.groupby(list(keys), sort=True):
        runs = len(group[["method", "seed"]].drop_duplicates())
        reached = group.groupby("step").size()
        shared = [step for step in reached[reached == runs].index if step > 0]
        late = [step for step in shared if step >= late_from * max(shared)]
        if len(late) < LATE_CHECKPOINTS:
            continue
        about: dict[object, object] = {"first": min(late), "last": max(late), "checkpoints": len(late)}
        for _, run in group[group["step"].isin(late)].groupby(["method", "seed"]):
            fitted = slope(np.log10(run["step"].astype(float)), logarithms(run["value"], "a late value"))
            rows.append({**run.iloc[0].drop("step"), "value": fitted, **about})
    kept = [column for column in values.columns if column != "step"]
    return pd.DataFrame(rows, columns=[*kept, "first", "last", "checkpoints"])


def logarithms(values: pd.Series, what: str) -> pd.Series:
    """Natural logarithms.

    Raises:
        PrecfmError: a value is not positive; names `what`.
    """
    numbers = values.astype(float)
    if (numbers <= 0).any():
        raise PrecfmError(f"{what} is {numbers.min():g}; its logarithm needs positive values")
    return numbers.map(math.log)


def lowest_quartile_count(directions: int) -> int:
    """How many directions are the lowest quartile: a quarter of them, rounded up."""
    return -(-directions // 4)
