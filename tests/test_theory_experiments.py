"""The controlled experiments at toy size: tables, determinism, options, and what trained networks are compared with."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from precfm.core.errors import PrecfmError
from precfm.core.options import options_of, validated
from precfm.core.registry import REGISTRY, load
from precfm.datasets.synthetic import gaussian, mixture
from precfm.flows.sampling import evaluation_labels
from precfm.preconditioners.class_whitening import ClassWhitening
from precfm.preconditioners.identity import Identity
from precfm.preconditioners.whitening import Whitening
from precfm.theory.claim_statistics import theory_statistics
from precfm.theory.descent_statistics import seed_slopes
from precfm.theory.mixtures import ExactVelocity
from precfm.theory.trained_networks import (
    PATH,
    NetworkSetup,
    alone_samples,
    exact_samples,
    field_excess,
    generate,
    initial_network,
    recovery_summary,
    variance_ratios,
)
from precfm.training.options import TrainingOptions
from tests import theory_frames
from tests.theory_frames import TOY

pytestmark = pytest.mark.xdist_group("theory frames")


@pytest.fixture(scope="module")
def frames():
    return theory_frames.frames()


def test_every_experiment_is_registered_with_readable_options():
    assert set(REGISTRY["theory"]) == set(TOY)
    for name, options in TOY.items():
        schema = options_of(load("theory", name), frozenset({"seed"}))
        assert set(options) <= set(schema.model_fields)
        assert "seed" not in schema.model_fields
        given = {
            option: list(value) if isinstance(value, tuple) else value for option, value in options.items()
        }
        assert all(getattr(validated(schema, given), option) == value for option, value in options.items())


@pytest.mark.parametrize(
    ("name", "changes", "field"),
    [
        ("linear_grid", {"times": (1.0,), "targets": ("score",)}, "t"),
        ("linear_grid", {"dim": 1}, "condition_number"),
        ("trained_budgets", {"checkpoints": (8, 4)}, "checkpoints"),
        ("trained_budgets", {"checkpoints": (), "horizons": ()}, "checkpoints, horizons"),
        ("mixture_linear", {"control_condition_number": 1.0}, "condition_number"),
    ],
)
def test_options_that_do_not_go_together_are_refused(name, changes, field):
    with pytest.raises(PrecfmError, match=f"^{field}: "):
        theory_frames.run(name, 0, **changes)


@pytest.mark.parametrize("name", ["linear_grid", "mixture_linear", "trained_budgets"])
def test_an_experiment_is_a_pure_function_of_options_and_seed(name, frames):
    again, other = theory_frames.run(name, 0), theory_frames.run(name, 5)
    for table, frame in again.items():
        kept = frames[f"{name}.{table}"].head(len(frame))
        pd.testing.assert_frame_equal(frame, kept, check_exact=True)
        assert not frame.equals(other[table])


def test_no_table_is_empty_and_what_must_be_finite_is(frames):
    assert {name.partition(".")[0] for name, frame in frames.items() if len(frame)} == set(TOY)
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
    for (_, preconditioned, *_), group in steps.groupby(["algorithm", "preconditioned", "path", "target"]):
        found, exact = seed_slopes(group, "lowest"), seed_slopes(group, "theory_lowest")
        assert len(found) == 3
        assert np.mean(exact) == pytest.approx(0.0 if preconditioned else 1.0, abs=0.02)
        assert np.mean(found) == pytest.approx(0.0 if preconditioned else 1.0, abs=0.12)
    bound = frames["residual_linear.steps"]
    assert (bound["total"] <= bound["bound"] * 1.01).all()


def test_the_scale_control_of_linear_experts_follows_its_closed_form():
    none = {"worst_weights": (), "worst_condition_numbers": (), "separations": (), "regimes": ("labels",)}
    table = theory_frames.run("mixture_linear", 0, **none, samples=20_000)["components"]
    assert len(table) == 2 * 4 * table["step"].nunique()  # seeds x components
    # The closed form is of the law's moments, the measurement of those of 5,000 samples for each component.
    assert np.allclose(np.log(table["lowest"]), np.log(table["theory_lowest"]), rtol=0.25, atol=0.01)
    found = theory_statistics({"mixture_linear.components": table}).set_index("statistic")["value"]
    assert found["linear_scale_control_variance_effect"] > 3
    assert abs(found["linear_scale_control_kappa_effect"]) < 0.3


def test_baselines_match_what_they_are_matched_to(frames):
    for _, group in frames["mixture_networks.methods"].groupby(["regime", "seed"]):
        rows = group.set_index("method")
        for method in {name.removesuffix("-P") for name in rows.index if name.endswith("-P")}:
            row, wider, longer = rows.loc[method], rows.loc[f"{method}-P"], rows.loc[f"{method}-F"]
            assert wider["parameters"] >= row["parameters"] + row["preconditioner_parameters"]
            assert (wider["steps"], longer["width"]) == (row["steps"], row["width"])
            assert longer["steps"] > row["steps"]


def test_every_map_and_the_skip_have_a_row_alone(frames):
    components = frames["mixture_networks.components"]
    trained = frames["mixture_networks.methods"].groupby("regime")["method"].unique()
    for regime, found in components.groupby("regime"):
        maps = {name for name in trained[regime] if name != "none" and name[-2:] not in ("-P", "-F")}
        alone = {name.removeprefix("alone:") for name in found["method"] if name.startswith("alone:")}
        assert alone == maps
        assert ("class_whitening" in maps) == (regime == "labels")
    for name in ("trained_budgets.summary", "trained_factors.summary"):
        for _, cell in frames[name].groupby(["factor", "level", "seed"]):
            assert (cell["method"] == "alone:whitening").sum() == 1


def test_a_horizon_is_a_training_of_its_own_and_a_checkpoint_is_not(frames):
    summary = frames["trained_budgets.summary"]
    budgets = summary.set_index(["level", "method", "seed", "step"])["loss"].sort_index()
    none = {level: budgets[level, "none", 0] for level in ("constant_ema", "cosine")}
    assert set(none["constant_ema"].index) == set(none["cosine"].index) == {4, 8}
    # Within a training of eight steps the rate at step four is another one than in a training of four.
    shorter = theory_frames.run("trained_budgets", 0, checkpoints=(4,), horizons=(), methods=("none",))
    assert shorter["summary"].set_index(["method", "step"])["loss"]["none", 4] == none["constant_ema"][4]
    assert none["cosine"][4] != none["constant_ema"][4]


def test_what_is_alone_has_the_moments_that_it_was_fitted_to():
    law = mixture(3, [1, 20], [0.4, 0.6], seed=0)
    x, labels = law.sample(20_000, 0)
    n, setup = 20_000, NetworkSetup(8, TrainingOptions(steps=1), skip="classwise")
    asked = evaluation_labels(n, labels, 1)
    whitened = alone_samples(Whitening().fit(x), n, seed=1)
    skip = generate(initial_network(x, labels, setup, seed=0), Identity().fit(x), n, 3, asked, seed=1)
    classwise = alone_samples(ClassWhitening().fit(x, labels), n, asked, seed=1)
    standard_error = float(x.T.cov().diagonal().max()) * math.sqrt(2 / n)
    for made in (whitened, skip, classwise):
        assert torch.allclose(made.T.cov(), x.T.cov(), atol=5 * standard_error)
    for k in (0, 1):
        wanted = x[labels == k].T.cov()
        for made in (skip, classwise):
            assert torch.allclose(made[asked == k].T.cov(), wanted, atol=8 * standard_error)


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
    law = mixture(3, [1, 20], [0.4, 0.6], seed=0)
    assert float(field_excess(ExactVelocity(law, PATH), law, True, n=200).max()) < 1e-9
    zero = field_excess(lambda x, t, y: torch.zeros_like(x), law, True, n=200)
    assert float(zero.min()) > 1
