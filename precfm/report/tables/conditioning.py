"""The conditioning table: spectra before and after each preconditioner, and its round trip."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from precfm.report.frames import Frames
from precfm.report.reads import LeftOutError, frame, reads
from precfm.report.rows import ALL, groups, one_per_artifact
from precfm.report.summaries import summarised
from precfm.report.tables.blocks import Block, Quantity, Table, method_cells, quantity_columns
from precfm.report.vocabulary import DATA, in_order, method_label

_QUANTITIES = {
    "condition_number": Quantity("κ", "ratio"),
    "class_low": Quantity("κ, best class", "ratio"),
    "class_high": Quantity("κ, worst class", "ratio"),
    "path_log_condition_number": Quantity("mean ln κ(Σₜ)"),
    "effective_rank": Quantity("effective rank"),
    "round_trip_error": Quantity("round trip", "size"),
    "tail_round_trip_error": Quantity("round trip, tails", "size"),
    "num_parameters": Quantity("parameters", "count"),
    "flops_per_fit": Quantity("FLOPs to fit", "count"),
}


def tidy(frames: Frames) -> pd.DataFrame:
    """Conditioning of the space in which each method's flow is trained, mean and interval over fits.

    Returns:
        Columns dataset, method ("data": before any preconditioner), quantity, value, low, high, n; n counts
        distinct fits, so that a preconditioner without randomness has n = 1 and no interval.
    """
    values = pd.concat(
        [
            _of_spectra(one_per_artifact(frame(frames, "spectra"))),
            _of_paths(one_per_artifact(frame(frames, "path_conditioning"))),
            _of_preconditioners(one_per_artifact(frame(frames, "preconditioners"))),
        ]
    )
    if values.empty:
        raise LeftOutError("this experiment has no rows of spectra, path conditioning or preconditioners")
    keys = ["dataset", "method", "quantity"]
    return summarised(values, keys, lambda group: _QUANTITIES[str(group["quantity"])].multiplicative)


def _long(rows: Iterable[tuple[object, ...]]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=["dataset", "method", "seed", "quantity", "value"])


def _of_spectra(spectra: pd.DataFrame) -> pd.DataFrame:
    if spectra.empty:
        return _long([])
    # The data come before any method: one spectrum, whichever method's rows hold it.
    data = spectra[spectra["space"] == "data"].drop_duplicates(["dataset", "scope", "index"])
    flow = spectra[spectra["space"] == "flow"]
    both = pd.concat([data.assign(method=DATA, seed=0), flow])
    ends = both.groupby(["dataset", "method", "seed", "scope"])["eigenvalue"].agg(["min", "max"])
    kappa = (ends["max"] / ends["min"]).rename("kappa").reset_index()
    rows = []
    for (dataset, method, seed), group in kappa.groupby(["dataset", "method", "seed"]):
        overall, classes = group[group["scope"] == ALL]["kappa"], group[group["scope"] != ALL]["kappa"]
        rows += [(dataset, method, seed, "condition_number", value) for value in overall]
        if len(classes):
            rows.append((dataset, method, seed, "class_low", classes.min()))
            rows.append((dataset, method, seed, "class_high", classes.max()))
    return _long(rows)


def _of_paths(paths: pd.DataFrame) -> pd.DataFrame:
    rows = []
    overall = paths[paths["scope"] == ALL]
    for (dataset, method, seed), group in overall.groupby(["dataset", "method", "seed"]):
        end = group.sort_values("t")["effective_rank"].iloc[-1]
        rows.append((dataset, method, seed, "effective_rank", end))
        mean = np.log(group["condition_number"].astype(float)).mean()
        rows.append((dataset, method, seed, "path_log_condition_number", mean))
    return _long(rows)


def _of_preconditioners(fitted: pd.DataFrame) -> pd.DataFrame:
    names = [name for name in _QUANTITIES if name in fitted.columns]
    long = fitted.melt(["dataset", "method", "seed"], names, "quantity", "value").dropna(subset=["value"])
    return long.assign(value=long["value"].astype(float))[["dataset", "method", "seed", "quantity", "value"]]


@reads(optional=("spectra", "path_conditioning", "preconditioners"))
def build(frames: Frames) -> Table:
    """The conditioning table as it is printed: one block per data set, a row per method."""
    data = tidy(frames)
    blocks = [
        Block(dataset, method_cells(quantity_columns(rows, _QUANTITIES)))
        for (dataset,), rows in groups(data, "dataset")
    ]
    fits = int(data["n"].max())
    caption = (
        "The space in which each method's flow is trained, against the data before any preconditioner: "
        "condition number κ of the covariance over all classes and for the best and worst single class; the "
        "mean of ln κ(Σₜ) over the times of the probability path, with the overall scale of every space set to "
        "mean variance one, on which κ(Σₜ) depends; effective rank (exponential of the entropy of the "
        "eigenvalues) at the data's end of the path; round-trip error on the data and in the tails, relative to "
        "the smallest standard deviation of the data. κ of a class has a floor from sampling: a perfectly white "
        "sample of n rows in d dimensions is expected to have about ((1 + √(d/n)) / (1 − √(d/n)))², so that a "
        "small class cannot reach 1. Mean over "
        f"up to {fits} fit{'' if fits == 1 else 's'} with the 95% t interval, for condition numbers "
        "on the log scale in brackets; a preconditioner without randomness is one fit for every training seed "
        "and stands without an interval."
    )
    return Table(data, blocks, caption, _notes(frame(frames, "preconditioners")))


def _notes(fitted: pd.DataFrame) -> list[str]:
    """What the preconditioners noted while they were fitted, each remark once per method."""
    remarks: dict[str, list[str]] = {}
    for method, note in zip(fitted["method"], fitted["notes"], strict=True):
        known = remarks.setdefault(method, [])
        if isinstance(note, str) and note.strip() and note not in known:
            known.append(note)
    return [f"{method_label(method)}: {note}" for method in in_order(remarks) for note in remarks[method]]
