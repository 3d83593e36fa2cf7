"""Synthetic laws and mixtures: exact fields, linear experts, refusals."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from precfm.core.errors import PrecfmError
from precfm.datasets.synthetic import Gaussian, Mixture, gaussian, mixture, rotation, spectrum
from precfm.flows.paths import LinearPath
from precfm.theory.measured_descent import FixedSamples, descend
from precfm.theory.mixtures import (
    ExactVelocity,
    ablations,
    descent_of_moments,
    expert_features,
    labelled_excess,
    lowest_relative_excess,
    responsibilities,
    scale_control,
)
from precfm.theory.sampled_regression import matched_normals

PATH = LinearPath()
T = torch.tensor(0.7, dtype=torch.float64)


@given(st.integers(2, 20), st.floats(0, 8), st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_a_law_has_the_spectrum_that_was_asked_for(dim, log_kappa, seed):
    law = gaussian(dim, 10**log_kappa, seed=seed)
    found = np.linalg.eigvalsh(law.cov.numpy())
    assert found.sum() == pytest.approx(dim)
    assert law.condition_number == pytest.approx(10**log_kappa, rel=1e-9)
    assert np.abs(np.sort(law.eigenvalues.numpy()) - found).max() < 1e-10 * found.max()
    assert torch.equal(law.sample(3, seed), law.sample(3, seed))


@given(st.integers(2, 12), st.floats(0.1, 6), st.integers(0, 20))
@settings(max_examples=30, deadline=None)
def test_the_scale_control_crosses_condition_number_and_smallest_variance(dim, log_kappa, seed):
    kappa = 10**log_kappa
    law = scale_control(dim, kappa, seed=seed)
    spectra = [np.linalg.eigvalsh(component.cov.numpy()) for component in law.components]
    small = dim / sum(kappa ** (i / (dim - 1)) for i in range(dim))  # of a geometric spectrum of mean one
    lowest = [1, small, small, 1]
    assert [s[0] for s in spectra] == pytest.approx(lowest, rel=1e-6)
    assert [s[-1] / s[0] for s in spectra] == pytest.approx([1, 1, kappa, kappa], rel=1e-6)
    assert law.weights.tolist() == [0.25] * 4


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=2), st.integers(0, 20))
@settings(max_examples=20, deadline=None)
def test_scales_multiply_the_covariances_and_change_nothing_else(scales, seed):
    plain, scaled = mixture(3, [1, 10], seed=seed), mixture(3, [1, 10], scales=scales, seed=seed)
    for scale, one, other in zip(scales, plain.components, scaled.components, strict=True):
        assert torch.allclose(other.cov, scale * one.cov, rtol=1e-12)
        assert torch.equal(other.mean, one.mean)
        assert torch.equal(other.basis, one.basis)
    same = mixture(3, [1, 10], scales=[1.0, 1.0], seed=seed)
    assert all(torch.equal(a.cov, b.cov) for a, b in zip(plain.components, same.components, strict=True))


def test_the_slowest_direction_of_a_component_follows_the_power_of_its_contraction():
    """Against the matrix recursion on the law's own moments."""
    law = scale_control(3, 50.0, seed=1)
    steps, eta = torch.tensor([0, 1, 7, 40]), 0.02
    found = lowest_relative_excess(law, T, PATH, eta, steps)
    for k, component in enumerate(law.components):
        moment = float(T) ** 2 * component.cov + (1 - float(T)) ** 2 * torch.eye(3).double()
        contraction = torch.eye(3).double() - 2 * eta * 0.25 * moment
        direction = component.basis[:, 0]
        for row, n in enumerate(steps.tolist()):
            left = torch.linalg.matrix_power(contraction, n) @ direction
            assert float(found[row, k]) == pytest.approx(float(left.square().sum()), rel=1e-9)


