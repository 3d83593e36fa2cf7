"""Reports on photographs: what numbers of feature maps are of, baselines without `none`, radial power spectra."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from precfm.geometry.frequencies import ROWS_PER_CHANNEL, high_bands
from precfm.geometry.large_spectra import known_condition
from precfm.metrics.principal import WIDE
from precfm.report.bases import basis_text
from precfm.report.figures import metrics_vs_steps, path_conditioning, radial, spectra
from precfm.report.figures import recovery as recovery_figure
from precfm.report.figures.axes import FLOOR_ENTRY
from precfm.report.page import charts
from precfm.report.reads import LeftOutError
from precfm.report.rows import at_final
from precfm.report.tables import conditioning, latents, methods, paired, recovery, sides
from tests import report_frames

METHODS = ("scalar", "per_channel", "whitening")  # as of photographs: no method `none`


@pytest.fixture(scope="module")
def vectors():
    return report_frames.frames(seeds=2)


@pytest.fixture(scope="module")
def maps():
    """Frames of feature maps with few rows: no covariance, no decoder sensitivity, components."""
    frames = dict(report_frames.frames(seeds=2, methods=METHODS, dataset="flowers-dct"))
    for name in ("spectra", "path_conditioning"):
        frames[name] = frames[name].assign(basis="frequencies")
    frames["spectra"] = frames["spectra"].assign(decoder_sensitivity=math.nan)
    records = frames["records"].replace({"space": {"classifier-0": "imagenet", "classifier-1": "pixels"}})
    distances = (records["metric"] == "frechet") & ~records["space"].str.endswith("-decoded")
    frames["records"] = records.assign(metric=records["metric"].mask(distances, "frechet_pca64"))
    del frames["bootstrap"]
    return frames


OF_SPECTRA = {
    "latents": lambda frames: latents.build(frames).caption,
    "conditioning": lambda frames: conditioning.build(frames).caption,
    "spectra": lambda frames: spectra.draw(frames).caption,
    "path": lambda frames: path_conditioning.draw(frames).caption,
    "charts": lambda frames: " ".join(chart.caption for chart in charts.charts(frames, None)),
}


@pytest.mark.parametrize("name", OF_SPECTRA)
def test_a_caption_says_where_kappa_is_of_no_covariance_of_all_features(name, maps, vectors):
    caption = OF_SPECTRA[name](maps)
    assert (
        "In flowers-dct variances and κ are those of the channels' covariance at each spatial frequency"
        in caption
    )
    assert "spatial frequency" not in OF_SPECTRA[name](vectors)


def test_the_text_of_a_basis_names_data_sets_and_scopes():
    rows = pd.DataFrame({"dataset": ["a", "a", "b"], "scope": ["all", "class-0", "all"]})
    assert basis_text(rows) == basis_text(rows.assign(basis="covariance")) == ""
    assert basis_text(rows.assign(basis=[math.nan, "frequencies", "covariance"])).startswith(
        " In a (single classes)"
    )
    of_both = basis_text(rows.assign(basis=["frequencies", "frequencies", "features"]))
    assert " In a variances and κ are those of the channels'" in of_both
    assert " In b (all classes together) variances and κ are those of single features" in of_both
    assert "different quantities" in of_both
    assert "different quantities" not in basis_text(rows[rows["scope"] == "all"].assign(basis="features"))
    assert ROWS_PER_CHANNEL == 10, "or 'fewer than ten rows per channel' is wrong"


def test_the_floor_of_kappa_from_sampling_has_a_formula_only_for_a_covariance(maps, vectors):
    assert "√(d/n)" in conditioning.build(vectors).caption
    assert "√(d/n)" not in conditioning.build(maps).caption


def test_captions_speak_of_decoder_sensitivity_only_where_there_is_some(maps, vectors):
    for make in (latents.build, spectra.draw):
        assert "ecoder sensitivity" in make(vectors).caption.replace("\n", " ")
        assert "sensitivity" not in make(maps).caption


def test_the_table_of_methods_says_what_a_residual_condition_number_is_of(maps):

    note = known_condition(torch.randn(40, 3, 4, 4, generator=torch.Generator().manual_seed(0))).note
    fitted = maps["preconditioners"]
    assert "spatial frequency" not in methods.build(maps).caption
    assert (
        "spatial frequency" in methods.build({**maps, "preconditioners": fitted.assign(notes=note)}).caption
    )


def test_differences_are_to_scalar_where_there_is_no_none(maps, vectors):
    table = paired.build(maps)
    assert set(table.data["baseline"]) == {"scalar"}
    assert set(table.data["method"]) == set(METHODS) - {"scalar"}
    assert "scalar" in table.caption
    assert "without preconditioning" not in table.caption
    usual = paired.build(vectors)
    assert set(usual.data["baseline"]) == {"none"}
    assert usual.caption.startswith(
        "Differences to the flow without preconditioning, paired by training seed"
    )
    with pytest.raises(LeftOutError, match="none and scalar"):
        paired.tidy({"records": maps["records"][maps["records"]["method"] == "whitening"]})


def test_a_table_of_differences_has_one_baseline(maps, vectors):
    both = pd.concat([vectors["records"], maps["records"]])
    assert set(paired.tidy({"records": both})["dataset"]) == {"mnist5k-vae"}


@pytest.mark.parametrize(
    ("kept", "said", "unsaid"),
    [
        (("none", "scalar", "ours"), "The flow without preconditioning stands in every panel", "scalar"),
        (
            ("scalar", "ours"),
            "The flow behind 'scalar' (one scale for all data) stands in every panel",
            "without",
        ),
        (("whitening", "ours"), "Dashed: the floor", "every panel"),
    ],
)
def test_the_flow_in_every_panel_of_recovery_is_one_that_is_drawn(kept, said, unsaid, vectors):
    rows = vectors["recovery"]
    rows = rows[rows["method"].isin([*kept, "floor"])]
    drawing = recovery_figure.draw({"recovery": rows})
    assert said in drawing.caption
    assert unsaid not in drawing.caption
    mean = recovery_figure.binned(rows[rows["method"] == kept[0]]).assign(
        value=lambda part: np.log(part["value"])
    )
    expected = np.exp(mean.groupby("x")["value"].mean())
    drawn = [
        any(
            len(line.get_ydata()) == len(expected) and np.allclose(line.get_ydata(), expected)
            for line in ax.lines
        )
        for ax in drawing.figure.axes
    ]
    assert all(drawn) == (kept[0] != "whitening")


def test_each_data_set_of_recovery_has_its_own_baseline(vectors, maps):
    both = pd.concat([vectors["recovery"], maps["recovery"]])
    caption = recovery_figure.draw({"recovery": both}).caption
    assert "of mnist5k-vae the flow without preconditioning" in caption
    assert "of flowers-dct the flow behind 'scalar'" in caption


def test_directions_of_maps_do_not_depend_on_their_rows(maps):
    for caption in (recovery.build(maps).caption, recovery_figure.draw(maps).caption):
        assert "whatever their rows" in caption
        assert "too few rows" not in caption


def test_components_are_said_to_be_of_wide_spaces_and_small_sets_and_of_large_variances(maps, vectors):
    for make in (sides.build, metrics_vs_steps.draw):
        caption = make(maps).caption
        assert (
            f"more than {WIDE:,} features, or at least as many as there are samples or held-out rows"
            in caption
        )
        assert "of flowers-dct in the 64 principal directions of largest variance alone" in caption
        assert "principal" not in make(vectors).caption


def test_radial_means_by_hand():
    rows = [
        ("d", "m", 0, 9, channel, band, 1.0, ratio)
        for band in (0, 1)
        for channel, ratio in ((0, 4.0), (1, 0.25))
    ]
    frame = pd.DataFrame(rows, columns=list(report_frames.FRAMES["radial"].columns))
    frame.loc[frame["band"] == 1, "ratio"] = [4.0, 1.0]
    early = frame.assign(step=3, ratio=9.0)
    found = radial.of_bands(pd.concat([early, frame])).set_index("x")
    assert found["ratio"].tolist() == pytest.approx([1.0, 2.0])
    assert found["log_error"].tolist() == pytest.approx([math.log(4), math.log(2)])


def test_the_right_hand_panel_of_radial_is_the_metric_of_high_frequencies(vectors):

    frame = vectors["radial"]
    run = at_final(frame).query("method == 'ours' and seed == 0")
    ratios = run.pivot(index="channel", columns="band", values="ratio").to_numpy()
    metric = float(high_bands(torch.tensor(ratios)).log().abs().mean())
    bands = radial.of_bands(frame).query("method == 'ours' and seed == 0").set_index("x")
    figure = radial.draw(vectors).figure
    shaded = figure.axes[1].patches[0].get_extents().transformed(figure.axes[1].transData.inverted())
    inside = (bands.index > shaded.x0) & (bands.index < shaded.x1)
    assert bands["log_error"][inside].mean() == pytest.approx(metric)


def test_radial_shows_flows_floor_and_target(vectors):
    figure = radial.draw(vectors).figure
    lines = {line.get_label(): line for line in figure.legends[0].get_lines()}
    assert len(figure.axes) == 2
    assert set(FLOOR_ENTRY) < set(lines)
    assert "whitening alone" not in lines
    assert any(np.allclose(line.get_ydata(), 1.0) for line in figure.axes[0].lines)
    means = radial.of_bands(vectors["radial"]).query("method == 'ours'").groupby("x")["log_error"].mean()
    assert any(
        len(line.get_ydata()) == len(means) and np.allclose(line.get_ydata(), means)
        for line in figure.axes[1].lines
    )
    with pytest.raises(LeftOutError):
        radial.draw({"radial": vectors["radial"][vectors["radial"]["method"] == "floor"]})
