"""The experiments at toy size: tables, determinism, statistics per claim, figures."""

import math
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from precfm.core.options import options_of
from precfm.core.registry import REGISTRY, load
from precfm.datasets.synthetic import gaussian
from precfm.theory import claims, figures
from precfm.theory.experiments import (
    linear_grid,
    mixture_ablations,
    mixture_linear,
    mixture_networks,
    residual_linear,
    residual_networks,
    steps_to_accuracy,
    trained_budgets,
    trained_factors,
)
from precfm.theory.trained_networks import (
    exact_samples,
    field_excess,
    recovery_summary,
    variance_ratios,
)

TOY = {
    "linear_grid": {
        "dim": 4,
        "condition_numbers": (1.0, 100.0),
        "times": (0.5, 0.99),
        "steps": 64,
        "seeds": 3,
        "preconditioned_steps": 8,
    },
    "steps_to_accuracy": {
        "dim": 3,
        "condition_numbers": (1.0, 20.0, 400.0),
        "times": (0.5, 0.99),
        "seeds": 3,
    },
    "residual_linear": {
        "dim": 4,
        "condition_numbers": (100.0,),
        "times": (0.99,),
        "samples_per_dim": (2.0, 64.0),
        "seeds": 2,
    },
    "mixture_linear": {
        "dim": 3,
        "condition_numbers": (1.0, 30.0),
        "worst_weights": (0.5, 0.9),
        "worst_condition_numbers": (1.0, 30.0, 100.0),
        "separations": (4.0,),
        "control_condition_number": 30.0,
        "samples": 256,
        "steps": 64,
        "seeds": 2,
    },
    "trained_factors": {
        "dim": 4,
        "condition_numbers": (10.0,),
        "dims": (3,),
        "steps": 12,
        "width": 8,
        "data_size": 200,
        "samples": 100,
    },
    "trained_budgets": {"dim": 4, "checkpoints": (4, 8), "width": 8, "data_size": 200, "samples": 100},
    "mixture_networks": {
        "dim": 4,
        "condition_numbers": (1.0, 50.0),
        "steps": 8,
        "flow_steps": 6,
        "width": 8,
        "data_size": 400,
        "samples": 200,
    },
    "mixture_ablations": {
        "dim": 4,
        "condition_numbers": (1.0, 50.0),
        "worst_weights": (0.5, 0.8),
        "worst_condition_numbers": (1.0,),
        "control_condition_number": 50.0,
        "steps": 8,
        "width": 8,
        "data_size": 400,
        "samples": 200,
    },
    "residual_networks": {
        "dim": 4,
        "residual_kappas": (1.0, 10.0),
        "widths": (8, 12),
        "weight_decays": (0.0,),
        "steps": 8,
        "data_size": 200,
        "samples": 100,
    },
}
MODULES = {
    module.__name__.rsplit(".", 1)[1]: module
    for module in (
        linear_grid,
        steps_to_accuracy,
        residual_linear,
        mixture_linear,
        trained_factors,
        trained_budgets,
        mixture_networks,
        mixture_ablations,
        residual_networks,
    )
}
OVER_SEEDS = ("linear_grid", "steps_to_accuracy", "residual_linear", "mixture_linear")  # a job holds several


@pytest.fixture(scope="module")
def frames() -> dict[str, pd.DataFrame]:
    torch.set_num_threads(1)
    tables: dict[str, list[pd.DataFrame]] = {}
    for name, options in TOY.items():
        for seed in (0,) if name in OVER_SEEDS else (0, 1):
            for table, frame in MODULES[name].run(**options, seed=seed).items():
                tables.setdefault(f"{name}.{table}", []).append(frame)
    return {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}


def test_every_experiment_is_registered_with_readable_options():
    assert set(REGISTRY["theory"]) == set(TOY) == set(MODULES)
    for name, module in MODULES.items():
        assert load("theory", name) is module.run
        schema = options_of(REGISTRY["theory"][name], frozenset({"seed"}))
        assert set(TOY[name]) <= set(schema.model_fields)
        assert "seed" not in schema.model_fields


@pytest.mark.parametrize("name", ["linear_grid", "mixture_linear", "trained_budgets"])
def test_an_experiment_is_a_pure_function_of_options_and_seed(name, frames):
    again = MODULES[name].run(**TOY[name], seed=0)
    other = MODULES[name].run(**TOY[name], seed=5)
    for table, frame in again.items():
        kept = frames[f"{name}.{table}"].head(len(frame))
        pd.testing.assert_frame_equal(frame, kept, check_exact=True)
        assert not frame.equals(other[table])


