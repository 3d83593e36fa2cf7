"""Which rows of a frame a table, a figure or a verdict is made of: settings, final checkpoints, seeds, pairs."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from precfm.core.errors import PrecfmError
from precfm.report.vocabulary import ALONE, in_order, metrics_in_order, spaces_in_order, split_matched

# Two numbers may be compared only if all of these are equal.
PROTOCOL = ("n_real", "n_generated", "reference", "extractor")
RECORD_KEYS = ["dataset", "metric", "space", *PROTOCOL]
ALL = "all"  # the scope of all classes together
NO_EXTRACTOR = "none"  # how a latent space, which needs none, is written

UNPRECONDITIONED = (
    "none",
    "scalar",
)  # by no map or one scale: the first that there is stands for no preconditioning

_ORDERS: Mapping[str, Callable[[Iterable[Any]], list[Any]]] = {
    "method": in_order,
    "metric": metrics_in_order,
    "space": spaces_in_order,
}


def groups(rows: pd.DataFrame, *keys: str) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    """The parts of a table that agree in the keys, in the order in which every report prints them.

    Args:
        rows: with columns `keys`.
        keys: the columns that tell parts apart, the first one outermost.

    Yields:
        The values of the keys, and the part's rows.
    """
    if not keys:
        yield (), rows
        return
    values = rows[keys[0]].unique()
    for value in _ORDERS.get(keys[0], sorted)(values):
        for inner, part in groups(rows[rows[keys[0]] == value], *keys[1:]):
            yield (value, *inner), part


def baseline_of(rows: pd.DataFrame, names: Sequence[str]) -> str | None:
    """The first of these methods that the rows have, or None.

    Args:
        rows: with a column method.
        names: of methods, the preferred one first.

    Example:
        >>> baseline_of(pd.DataFrame({"method": ["scalar", "per_frequency"]}), ("none", "scalar"))
        'scalar'
    """
    found = set(rows["method"])
    return next((name for name in names if name in found), None)


def baseline_text(method: str) -> str:
    """How a caption calls a flow of `UNPRECONDITIONED`."""
    return (
        "flow without preconditioning"
        if method == "none"
        else f"flow behind '{method}' (one scale for all data)"
    )


def per_seed(records: pd.DataFrame) -> pd.DataFrame:
    """One value per training seed: the mean over evaluation seeds, everything else equal.

    What several seeds have from one artifact is one observation (`one_per_artifact`). A missing extractor becomes
    `NO_EXTRACTOR`, so that it groups like any other name.

    Raises:
        PrecfmError: a value is not finite.
    """
    values = (one_per_artifact(records) if "artifact" in records.columns else records).copy()
    values["value"] = values["value"].astype(float)
    bad = values[~np.isfinite(values["value"])]
    if not bad.empty:
        row = bad.iloc[0]
        raise PrecfmError(
            f"records: {row['metric']} of {row['method']}, seed {row['seed']}, step {row['step']} is "
            f"{row['value']}; every record must be finite"
        )
    values["extractor"] = values["extractor"].fillna(NO_EXTRACTOR).replace("", NO_EXTRACTOR).astype(str)
    keys = ["dataset", "method", "seed", "step", "metric", "space", *PROTOCOL]
    return values.groupby(keys, sort=True)["value"].mean().reset_index()


def one_per_artifact(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the first seed of each artifact: what has no randomness is listed for every seed, but is one.

    Args:
        rows: with columns dataset, method, seed, artifact.
    """
    first = rows.groupby(["dataset", "method", "artifact"], dropna=False)["seed"].transform("min")
    return rows.loc[rows["seed"] == first]


def ends_apart(method: str) -> bool:
    """Whether its runs end where their own budget does: seeds of a FLOP-matched baseline (`-F`) share no last step.

    A map or a skip alone is not trained at all.
    """
    return split_matched(method)[1] == "-F" or method.startswith(ALONE)


