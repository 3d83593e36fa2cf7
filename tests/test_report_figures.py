"""Figures: how they look, and what they show beside the numbers they are drawn from; more: test_report_contract."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from precfm.core.errors import PrecfmError
from precfm.core.registry import REGISTRY, load
from precfm.report.figures import axes, sample_grids, shown, style
from precfm.report.figures.recovery import BINS, binned
from precfm.report.frames import GRIDS, NEIGHBOURS
from precfm.report.reads import LeftOutError, handed
from tests import report_frames, theory_frames

pytestmark = pytest.mark.xdist_group("theory frames")
FEW = ("none", "whitening", "ours")
MATCHED = ("normalizing_flow-P", "normalizing_flow-F")


@pytest.fixture(scope="module")
def frames():
    of_data = report_frames.frames(seeds=3, methods=FEW) | {GRIDS: report_frames.images(FEW, n=6)}
    return of_data | theory_frames.frames()


@pytest.fixture(scope="module")
def many():
    """Two data sets, eight methods, matched baselines: what a large experiment hands over."""
    methods = report_frames.METHODS + MATCHED
    one = report_frames.frames(seeds=2, methods=methods)
    of_data = {name: pd.concat([table, table.assign(dataset="other-pca64")]) for name, table in one.items()}
    return of_data | {GRIDS: report_frames.images(methods, n=20)} | theory_frames.frames()


@pytest.fixture
def drawn(monkeypatch):
    """Every text that is drawn, with its box in pixels; what lies out of view is not drawn."""
    found, draw = [], Text.draw

    def noting(text, renderer):
        draw(text, renderer)
        if text.get_visible() and text.get_text().strip():
            found.append((text, Text.get_window_extent(text, renderer)))

    monkeypatch.setattr(Text, "draw", noting)
    return found


@pytest.mark.parametrize("name", REGISTRY["figures"])
def test_it_is_fit_to_print(name, many, drawn):
    draw = load("figures", name)
    with style.publication():
        figure = draw(handed(draw, many)).figure
        figure.canvas.draw()
    assert name == "sample_grids" or len(figure.axes) <= shown.MAX_PANELS
    assert figure.get_figwidth() == style.WIDTH
    for text, box in drawn:
        assert text.get_fontsize() >= 6.5
        assert 0 <= box.x0 < box.x1 <= figure.bbox.x1, f"'{text.get_text()}' leaves the figure"
        assert 0 <= box.y0 < box.y1 <= figure.bbox.y1, f"'{text.get_text()}' leaves the figure"
    for (one, box), (other, beside) in itertools.combinations(drawn, 2):
        assert not box.overlaps(beside), f"'{one.get_text()}' on '{other.get_text()}'"
    for line in (line for ax in figure.axes for line in ax.lines):
        assert len(line.get_xdata()) > 1 or line.get_marker() not in ("", "None", None)


def test_colours_belong_to_methods_not_to_places():
    everything = style.method_styles(report_frames.frames(seeds=1))
    some = style.method_styles(report_frames.frames(seeds=1, methods=("whitening", "ours")))
    assert some["whitening"] == everything["whitening"]
    assert len({look.colour for look in everything.values()}) == len(everything)
    assert "floor" not in everything


def test_where_colours_repeat_the_marks_differ():
    names = [f"method_{i}" for i in range(20)]
    looks = style.method_styles({"records": pd.DataFrame({"method": names})}).values()
    assert len({(look.colour, look.mark) for look in looks}) == len(names)


def test_matched_baselines_are_grey_with_the_mark_of_their_method():
    looks = style.method_styles(report_frames.frames(seeds=1, methods=("ours", "ours-P", "ours-F")))
    assert {looks["ours-P"].colour, looks["ours-F"].colour} == {style.REFERENCE}
    assert looks["ours"].mark == looks["ours-P"].mark == looks["ours-F"].mark
    assert len({str(look.dashes) for look in looks.values()}) == 3


@pytest.mark.parametrize(("low", "high"), [(0.9, 1.1), (1, 3), (4e-3, 7), (1e-9, 1e9), (2e11, 4.5e11)])
def test_a_log_axis_has_three_to_eight_ticks_with_names_of_their_own(low, high):
    _, (ax,) = axes.panels(1, height=2)
    ax.set(ylim=(low, high))
    axes.log_axes(ax)
    ax.set(ylim=(low, high))
    ticks = [tick for tick in ax.get_yticks() if low <= tick <= high]
    assert 3 <= len(ticks) <= 8
    assert len(set(ax.yaxis.get_major_formatter().format_ticks(ticks))) == len(ticks)


def test_what_does_not_fit_is_left_to_the_tables_by_name_and_order(many):
    methods = ["none", "whitening", *(f"m{i}" for i in range(9)), "whitening-P", "m8-P"]
    rows = pd.DataFrame(itertools.product("ab", methods), columns=["dataset", "method"])
    kept, others = shown.that_fit(rows, panels_each=4)
    assert set(kept["dataset"]) == {"a"}
    assert list(kept["method"]) == [*methods[:9], "whitening-P"]
    assert others == " In the tables alone: b, m7, m8."


def test_a_figure_shows_one_setting_and_each_map_once():
    settings = pd.DataFrame({"setting": ["plain", "tuned", "score", None], "method": ["a", "b", "c", "d"]})
    assert list(shown.of_first_setting(settings)["method"]) == ["b", "d"]
    assert list(shown.of_first_setting(settings[settings["setting"] == "score"])["method"]) == ["c"]
    maps = pd.DataFrame({"method": ["scalar", "gaussian_skip", "none"], "artifact": ["x", "x", "y"]})
    kept, repeated = shown.of_own_map(maps)
    assert list(kept["method"]) == ["scalar", "none"]
    assert repeated == " Same map: Gaussian skip as scalar."


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
    _, (ax,) = axes.panels(1, height=1)
    shown = axes.curve(ax, rows, style.MethodStyle("ours", "black", "o", "-"), log=True)
    assert len(ax.collections) == bands
    assert len(ax.lines) == 1 + thin
    assert np.isfinite(shown).all()


def test_recovery_is_averaged_over_neighbouring_directions(frames):
    ratios = binned(frames["recovery"])
    one = ratios[(ratios["method"] == "ours") & (ratios["seed"] == 0)].set_index("x")["value"]
    final = (
        frames["recovery"]
        .query("method == 'ours' and seed == 0 and step == 5000")
        .set_index("index")["ratio"]
    )
    assert len(one) == BINS == report_frames.DIM
    assert one.loc[1 - 0.5 / BINS] == pytest.approx(final.loc[0])  # the smallest variance comes last
    twice = [frames["recovery"].assign(index=2 * frames["recovery"]["index"] + shift) for shift in (0, 1)]
    doubled = pd.concat(twice)
    pd.testing.assert_frame_equal(binned(doubled), ratios)


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
    images = report_frames.images(("none", "none-P", "alone:none"), n=3, channels=3)
    drawing = sample_grids.draw({GRIDS: images})
    assert len(drawing.figure.axes) == 2
    strip = np.asarray(drawing.figure.axes[1].images[0].get_array())
    gap = 28 + sample_grids.GAP
    np.testing.assert_array_equal(strip[:, :28], np.moveaxis(images["none"][0], 0, 2))
    np.testing.assert_array_equal(strip[:, gap : gap + 28], np.moveaxis(images["none"][1], 0, 2))


def test_neighbours_stand_below_their_samples():
    images = report_frames.images(("none", "scalar"), n=3, channels=3)
    images |= {"held-out, decoded": images["held-out"], f"{NEIGHBOURS}none": images["scalar"]}
    drawing = sample_grids.draw({GRIDS: images})
    rows = [ax.texts[0].get_text() for ax in drawing.figure.axes]
    assert rows == ["held-out images", "held-out, decoded", "none", "nearest in train", "scalar"]


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
    expected = shown["theory"].iloc[1:] / shown["theory"].iloc[0]
    assert any(np.array_equal(line.get_ydata(), expected) for line in panel.lines)


def test_a_mixture_figure_needs_the_separation_that_it_shows(frames):
    table = frames["mixture_linear.components"]
    with pytest.raises(LeftOutError):
        load("figures", "mixture_descent")({"mixture_linear.components": table[table["level"] != 4.0]})
