"""Statistics of the controlled experiments, claim by claim: all of them, and constructed tables with known answers."""

import math
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from precfm.core.registry import REGISTRY
from precfm.theory.claim_statistics import COLUMNS, STATISTICS, TABLE_ONLY, theory_statistics
from precfm.theory.descent_statistics import cells_used, seed_slopes
from tests import theory_frames

pytestmark = pytest.mark.xdist_group("theory frames")
SEEDS = range(5)


@pytest.fixture(scope="module")
def statistics():
    return theory_statistics(theory_frames.frames())


@pytest.fixture(scope="module")
def announced():
    """Names of the statistics that `config/claims.yaml` asks for, by claim."""
    claims = yaml.safe_load(Path("config/claims.yaml").read_text(encoding="utf-8"))["claims"]
    return {
        claim["id"]: {each["name"] for each in claim["statistics"] if each["kind"] == "theory"}
        for claim in claims
    }


def values_of(**tables: pd.DataFrame) -> "pd.Series[float]":
    """Values by statistic of tables whose names have `__` for the dot."""
    found = theory_statistics({name.replace("__", "."): table for name, table in tables.items()})
    return found.set_index("statistic")["value"]


def test_claims_get_the_statistics_that_were_announced(statistics, announced):
    assert tuple(statistics.columns) == COLUMNS
    for claim, names in announced.items():
        found = statistics[(statistics["claim"] == claim) & statistics["statistic"].isin(names)]
        assert set(found["statistic"]) == names
        crossing = found["statistic"].str.startswith("horizon_crossing_")  # there may be none
        assert np.isfinite(found["value"][~crossing]).all()
    slope = statistics[statistics["statistic"] == "descent_steps_slope"]
    assert (slope["low"] < slope["value"]).all()
    assert theory_statistics({}).empty


def test_every_statistic_is_judged_or_table_only(statistics, announced):
    named, emitted = set().union(*announced.values()), set(statistics["statistic"])
    alone = {name for name in emitted if any(fnmatch(name, pattern) for pattern in TABLE_ONLY)}
    assert emitted - named - alone == set()
    assert named & alone == set()
    for pattern in TABLE_ONLY:
        assert any(fnmatch(name, pattern) for name in emitted), pattern


def test_every_row_says_the_table_that_it_was_computed_from(statistics):
    for claim, tables in STATISTICS.items():
        assert set(statistics[statistics["claim"] == claim]["frame"]) == set(tables)
        assert {table.partition(".")[0] for table in tables} <= set(REGISTRY["theory"])


def test_a_diverged_cell_and_cells_left_out_are_seen():
    identity = pd.DataFrame({"relative_error": [1e-12, math.nan, 1e-13, 1e-13], "seed": [0, 0, 1, 1]})
    found = theory_statistics({"linear_grid.identity": identity}).iloc[0]
    assert math.isnan(found["value"])
    assert found["n"] == 2  # seeds, not cases
    steps = pd.DataFrame({"condition_number_t": [5.0, 10.0, 100.0, 1000.0], "seed": 0, "counts_lowest": True})
    assert cells_used(steps.assign(lowest=[1.0, 2.0, math.nan, 4.0]), "lowest") == (2, 3)