def test_samples_have_the_moments_of_the_law():
    law = mixture(3, [1, 50], [0.3, 0.7], seed=2)
    x, labels = law.sample(200_000, seed=0)
    assert float((labels == 1).double().mean()) == pytest.approx(0.7, abs=4 * math.sqrt(0.21 / 200_000))
    standard_error = x.var(0).sqrt() / math.sqrt(len(x))
    assert bool(((x.mean(0) - law.mean).abs() < 4 * standard_error).all())
    assert torch.allclose(x.T.cov(), law.cov, atol=0.15)
    assert float(law.mean.abs().max()) < 1e-12  # centred
    for k, component in enumerate(law.components):
        mine = x[labels == k]
        along = (mine @ component.basis).var(0)
        error = component.eigenvalues * math.sqrt(2 / len(mine))
        assert bool(((along - component.eigenvalues).abs() < 5 * error).all())


def test_rotations_are_uniform_enough_to_have_no_preferred_sign():
    corners = torch.stack([rotation(2, seed)[0, 0] for seed in range(400)])
    assert abs(float(corners.mean())) < 4 * math.sqrt(
        0.5 / 400
    )  # QR without its sign fix gives a mean of -0.64


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: mixture(2, [1, 2], [0.5, 0.6]), "weights"),
        (lambda: mixture(2, [1, 2], [1.5, -0.5]), "weights.1"),
        (lambda: mixture(2, [1, 2], [1.0]), "weights"),
        (lambda: mixture(2, [1, 2], scales=[1.0]), "scales"),
        (lambda: mixture(2, [1, 2], scales=[1.0, 0.0]), "scales.1"),
        (lambda: scale_control(2, 1.0), "condition_number"),
        (lambda: mixture(2, []), "condition_numbers"),
        (lambda: spectrum(0, 1.0), "dim"),
        (lambda: spectrum(1, 2.0), "condition_number"),
        (lambda: spectrum(3, 0.5), "condition_number"),
        (lambda: spectrum(3, math.inf), "condition_number"),
        (lambda: Gaussian(torch.tensor([-1.0]), torch.eye(1), torch.zeros(1)), "eigenvalues"),
        (lambda: Gaussian(torch.ones(2), torch.ones(2, 2), torch.zeros(2)), "basis"),
        (lambda: Gaussian(torch.ones(2), torch.eye(3), torch.zeros(2)), "basis, mean"),
        (lambda: Mixture(torch.ones(2) / 2, (gaussian(2, 1.0), gaussian(3, 1.0))), "components"),
    ],
)
def test_impossible_laws_are_refused(call, field):
    with pytest.raises(PrecfmError, match=f"^{field}: "):
        call()


def test_degenerate_laws_that_are_possible():
    assert mixture(3, [10.0]).components[0].condition_number == pytest.approx(10)
    assert gaussian(1, 1.0).cov.shape == (1, 1)
    flat = Gaussian(torch.tensor([0.0, 1.0]).double(), torch.eye(2).double(), torch.zeros(2).double())
    assert math.isinf(flat.condition_number)
    assert float(flat.sample(10, 0)[:, 0].abs().max()) == 0.0


def test_marginal_velocity_equals_bayes_by_integration():
    """E[x1 - x0 | x_t] of a one-dimensional mixture by numerical integration over x1."""
    law = Mixture(
        torch.tensor([0.3, 0.7], dtype=torch.float64),
        tuple(
            Gaussian(
                torch.tensor([v], dtype=torch.float64),
                torch.eye(1).double(),
                torch.tensor([m], dtype=torch.float64),
            )
            for v, m in ((0.5, -1.0), (0.01, 0.6))
        ),
    )
    x1 = np.linspace(-8, 8, 400_001)
    density = 0.3 * stats.norm.pdf(x1, -1, math.sqrt(0.5)) + 0.7 * stats.norm.pdf(x1, 0.6, 0.1)
    exact = ExactVelocity(law, PATH)
    for x in (-1.2, 0.1, 0.5):
        t = float(T)
        posterior = density * stats.norm.pdf(x, t * x1, 1 - t)
        x1_mean = np.trapezoid(posterior * x1, x1) / np.trapezoid(posterior, x1)
        velocity = x1_mean - (x - t * x1_mean) / (1 - t)
        found = float(exact(torch.tensor([[x]], dtype=torch.float64), T.expand(1), None))
        assert found == pytest.approx(velocity, rel=1e-7)


