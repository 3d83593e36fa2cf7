"""The table of latents: how many, how ill-conditioned, and how much of an image they keep."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from precfm.report.bases import basis_text
from precfm.report.formatting import MISSING
from precfm.report.frames import Frames
from precfm.report.reads import Row, needed, reads
from precfm.report.rows import ALL
from precfm.report.summaries import condition_number, long_form, summarised
from precfm.report.tables.blocks import Block, Quantity, Table, quantity_columns
from precfm.report.vocabulary import DATA

_QUANTITIES = {
    "train_rows": Quantity("train", "count"),
    "validation_rows": Quantity("validation", "count"),
    "heldout_rows": Quantity("held-out", "count"),
    "dimension": Quantity("dimension", "count"),
    "condition_number": Quantity("κ", "ratio"),
    "class_low": Quantity("κ, best class", "ratio"),
    "class_high": Quantity("κ, worst class", "ratio"),
    "effective_rank": Quantity("effective rank"),
    "squared_error": Quantity("reconstruction error"),
    "clamped_share": Quantity("clamped share"),
    "lowest_sensitivity": Quantity("lowest sensitivity / error", "size"),
}
_LATENTS = ["dataset", "artifact"]
_SENSITIVITY = (
    " Last, of all directions the lowest decoder sensitivity (how far the decoded image moves, as a sum of squares, "
    "when its latent moves by one standard deviation along an eigenvector) over the reconstruction error: far below 1, "
    "what a flow does to the variance along that direction changes images by less than the decoder errs, and metrics "
    "on images can hardly reward it."
)


def tidy(frames: Frames) -> pd.DataFrame:
    """The latents of each data set before any preconditioner; mean and interval where there are several encoders.

    Returns:
        Columns dataset, quantity, value, low, high, n; n counts distinct latents.
    """
    spectra = needed(frames, "spectra")
    spectra = spectra[spectra["space"] == "data"].drop_duplicates([*_LATENTS, "scope", "index"])
    reconstruction = needed(frames, "reconstruction").drop_duplicates([*_LATENTS, "split"])
    counts = reconstruction.pivot(index=_LATENTS, columns="split", values="rows").add_suffix("_rows")
    decoded = reconstruction[reconstruction["split"] == "heldout"].set_index(_LATENTS)
    values = counts.join([decoded[["squared_error", "clamped_share"]], _of_spectra(spectra)])
    values["lowest_sensitivity"] /= values["squared_error"]
    long = long_form(values.reset_index(), _LATENTS, _QUANTITIES)
    ratios = [name for name, quantity in _QUANTITIES.items() if quantity.multiplicative]
    return summarised(long, ["dataset", "quantity"], long["quantity"].isin(ratios))


def _of_spectra(spectra: pd.DataFrame) -> pd.DataFrame:
    numbers = spectra.astype({"eigenvalue": float, "decoder_sensitivity": float})
    kappa = numbers.groupby([*_LATENTS, "scope"])["eigenvalue"].agg(condition_number)
    whole = kappa.index.get_level_values("scope") == ALL
    of_classes = kappa[~whole].groupby(_LATENTS).agg(class_low="min", class_high="max")
    overall = numbers[numbers["scope"] == ALL].groupby(_LATENTS)
    of_all = overall.agg(
        dimension=("eigenvalue", "size"),
        effective_rank=("eigenvalue", _effective_rank),
        lowest_sensitivity=("decoder_sensitivity", "min"),
    )
    return of_all.join([kappa[whole].droplevel("scope").rename("condition_number"), of_classes])


def _effective_rank(eigenvalues: "pd.Series[float]") -> float:
    """As `precfm.geometry.spectra.effective_rank`, from the eigenvalues."""
    shares = eigenvalues[eigenvalues > 0] / eigenvalues[eigenvalues > 0].sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _behind(row: Row, column: str) -> Iterable[Row]:
    """The latents, and no method's space."""
    return [{**row, "method": DATA}]


@reads("reconstruction", "spectra", behind=_behind)
def build(frames: Frames) -> Table:
    """The table as it is printed: a row per data set in the latent space of one encoder."""
    data = tidy(frames)
    columns = quantity_columns(data.assign(method=data["dataset"]), _QUANTITIES)
    rows = [
        [name, *(texts.get(name, MISSING) for texts in columns.values())]
        for name in sorted(data["dataset"].unique())
    ]
    latents = int(data["n"].max())
    several = (
        ""
        if latents == 1
        else f" Mean over up to {latents} encoders with the 95% t interval, for condition numbers on the log scale."
    )
    caption = (
        "Latents before any preconditioner: images in each split; dimension; condition number κ of the covariance of "
        "the train split over all classes and for the best and worst single class (∞: some direction has no "
        "variance); effective rank (exponential of the entropy of the eigenvalues); mean squared error of a decoded "
        "held-out image, summed over its pixels and channels in units of [0, 1]; share of these numbers that the "
        "decoder had to clamp into [0, 1] by more than half a grey level."
    )
    caption += _SENSITIVITY if "lowest_sensitivity" in set(data["quantity"]) else ""
    spectra = needed(frames, "spectra")
    caption += basis_text(spectra[spectra["space"] == "data"]) + several
    return Table(data, [Block("Latents", pd.DataFrame(rows, columns=["latents", *columns]))], caption)
