"""Which numbers a table, a figure or a verdict is made of: columns, final checkpoints, seeds, pairs."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from precfm.errors import PrecfmError
from precfm.report.vocabulary import split_matched

Frames = Mapping[str, pd.DataFrame]

# Two numbers may be compared only if all of these are equal.
PROTOCOL = ("n_real", "n_generated", "reference", "extractor")
ALL = "all"  # the scope of all classes together
NO_EXTRACTOR = "none"  # how a latent space, which needs none, is written

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


def lowest_quartile_count(directions: int) -> int:
    """How many directions are the lowest quartile: a quarter of them, rounded up."""
    return -(-directions // 4)
