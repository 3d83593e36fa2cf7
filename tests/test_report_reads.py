"""What reports read: declared exactly, handed over, gathered from the artifacts that one mapping names."""

import pandas as pd
import pytest

from precfm.core.errors import PrecfmError
from precfm.report.frames import (
    FRAMES,
    STATISTICS,
    available,
    budgets,
    first_of_each_method,
    gathered,
    sources_of,
    stacked,
    theory_tables,
)
from precfm.report.reads import handed, own_row, reads, wanted, with_baseline
from tests import report_frames


def test_an_undeclared_frame_is_refused_and_an_absent_one_is_absent():
    frames = report_frames.frames(seeds=1)

    @reads("records", optional=("budgets",))
    def build(given):
        return given

    given = handed(build, {"records": frames["records"], "spectra": frames["spectra"]})
    assert list(given) == ["records"]
    assert given.get("budgets") is None
    for read in (given.get, lambda name: given[name], lambda name: name in given):
        with pytest.raises(PrecfmError, match="spectra"):
            read("spectra")
    with pytest.raises(PrecfmError, match="reads"):
        handed(lambda given: given, frames)


def test_an_experiment_wants_what_its_artifacts_can_fill():
    @reads("records", optional=("predictors",))
    def of_records(given): ...

    @reads("predictors")
    def of_kernels(given): ...

    @reads("linear_grid.curves")
    def of_theory(given): ...

    functions = {"b": of_records, "a": of_kernels, "c": of_theory}
    about = {"evaluations": [{"dataset": "d", "method": "m", "seed": 0}], "kernels": []}
    assert wanted(functions, available(about)) == ["b"]
    theory = {"theory": [{"name": "n", "run": "linear_grid", "seed": 0}]}
    assert wanted(functions, available(theory)) == ["c"]
    assert STATISTICS in available(theory)
    assert wanted(functions, available({**about, **theory, "kernels": [{}]})) == ["a", "b", "c"]


def test_frames_name_their_sources_and_match_artifacts_to_rows():
    source = sources_of("linear_grid.curves")
    assert (source.roles, source.files["theory"]) == (("theory",), "curves.csv")
    assert source.matches({"run": "linear_grid", "seed": 3}, {"seed": "3"})
    assert not source.matches({"run": "steps_to_accuracy", "seed": 3}, {"seed": "3"})
    run = {"dataset": "d", "method": "m", "seed": 0, "setting": "plain"}
    assert FRAMES["records"].matches(run, {"dataset": "d", "method": "m", "value": "7"})
    assert not FRAMES["records"].matches(run, {"dataset": "d", "method": "none"})
    assert FRAMES["spectra"].matches({"dataset": "d"}, {"dataset": "d", "method": "none"})
    with pytest.raises(PrecfmError, match="'rekords'"):
        sources_of("rekords")


def test_a_row_is_made_of_its_own_unless_something_else_is_declared():
    @reads("records", behind=with_baseline)
    def of_pairs(given): ...

    row = {"dataset": "d", "method": "m", "baseline": "none"}
    assert [each["method"] for each in of_pairs.behind(row, "value")] == ["m", "none"]
    assert reads("records")(lambda given: given).behind is own_row
    assert list(own_row(row, "value")) == [row]


def test_what_artifacts_stand_for_comes_before_what_they_say():
    tables = [({"dataset": "d", "seed": seed}, pd.DataFrame({"t": [0, 1]})) for seed in (0, 1)]
    assert stacked(tables).to_dict("list") == {"dataset": ["d"] * 4, "seed": [0, 0, 1, 1], "t": [0, 1, 0, 1]}
    assert "dataset" not in tables[0][1]  # what was read stays as it is
    assert stacked([({"seed": 2}, {"steps": 7})]).to_dict("records") == [{"seed": 2, "steps": 7}]


def test_budgets_join_flows_with_their_maps_and_matches():
    ours, wider = ({"dataset": "d", "method": name, "seed": 0, "setting": "plain"} for name in ("m", "m-P"))
    cost = {"flow_parameters": 5, "flops_per_step": 3.0, "steps": 9, "notes": ""}
    fitted = {"num_parameters": 2, "flops_per_fit": 8.0, "inverse_flops_per_sample": 1.0}
    match = {"matched_width": 11, "matched_steps": 12}
    found = budgets([(ours, cost), (wider, cost)], [(ours, fitted)], [(ours, match)])
    skip = {"fit_flops": 5.0, "fitted_numbers": 7}
    skipped = budgets([(ours, cost), (wider, cost)], [(ours, fitted)], [], [(ours, skip)])
    assert skipped[["fit_flops", "fitted_numbers"]].to_numpy().tolist() == [[13.0, 7], [0, 0]]
    assert found["fit_flops"].tolist() == [
        8.0,
        0,
    ]  # what only fixes the scale of a baseline counts as nothing
    assert found["matched_steps"].tolist()[0] == 12
    assert found["matched_steps"].isna().tolist() == [False, True]


def test_gathering_asks_for_the_files_of_the_mapping_and_leaves_out_what_is_empty():
    asked = []

    def pairs(role, file):
        asked.append((role, file))
        found = [({"dataset": "d"}, pd.DataFrame({"index": [0]}))]
        return found if (role, file) == ("latents", "spectrum.csv") else []

    frames = gathered(pairs)
    assert list(frames) == ["spectra"]
    assert frames["spectra"][["method", "seed"]].to_dict("list") == {"method": ["none"], "seed": [0]}
    assert ("diagnostics", "preconditioner.json") in asked


def test_records_and_replicates_are_those_of_evaluations_and_likelihoods():
    def pairs(role, file):
        metric = {"evaluations": "frechet", "likelihoods": "nll"}.get(role)
        return (
            [({"dataset": "d"}, pd.DataFrame({"metric": [metric]}))]
            if metric and file.endswith(".csv")
            else []
        )

    frames = gathered(pairs)
    for name in ("records", "bootstrap"):
        assert frames[name]["metric"].tolist() == ["frechet", "nll"]


def test_seeds_of_a_controlled_experiment_stand_below_each_other():
    table = pd.DataFrame({"value": [1.0]})
    pairs = [({"run": "linear_grid", "seed": seed}, {"curves": table}) for seed in (0, 1)]
    found = theory_tables([*pairs, ({"run": "linear_grid", "seed": 2}, {"curves": table.assign(seed=7)})])
    assert found["linear_grid.curves"]["seed"].tolist() == [0, 1, 7]


def test_sample_grids_are_of_the_first_data_set_and_seed():
    about = [
        {"dataset": dataset, "method": method, "seed": seed}
        for dataset in ("d", "e")
        for method in ("none", "m")
        for seed in (0, 1)
    ]
    assert first_of_each_method(about) == [0, 2]
    assert first_of_each_method([]) == []