def test_the_slowest_component_is_that_of_smallest_weight_times_variance():
    # The worst-conditioned one is frequent, and not the slowest; then two of equal pace count together.
    weights = {0.8: ((0.1, 1.0), (0.1, 0.1), (0.8, 0.05)), 0.2: ((0.4, 1.0), (0.4, 0.1), (0.2, 0.2))}
    errors, excess = (1.0, 6.0, 2.0), (1.0, 4.0, 0.5)
    rows = [
        {"ablation": "weights", "level": level, "method": "none", "seed": seed, "component": k}
        | {"weight": weight, "smallest_variance": low, "condition_number": 10.0**k}
        | {"log_error_low": errors[k] * (1 + seed), "excess": excess[k]}
        for seed in SEEDS
        for level, components in weights.items()
        for k, (weight, low) in enumerate(components)
    ]
    table = pd.DataFrame(rows)
    found = theory_statistics({"mixture_ablations.components": table})
    found = found[found["claim"] == "C5a"].groupby("statistic", sort=False)["value"].apply(list)
    assert found["slowest_component_error_ratio"] == pytest.approx([6 / 1.5, 4 / 1])
    assert found["slowest_component_excess_share"] == pytest.approx([0.4 / 0.9, 1.7 / 2.1])
    experts = table.assign(regime="labels", step=9, lowest=1.0).drop(columns="log_error_low")
    linear = values_of(mixture_linear__components=experts)["linear_slowest_component_excess_share"]
    assert list(linear) == pytest.approx([0.4 / 0.9, 1.7 / 2.1])


def test_flows_behind_a_map_are_set_against_what_is_not():
    errors = {
        "none": (1.0, 3.0),
        "normalizing_flow": (0.5, 0.5),
        "normalizing_flow-P": (1.0, 2.0),
        "gaussian_skip": (0.2, 0.2),
        "alone:normalizing_flow": (0.4, 0.4),
        "floor": (0.1, 0.1),
    }
    components = pd.DataFrame(
        [
            {"regime": "labels", "method": method, "seed": seed, "component": k, "log_error_low": error}
            | {"weight": 0.5, "smallest_variance": 1.0 - k / 2, "condition_number": 1.0, "excess": 1.0}
            for seed in SEEDS
            for method, both in errors.items()
            for k, error in enumerate(both)
        ]
    )
    found = values_of(mixture_networks__components=components)
    prefix = "controlled_matched_difference_labels"
    assert {name: value for name, value in found.items() if name.startswith(prefix)} == pytest.approx(
        {
            f"{prefix}_gaussian_skip_to_none": -1.8,
            f"{prefix}_normalizing_flow_to_none": -1.5,
            f"{prefix}_normalizing_flow_to_P": -1.0,
            f"{prefix}_normalizing_flow_to_skip": 0.3,
            f"{prefix}_normalizing_flow_to_alone": 0.1,
        }
    )
    rooms = theory_statistics({"mixture_networks.components": components}).set_index("statistic")["room"]
    assert rooms[f"{prefix}_normalizing_flow_to_P"] == pytest.approx(1.5 - 0.1)
    assert rooms[f"{prefix}_normalizing_flow_to_skip"] == pytest.approx(0.2 - 0.1)


def test_the_scale_control_tells_kappa_from_smallest_variance():
    # Errors that a tenfold kappa halves, and that a small variance multiplies by 9 (kappa 1) or 4 (kappa 10).
    cells = [(1.0, 1.0, 1.0), (1.0, 0.1, 9.0), (10.0, 0.1, 2.0), (10.0, 1.0, 0.5)]
    control = pd.DataFrame(
        [
            {"ablation": "scale", "method": "none", "level": 10.0, "seed": seed, "component": k}
            | {"condition_number": kappa, "smallest_variance": low, "log_error_low": error * (1 + seed)}
            | {"weight": 0.25, "excess": error}
            for seed in SEEDS
            for k, (kappa, low, error) in enumerate(cells)
        ]
    )
    found = values_of(mixture_ablations__components=control)
    # Slowest are both of small variance: (9 + 2) / 2 over (1 + 0.5) / 2.
    assert found["slowest_component_error_ratio"] == pytest.approx(5.5 / 0.75)
    effects = found[found.index.str.startswith("scale_control_")]
    assert effects.to_dict() == pytest.approx(
        {
            "scale_control_kappa_effect": (math.log(2 / 9) + math.log(0.5)) / 2,
            "scale_control_kappa_effect_large_scale": math.log(0.5),
            "scale_control_kappa_effect_small_scale": math.log(2 / 9),
            "scale_control_kappa_against_scale": math.log(0.5 / 9),
            "scale_control_variance_effect": (math.log(9) + math.log(4)) / 2,
        }
    )


