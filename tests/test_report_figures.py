"""Figures: what they show, beside the numbers that they are drawn from; what holds for all: test_report_contract."""

import numpy as np
import pandas as pd
import pytest

from precfm.core.errors import PrecfmError
from precfm.core.registry import load
from precfm.report.figures import sample_grids, style
from precfm.report.figures.axes import curve, legend, panels
from precfm.report.frames import GRIDS
from precfm.report.reads import LeftOutError
from tests import report_frames, theory_frames

pytestmark = pytest.mark.xdist_group("theory frames")
FEW = ("none", "whitening", "ours")


@pytest.fixture(scope="module")
def frames():
    of_data = report_frames.frames(seeds=3, methods=FEW) | {GRIDS: report_frames.images(FEW, n=6)}
    return of_data | theory_frames.frames()


def test_colours_belong_to_methods_not_to_places():
    everything = style.method_styles(report_frames.frames(seeds=1))
    some = style.method_styles(report_frames.frames(seeds=1, methods=("whitening", "ours")))
    assert some["whitening"] == everything["whitening"]
    assert some["ours"] == everything["ours"]
    assert len({look.colour for look in everything.values()}) == len(everything)
    assert "floor" not in everything


def test_matched_baselines_share_their_methods_colour_with_other_dashes():
    looks = style.method_styles(report_frames.frames(seeds=1, methods=("ours", "ours-P", "ours-F")))
    assert looks["ours"].colour == looks["ours-P"].colour == looks["ours-F"].colour
    assert len({str(look.dashes) for look in looks.values()}) == 3


def test_a_legend_of_long_names_stays_inside_the_figure():
    with style.publication():
        figure, _ = panels(1, 1, height=2)
        names = [f"wider flow, parameters as method {i}" for i in range(7)]
        legend(figure, [style.MethodStyle(name, "black", "o", "-") for name in names])
        figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1


def test_metric_panels_show_means_and_floor(frames):
    figure = load("figures", "metrics_vs_steps")({"records": frames["records"]}).figure
    panel = figure.axes[0]
    records = frames["records"]
    chosen = records[(records["metric"] == "frechet") & (records["space"] == "classifier-0")]
    means = chosen[chosen["method"] == "none"].groupby("step")["value"].mean()
    assert any(
        np.allclose(line.get_ydata(), means) for line in panel.lines if len(line.get_xdata()) == len(means)
    )
    floor = chosen[chosen["method"] == "floor"]["value"].mean()
    assert any(np.allclose(line.get_ydata(), floor) for line in panel.lines)


@pytest.mark.parametrize(("seeds", "bands", "thin"), [(1, 0, 0), (2, 0, 2), (3, 1, 0)])
def test_bands_need_three_seeds_and_two_are_shown_one_by_one(seeds, bands, thin):
    rows = report_frames.recovery(np.random.default_rng(0), seeds, ("ours",), "d")
    rows = rows[(rows["method"] == "ours") & (rows["step"] == 5000)]
    rows = rows.assign(x=rows["index"], value=rows["ratio"])
    _, axes = panels(1, 1, height=1)
    shown = curve(axes[0, 0], rows, style.MethodStyle("ours", "black", "o", "-"), log=True)
    assert len(axes[0, 0].collections) == bands
    assert len(axes[0, 0].lines) == 1 + thin
    assert np.isfinite(shown).all()


def test_decoder_panel_needs_decoder_numbers(frames):
    without = frames["spectra"].assign(decoder_sensitivity=np.nan)
    assert len(load("figures", "spectra")({"spectra": frames["spectra"]}).figure.axes) == 3
    assert len(load("figures", "spectra")({"spectra": without}).figure.axes) == 2


def test_spectra_of_the_data_belong_to_every_setting(frames):
    spectra = frames["spectra"]
    settings = spectra["space"].map({"flow": "plain"})  # spectra of the data have none
    several = pd.concat([spectra.assign(setting=settings), spectra.assign(setting="sgd")])
    assert len(load("figures", "spectra")({"spectra": several}).figure.axes) == 3


def test_sample_rows_are_the_images_in_order():
    images = report_frames.images(("none",), n=3, channels=3)
    drawing = sample_grids.draw({GRIDS: images})
    strip = np.asarray(drawing.figure.axes[1].images[0].get_array())
    np.testing.assert_array_equal(strip[:, :28], np.moveaxis(images["none"][0], 0, 2))
    np.testing.assert_array_equal(strip[:, 29:57], np.moveaxis(images["none"][1], 0, 2))


def test_images_of_a_wrong_type_are_refused():
    with pytest.raises(PrecfmError, match="'none': float64"):
        sample_grids.draw({GRIDS: {"none": np.zeros((2, 1, 4, 4))}})
    with pytest.raises(LeftOutError):
        sample_grids.draw({GRIDS: {"held-out": np.zeros((2, 1, 4, 4), dtype=np.uint8)}})


def test_descent_curves_show_the_closed_form_relative_to_its_start(frames):
    curves = frames["linear_grid.curves"]
    shown = curves[(curves["t"] == 0.99) & (curves["path"] == "linear") & (curves["direction"] == "lowest")]
    shown = shown[(shown["algorithm"] == "descent") & (shown["target"] == "velocity")]
    shown = shown[~shown["preconditioned"] & (shown["condition_number"] == 100)].sort_values("step")
    panel = load("figures", "descent_curves")(frames).figure.axes[0]
    expected = shown["theory"] / shown["theory"].iloc[0]
    assert any(np.array_equal(line.get_ydata(), expected) for line in panel.lines)


def test_a_mixture_figure_needs_the_separation_that_it_shows(frames):
    table = frames["mixture_linear.components"]
    with pytest.raises(LeftOutError):
        load("figures", "mixture_descent")({"mixture_linear.components": table[table["level"] != 4.0]})