def test_no_table_is_empty_and_what_must_be_finite_is(frames):
    for name, frame in frames.items():
        assert len(frame), name
    for name in ("trained_factors.summary", "mixture_networks.components", "residual_networks.grid"):
        assert np.isfinite(frames[name]["log_error_low"]).all()


def test_linear_grid_agrees_with_its_closed_form(frames):
    agreement = frames["linear_grid.agreement"]
    descent = agreement[agreement["algorithm"] == "descent"]
    assert descent["worst_deviation"].max() < 1e-8
    assert np.allclose(descent["contraction_theory"], descent["contraction_measured"], rtol=1e-6)
    assert frames["linear_grid.identity"]["relative_error"].max() < 1e-8
    covered = agreement[agreement["algorithm"] == "stochastic"]["covered"]
    assert 0.8 < covered.mean() < 1.0


def test_slopes_are_one_without_and_zero_with_the_preconditioner(frames):
    steps = frames["steps_to_accuracy.steps"]
    for (algorithm, moved, path, target), group in steps.groupby(
        ["algorithm", "preconditioned", "path", "target"]
    ):
        found, exact = claims.seed_slopes(group, "lowest"), claims.seed_slopes(group, "theory_lowest")
        assert len(found) == 3, (algorithm, moved, path, target)
        assert np.mean(exact) == pytest.approx(0.0 if moved else 1.0, abs=0.02)
        assert np.mean(found) == pytest.approx(0.0 if moved else 1.0, abs=0.12)
    bound = frames["residual_linear.steps"]
    assert (bound["total"] <= bound["bound"] * 1.01).all()


def test_claims_get_the_statistics_that_were_announced(frames):
    import yaml

    rows = claims.theory_statistics(frames)
    assert list(rows.columns) == list(claims.COLUMNS)
    announced = yaml.safe_load(Path("config/claims.yaml").read_text(encoding="utf-8"))["claims"]
    for claim in announced:
        for statistic in claim["statistics"]:
            if statistic["kind"] == "theory":
                found = rows[(rows["claim"] == claim["id"]) & (rows["statistic"] == statistic["name"])]
                assert len(found), statistic["name"]
                assert np.isfinite(found["value"]).all()
    assert claims.theory_statistics({}).empty
    slope = rows[rows["statistic"] == "descent_steps_slope"]
    assert (slope["low"] < slope["value"]).all()


def test_every_statistic_is_judged_or_table_only(frames):
    import yaml

    announced = yaml.safe_load(Path("config/claims.yaml").read_text(encoding="utf-8"))["claims"]
    named = {s["name"] for claim in announced for s in claim["statistics"] if s["kind"] == "theory"}
    emitted = set(claims.theory_statistics(frames)["statistic"])
    alone = {name for name in emitted if any(fnmatch(name, pattern) for pattern in claims.TABLE_ONLY)}
    assert emitted - named - alone == set()
    assert named & alone == set()
    for pattern in claims.TABLE_ONLY:
        assert any(fnmatch(name, pattern) for name in emitted), pattern


def test_a_diverged_cell_and_cells_left_out_are_seen():
    identity = pd.DataFrame({"relative_error": [1e-12, math.nan, 1e-13]})
    (row,) = claims.claim_c1({"linear_grid.identity": identity})
    assert math.isnan(row["value"])
    steps = pd.DataFrame({"condition_number_t": [5.0, 10.0, 100.0, 1000.0], "seed": 0, "counts_lowest": True})
    assert claims.cells_used(steps.assign(lowest=[1.0, 2.0, math.nan, 4.0]), "lowest") == (2, 3)