def test_slopes_are_those_of_a_power_law():
    steps = pd.DataFrame(
        [
            {"seed": seed, "condition_number_t": kappa, "lowest": 3 * kappa**0.5, "counts_lowest": True}
            for seed in SEEDS
            for kappa in (1.0, 10.0, 1000.0)
        ]
    )
    assert seed_slopes(steps, "lowest") == pytest.approx([0.5] * len(SEEDS))


def budgets(errors: dict[str, dict[int, float]]) -> pd.DataFrame:
    """A table of `trained_budgets.summary` of one recipe: errors by method and step, which scatter with the seed."""
    about = {"factor": "budget", "level": "cosine", "epochs": 1.0}
    return pd.DataFrame(
        [
            {"method": method, "seed": seed, "step": step, "log_error_low": error * (1 + 0.1 * seed)} | about
            for seed in SEEDS
            for method, by_step in errors.items()
            for step, error in by_step.items()
        ]
    )


def test_gains_at_fixed_horizons_and_what_whitening_leaves():
    none, whitening = {1: 2.0, 2: 1.0, 4: 0.5}, {1: 0.4, 2: 0.2, 4: 0.1}
    table = budgets(
        {"none": none, "whitening": whitening, "exact:none": {0: 0.0}, "alone:whitening": {0: 0.2}}
    )
    found, scale = values_of(trained_budgets__summary=table), 1.2  # the mean over seeds of 1 + 0.1 seed
    assert list(found["controlled_late_change"]) == pytest.approx([-0.5 * scale, -0.1 * scale])
    assert found["controlled_final_log_error_low_difference"] == pytest.approx(-0.4 * scale)
    assert found["controlled_final_log_error_low_difference_to_alone"] == pytest.approx(-0.1 * scale)
    assert found["horizon_final_difference_cosine"] == pytest.approx(-0.4 * scale)
    assert found["horizon_gain_difference_cosine"] == pytest.approx((0.4 - 1.6) * scale)
    assert math.isnan(found["horizon_crossing_cosine"])
    rooms = theory_statistics({"trained_budgets.summary": table}).set_index("statistic")["room"]
    assert rooms["horizon_final_difference_cosine"] == pytest.approx(0.5 * scale)
    assert rooms["controlled_final_log_error_low_difference"] == pytest.approx(0.5 * scale)


def test_one_horizon_alone_says_nothing_of_a_growing_gain():
    table = budgets(
        {"none": {4: 0.5}, "whitening": {4: 0.1}, "exact:none": {0: 0.0}, "alone:whitening": {0: 0.2}}
    )
    found = values_of(trained_budgets__summary=table)
    assert "horizon_final_difference_cosine" in found
    assert "horizon_gain_difference_cosine" not in found


def test_the_crossing_is_interpolated_in_the_logarithm_of_the_steps():
    table = budgets(
        {"none": {10: 3.0, 1000: 1.0, 10_000: 9.0}, "whitening": {10: 2.0, 1000: 2.0, 10_000: 2.0}}
    )
    assert values_of(trained_budgets__summary=table)["horizon_crossing_cosine"] == pytest.approx(100.0)


def test_explained_shares_of_a_grid_that_one_factor_decides():
    rows = [
        {"residual_kappa": kappa, "width": width, "weight_decay": 0.0, "seed": seed, "log_error_low": kappa}
        for kappa in (1.0, 10.0)
        for width in (8, 16)
        for seed in SEEDS
    ]
    found = values_of(residual_networks__grid=pd.DataFrame(rows))
    assert found["controlled_share_residual_kappa"] == pytest.approx(1.0)
    assert found["controlled_share_width"] == pytest.approx(0.0)
