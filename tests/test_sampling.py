import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.flows.paths import LinearPath, ProbabilityPath, VariancePreservingPath
from precfm.flows.sampling import evaluation_labels, evaluation_noise, integrate, rows_with_labels

STAGES = {"euler": 1, "midpoint": 2, "rk4": 4}
SPECTRUM = torch.tensor([4.0, 1.0, 0.04], dtype=torch.float64)


def rotation() -> Tensor:
    source = torch.Generator().manual_seed(3)
    return torch.linalg.qr(torch.randn(3, 3, generator=source, dtype=torch.float64))[0]


def gaussian_field(path: ProbabilityPath):  # type: ignore[no-untyped-def]
    """The exact velocity E[alpha' x1 + sigma' x0 | x_t] for x1 ~ N(0, R diag(SPECTRUM) R^T)."""
    basis = rotation()

    def velocity(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        alpha, sigma, d_alpha, d_sigma = (
            schedule(t)[:, None] for schedule in (path.alpha, path.sigma, path.d_alpha, path.d_sigma)
        )
        gain = (alpha * d_alpha * SPECTRUM + sigma * d_sigma) / (alpha**2 * SPECTRUM + sigma**2)
        return (x @ basis * gain) @ basis.T

    return velocity


def exact_end(z0: Tensor) -> Tensor:
    """The exact Gaussian field carries x0 to Sigma_t^(1/2) x0."""
    return z0 @ rotation() * SPECTRUM.sqrt() @ rotation().T


def noise(n: int = 50) -> Tensor:
    return evaluation_noise(n, 3, 0).double()


@pytest.mark.parametrize("path", [LinearPath(), VariancePreservingPath()])
@pytest.mark.parametrize("solver", ["midpoint", "rk4", "dopri5"])
def test_exact_gaussian_field_ends_at_the_exact_map(path: ProbabilityPath, solver: str) -> None:
    end = integrate(gaussian_field(path), noise(), solver=solver, steps=200, tolerance=1e-9)
    torch.testing.assert_close(end, exact_end(noise()), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_error_falls_with_the_order_of_the_solver(solver: str, order: int) -> None:
    # Not on the Gaussian field, where midpoint gains an order.
    def field(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        return (1 + t)[:, None] * x

    exact = noise() * math.exp(1.5)
    ends = [integrate(field, noise(), solver=solver, steps=steps) for steps in (80, 160)]
    errors = [float((end - exact).norm()) for end in ends]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.15)


@settings(deadline=None)
@given(solver=st.sampled_from(sorted(STAGES)), steps=st.integers(1, 70), backwards=st.booleans())
def test_grid_has_as_many_steps_as_asked_for(solver: str, steps: int, backwards: bool) -> None:
    times: list[float] = []

    def field(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        assert t.shape == (2,)
        times.append(float(t[0]))
        return torch.ones_like(x)

    t0, t1 = (1.0, 0.0) if backwards else (0.0, 1.0)
    end = integrate(field, torch.zeros(2, 1), solver=solver, steps=steps, t0=t0, t1=t1)
    assert len(times) == steps * STAGES[solver]
    torch.testing.assert_close(end, torch.full((2, 1), t1 - t0))
    starts = [t0 + (t1 - t0) * k / steps for k in range(steps)]
    assert times[:: STAGES[solver]] == pytest.approx(starts, abs=1e-5)


@pytest.mark.parametrize("solver", ["midpoint", "rk4", "dopri5"])
def test_backwards_undoes_forwards(solver: str) -> None:
    field = gaussian_field(LinearPath())
    options = {"solver": solver, "steps": 100, "tolerance": 1e-9}
    z1 = integrate(field, noise(), **options)
    back = integrate(field, z1, t0=1.0, t1=0.0, **options)
    assert float((z1 - noise()).abs().max()) > 0.1
    torch.testing.assert_close(back, noise(), rtol=0, atol=2e-3)


def test_part_of_the_way_composes_to_the_whole() -> None:
    field = gaussian_field(LinearPath())
    whole = integrate(field, noise(), steps=100)
    half = integrate(field, noise(), steps=50, t1=0.5)
    torch.testing.assert_close(integrate(field, half, steps=50, t0=0.5), whole)
    assert torch.equal(integrate(field, half, t0=0.5, t1=0.5), half)


def test_blocks_keep_rows_and_labels_together() -> None:
    labels = torch.arange(10)

    def field(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        assert y is not None
        return y[:, None, None].to(x.dtype).expand_as(x)

    z0 = torch.zeros(10, 2, 2)
    for batch_size in (1, 3, 10, 64):
        z1 = integrate(field, z0, labels, steps=2, batch_size=batch_size)
        torch.testing.assert_close(z1, labels[:, None, None].float().expand(10, 2, 2))
    assert integrate(field, z0[:0], labels[:0]).shape == (0, 2, 2)


def test_no_gradient_is_kept() -> None:
    layer = torch.nn.Linear(3, 3)
    assert not integrate(lambda x, t, y: layer(x), torch.ones(2, 3), steps=2).requires_grad


def test_samples_that_leave_the_finite_numbers_are_refused() -> None:
    def field(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        return torch.where(torch.arange(len(x))[:, None] == 2, torch.inf, x)

    with pytest.raises(PrecfmError, match="sample 2 "):
        integrate(field, torch.ones(4, 2), steps=3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("solver", "heun"),
        ("steps", 0),
        ("steps", 2.5),
        ("batch_size", 0),
        ("tolerance", 0.0),
        ("labels", torch.zeros(3, dtype=torch.int64)),
        ("labels", [0, 0, 0, 0]),
        ("z0", np.zeros((4, 2))),
        ("z0", torch.zeros(4, 2, dtype=torch.int64)),
    ],
)
def test_wrong_arguments_are_named(field: str, value: object) -> None:
    given = {"z0": torch.zeros(4, 2), field: value}
    with pytest.raises(PrecfmError, match=f"^{field}: "):
        integrate(lambda x, t, y: x, **given)  # type: ignore[arg-type]


def test_noise_is_standard_normal_and_belongs_to_its_seed() -> None:
    before = torch.get_rng_state()
    z = evaluation_noise(50_000, (2, 2), 7)
    assert torch.equal(torch.get_rng_state(), before)
    assert z.shape == (50_000, 2, 2)
    assert z.dtype == torch.float32
    torch.testing.assert_close(z.flatten(1).T.cov(), torch.eye(4), rtol=0, atol=0.03)
    assert torch.equal(z, evaluation_noise(50_000, (2, 2), 7))
    assert not torch.equal(z, evaluation_noise(50_000, (2, 2), 8))
    with pytest.raises(PrecfmError, match=r"^n: got -1"):
        evaluation_noise(-1, 2, 7)


def largest_remainder(n: int, frequencies: list[int]) -> list[int]:
    quotas = [Fraction(n * frequency, sum(frequencies)) for frequency in frequencies]
    counts = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda k: (-(quotas[k] - counts[k]), k))
    for k in by_remainder[: n - sum(counts)]:
        counts[k] += 1
    return counts


@settings(deadline=None)
@given(
    n=st.integers(0, 300),
    frequencies=st.lists(st.integers(0, 20), min_size=1, max_size=8).filter(lambda f: f[-1] > 0),
    seed=st.integers(0, 1000),
)
def test_labels_have_the_proportions_of_the_reference(n: int, frequencies: list[int], seed: int) -> None:
    reference = torch.arange(len(frequencies)).repeat_interleave(torch.tensor(frequencies))
    labels = evaluation_labels(n, reference, seed)
    assert labels.dtype == torch.int64
    assert labels.bincount(minlength=len(frequencies)).tolist() == largest_remainder(n, frequencies)
    assert torch.equal(labels, evaluation_labels(n, reference.flip(0), seed))


def test_labels_are_shuffled() -> None:
    reference = torch.arange(1000) % 10
    labels = evaluation_labels(1000, reference, 0)
    assert not torch.equal(labels, evaluation_labels(1000, reference, 1))
    # Every stretch holds every class, so that a prefix of the samples is a fair sample too.
    assert all(len(part.unique()) == 10 for part in labels.split(200))
    with pytest.raises(PrecfmError, match=r"^labels: got none"):
        evaluation_labels(5, reference[:0], 0)


@given(data=st.data(), n=st.integers(0, 30))
@settings(deadline=None)
def test_rows_have_the_wanted_labels_and_are_used_once(data: st.DataObject, n: int) -> None:
    available = torch.tensor(
        data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=60)), dtype=torch.int64
    )
    order = torch.tensor(data.draw(st.permutations(range(len(available)))), dtype=torch.int64)
    wanted = available[order[:n]]
    rows = rows_with_labels(wanted, available)
    assert torch.equal(available[rows], wanted)
    assert len(set(rows.tolist())) == n
    for label in set(wanted.tolist()):
        used = rows[wanted == label].tolist()
        assert used == (available == label).nonzero()[:, 0].tolist()[: len(used)]


def test_class_asked_for_too_often_is_refused() -> None:
    with pytest.raises(PrecfmError, match="class 1 "):
        rows_with_labels(torch.tensor([1, 0, 1]), torch.tensor([0, 1, 0]))