def test_claims_read_the_tables_as_they_say():
    """Constructed tables with known answers."""
    components = pd.DataFrame(
        [
            {"regime": "labels", "method": m, "seed": s, "component": k, "log_error_low": e, "excess": e}
            for s in range(5)
            for m, errors in {"none": (1.0, 3.0), "whitening": (0.5, 0.5), "whitening-P": (1.0, 2.0)}.items()
            for k, e in enumerate(errors)
        ]
    )
    rows = claims.theory_statistics({"mixture_networks.components": components})
    ratio = rows[rows["statistic"] == "worst_component_error_ratio"].iloc[0]
    assert ratio["value"] == pytest.approx(3.0)
    matched = rows.set_index("statistic")["value"]
    assert matched["controlled_matched_difference_labels_whitening_to_none"] == pytest.approx(-1.5)
    assert matched["controlled_matched_difference_labels_whitening_to_P"] == pytest.approx(-1.0)
    # Errors in which tenfold kappa halves, and small variance multiplies by 9 (kappa 1) or 4 (kappa 10).
    control = pd.DataFrame(
        [
            {"ablation": "scale", "method": "none", "level": 10.0, "seed": s, "component": c}
            | {"condition_number": k, "smallest_variance": v, "log_error_low": e * (1 + s)}
            for s in range(5)
            for c, (k, v, e) in enumerate(
                [(1.0, 1.0, 1.0), (1.0, 0.1, 9.0), (10.0, 0.1, 2.0), (10.0, 1.0, 0.5)]
            )
        ]
    )
    rows = claims.theory_statistics({"mixture_ablations.components": control}).set_index("statistic")
    assert list(rows.index) == ["scale_control_kappa_effect", "scale_control_variance_effect"]
    assert rows["value"].tolist() == pytest.approx(
        [(math.log(2 / 9) + math.log(0.5)) / 2, (math.log(9) + math.log(4)) / 2]
    )
    steps = pd.DataFrame(
        [
            {
                "path": "linear",
                "seed": s,
                "condition_number_t": k,
                "lowest": 3 * k**0.5,
                "counts_lowest": True,
            }
            for s in range(2)
            for k in (1.0, 10.0, 1000.0)
        ]
    )
    assert claims.seed_slopes(steps, "lowest") == pytest.approx([0.5, 0.5])


def test_the_scale_control_of_linear_experts_follows_its_closed_form():
    varied = {"worst_weights": (), "worst_condition_numbers": (), "separations": (), "regimes": ("labels",)}
    tables = mixture_linear.run(
        dim=3, control_condition_number=30.0, samples=20_000, steps=64, seeds=2, **varied
    )
    table = tables["components"]
    assert len(table) == 2 * 4 * table["step"].nunique()  # seeds x components
    # The closed form is of the law's moments, the measurement of those of 5,000 samples for each component.
    assert np.allclose(np.log(table["lowest"]), np.log(table["theory_lowest"]), rtol=0.25, atol=0.01)
    rows = claims.theory_statistics({"mixture_linear.components": table}).set_index("statistic")["value"]
    assert rows["linear_scale_control_variance_effect"] > 3
    assert abs(rows["linear_scale_control_kappa_effect"]) < 0.3


DRAWINGS = (
    figures.descent_curves,
    figures.steps_against_kappa,
    figures.residual_bound,
    figures.residual_grid,
    figures.mixture_descent,
    figures.mixture_ablations,
    figures.mixture_methods,
    figures.trained_factors,
    figures.trained_budgets,
)


@pytest.mark.parametrize("draw", DRAWINGS, ids=lambda f: f.__name__)
def test_figures_are_drawn_with_a_caption(draw, frames):
    from precfm.report.selection import LeftOutError

    drawing = draw(frames)
    assert drawing.caption.endswith(".")
    assert sum(len(ax.lines) for ax in drawing.figure.axes) > 1
    with pytest.raises(LeftOutError, match="no table"):
        draw({})


def test_a_figure_has_the_same_bytes_twice(frames, tmp_path):
    from precfm.report.figures.style import save

    for name in ("a", "b"):
        save(figures.steps_against_kappa(frames).figure, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("target", ["velocity", "score"])
@pytest.mark.parametrize("whitened", [False, True])
def test_the_exact_field_recovers_every_eigenvalue(target, whitened):
    law = gaussian(5, 1e3, seed=1)
    ratios = variance_ratios(exact_samples(law, whitened, 4000, target=target), law)
    assert bool(((ratios - 1).abs() < 5 * math.sqrt(2 / 4000) + 0.01).all())


def test_recovery_summary_is_of_the_lowest_quartile():
    ratios = torch.tensor([4.0, 0.25, 1.0, 1.0, 1.0, 1.0, 1.0, math.e])
    found = recovery_summary(ratios)
    assert found["ratio_low"] == pytest.approx(1.0)
    assert found["log_error_low"] == pytest.approx(math.log(4))
    assert found["log_error"] == pytest.approx((2 * math.log(4) + 1) / 8)


def test_field_excess_of_the_exact_field_is_zero_and_of_none_is_not():
    from precfm.datasets.synthetic import mixture
    from precfm.theory.mixtures import ExactVelocity
    from precfm.theory.trained_networks import PATH

    law = mixture(3, [1, 20], [0.4, 0.6], seed=0)
    assert float(field_excess(ExactVelocity(law, PATH), law, True, n=200).max()) < 1e-9
    zero = field_excess(lambda x, t, y: torch.zeros_like(x), law, True, n=200)
    assert float(zero.min()) > 1
