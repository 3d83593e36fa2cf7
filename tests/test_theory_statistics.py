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
        assert np.isfinite(found["value"]).all()
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
    identity = pd.DataFrame({"relative_error": [1e-12, math.nan, 1e-13]})
    assert math.isnan(values_of(linear_grid__identity=identity)["identity_relative_error"])
    steps = pd.DataFrame({"condition_number_t": [5.0, 10.0, 100.0, 1000.0], "seed": 0, "counts_lowest": True})
    assert cells_used(steps.assign(lowest=[1.0, 2.0, math.nan, 4.0]), "lowest") == (2, 3)


def test_the_worst_component_is_set_against_the_others_and_methods_against_their_baselines():
    errors = {"none": (1.0, 3.0), "whitening": (0.5, 0.5), "whitening-P": (1.0, 2.0)}
    components = pd.DataFrame(
        [
            {"regime": "labels", "method": method, "seed": seed, "component": k}
            | {"log_error_low": error, "excess": error}
            for seed in SEEDS
            for method, both in errors.items()
            for k, error in enumerate(both)
        ]
    )
    found = values_of(mixture_networks__components=components)
    assert found["worst_component_error_ratio"] == pytest.approx(3.0)
    assert found["controlled_matched_difference_labels_whitening_to_none"] == pytest.approx(-1.5)
    assert found["controlled_matched_difference_labels_whitening_to_P"] == pytest.approx(-1.0)


def test_the_scale_control_tells_kappa_from_smallest_variance():
    # Errors that a tenfold kappa halves, and that a small variance multiplies by 9 (kappa 1) or 4 (kappa 10).
    cells = [(1.0, 1.0, 1.0), (1.0, 0.1, 9.0), (10.0, 0.1, 2.0), (10.0, 1.0, 0.5)]
    control = pd.DataFrame(
        [
            {"ablation": "scale", "method": "none", "level": 10.0, "seed": seed, "component": k}
            | {"condition_number": kappa, "smallest_variance": low, "log_error_low": error * (1 + seed)}
            for seed in SEEDS
            for k, (kappa, low, error) in enumerate(cells)
        ]
    )
    found = values_of(mixture_ablations__components=control)
    assert found.to_dict() == pytest.approx(
        {
            "scale_control_kappa_effect": (math.log(2 / 9) + math.log(0.5)) / 2,
            "scale_control_variance_effect": (math.log(9) + math.log(4)) / 2,
        }
    )


def test_shares_of_experts_are_of_the_worst_component_of_the_varied_mixtures():
    rows = [
        {"regime": "labels", "ablation": ablation, "level": 0.3, "seed": seed, "step": 9, "component": k}
        | {
            "condition_number": 10.0**k,
            "smallest_variance": 1.0,
            "excess": 1.0 + k,
            "lowest": 1.0,
            "share": share,
        }
        for seed in SEEDS
        for ablation, shares in {"weights": (0.2, 0.8), "separation": (0.1, 0.2, 0.3, 0.4)}.items()
        for k, share in enumerate(shares)
    ]
    found = values_of(mixture_linear__components=pd.DataFrame(rows))
    assert found["linear_worst_component_share"] == pytest.approx(0.8)
    assert found["linear_weights_varied_worst_share"] == 1.0


def test_slopes_are_those_of_a_power_law():
    steps = pd.DataFrame(
        [
            {"seed": seed, "condition_number_t": kappa, "lowest": 3 * kappa**0.5, "counts_lowest": True}
            for seed in SEEDS
            for kappa in (1.0, 10.0, 1000.0)
        ]
    )
    assert seed_slopes(steps, "lowest") == pytest.approx([0.5] * len(SEEDS))


def test_late_changes_are_between_the_last_budgets():
    rows = [
        {"method": method, "seed": seed, "step": step, "factor": "budget", "level": "base"}
        | {"log_error_low": error + 0.01 * seed}
        for seed in SEEDS
        for method, errors in {
            "none": {1: 2.0, 2: 1.0, 4: 0.5},
            "whitening": {1: 0.4, 2: 0.2, 4: 0.1},
        }.items()
        for step, error in errors.items()
    ]
    floor = {
        "method": "exact:none",
        "seed": 0,
        "step": 0,
        "factor": "budget",
        "level": "base",
        "log_error_low": 0.0,
    }
    found = values_of(trained_budgets__summary=pd.DataFrame([*rows, floor]))
    assert list(found["controlled_late_change"]) == pytest.approx([-0.5, -0.1])
    assert found["controlled_final_log_error_low_difference"] == pytest.approx(-0.4)


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
