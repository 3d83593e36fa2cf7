"""The conditioning table: spectra before and after each preconditioner, and its round trip."""

import numpy as np
import pandas as pd

from precfm.report.bases import basis_text, has_covariances
from precfm.report.frames import Frames
from precfm.report.reads import LeftOutError, frame, reads
from precfm.report.rows import ALL, groups, one_per_artifact
from precfm.report.summaries import condition_number, long_form, summarised
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
_FIT = ["dataset", "method", "seed"]
_FLOOR = (  # of the covariance of a class
    ": a perfectly white sample of n rows in d dimensions is expected to have about ((1 + √(d/n)) / (1 − √(d/n)))²"
)


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
            long_form(one_per_artifact(frame(frames, "preconditioners")), _FIT, _QUANTITIES),
        ]
    )
    if values.empty:
        raise LeftOutError("this experiment has no rows of spectra, path conditioning or preconditioners")
    ratios = [name for name, quantity in _QUANTITIES.items() if quantity.multiplicative]
    return summarised(values, ["dataset", "method", "quantity"], values["quantity"].isin(ratios))


def _of_spectra(spectra: pd.DataFrame) -> pd.DataFrame:
    # The data come before any method: one spectrum, whichever method's rows hold it.
    data = spectra[spectra["space"] == "data"].drop_duplicates(["dataset", "scope", "index"])
    both = pd.concat([data.assign(method=DATA, seed=0), spectra[spectra["space"] == "flow"]])
    values = both.astype({"eigenvalue": float}).groupby([*_FIT, "scope"])["eigenvalue"]
    kappa = values.agg(condition_number).rename("condition_number").reset_index()
    overall, classes = kappa[kappa["scope"] == ALL], kappa[kappa["scope"] != ALL]
    of_classes = (
        classes.groupby(_FIT)["condition_number"].agg(class_low="min", class_high="max").reset_index()
    )
    return pd.concat([long_form(part, _FIT, _QUANTITIES) for part in (overall, of_classes)])


def _of_paths(paths: pd.DataFrame) -> pd.DataFrame:
    overall = paths[paths["scope"] == ALL].sort_values("t")
    logs = np.log(overall["condition_number"].astype(float))
    grouped = overall.assign(log=logs).groupby(_FIT)
    found = grouped.agg(effective_rank=("effective_rank", "last"), path_log_condition_number=("log", "mean"))
    return long_form(found.reset_index(), _FIT, _QUANTITIES)


@reads(optional=("spectra", "path_conditioning", "preconditioners"))
def build(frames: Frames) -> Table:
    """The conditioning table as it is printed: one block per data set, a row per method."""
    data = tidy(frames)
    blocks = [
        Block(dataset, method_cells(quantity_columns(rows, _QUANTITIES)))
        for (dataset,), rows in groups(data, "dataset")
    ]
    fits = int(data["n"].max())
    known = [frame(frames, name) for name in ("spectra", "path_conditioning")]
    bases = pd.concat([rows.reindex(columns=["dataset", "scope", "basis"]) for rows in known])
    floor = _FLOOR if has_covariances(bases[bases["scope"] != ALL]) else ""
    caption = (
        "The space in which each method's flow is trained, on the held-out split, against the data before any "
        "preconditioner, on the train split: "
        "condition number κ of the covariance over all classes and for the best and worst single class; the "
        "mean of ln κ(Σₜ) over the times of the probability path, with the overall scale of every space set to "
        "mean variance one, on which κ(Σₜ) depends; effective rank (exponential of the entropy of the "
        "eigenvalues) at the data's end of the path; round-trip error on the data and in the tails, relative to "
        f"the smallest standard deviation of the data.{basis_text(bases)} κ of a class has a floor from "
        f"sampling{floor}, so that a small class cannot reach 1. Mean over "
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