def test_exact_velocity_is_linear_in_the_expert_features():
    law = mixture(4, [1, 30, 300], [0.2, 0.3, 0.5], separation=1.5, seed=1)
    x, labels = law.sample(200, 0)
    x = 0.7 * x + 0.3 * torch.randn(200, 4, generator=torch.Generator().manual_seed(0)).double()
    exact = ExactVelocity(law, PATH)
    soft = responsibilities(law, x, T, PATH)
    hard = torch.nn.functional.one_hot(labels, 3).double()
    for gate, asked in ((soft, None), (hard, labels)):
        features, velocity = expert_features(law, x, gate, T, PATH), exact(x, T.expand(200), asked)
        fitted = features @ torch.linalg.lstsq(features, velocity).solution  # 15 coefficients, 200 points
        assert torch.allclose(fitted, velocity, rtol=1e-8, atol=1e-8)
    assert torch.allclose(soft.sum(1), torch.ones(200).double())


def test_labelled_descent_in_closed_form_equals_autograd_on_matched_samples():
    """Components with exact second moments; the weight enters through the loss."""
    law = mixture(3, [1, 100], [0.2, 0.8], seed=4)
    count, dim, t = 2, 3, float(T)
    x0, w1 = matched_normals([0, 1], dim)
    # A constant feature needs exact means too: each sample and its mirror image have mean zero.
    x0, w1 = torch.cat([x0, -x0], 1), torch.cat([w1, -w1], 1)
    features, targets, parts = [], [], []
    for k, component in enumerate(law.components):
        x1 = component.mean + (w1[k] * component.eigenvalues.sqrt()) @ component.basis.T
        gate = torch.zeros(len(x1), count, dtype=torch.float64)
        gate[:, k] = 1
        parts.append(expert_features(law, t * x1 + (1 - t) * x0[k], gate, T, PATH))
        scale = math.sqrt(float(law.weights[k]) * count)
        features.append(parts[-1] * scale)
        targets.append((x1 - x0[k]) * scale)
    f, y = torch.cat(features)[None], torch.cat(targets)[None]
    best = torch.linalg.lstsq(f, y).solution[0].T
    looks, eta = [0, 1, 10, 60], 0.1
    theory = labelled_excess(law, T, PATH, eta, torch.tensor(looks))
    zero = torch.zeros_like(best)[None]
    walk = descend(FixedSamples(f, y), zero, torch.tensor([eta], dtype=torch.float64), looks)
    moments = torch.stack([p.T @ p / len(p) for p in parts])
    recursion = descent_of_moments(moments, -best, eta, torch.tensor(looks), law.weights)
    for field, expected, other in zip(walk, theory, recursion, strict=True):
        found = torch.stack([((p @ (field[0] - best).T) ** 2).sum(1).mean() for p in parts])
        assert torch.allclose(found, expected, rtol=1e-8)
        assert torch.allclose(other, expected, rtol=1e-8)


def test_a_rare_component_of_good_conditioning_can_be_the_slowest():
    """C5 needs its assumption on the weights: what counts is weight times smallest variance."""
    law = mixture(4, [2.0, 20.0], [0.01, 0.99], seed=0)
    end = torch.tensor(1.0, dtype=torch.float64)
    (left,) = lowest_relative_excess(law, end, PATH, 0.1, torch.tensor([100]))
    assert float(left[0]) > float(left[1])


def test_ablations_change_one_thing():
    levels = {"weights": (0.2, 0.5), "worst_condition_numbers": (1.0, 10.0), "separations": (4.0, 8.0)}
    laws = ablations(3, (1.0, 10.0), control_condition_number=50.0, **levels, seed=1)
    assert [name for name, _ in laws] == [
        *["weights"] * 2,
        *["conditioning"] * 2,
        *["separation"] * 2,
        "scale",
    ]
    base = laws["separation", 4.0]
    for case in (("weights", 0.5), ("conditioning", 10.0)):
        assert torch.equal(laws[case].cov, base.cov)
    assert laws["weights", 0.2].weights.tolist() == pytest.approx([0.8, 0.2])
    assert [c.condition_number for c in laws["conditioning", 1.0].components] == pytest.approx([1, 1])
    assert torch.allclose(laws["separation", 8.0].components[0].mean, 2 * base.components[0].mean)
    assert all(torch.equal(law.components[0].basis, base.components[0].basis) for law in laws.values())
