"""The table of latents: every quantity by hand from spectra and reconstruction, several encoders, singular latents."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from precfm.geometry.spectra import effective_rank
from precfm.report.frames import FRAMES
from precfm.report.reads import LeftOutError
from precfm.report.tables import latents
from tests import report_frames
from tests.report_frames import cell


def frames_of(*artifacts):
    """Frames of latents, each given as (dataset, artifact, eigenvalues by scope, sensitivities, splits)."""
    spectra, reconstruction = [], []
    for dataset, key, by_scope, sensitivities, splits in artifacts:
        for scope, values in by_scope.items():
            known = sensitivities if scope == "all" else [math.nan] * len(values)
            for index, (value, sensitivity) in enumerate(zip(values, known, strict=True)):
                spectra.append((dataset, "none", 0, scope, "data", index, value, sensitivity, key))
        reconstruction += [(dataset, *split, key) for split in splits]
    return {
        "spectra": pd.DataFrame(spectra, columns=list(FRAMES["spectra"].columns)),
        "reconstruction": pd.DataFrame(reconstruction, columns=list(FRAMES["reconstruction"].columns)),
    }


SPLITS = [("train", 50, 9.0, 0.9), ("validation", 0, math.nan, math.nan), ("heldout", 20, 2.0, 0.25)]
SPECTRA = {"all": [1.0, 2.0, 8.0], "class-0": [1.0, 2.0, 3.0], "class-1": [0.5, 1.0, 6.0]}


def test_every_quantity_by_hand():
    data = latents.tidy(frames_of(("d-pca", "a", SPECTRA, [0.5, 3.0, 8.0], SPLITS)))
    found = data.set_index("quantity")["value"]
    assert found.to_dict() == pytest.approx(
        {
            "train_rows": 50,
            "validation_rows": 0,
            "heldout_rows": 20,
            "dimension": 3,
            "condition_number": 8.0,
            "class_low": 3.0,
            "class_high": 12.0,
            "effective_rank": effective_rank(torch.diag(torch.tensor(SPECTRA["all"]))),
            "squared_error": 2.0,
            "clamped_share": 0.25,
            "lowest_sensitivity": 0.25,
        }
    )
    assert list(data.columns) == ["dataset", "quantity", "value", "low", "high", "n"]


def test_several_encoders_of_a_data_set_are_averaged_condition_numbers_on_the_log_scale():
    other = SPECTRA | {"all": [1.0, 2.0, 2.0]}
    given = frames_of(
        ("d", "a", SPECTRA, [0.5, 3.0, 8.0], SPLITS),
        ("d", "b", other, [1.0, 3.0, 8.0], SPLITS),
        ("e", "c", SPECTRA, [0.5, 3.0, 8.0], SPLITS),
    )
    kappa = cell(latents.tidy(given), dataset="d", quantity="condition_number")
    assert (kappa["value"], kappa["n"]) == (pytest.approx(4.0), 2)
    assert cell(latents.tidy(given), dataset="e", quantity="condition_number")["n"] == 1
    table = latents.build(given)
    assert table.blocks[0].cells["latents"].tolist() == ["d", "e"]
    assert "2 encoders" in table.caption


def test_latents_without_variance_in_some_direction_have_an_infinite_condition_number():
    by_scope = {"all": [0.0, 1.0, 4.0], "class-0": [-1e-17, 1.0, 4.0], "class-1": [1e-17, 1.0, 4.0]}
    given = frames_of(("d", "a", by_scope, [0.0, 1.0, 4.0], SPLITS))
    found = latents.tidy(given).set_index("quantity")["value"]
    assert found[["condition_number", "class_low", "class_high"]].tolist() == [math.inf] * 3
    assert found["lowest_sensitivity"] == 0
    assert found["effective_rank"] == pytest.approx(math.exp(-0.2 * math.log(0.2) - 0.8 * math.log(0.8)))
    assert latents.build(given).blocks[0].cells["κ"].tolist() == ["∞"]


def test_the_data_are_shown_whatever_the_methods_made_of_them():
    frames = report_frames.frames(seeds=2)
    spectra = frames["spectra"]
    data = spectra[(spectra["space"] == "data") & (spectra["scope"] == "all")]["eigenvalue"]
    found = latents.tidy(frames).set_index("quantity")["value"]
    assert found["condition_number"] == pytest.approx(data.max() / data.min())
    assert found["dimension"] == report_frames.DIM
    assert np.isfinite(found).all()


@pytest.mark.parametrize("absent", ["spectra", "reconstruction"])
def test_without_one_of_its_frames_it_is_left_out(absent):
    frames = {name: rows for name, rows in report_frames.frames(seeds=2).items() if name != absent}
    with pytest.raises(LeftOutError, match=absent):
        latents.build(frames)
