"""Tables: which numbers stand in a cell, at which checkpoint, under which protocol; their formats."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from precfm.core.errors import PrecfmError
from precfm.core.statistics import Estimate, holm, joint_estimate, t_estimate
from precfm.report.bootstrap import unpacked
from precfm.report.documents import latex_text
from precfm.report.formatting import estimate_texts
from precfm.report.frames import FRAMES
from precfm.report.reads import LeftOutError, frame
from precfm.report.rows import at_final, pair, per_seed
from precfm.report.tables import conditioning, methods, metrics, paired, recovery, sides, theory, training
from tests import report_frames
from tests.report_frames import cell


@pytest.fixture(scope="module")
def frames():
    return report_frames.frames(seeds=5)


def records_of(frames, **chosen):
    rows = frames["records"]
    for column, value in chosen.items():
        rows = rows[rows[column] == value]
    return rows


def test_metric_cells_are_means_over_seeds_at_the_final_checkpoint(frames):
    row = cell(metrics.tidy(frames), method="whitening", metric="frechet", space="classifier-0")
    values = records_of(frames, method="whitening", metric="frechet", space="classifier-0", step=5000)[
        "value"
    ]
    interval = stats.ttest_1samp(values, 0).confidence_interval()
    assert row["value"] == pytest.approx(values.mean())
    assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
    assert (row["n"], row["step"]) == (5, 5000)


def test_the_caption_says_how_estimated_likelihoods_have_their_error_in_the_interval(frames):
    records = frames["records"].assign(note="")
    assert "random vectors" not in sides.build({**frames, "records": records}).caption
    records.loc[records["metric"] == "nll", "note"] = "standard error of the trace: 0.1"
    assert "random vectors" in sides.build({**frames, "records": records}).caption


def test_every_extractor_has_its_own_block(frames):
    table = metrics.build(frames)
    titles = [block.title for block in table.blocks]
    assert len(titles) == len(set(titles)) == 6
    mixed = frames["records"].copy()
    mixed.loc[(mixed["space"] == "classifier-0") & (mixed["seed"] == 1), "extractor"] = "another"
    assert len(metrics.build({"records": mixed}).blocks) == 7
    assert any("`another`" in block.note for block in metrics.build({"records": mixed}).blocks)


def test_floor_and_preconditioners_alone_are_the_last_rows(frames):
    names = metrics.build(frames).blocks[0].cells["method"].tolist()
    assert names[0] == "none"
    assert names[-1] == "floor (train split)"
    assert names[-2].endswith("alone")


def test_evaluation_seeds_are_averaged_before_training_seeds():
    rows = records_of({"records": report_frames.frames(seeds=2)["records"]}, metric="kid", step=5000)
    twice = pd.concat([rows, rows.assign(evaluation_seed=1, value=rows["value"] + 0.5)])
    once = per_seed(rows).sort_values(["method", "seed", "space"])["value"].to_numpy()
    both = per_seed(twice).sort_values(["method", "seed", "space"])["value"].to_numpy()
    np.testing.assert_allclose(both, once + 0.25)


def test_a_number_that_is_not_finite_is_refused(frames):
    records = frames["records"].copy()
    records.loc[records.index[3], "value"] = math.nan
    with pytest.raises(PrecfmError, match=r"seed \d+, step \d+"):
        metrics.tidy({"records": records})


def test_longer_runs_of_some_seeds_do_not_move_the_final_checkpoint():
    runs = [(seed, step) for seed in range(5) for step in (10, 20)] + [(0, 90), (1, 90)]
    rows = pd.DataFrame(
        [("d", "none", seed, step) for seed, step in runs], columns=["dataset", "method", "seed", "step"]
    )
    assert set(at_final(rows)["step"]) == {20}


def test_pairs_share_seed_step_and_protocol():
    def row(method, seed, step, value, extractor="a"):
        return ("d", method, seed, step, value, extractor)

    rows = [row("none", s, step, 10 * s + step) for s in (0, 1) for step in (5, 10)]
    rows += [row("m", s, step, 10 * s + step + 1) for s in (0, 1, 2) for step in (5, 10, 50)]
    values = pd.DataFrame(rows, columns=["dataset", "method", "seed", "step", "value", "extractor"])
    paired_up = pair(values, "m", "none", ["dataset", "extractor"])
    assert paired_up["seed"].tolist() == [0, 1]
    assert (paired_up["value"] - paired_up["value_baseline"]).tolist() == [1, 1]
    assert set(paired_up["step"]) == {10}
    other = values.assign(extractor=np.where(values["method"] == "m", "a", "b"))
    assert pair(other, "m", "none", ["dataset", "extractor"]).empty


@pytest.fixture(scope="module", params=["plain", "tuned"])
def matched(request):
    """Five seeds whose FLOP-matched flow ends apart; under a tuned recipe there is one checkpoint, the last."""
    of_data = report_frames.frames(seeds=5, methods=("none", "scalar", "ours", "ours-P", "ours-F"))
    if request.param == "plain":
        return of_data
    early = report_frames.STEPS[:-1]
    return {
        name: rows[~rows["step"].isin(early)] if name in ("records", "recovery") else rows
        for name, rows in of_data.items()
    }


def test_flows_that_end_apart_are_taken_at_their_own_ends(matched):
    ends = [report_frames.STEPS[-1] + 550 + seed for seed in range(5)]
    records = matched["records"]
    of_metric = per_seed(records[(records["metric"] == "frechet") & (records["space"] == "latent-whitened")])
    assert sorted(at_final(of_metric[of_metric["method"] == "ours-F"])["step"]) == ends
    for method, baseline in (("ours", "ours-F"), ("ours-F", "none")):
        both = pair(of_metric, method, baseline, ["dataset"])
        steps = dict.fromkeys(("step", "step_baseline"), [report_frames.STEPS[-1]] * 5)
        steps["step" if method == "ours-F" else "step_baseline"] = ends
        assert both["seed"].tolist() == list(range(5))
        assert {name: both[name].tolist() for name in steps} == steps
        mine = at_final(of_metric[of_metric["method"] == method]).set_index("seed")["value"]
        assert both["value"].tolist() == mine[both["seed"]].tolist()
    wider = pair(of_metric, "ours", "ours-P", ["dataset"])
    assert set(wider["step"]) == set(wider["step_baseline"]) == {report_frames.STEPS[-1]}


def test_tables_show_flows_that_end_apart_once_at_the_mean_of_their_ends(matched):
    end = report_frames.STEPS[-1] + 552
    chosen = {"method": "ours-F", "metric": "frechet", "space": "latent-whitened"}
    records = records_of(matched, **chosen)
    last = records[records["step"] > report_frames.STEPS[-1]]["value"].mean()
    for table in (metrics, sides):
        row = cell(table.tidy(matched), **chosen)
        assert (row["step"], row["n"], row["value"]) == (end, 5, pytest.approx(last))
    quantity = cell(methods.tidy(matched), method="ours-F", quantity="frechet, latent-whitened")
    assert (quantity["n"], quantity["value"]) == (5, pytest.approx(last))
    low = cell(recovery.tidy(matched), method="ours-F", quantity="low_ratio")
    assert (low["step"], low["n"]) == (end, 5)
    difference = cell(paired.tidy(matched), **chosen)
    assert (difference["step"], difference["n"]) == (end, 5)
    alone = {**matched, "bootstrap": matched["bootstrap"].iloc[:0]}
    assert (
        difference["low"] != cell(paired.tidy(alone), **chosen)["low"]
    )  # its replicates are of its own ends
    if len(records) > 5:
        course = training.tidy(matched)
        course = course[(course["method"] == "ours-F") & (course["metric"] == "kid")]
        assert set(course["step"]) == {*report_frames.STEPS[:-1], end}
        assert set(course["n"]) == {5}
    else:
        with pytest.raises(LeftOutError):
            training.tidy(matched)


def test_what_several_seeds_have_from_one_artifact_is_one_observation(frames):
    table = sides.tidy(frames)
    closed, learned = (cell(table, method=f"alone:{m}", metric="nll") for m in ("whitening", "ours"))
    assert (closed["n"], learned["n"]) == (1, 5)
    assert math.isnan(closed["low"])
    values = per_seed(records_of(frames, metric="nll"))
    both = pair(values, "whitening", "alone:whitening", ["dataset"])
    assert (both["seed"].tolist(), set(both["seed_baseline"])) == (list(range(5)), {0})


def test_a_seed_that_diverges_is_told_by_median_and_range_below_the_table(frames):
    records = frames["records"].copy()
    assert not any("Median" in block.note for block in sides.build(frames).blocks)
    of_ours = (records["method"] == "ours") & (records["metric"] == "nll")
    records.loc[of_ours & (records["seed"] == 3), "value"] = 1e6
    table = sides.build({**frames, "records": records})
    row = cell(table.data, method="ours", metric="nll")
    assert (row["largest"], row["smallest"] <= row["median"] < 1e3 < row["value"]) == (1e6, True)
    assert [
        f"{row['largest']:.2e}"[:4] in block.note for block in table.blocks if "Median" in block.note
    ] == [True]


def test_without_some_replicates_there_is_no_interval(frames):
    def lacking(method, seed):
        rows = frames["bootstrap"]
        return {**frames, "bootstrap": rows[(rows["method"] != method) | (rows["seed"] != seed)]}

    chosen = {"method": "ours", "metric": "nll"}
    for method in ("ours", "none"):
        row = cell(paired.tidy(lacking(method, 3)), **chosen)
        assert (math.isnan(row["low"]), math.isnan(row["p"]), row["n"]) == (True, True, 5)
    assert math.isnan(cell(sides.tidy(lacking("ours", 3)), **chosen)["low"])
    assert not math.isnan(cell(sides.tidy(lacking("none", 3)), **chosen)["low"])


def test_paired_differences_are_those_of_scipy_with_holm_over_the_table(frames):
    table = paired.tidy({"records": frames["records"]})
    row = cell(table, method="class_whitening", metric="frechet", space="classifier-1")
    chosen = {"metric": "frechet", "space": "classifier-1", "step": 5000}
    ours = records_of(frames, method="class_whitening", **chosen).sort_values("seed")["value"].to_numpy()
    base = records_of(frames, method="none", **chosen).sort_values("seed")["value"].to_numpy()
    assert row["p"] == pytest.approx(stats.ttest_rel(ours, base).pvalue)
    assert row["value"] == pytest.approx((ours - base).mean())
    assert table["p_holm"].tolist() == pytest.approx(holm(table["p"].tolist()), nan_ok=True)
    assert not table["indicative"].any()
    assert "eigenvalue_ratio_low" not in set(table["metric"])


def test_paired_intervals_join_the_bootstrap_where_there_is_one(frames):
    def difference(rows):
        of_method = rows.droplevel([name for name in rows.index.names if name not in ("method", "seed")])
        return of_method.loc["class_whitening"] - of_method.loc["none"]

    def of_nll(name):
        return frames[name][frames[name]["metric"] == "nll"]

    chosen = {"method": "class_whitening", "metric": "nll", "space": "latent"}
    values = difference(of_nll("records").set_index(["method", "seed"])["value"])
    replicates = difference(unpacked(of_nll("bootstrap")))
    joint = joint_estimate(values, replicates)
    row = cell(paired.tidy(frames), **chosen)
    assert (row["value"], row["low"], row["p"]) == pytest.approx((joint.value, joint.low, joint.p))
    plain = cell(paired.tidy({"records": frames["records"]}), **chosen)
    assert plain["low"] == pytest.approx(t_estimate(values).low)


def test_the_sides_stand_beside_each_other_with_floor_and_maps_alone(frames):
    table = sides.build(frames)
    data, cells = table.data, table.blocks[0].cells
    assert set(data["side"]) == {"perceptual", "second moments", "likelihood", "copying"}
    nll = cell(data, method="ours", metric="nll")
    values = records_of(frames, method="ours", metric="nll")["value"]
    assert nll["value"] == pytest.approx(values.mean())
    assert (
        nll["high"] > stats.ttest_1samp(values, 0).confidence_interval().high
    )  # the held-out rows scatter, too
    floor = cell(data, method="floor", space="classifier-0-decoded")
    assert (floor["n"], floor["value"]) == (report_frames.DRAWS, pytest.approx(0.05, abs=0.002))
    assert math.isnan(cell(data, method="alone:whitening", space="classifier-0")["low"])  # one run
    assert cells["method"].tolist()[-1] == "floor (train split)"
    of_latents = ["low |ln ratio| ↓", "Fréchet, whitened ↓", "NLL (nats) ↓", "nearer to train ↓"]
    of_judges = [f"Fréchet, judge {k}{behind} ↓" for behind in ("", ", decoded") for k in (0, 1)]
    assert list(cells.columns[3:]) == [*of_judges, *of_latents]
    with pytest.raises(LeftOutError):
        sides.tidy({"records": records_of(frames, metric="precision")})


def test_small_sets_show_the_kid_and_components_of_every_judge():
    found = {(metric, space) for metric in ("kid", "frechet_pca64") for space in ("pixels", "imagenet")}
    found |= {("frechet", "classifier-0"), ("kid", "classifier-0"), ("frechet_pca64", "latent-whitened")}
    assert [head for _, head in sides.columns(found).values()] == [
        "Fréchet, judge 0 ↓",
        "KID, imagenet ↓",
        "KID, pixels ↓",
        "Fréchet, 64 components, imagenet ↓",
        "Fréchet, 64 components, pixels ↓",
        "Fréchet, whitened, 64 components ↓",
    ]


def test_few_seeds_are_flagged_indicative():
    table = paired.build(report_frames.frames(seeds=2))
    assert table.data["indicative"].all()
    assert table.blocks[0].cells["seeds"].str.endswith("*").all()
    assert "indicative at most" in table.notes[0]


def test_conditioning_of_data_classes_and_path(frames):
    table = conditioning.tidy(frames)
    spectra = frames["spectra"]
    data = spectra[(spectra["space"] == "data") & (spectra["method"] == "none") & (spectra["seed"] == 0)]
    ends = data.groupby("scope")["eigenvalue"].agg(lambda v: v.max() / v.min())
    row = cell(table, method="data", quantity="condition_number")
    assert row["value"] == pytest.approx(ends["all"])
    assert cell(table, method="data", quantity="class_high")["value"] == pytest.approx(ends.drop("all").max())
    paths = frames["path_conditioning"]
    chosen = paths[(paths["method"] == "ours") & (paths["scope"] == "all")]
    over_t = np.log(chosen["condition_number"]).groupby(chosen["seed"]).mean()
    row = cell(table, method="ours", quantity="path_log_condition_number")
    assert row["value"] == pytest.approx(over_t.mean())
    assert row["n"] == 5


def test_a_preconditioner_without_randomness_counts_once(frames):
    table = conditioning.tidy(frames)
    repeated = cell(table, method="scalar", quantity="condition_number")
    assert repeated["n"] == 1
    assert math.isnan(repeated["low"])
    assert set(table[table["method"] == "scalar"]["n"]) == {1}
    assert set(table[table["method"] == "normalizing_flow"]["n"]) == {5}


def test_remarks_of_preconditioners_stand_below_the_table_once(frames):
    notes = conditioning.build(frames).notes
    assert notes == ["class whitening: 3 classes had fewer than 200 rows; shrinkage 0.02 applied"]


def test_recovery_summaries_by_hand():
    rows = [("d", "m", 0, 9, index, 1.0, ratio) for index, ratio in enumerate([4.0, 0.25, 1.0, 1.0, 1.0])]
    frames = {"recovery": pd.DataFrame(rows, columns=list(FRAMES["recovery"].columns))}
    values = recovery.tidy(frames).set_index("quantity")["value"]
    log = math.log(4)
    assert values["low_ratio"] == pytest.approx(1.0)  # lowest quartile of five directions: two
    assert values["low_log_error"] == pytest.approx(log)
    assert values["log_error"] == pytest.approx(2 * log / 5)
    assert values["worst_log_error"] == pytest.approx(log)


def test_training_table_has_only_metrics_with_a_course(frames):
    table = training.tidy(frames)
    assert "precision" not in set(table["metric"])
    assert set(table["step"]) == set(report_frames.STEPS)
    heads = training.build(frames).blocks[0].cells.columns.tolist()
    assert heads == ["method", "500", "1,000", "2,000", "3,500", "5,000"]


def test_a_metric_that_a_method_has_at_one_checkpoint_has_no_row_in_the_training_table(frames):
    records = frames["records"]
    alone = (records["method"] == "ours") & (records["metric"] == "kid") & (records["step"] < 5000)
    table = training.tidy({**frames, "records": records[~alone]})
    shown = {metric: set(rows["method"]) for metric, rows in table.groupby("metric")}
    assert "ours" in shown["frechet"]
    assert shown["kid"] == shown["frechet"] - {"ours"}


def test_missing_columns_are_named(frames):
    with pytest.raises(PrecfmError, match=r"^records: .*'space'"):
        frame({"records": frames["records"].drop(columns="space")}, "records")
    with pytest.raises(LeftOutError):
        paired.tidy({"records": records_of(frames, method="none")})


def test_a_column_shares_decimals_and_power_of_ten():
    column = [Estimate(1.23456, 1.13456, 1.33456, 3), Estimate(9.9, math.nan, math.nan, 1)]
    assert estimate_texts(column) == ["1.23 ± 0.10", "9.90"]
    assert estimate_texts([Estimate(math.nan, math.nan, math.nan, 0)]) == ["–"]


def test_latex_escapes_everything_that_a_name_may_hold():
    assert latex_text("a_b & 50% #1 {x}") == r"a\_b \& 50\% \#1 \{x\}"
    assert (
        latex_text("|x| ↓ κ(Σₜ) 10⁻⁴ ± é")
        == r"$|$x$|$ $\downarrow$ $\kappa$($\Sigma$$_t$) 10$^{-4}$ $\pm$ \'e"
    )


def test_the_theory_table_has_one_block_per_claim_and_loses_no_row():
    rows = [
        ("C10", "a_b", 2.5, 1.0, 4.0, 5, 0.3, "note"),
        ("C1", "exact", 1e-12, float("nan"), float("nan"), 1, float("nan"), ""),
    ]
    statistics = pd.DataFrame(rows, columns=list(FRAMES["theory_statistics"].columns))
    table = theory.build({"theory_statistics": statistics})
    assert [block.title for block in table.blocks] == ["Claim C1", "Claim C10"]
    assert len(table.data) == sum(len(block.cells) for block in table.blocks) == 2
    assert table.blocks[1].cells["95% interval"].tolist() == ["[1.00, 4.00]"]
    with pytest.raises(LeftOutError):
        theory.build({})
