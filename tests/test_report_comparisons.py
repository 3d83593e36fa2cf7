"""Tables that compare methods by cost, plateau and predictors, on frames whose answers are known by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from precfm.core.errors import PrecfmError
from precfm.report.correlations import partial_spearman, resampled, spearman
from precfm.report.figures import predictors as predictors_figure
from precfm.report.figures import time_to_quality as time_figure
from precfm.report.frames import FRAMES
from precfm.report.predictor_values import beside_results, predictor_values
from precfm.report.reads import LeftOutError
from precfm.report.rows import per_seed
from precfm.report.summaries import with_training_flops
from precfm.report.tables import methods, plateaus, predictors, time_to_quality
from tests import report_frames
from tests.report_frames import cell

SETTING = "mnist5k-vae"


@pytest.fixture(scope="module")
def frames():
    return report_frames.frames(seeds=5)


def curve_records(curves, steps=(10, 100, 1000), dataset="d"):
    """Frechet distances by method and seed, one list over the steps."""
    rows = [
        (dataset, method, seed, step, "frechet", "classifier-0", value, 50, 50, "heldout", 0, "abc")
        for method, seeds in curves.items()
        for seed, values in enumerate(seeds)
        for step, value in zip(steps, values, strict=True)
    ]
    return pd.DataFrame(rows, columns=list(FRAMES["records"].columns))


def budget_rows(costs, seeds, dataset="d"):
    """FLOPs per step and to fit by method."""
    rows = [
        (dataset, method, seed, 100, 10, per_step, fit, 5, 1000, math.nan, math.nan)
        for method, (per_step, fit) in costs.items()
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows, columns=list(FRAMES["budgets"].columns))


def test_the_method_table_lists_every_method_with_its_cost_and_metrics(frames):
    data = methods.tidy(frames)
    assert set(data["method"]) == {*report_frames.METHODS, "floor"}
    training = cell(data, method="ours", quantity="training_flops")
    assert training["value"] == pytest.approx(1e9 * report_frames.STEPS[-1])
    fit = cell(data, method="ours", quantity="fit_flops")
    assert (fit["value"], fit["n"]) == (pytest.approx(3e11 + 2e9), 5)
    records = frames["records"]
    chosen = records[
        (records["method"] == "ours") & (records["metric"] == "frechet") & (records["step"] == 5000)
    ]
    of_space = chosen[chosen["space"] == "classifier-1"]["value"]
    row = cell(data, method="ours", quantity="frechet, classifier-1")
    assert row["value"] == pytest.approx(of_space.mean())
    assert row["high"] == pytest.approx(stats.ttest_1samp(of_space, 0).confidence_interval().high)
    assert cell(data, method="scalar", quantity="residual_condition_number")["n"] == 1  # one fit, repeated
    assert cell(data, method="ours", quantity="inverse_flops_per_sample")["n"] == 5  # two frames hold it
    assert data.loc[data["method"] != "floor", "n"].max() == 5
    assert data.loc[data["method"] == "floor", "n"].min() == report_frames.DRAWS
    block = methods.build(frames).blocks[0].cells
    assert block["method"].tolist()[-1] == "floor (train split)"
    assert "parameters, flow" in block.columns


def test_the_method_table_needs_budgets_and_nothing_else(frames):
    with pytest.raises(LeftOutError, match="budgets"):
        methods.tidy({**frames, "budgets": frames["budgets"].iloc[:0]})
    alone = methods.build({"budgets": frames["budgets"]})
    assert len(alone.blocks[0].cells) == len(report_frames.METHODS)


def test_extractors_and_settings_are_never_mixed(frames):
    mixed = frames["records"].copy()
    mixed.loc[(mixed["space"] == "classifier-0") & (mixed["seed"] == 1), "extractor"] = "another"
    heads = methods.build({**frames, "records": mixed}).blocks[0].cells.columns
    assert sum("classifier-0" in head and "decoded" not in head for head in heads) == 2
    other = report_frames.frames(seeds=2, methods=("none", "ours"), dataset="mnist-vae-tuned")
    both = {name: pd.concat([rows, other[name]], ignore_index=True) for name, rows in frames.items()}
    for table in (methods, time_to_quality, plateaus):
        apart = table.tidy(frames)
        together = table.tidy(both)
        together = together[together["dataset"] == SETTING].reset_index(drop=True)
        pd.testing.assert_frame_equal(together[apart.columns], apart)
    assert len(methods.build(both).blocks) == 2


def test_training_flops_hold_the_fit():
    values = curve_records({"m": [(3.0, 2.0, 1.0)]})
    rows = with_training_flops(values, budget_rows({"m": (7.0, 100.0)}, 1))
    assert rows["flops"].tolist() == [170.0, 800.0, 7100.0]
    assert with_training_flops(values, budget_rows({"other": (7.0, 100.0)}, 1)).empty


def test_time_to_quality_by_hand():
    curves = {
        "scalar": [(5.0, 3.0, 2.0), (5.0, 3.0, 2.0)],
        "half": [(3.0, 1.0, 1.0), (3.0, 1.0, 1.0)],  # 2.0 is half-way from step 10 to step 100
        "first": [(2.0, 2.0, 2.0), (1.0, 1.0, 1.0)],
        "once": [(9.0, 9.0, 1.9), (9.0, 9.0, 2.1)],
        "never": [(9.0, 8.0, 7.0), (9.0, 8.0, 7.0)],
        "back": [(9.0, 1.0, 7.0), (9.0, 1.0, 7.0)],  # the first time counts
    }
    costs = dict.fromkeys(curves, (1.0, 0.0))
    data = time_to_quality.tidy({"records": curve_records(curves), "budgets": budget_rows(costs, 2)})
    found = data.set_index("method")
    assert (found["baseline"] == "scalar").all()
    assert found["flops"].drop("back").to_dict() == {
        "scalar": 1000.0,
        "half": pytest.approx(10**1.5),
        "first": 10.0,
        "once": math.inf,
        "never": math.inf,
    }
    assert found["ratio"]["half"] == pytest.approx(10**-1.5)
    assert found["flops"]["back"] < 100
    assert found["reached"].to_dict() == {
        "scalar": 2,
        "half": 2,
        "first": 2,
        "once": 1,
        "never": 0,
        "back": 2,
    }
    assert found["at_most"].to_dict() == {name: name == "first" for name in curves}
    cells = (
        time_to_quality.build({"records": curve_records(curves), "budgets": budget_rows(costs, 2)})
        .blocks[0]
        .cells
    )
    printed = cells.set_index("method")["training FLOPs"]
    assert (printed["never"], printed["first"]) == ("not reached", "≤ 10.0")


def test_the_fit_of_a_preconditioner_delays_it():
    curves = {"none": [(5.0, 3.0, 2.0)], "m": [(3.0, 1.0, 1.0)]}
    records = curve_records(curves)
    times = {}
    for fit in (0.0, 500.0):
        data = time_to_quality.tidy(
            {"records": records, "budgets": budget_rows({"none": (1, 0), "m": (1, fit)}, 1)}
        )
        times[fit] = cell(data, method="m")["flops"]
    assert times[500.0] == pytest.approx(math.sqrt(510 * 600))
    assert times[0.0] == pytest.approx(math.sqrt(10 * 100))


def test_the_median_is_a_bound_only_where_it_rests_on_one():
    values = (9.0, 1.0, 1.0)
    curves = {"none": [(9.0, 3.0, 2.0)] * 3, "m": [(2.0, 1.0, 1.0), values, values]}
    frames = {"records": curve_records(curves), "budgets": budget_rows({"none": (1, 0), "m": (1, 0)}, 3)}
    assert not cell(time_to_quality.tidy(frames), method="m")["at_most"]
    early = curve_records({**curves, "m": [(2.0, 1.0, 1.0)] * 2 + [values]})
    assert cell(time_to_quality.tidy({**frames, "records": early}), method="m")["at_most"]


def test_time_to_quality_is_left_out_with_the_reason():
    records = curve_records({"m": [(3.0, 2.0, 1.0)]})
    with pytest.raises(LeftOutError, match="budgets"):
        time_to_quality.tidy({"records": records})
    with pytest.raises(LeftOutError, match="scalar and none"):
        time_to_quality.tidy({"records": records, "budgets": budget_rows({"m": (1, 0)}, 1)})
    single = records[records["step"] == 10]
    with pytest.raises(LeftOutError, match="checkpoint"):
        time_to_quality.tidy({"records": single, "budgets": budget_rows({"m": (1, 0)}, 1)})


def test_the_figure_draws_means_against_flops(frames):
    figure = time_figure.draw(frames).figure
    records = frames["records"]
    chosen = records[(records["metric"] == "frechet") & (records["space"] == "classifier-0")]
    means = chosen[chosen["method"] == "ours"].groupby("step")["value"].mean()
    flops = 3e11 + 2e9 + 1e9 * means.index.to_numpy()
    assert any(
        len(line.get_xdata()) == len(means)
        and np.allclose(line.get_ydata(), means)
        and np.allclose(line.get_xdata(), flops)
        for line in figure.axes[0].lines
    )


def test_plateaus_are_slopes_per_decade_of_the_late_checkpoints():
    steps = (10, 200, 500, 1000)
    late = [math.exp(-0.3 * math.log10(step)) for step in steps[1:]]
    flat = {"falling": [(99.0, *late)] * 2, "flat": [(9.0, 2.0, 2.0, 2.0)] * 2}
    data = plateaus.tidy({"records": curve_records(flat, steps)})
    falling = cell(data, method="falling")
    assert falling["value"] == pytest.approx(-0.3)  # the early checkpoint does not count
    assert (falling["first"], falling["last"], falling["checkpoints"], falling["n"]) == (200, 1000, 3, 2)
    assert cell(data, method="flat")["value"] == pytest.approx(0.0)
    with pytest.raises(LeftOutError, match="checkpoints"):
        plateaus.tidy({"records": curve_records(flat, (10, 100, 150, 1000))})
    with pytest.raises(PrecfmError, match="positive"):
        plateaus.tidy({"records": curve_records({"m": [(1.0, 1.0, 0.0, 1.0)]}, steps)})


ranks = st.lists(st.integers(0, 6), min_size=5, max_size=5)


@settings(max_examples=50, deadline=None)
@given(ranks, ranks, ranks)
def test_partial_correlation_is_that_of_residuals_of_ranks(x, y, control):
    found = float(partial_spearman(x, y, control))
    design = np.stack([np.ones(5), stats.rankdata(control)], axis=1)
    left = []
    for values in (x, y):
        of_ranks = stats.rankdata(values)
        left.append(of_ranks - design @ np.linalg.lstsq(design, of_ranks, rcond=None)[0])
    if math.isnan(found):
        assert min(np.linalg.norm(residual) for residual in left) < 1e-4 or len(set(control)) == 1
    else:
        assert found == pytest.approx(np.corrcoef(*left)[0, 1], abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=9))
def test_spearman_is_that_of_scipy(pairs):
    x, y = map(list, zip(*pairs, strict=True))
    found = float(spearman(x, y))
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(stats.spearmanr(x, y).statistic)


def test_resampled_intervals_hold_the_value_narrow_with_cases_and_repeat():
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    y = x + rng.normal(size=60)
    few, many = resampled(spearman, x[:10], y[:10]), resampled(spearman, x, y)
    for estimate in (few, many):
        assert estimate.low < estimate.value < estimate.high
    assert many.high - many.low < few.high - few.low
    assert resampled(spearman, x, y) == many
    scipys = stats.bootstrap(
        (x, y),
        lambda a, b: stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert (many.low, many.high) == pytest.approx((scipys.low, scipys.high), abs=0.03)
    assert math.isnan(resampled(spearman, [1, 1, 1], [1, 2, 3]).low)


def test_predictors_rank_methods_not_seeds_and_leave_matched_baselines_out(frames):
    both = beside_results(
        per_seed(frames["records"]), frames, ["residual_condition_number", "predicted_steps"]
    )
    of_space = both[(both["metric"] == "frechet") & (both["space"] == "classifier-0")]
    assert sorted(of_space["method"]) == sorted(report_frames.METHODS)
    fitted = frames["preconditioners"]
    ours = fitted[fitted["method"] == "ours"]["residual_condition_number"]
    assert cell(of_space, method="ours")["residual_condition_number"] == pytest.approx(stats.gmean(ours))
    matched = report_frames.frames(seeds=1, methods=("ours", "ours-P", "ours-F"))
    assert set(beside_results(per_seed(matched["records"]), matched, ["predicted_steps"])["method"]) == {
        "ours"
    }
    assert predictor_values({}, "path_log_condition_number").empty


def test_equal_predictors_tie_in_spite_of_rounding():
    rows = [
        ("d", "a", 0, 1, 1, 1, 0.1 + 0.2, 1),
        ("d", "b", 0, 1, 1, 1, 0.3, 1),
        ("d", "c", 0, 1, 1, 1, math.inf, 1),
    ]
    values = predictor_values(
        {"predictors": pd.DataFrame(rows, columns=list(FRAMES["predictors"].columns))}, "predicted_steps"
    )
    assert values["predicted_steps"].tolist() == [0.3, 0.3, math.inf]


def test_the_predictor_table_by_hand(frames):
    data = predictors.tidy(frames)
    assert set(data["dataset"]) == {SETTING}
    assert set(data["n"]) == {len(report_frames.METHODS)}
    row = cell(data, predictor="predicted_steps", controlled_for="", space="classifier-0")
    records = frames["records"]
    chosen = (
        (records["metric"] == "frechet") & (records["space"] == "classifier-0") & (records["step"] == 5000)
    )
    final = records[chosen].groupby("method")["value"].mean()
    steps = frames["predictors"].set_index("method")["predicted_steps"]
    expected = stats.spearmanr(steps, final[steps.index]).statistic
    assert row["value"] == pytest.approx(expected)
    partial = cell(
        data, predictor="predicted_steps", controlled_for="residual_condition_number", space="classifier-0"
    )
    assert -1 <= partial["value"] <= 1
    assert partial["value"] != row["value"]


def test_predictors_need_eight_methods_and_their_frame(frames):
    seven = report_frames.frames(seeds=1, methods=report_frames.METHODS[:7])
    for item in (predictors.tidy, predictors_figure.draw):
        with pytest.raises(LeftOutError, match=r"8 .*7"):
            item(seven)
        with pytest.raises(LeftOutError, match="predictors"):
            item({name: rows for name, rows in frames.items() if name != "predictors"})
    few = report_frames.frames(seeds=1, methods=("none", "ours"), dataset="few")
    both = {name: pd.concat([rows, few[name]], ignore_index=True) for name, rows in frames.items()}
    table = predictors.build(both)
    assert set(table.data["dataset"]) == {SETTING}
    assert table.notes == ["fewer than 8 methods with all predictors: few."]


def test_a_method_that_never_gets_there_counts_without_a_mark(frames):
    changed = frames["predictors"].copy()
    changed.loc[changed["method"] == "none", "predicted_steps"] = math.inf
    changed.loc[changed["method"] == "whitening", "predicted_steps"] = 0.0
    with_inf = {**frames, "predictors": changed}
    row = cell(
        predictors.tidy(with_inf), predictor="predicted_steps", controlled_for="", space="classifier-0"
    )
    assert row["n"] == len(report_frames.METHODS)
    assert math.isfinite(row["value"])
    panels = predictors_figure.draw(with_inf).figure.axes
    assert [len(ax.lines) for ax in panels[:3]] == [8, 8, 6]
