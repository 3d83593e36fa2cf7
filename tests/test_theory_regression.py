"""Linear regression along the path: closed forms against brute force that shares no code with them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from precfm.core.errors import PrecfmError
from precfm.core.statistics import slope
from precfm.datasets.synthetic import gaussian, rotation, spectrum
from precfm.flows.paths import LinearPath, VariancePreservingPath
from precfm.theory.convergence import (
    descent_excess,
    steps_to_fraction,
    steps_to_total_fraction,
    stochastic_excess,
    stochastic_floor,
    stochastic_is_stable,
    stochastic_steps_to_fraction,
)
from precfm.theory.linear_regression import excess_risk, linear_problem, squared_errors, symmetric
from precfm.theory.measured_descent import FixedSamples, descend, steps_until
from precfm.theory.regression_grid import PATHS, Cell, Regressions, grid
from precfm.theory.sampled_regression import (
    EmpiricalExcess,
    GaussianRegressions,
    matched_normals,
    path_weights,
)

EXACT = 1e-8
ONES = torch.ones(1, dtype=torch.float64)


def moments(cov: np.ndarray, t: float, path: str, target: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """E[x x^T], E[y x^T], E[y y^T] from the joint covariance of (x1, x0), in numpy."""
    d = len(cov)
    if path == "linear":
        a, s, da, ds = t, 1 - t, 1.0, -1.0
    else:
        a, s = math.sin(math.pi * t / 2), math.cos(math.pi * t / 2)
        da, ds = math.pi / 2 * s, -math.pi / 2 * a
    eye = np.eye(d)
    to_x = np.hstack([a * eye, s * eye])
    to_y = np.hstack([da * eye, ds * eye]) if target == "velocity" else np.hstack([0 * eye, -eye / s])
    joint = np.block([[cov, 0 * eye], [0 * eye, eye]])
    return to_x @ joint @ to_x.T, to_y @ joint @ to_x.T, to_y @ joint @ to_y.T


cases = st.fixed_dictionaries(
    {
        "dim": st.integers(1, 12),
        "log_kappa": st.floats(0, 4),
        "t": st.floats(0.02, 0.97),
        "path": st.sampled_from(sorted(PATHS)),
        "target": st.sampled_from(["velocity", "score"]),
        "seed": st.integers(0, 1000),
    }
)


def law_of(case: dict) -> np.ndarray:
    kappa = 1.0 if case["dim"] == 1 else 10 ** case["log_kappa"]
    return gaussian(case["dim"], kappa, seed=case["seed"]).cov.numpy()


@given(cases)
@settings(max_examples=60, deadline=None)
def test_optimum_residual_and_excess_risk_equal_brute_force(case):
    cov = law_of(case)
    xx, yx, yy = moments(cov, case["t"], case["path"], case["target"])
    best = np.linalg.solve(xx, yx.T).T
    values, basis = np.linalg.eigh(cov)
    problem = linear_problem(torch.from_numpy(values), case["t"], PATHS[case["path"]], case["target"])
    field = symmetric(problem.optimum, torch.from_numpy(basis))
    scale = np.abs(best).max() + 1e-3
    assert np.abs(field.numpy() - best).max() / scale < EXACT

    residual = np.diag(basis.T @ (yy - best @ xx @ best.T) @ basis)
    assert np.abs(problem.residual.numpy() - residual).max() < EXACT * np.abs(yy).max()

    other = np.random.default_rng(case["seed"]).normal(size=best.shape)

    def risk(a: np.ndarray) -> float:
        return float(np.trace(a @ xx @ a.T - 2 * a @ yx.T + yy))

    found = float(excess_risk(torch.from_numpy(other), field, torch.from_numpy(xx)))
    assert found == pytest.approx(risk(other) - risk(best), rel=1e-7)
    by_direction = problem.variance * squared_errors(
        torch.from_numpy(other), problem, torch.from_numpy(basis)
    )
    assert float(by_direction.sum()) == pytest.approx(found, rel=EXACT)


@given(cases, st.floats(0.05, 0.95), st.integers(0, 40))
@settings(max_examples=40, deadline=None)
def test_descent_recursion_equals_iterated_matrices(case, rate, steps):
    cov = law_of(case)
    xx, yx, _ = moments(cov, case["t"], case["path"], case["target"])
    best = np.linalg.solve(xx, yx.T).T
    values, basis = np.linalg.eigh(cov)
    eta = rate / np.linalg.eigvalsh(xx)[-1]
    field = np.random.default_rng(case["seed"]).normal(size=best.shape)
    problem = linear_problem(torch.from_numpy(values), case["t"], PATHS[case["path"]], case["target"])
    errors = squared_errors(torch.from_numpy(field), problem, torch.from_numpy(basis))
    for _ in range(steps):
        field = field - eta * 2 * (field @ xx - yx)
    found = ((field - best) @ basis) ** 2
    expected = problem.variance.numpy() * found.sum(0)
    got = descent_excess(problem.variance, errors, eta, torch.tensor([steps]))[0].numpy()
    start = (problem.variance * errors).numpy()
    assert np.abs(got - expected).max() < EXACT * start.max()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("target", ["velocity", "score"])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_autograd_on_matched_samples_equals_the_closed_form(path, target, preconditioned):
    dim, basis, field = 6, rotation(6, 3), rotation(6, 5)
    plain = Regressions.of([Cell(path, target, 0.9, 1e3)], basis[None])
    problems, start = plain, field
    if preconditioned:
        problems = plain.preconditioned()
        start = field @ symmetric(plain.closed.variance[0].sqrt(), basis)
    closed = problems.closed.part(slice(0, 1))
    errors = squared_errors(start[None], closed, basis[None])
    x, y = problems.sampled.samples(*matched_normals([7], dim))
    excess_of = EmpiricalExcess.of(x, y, basis[None])
    eta, looks = 0.4 / closed.variance.amax(-1), [0, 1, 3, 7]
    theory = descent_excess(closed.variance, errors, eta, torch.tensor(looks))
    for found, expected in zip(descend(FixedSamples(x, y), start[None], eta, looks), theory, strict=True):
        counted = expected > 1e-12 * theory[0]
        deviation = (excess_of(found) - expected).abs() / expected
        assert float(deviation[counted].max()) < EXACT
    if preconditioned:  # the risks at the start stay; then all directions at once, whatever the spectrum
        before = plain.closed.variance * squared_errors(field[None], plain.closed, basis[None])
        assert torch.allclose(theory[0], before, rtol=1e-9)
        shares = theory[1] / theory[0]
        assert float(shares.max() - shares.min()) < 1e-12
        assert float(shares[0, 0]) == pytest.approx((1 - 2 * float(eta)) ** 2)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_stochastic_second_moment_equals_monte_carlo(batch_size):
    """Within four standard errors of 4,000 independent runs, direction by direction and step by step."""
    dim, runs, t, rate = 3, 4000, 0.8, 0.05
    values = spectrum(dim, 20.0)
    closed = linear_problem(values, t, LinearPath())
    rng = np.random.default_rng(0)
    field = np.tile(np.array([[0.5, -0.2, 0.1], [0.0, 1.0, 0.3], [0.2, 0.0, -1.0]]), (runs, 1, 1))
    errors = squared_errors(torch.from_numpy(field[0]), closed, torch.eye(dim, dtype=torch.float64))
    best = np.diag(closed.optimum.numpy())
    for step in range(1, 13):
        x1 = rng.normal(size=(runs, batch_size, dim)) * values.sqrt().numpy()
        x0 = rng.normal(size=(runs, batch_size, dim))
        x, y = t * x1 + (1 - t) * x0, x1 - x0
        gradient = 2 * np.einsum("rbo,rbi->roi", np.einsum("roi,rbi->rbo", field, x) - y, x) / batch_size
        field = field - rate * gradient
        if step in (1, 4, 12):
            excess = closed.variance.numpy() * ((field - best) ** 2).sum(1)
            theory = stochastic_excess(
                closed.variance, errors, closed.residual, rate, batch_size, torch.tensor([step])
            )[0].numpy()
            error = excess.std(0) / math.sqrt(runs)
            assert (np.abs(excess.mean(0) - theory) < 4 * error).all()
            assert (error < 0.1 * theory).all()  # else the comparison could not fail


def test_noise_floor_is_where_the_recursion_ends_and_instability_is_named():
    closed = linear_problem(spectrum(5, 30.0), 0.7, VariancePreservingPath())
    rate, batch = 0.05 / float(closed.variance.max()), 3
    far = stochastic_excess(
        closed.variance, closed.optimum**2, closed.residual, rate, batch, torch.tensor([20_000])
    )[0]
    floor = stochastic_floor(closed.variance, closed.residual, rate, batch)
    assert torch.allclose(far, floor, rtol=1e-8)
    edge = max(r for r in np.linspace(0.01, 1, 500) if stochastic_is_stable(closed.variance, r, 1))
    for factor, grows in ((0.97, False), (1.05, True)):
        steps = torch.tensor([2000, 4000])
        two = stochastic_excess(
            closed.variance, closed.optimum**2, closed.residual, edge * factor, 1, steps
        ).sum(-1)
        assert bool(two[1] > 2 * two[0]) == grows
    assert torch.isinf(stochastic_floor(closed.variance, closed.residual, 2 * edge, 1)).all()


def test_steps_to_fraction_inverts_the_recursion_and_grows_like_kappa():
    variance = torch.tensor([[0.01, 0.3, 1.0], [0.2, 0.5, 2.0]], dtype=torch.float64)
    errors = torch.rand(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    eta = torch.tensor([0.4, 0.2], dtype=torch.float64)
    total = steps_to_total_fraction(variance, errors, eta, 0.05)
    for i in range(2):
        before, at = descent_excess(variance[i], errors[i], eta[i], total[i] - torch.tensor([1, 0])).sum(-1)
        assert float(at) <= 0.05 * float((variance[i] * errors[i]).sum()) < float(before)
    kappa = torch.tensor([1e3, 1e5], dtype=torch.float64)
    steps = steps_to_fraction(1 / kappa, 0.5, 0.1)
    assert float(steps[1] / steps[0]) == pytest.approx(100, rel=1e-2)
    assert float(steps[1]) == pytest.approx(1e5 * math.log(10) / 2, rel=1e-3)


def test_whole_steps_where_the_top_direction_dies_in_the_first():
    variance = torch.tensor([0.25, 1.0], dtype=torch.float64)
    errors = torch.tensor([[0.0, 1.0], [4.0, 9.0], [0.0, 0.0]], dtype=torch.float64)
    # Of the second problem, 1 + 9 at the start, 0.5625^k is left after k steps.
    assert steps_to_total_fraction(variance, errors, 0.5, 0.1).tolist() == [1, 1, 0]
    found = [float(steps_to_total_fraction(variance, errors[1], 0.5, f)) for f in (0.06, 0.05, 0.01)]
    assert found == [1, 2, 5]


def test_the_total_on_the_linear_path_does_not_slow_down_with_kappa():
    """The slope beside which the measured one stands: no fraction of a step, in which it would fall with kappa."""
    kappas, bases = (10.0, 100.0, 1e3, 1e4, 1e5), torch.eye(4, dtype=torch.float64)[None]
    rows, problems = grid(["linear"], ["velocity"], (0.5, 0.9, 0.99, 0.999), kappas, bases)
    closed = problems.closed
    steps = steps_to_total_fraction(
        closed.variance, closed.optimum.square(), 0.5 / closed.variance.amax(-1), 0.1
    )
    used = rows["condition_number_t"] >= 10
    fit = slope(np.log(rows["condition_number_t"][used]), np.log(steps.numpy()[used]))
    assert fit == pytest.approx(0.037, abs=1e-3)


def test_stochastic_steps_are_the_first_that_reach_the_fraction():
    closed = linear_problem(spectrum(3, 10.0), 0.8, LinearPath())
    eta, start = 0.02 / float(closed.variance.max()), 100 * torch.ones(3, dtype=torch.float64)
    arguments = (closed.variance, start, closed.residual, eta, 8)
    steps = stochastic_steps_to_fraction(*arguments, 0.3, 10_000)
    course = stochastic_excess(*arguments, torch.arange(int(max(steps)) + 1))
    for found, excess in zip(steps, (course[:, 0], course.sum(-1)), strict=True):
        reached = excess <= 0.3 * excess[0]
        assert int(found) == int(reached.double().argmax()) > 1
    assert all(math.isinf(float(step)) for step in stochastic_steps_to_fraction(*arguments, 0.3, 2))


def test_absolute_accuracy_needs_no_steps_along_directions_of_small_variance():
    """Why C2 speaks of the slowest direction: the total can be done long before."""
    closed = linear_problem(spectrum(8, 1e6), 0.999, LinearPath())
    errors, eta = closed.optimum**2, 0.5 / float(closed.variance.max())
    total = float(steps_to_total_fraction(closed.variance, errors, eta, 0.1))
    slowest = float(steps_to_fraction(closed.variance[0], eta, 0.1))
    assert slowest > 1e5
    assert total < 100


def test_degenerate_cases():
    assert linear_problem(torch.tensor([2.0]), 0.3, LinearPath()).variance.shape == (1,)
    flat = linear_problem(spectrum(4, 1.0), 0.3, LinearPath())
    assert float(flat.variance.max() - flat.variance.min()) == 0.0
    zero = torch.tensor([0.0, 1.0], dtype=torch.float64)
    handled = linear_problem(zero, 0.9, LinearPath())  # a subspace: fine before t = 1
    assert float(handled.variance[0]) == pytest.approx(0.01)
    assert float(handled.residual[0]) == 0.0


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: linear_problem(torch.tensor([0.0, 1.0]), 1.0, LinearPath()), "t"),
        (lambda: linear_problem(torch.ones(2), 1.0, LinearPath(), "score"), "t"),
        (lambda: steps_to_fraction(ONES, 0.1, 1.0), "fraction"),
        (lambda: steps_to_total_fraction(ONES, ONES, 0.1, 0.0), "fraction"),
        (lambda: stochastic_steps_to_fraction(ONES, ONES, ONES, 0.1, 4, 1.5, 10), "fraction"),
        (lambda: steps_to_fraction(ONES, 1.5, 0.1), "learning_rate"),
        (lambda: stochastic_excess(ONES, ONES, ONES, 0.1, 0, torch.tensor([1])), "batch_size"),
    ],
)
def test_what_has_no_answer_is_refused(call, field):
    with pytest.raises(PrecfmError, match=f"^{field}: "):
        call()


def test_measured_path_weights_are_those_of_the_paths():
    t = torch.tensor(0.37, dtype=torch.float64)
    for name, path in PATHS.items():
        expected = [float(f(t)) for f in (path.alpha, path.sigma, path.d_alpha, path.d_sigma)]
        assert path_weights(name, "velocity", 0.37) == pytest.approx(expected, rel=1e-12)
        score = path_weights(name, "score", 0.37)
        assert score == pytest.approx([*expected[:2], 0.0, -1 / expected[1]], rel=1e-12)


def test_steps_until_finds_the_crossing_and_says_when_there_is_none():
    values = torch.stack([spectrum(3, 1.0), spectrum(3, 50.0), spectrum(3, 50.0)])
    weights = torch.tensor([path_weights("linear", "velocity", 1.0)] * 3, dtype=torch.float64)
    problems = GaussianRegressions(values, torch.eye(3, dtype=torch.float64).expand(3, 3, 3), weights)
    x, y = problems.samples(*matched_normals([1, 2, 3], 3))
    rates = torch.tensor([0.25, 0.5, 0.25]) / values.amax(1)  # the second's top direction dies in one step
    zero = torch.zeros(3, 3, 3, dtype=torch.float64)
    limits = torch.tensor([10**6, 10**6, 20])
    lowest, total = steps_until(FixedSamples(x, y), EmpiricalExcess.of(x, y), zero, rates, 0.1, limits)
    closed = linear_problem(values, 1.0, LinearPath())
    exact = steps_to_total_fraction(closed.variance, closed.optimum.square(), rates, 0.1)
    assert torch.equal(total[:2].ceil(), exact[:2])
    expected = steps_to_fraction(values[:, 0], rates, 0.1)
    assert torch.allclose(lowest[:2], expected[:2], rtol=1e-6)
    assert math.isinf(float(lowest[2]))
    assert bool((total[:2] <= lowest[:2] + 1e-9).all())
    assert float(zero.abs().max()) == 0.0  # the start is left as it was