def at_final(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of each method's final checkpoint: the last step that all of its seeds reached.

    So a method whose first seeds were trained for longer is still compared at the step where all seeds are. Of methods
    that end apart it is each run's own last step.

    Args:
        rows: with columns dataset, method, seed, step.
    """
    by_method = [rows["dataset"], rows["method"]]
    seeds = rows.groupby(["dataset", "method"])["seed"].transform("nunique")
    reached = rows.groupby(["dataset", "method", "step"])["seed"].transform("nunique")
    shared = rows["step"].where(reached == seeds).groupby(by_method).transform("max")
    apart = rows["method"].map(ends_apart).astype(bool)
    return rows.loc[rows["step"] == _last_steps(rows).where(apart, shared)]


def with_common_end(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with one last step for all seeds of a method that ends apart: the mean of theirs, rounded.

    So that the seeds of a method share a row of a table.

    Args:
        rows: with columns dataset, method, seed, step.
    """
    last = _last_steps(rows)
    mean = last.groupby([rows["dataset"], rows["method"]]).transform("mean").round()
    moved = rows["method"].map(ends_apart).astype(bool) & (rows["step"] == last)
    return rows.assign(step=rows["step"].mask(moved, mean).astype("int64"))


def with_a_course(values: pd.DataFrame) -> pd.DataFrame:
    """The rows of runs that have a metric at two checkpoints or more.

    Args:
        values: one value per seed, as from `per_seed`.
    """
    runs = values.groupby([*RECORD_KEYS, "method", "seed"])
    return values[runs["step"].transform("nunique") > 1]


def _last_steps(rows: pd.DataFrame) -> pd.Series:
    """The last step of each row's run."""
    steps: pd.Series = rows.groupby(["dataset", "method", "seed"])["step"].transform("max")
    return steps


def pair(values: pd.DataFrame, method: str, baseline: str, keys: Sequence[str]) -> pd.DataFrame:
    """Values of a method beside those of a baseline with the same seed and the same protocol.

    Both are taken at the last checkpoint that all their seeds share. Where one of them ends apart (`ends_apart`), each
    is taken at its own final checkpoint. A map without randomness is alone one observation, beside every seed.

    Args:
        values: one value per seed; columns dataset, method, seed, value, `keys`, and step if there are
            checkpoints.
        method: the method.
        baseline: what it is compared with.
        keys: the columns that must agree beside the seed, dataset among them.

    Returns:
        Columns `keys`, seed, value, value_baseline, seed_baseline, and if there are checkpoints step and step_baseline.
    """
    both = values[values["method"].isin([method, baseline])]
    steps = ["step"] if "step" in values.columns else []
    if steps and not both.empty:
        apart = ends_apart(method) or ends_apart(baseline)
        both = (
            at_final(both) if apart else pd.concat([_at_shared(rows) for _, rows in both.groupby("dataset")])
        )
    on = [*keys, "seed"]
    mine, theirs = (both[both["method"] == name] for name in (method, baseline))
    theirs = theirs[[*on, "value", *steps]].assign(seed_baseline=theirs["seed"])
    if baseline.startswith(ALONE):
        theirs = _beside_every_seed(theirs, mine, keys)
    merged = mine[[*on, "value", *steps]].merge(theirs, on=on, suffixes=("", "_baseline"))
    kept = [*on, "value", "value_baseline", "seed_baseline", *steps, *(f"{name}_baseline" for name in steps)]
    return merged[kept].sort_values(on, ignore_index=True)


def _beside_every_seed(once: pd.DataFrame, runs: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """The rows that agree in the keys and have one seed, repeated for every seed of the runs."""
    single = once.groupby(list(keys))["seed"].transform("nunique") == 1
    seeds = runs[["dataset", "seed"]].drop_duplicates()
    repeated = once[single].drop(columns="seed").merge(seeds, on="dataset")
    return pd.concat([once[~single], repeated]) if len(repeated) else once


def _at_shared(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of one data set at the last step that every run in them reached, if there is one."""
    runs = len(rows[["method", "seed"]].drop_duplicates())
    reached = rows[["step", "method", "seed"]].drop_duplicates().groupby("step").size()
    shared: pd.DataFrame = rows[rows["step"] == reached[reached == runs].index.max()]
    return shared
