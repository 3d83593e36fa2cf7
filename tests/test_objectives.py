"""Objectives: losses against closed forms, laws of the time, coupling, metrics of the error, what they bind to."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import logit
from scipy.stats import kstest, norm
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.options import options_of
from precfm.core.registry import build
from precfm.core.seeds import seeded_module
from precfm.flows.coupling import optimal_coupling
from precfm.flows.models.mlp import MLPVelocity
from precfm.flows.objectives import (
    DenoisingScore,
    FlowMatching,
    VelocityObjective,
    XPrediction,
    denoising_score_loss,
    flow_matching_loss,
)
from precfm.flows.paths import LinearPath, ProbabilityPath, VariancePreservingPath
from precfm.flows.score import score_from_noise, velocity_from_noise
from precfm.flows.times import kappa_directed_time, logit_normal_time, uniform_time
from precfm.training.options import TrainingOptions
from precfm.training.trainer import train

PATHS: list[ProbabilityPath] = [LinearPath(), VariancePreservingPath()]
every_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
MANY = 200_000
FLOOR = 1e-6  # of a spectrum, relative to its largest eigenvalue
Data = tuple[Tensor, Tensor]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise_and_times(x1: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    source = generator(seed)
    return torch.randn(x1.shape, generator=source, dtype=x1.dtype), torch.rand(len(x1), generator=source)


def silent(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    return torch.zeros_like(x_t)


def curved(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    return torch.sin(x_t) + t.to(x_t.dtype)[:, None]


def gaussian(variance: float, n: int = MANY) -> Tensor:
    return variance**0.5 * torch.randn(n, 1, generator=generator(99), dtype=torch.float64)


def numbers(path: ProbabilityPath, t: float) -> tuple[float, ...]:
    time = torch.tensor(t, dtype=torch.float64)
    return tuple(float(schedule(time)) for schedule in (path.alpha, path.sigma, path.d_alpha, path.d_sigma))


# ---- the losses


def test_a_silent_model_pays_the_second_moment_of_its_target() -> None:
    x1 = torch.full((MANY, 2), 3.0)
    for loss, path, expected in [
        (flow_matching_loss, LinearPath(), 3.0**2 + 1),
        (flow_matching_loss, VariancePreservingPath(), (math.pi / 2) ** 2 * (3.0**2 + 1) / 2),
        (denoising_score_loss, LinearPath(), 1.0),
    ]:
        assert float(loss(silent, path, x1, None, *noise_and_times(x1))) == pytest.approx(expected, rel=0.01)


@every_path
@pytest.mark.parametrize("variance", [0.01, 4.0])
def test_exact_gaussian_fields_reach_the_least_possible_risk(path: ProbabilityPath, variance: float) -> None:
    """For x1 ~ N(0, l) the optimal field is linear in x_t, and the risk left is the conditional variance."""

    def left_velocity(t: float) -> float:
        alpha, sigma, d_alpha, d_sigma = numbers(path, t)
        explained = (alpha * d_alpha * variance + sigma * d_sigma) ** 2 / (alpha**2 * variance + sigma**2)
        return d_alpha**2 * variance + d_sigma**2 - explained

    def left_noise(t: float) -> float:
        alpha, sigma, _, _ = numbers(path, t)
        return 1 - sigma**2 / (alpha**2 * variance + sigma**2)

    def velocity(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        alpha, sigma, d_alpha, d_sigma = path.alpha(t), path.sigma(t), path.d_alpha(t), path.d_sigma(t)
        gain = (alpha * d_alpha * variance + sigma * d_sigma) / (alpha**2 * variance + sigma**2)
        return gain[:, None] * x_t

    def noise(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        return (path.sigma(t) / (path.alpha(t) ** 2 * variance + path.sigma(t) ** 2))[:, None] * x_t

    x1 = gaussian(variance)
    for loss, field, left in [
        (flow_matching_loss, velocity, left_velocity),
        (denoising_score_loss, noise, left_noise),
    ]:
        best = float(loss(field, path, x1, None, *noise_and_times(x1, 1)))
        assert best == pytest.approx(quad(left, 0, 1)[0], rel=0.02)
        worse = float(
            loss(lambda x, t, y, f=field: 1.1 * f(x, t, y), path, x1, None, *noise_and_times(x1, 1))
        )
        assert worse > best


@every_path
def test_noise_loss_is_the_score_loss_weighted_by_the_variance(path: ProbabilityPath) -> None:
    x1 = gaussian(2.0, n=64)
    x0, t = noise_and_times(x1)
    t = 0.05 + 0.9 * t.double()
    x_t, _ = path.sample(x0, x1, t)
    sigma = path.sigma(t)[:, None]
    target = -(x_t - path.alpha(t)[:, None] * x1) / sigma**2  # the score of N(alpha x1, sigma^2)
    score = score_from_noise(path, curved(x_t, t, None), t)
    loss = denoising_score_loss(curved, path, x1, None, x0, t)
    torch.testing.assert_close(loss, (sigma**2 * (score - target) ** 2).mean())


@every_path
@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), t=st.floats(0.05, 0.95))
def test_true_noise_gives_the_true_velocity(path: ProbabilityPath, seed: int, t: float) -> None:
    source = generator(seed)
    x0, x1 = (torch.randn(4, 3, generator=source, dtype=torch.float64) for _ in range(2))
    times = torch.full((4,), t, dtype=torch.float64)
    x_t, velocity = path.sample(x0, x1, times)
    torch.testing.assert_close(velocity_from_noise(path, x0, x_t, times), velocity, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("loss", [flow_matching_loss, denoising_score_loss])
def test_a_loss_is_a_mean_over_batch_and_dimensions_that_hands_on_labels(loss: Any) -> None:
    x1, labels = torch.randn(32, 3, 4, generator=generator(5)), torch.arange(32)
    x0, t = noise_and_times(x1)
    scale = torch.tensor(0.5, requires_grad=True)

    def model(x_t: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        assert t.shape == (32,)
        assert y is labels
        return x_t * scale

    value = loss(model, LinearPath(), x1, labels, x0, t)
    value.backward()
    x_t, velocity = LinearPath().sample(x0, x1, t)
    error = 0.5 * x_t - (velocity if loss is flow_matching_loss else x0)
    torch.testing.assert_close(value.detach(), error.square().mean())
    torch.testing.assert_close(scale.grad, 2 * (error * x_t).mean())


# ---- the classes that a configuration names


def spread(n: int = 60, dtype: torch.dtype = torch.float32) -> Data:
    """Data of condition number about 1e4 in rotated axes, and labels of three classes."""
    source = generator(3)
    basis = torch.linalg.qr(torch.randn(4, 4, generator=source, dtype=torch.float64))[0]
    scales = torch.tensor([3.0, 1.0, 0.3, 0.03], dtype=torch.float64)
    rows = torch.randn(n, 4, generator=source, dtype=torch.float64) * scales @ basis.T
    return rows.to(dtype), torch.randint(3, (n,), generator=source)


def prepared(data: Data, path: ProbabilityPath = PATHS[0], kind: Any = FlowMatching, **options: Any) -> Any:
    geometry = {name: options.pop(name, None) for name in ("inverse_jacobian", "decoder_metric")}
    return kind(**options).prepare(path, data[0], **geometry)


def value(objective: VelocityObjective, data: Data, seed: int = 2) -> Tensor:
    return objective.loss(curved, data, objective.draw(len(data[0]), generator(seed)))


@every_path
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_default_options_are_the_plain_losses_to_the_bit(path: ProbabilityPath, dtype: torch.dtype) -> None:
    data = spread(dtype=dtype)
    laws = {"uniform": uniform_time, "logit_normal": logit_normal_time(0.5, 1.5)}
    kinds = [(FlowMatching, flow_matching_loss), (DenoisingScore, denoising_score_loss)]
    for (name, law), (kind, plain) in itertools.product(laws.items(), kinds):
        objective = prepared(data, path, kind, time=name, time_mean=0.5, time_std=1.5)
        source = generator(2)
        t = law(60, source).to(dtype)
        x0 = torch.randn(60, 4, generator=source, dtype=dtype)
        assert torch.equal(value(objective, data), plain(curved, path, *data, x0, t))
        unlabelled = objective.loss(curved, data[:1], (t, x0))
        assert torch.equal(unlabelled, value(objective, data))


def test_configurations_name_the_classes_and_their_options() -> None:
    options = options_of(FlowMatching)().model_dump()
    assert set(options) == {"time", "time_mean", "time_std", "coupling", "metric"}
    assert isinstance(build("objectives", {"name": "flow_matching", **options}), FlowMatching)
    assert isinstance(build("objectives", {"name": "denoising_score", "time": "uniform"}), DenoisingScore)


# ---- times


def test_times_follow_their_laws() -> None:
    assert kstest(uniform_time(20_000, generator()).numpy(), "uniform").pvalue > 0.01
    times = logit_normal_time(0.5, 1.5)(20_000, generator()).double()
    assert 0 < float(times.min()) < float(times.max()) < 1
    assert kstest(torch.logit(times).numpy(), "norm", args=(0.5, 1.5)).pvalue > 0.01
    for std in (0.0, -1.0, math.nan):
        with pytest.raises(PrecfmError, match=r"^std: got"):
            logit_normal_time(0.0, std)


@pytest.mark.parametrize(("name", "mean"), [("mixed", 0.0), ("early", -1.0), ("late", 1.0)])
def test_mixed_times_are_uniform_for_a_quarter(name: str, mean: float) -> None:
    times, _ = prepared(spread(), time=name, time_mean=3.0).draw(20_000, generator())

    def below(t: np.ndarray) -> np.ndarray:
        return 0.25 * t + 0.75 * norm.cdf(logit(t) - mean)

    assert kstest(times.double().numpy(), below).pvalue > 0.01


@every_path
@pytest.mark.parametrize("kappa", [1.0, 1e2, 1e5, math.inf])
def test_kappa_directed_times_follow_the_stated_density(path: ProbabilityPath, kappa: float) -> None:
    largest = 2.5
    eigenvalues = torch.tensor([largest / kappa, 1.0, largest], dtype=torch.float64)
    if kappa == 1.0:
        eigenvalues[:] = largest
    basis = torch.linalg.qr(torch.randn(3, 3, generator=generator(), dtype=torch.float64))[0]
    times = kappa_directed_time(path, basis * eigenvalues @ basis.T)(20_000, generator(1))
    lowest = max(largest / kappa, FLOOR * largest) if kappa > 1 else largest

    def density(t: np.ndarray) -> np.ndarray:
        at = torch.from_numpy(t)
        data, noise = (schedule(at).square().numpy() for schedule in (path.alpha, path.sigma))
        return 1 + np.log((data * largest + noise) / (data * lowest + noise))

    grid = np.linspace(0, 1, 200_001)
    below = np.concatenate([[0.0], np.cumsum((density(grid)[1:] + density(grid)[:-1]) / 2)])
    assert kstest(times.double().numpy(), lambda t: np.interp(t, grid, below / below[-1])).pvalue > 0.01
    assert times.dtype == torch.float32
    assert bool(((times >= 0) & (times <= 1)).all())
    assert len(times.unique()) > 19_000  # between the points of the grid, too
    assert (kstest(times.double().numpy(), "uniform").pvalue > 0.01) == (kappa == 1.0)


def test_kappa_directed_times_are_those_of_the_data() -> None:
    data = spread(4000)
    centred = data[0].double() - data[0].double().mean(0)
    law = kappa_directed_time(LinearPath(), centred.T @ centred / (len(centred) - 1))
    t, _ = prepared(data, time="kappa_directed").draw(4000, generator(5))
    assert torch.equal(t, law(4000, generator(5)))
    with pytest.raises(PrecfmError, match="drop constant"):
        prepared((torch.ones(5, 4), data[1]), time="kappa_directed")


# ---- coupling


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 8), classes=st.integers(1, 3))
def test_coupling_is_the_best_of_all_permutations_within_each_class(seed: int, n: int, classes: int) -> None:
    source = generator(seed)
    x0, x1 = torch.randn(n, 2, 3, generator=source), 3 * torch.randn(n, 2, 3, generator=source) + 5
    labels = torch.randint(classes, (n,), generator=source)
    coupled = optimal_coupling(x0, x1, labels)
    for label in range(classes):
        noise, data, found = (x[labels == label].flatten(1).double() for x in (x0, x1, coupled))
        assert torch.equal(noise.sort(0).values, found.sort(0).values)
        if len(noise) <= 6:
            orders = itertools.permutations(range(len(noise)))
            best = min(float((noise[list(order)] - data).square().sum()) for order in orders)
            assert float((found - data).square().sum()) == pytest.approx(best, rel=1e-9)
    if classes == 1:
        assert torch.equal(coupled, optimal_coupling(x0, x1, None))
    assert torch.equal(coupled, optimal_coupling(x0, x1, labels))


def test_noise_given_a_class_stays_standard_normal_under_coupling() -> None:
    """Classes far apart: pairing across them would give each class the noise on its side."""
    labels = torch.arange(3000) % 2
    x1 = 10.0 * (2 * labels[:, None] - 1) + torch.randn(3000, 1, generator=generator(1))
    x0 = torch.randn(3000, 1, generator=generator(2))
    batches = [slice(start, start + 100) for start in range(0, 3000, 100)]
    within = torch.cat([optimal_coupling(x0[batch], x1[batch], labels[batch]) for batch in batches])
    across = torch.cat([optimal_coupling(x0[batch], x1[batch], None) for batch in batches])
    for label in range(2):
        assert kstest(within[labels == label, 0].double().numpy(), "norm").pvalue > 0.01
        assert kstest(across[labels == label, 0].double().numpy(), "norm").pvalue < 1e-6


def test_coupled_loss_regresses_the_velocity_of_the_coupled_noise() -> None:
    data = spread()
    objective = prepared(data, coupling="optimal_transport")
    t, x0 = objective.draw(60, generator(2))
    x_t, velocity = LinearPath().sample(optimal_coupling(x0, *data), data[0], t)
    torch.testing.assert_close(value(objective, data), (curved(x_t, t, None) - velocity).square().mean())
    assert float(value(objective, data)) < float(value(prepared(data), data))


# ---- metric


def errors(data: Data, seed: int = 2) -> Tensor:
    """The error of `curved` in the draws that a loss with this seed makes."""
    t, x0 = prepared(data).draw(len(data[0]), generator(seed))
    x_t, velocity = LinearPath().sample(x0, data[0], t)
    return curved(x_t, t, None) - velocity


def weighted(error: Tensor, matrix: Tensor) -> Tensor:
    """The definition: mean of e^T M e / trace(M)."""
    return torch.einsum("bi,ij,bj->b", error, matrix, error).mean() / matrix.trace()


JACOBIAN = torch.randn(6, 4, generator=generator(11), dtype=torch.float64)
SQUARE = torch.randn(6, 3, generator=generator(12), dtype=torch.float64)
METRIC = SQUARE @ SQUARE.T  # rank 3: a decoder that ignores half of the latent space


def test_errors_are_measured_in_the_pulled_back_metric() -> None:
    data = spread(dtype=torch.float64)
    matrices = {"latent": JACOBIAN.T @ JACOBIAN, "decoder": JACOBIAN.T @ METRIC @ JACOBIAN}
    for metric, matrix in matrices.items():
        objective = prepared(data, metric=metric, inverse_jacobian=JACOBIAN, decoder_metric=METRIC)
        torch.testing.assert_close(value(objective, data), weighted(errors(data), matrix))
    isometry = 7.0 * torch.linalg.qr(JACOBIAN)[0]
    same = prepared(data, metric="latent", inverse_jacobian=isometry)
    torch.testing.assert_close(value(same, data), value(prepared(data), data))


def test_inverse_variance_weighs_as_whitening_does_with_a_floored_spectrum() -> None:
    data = spread(dtype=torch.float64)
    centred = data[0] - data[0].mean(0)
    inverse = torch.linalg.inv(centred.T @ centred / 59)
    found = value(prepared(data, metric="inverse_variance"), data)
    torch.testing.assert_close(found, weighted(errors(data), inverse))
    constant = torch.zeros(60, 1, dtype=torch.float64)
    flat = torch.cat([data[0][:, :1], constant], 1), data[1]
    error = errors(flat)
    expected = (error[:, 0].square() * FLOOR + error[:, 1].square()).mean() / (1 + FLOOR)
    torch.testing.assert_close(value(prepared(flat, metric="inverse_variance"), flat), expected)


# ---- sampling and training


@every_path
def test_both_objectives_integrate_the_same_velocity(path: ProbabilityPath) -> None:
    x1 = spread(dtype=torch.float64)[0]
    x0 = torch.randn(60, 4, generator=generator(), dtype=torch.float64)
    t = torch.linspace(0.02, 1, 60, dtype=torch.float64)
    x_t, velocity = path.sample(x0, x1, t)
    flow, score = FlowMatching(), DenoisingScore()
    assert flow.velocity(curved, path) is curved
    assert (flow.start, flow.start_scale(path), flow.predicts_velocity) == (0.0, 1.0, True)
    field = score.velocity(lambda x, t, y: x0, path)
    torch.testing.assert_close(field(x_t, t, None), velocity, rtol=1e-9, atol=1e-9)
    alpha, sigma, _, _ = numbers(path, score.start)
    assert score.start_scale(path) == pytest.approx((alpha**2 + sigma**2) ** 0.5)
    assert 0 < score.start < 0.1
    assert not score.predicts_velocity


@every_path
def test_predicted_data_are_judged_by_their_velocity_and_sampled_by_it(path: ProbabilityPath) -> None:
    x1 = spread(dtype=torch.float64)[0]
    x0 = torch.randn(60, 4, generator=generator(), dtype=torch.float64)
    t = torch.linspace(0, 0.9, 60, dtype=torch.float64)
    x_t, velocity = path.sample(x0, x1, t)
    objective = XPrediction(metric="inverse_variance").prepare(path, x1)
    field = objective.velocity(lambda x, t, y: x1, path)
    torch.testing.assert_close(field(x_t, t, None), velocity, rtol=1e-9, atol=1e-9)
    found = objective.loss(curved, (x1,), (t, x0))
    derived = objective.velocity(curved, path)
    same = FlowMatching(metric="inverse_variance").prepare(path, x1).loss(derived, (x1,), (t, x0))
    torch.testing.assert_close(found, same)  # before sigma_t is small
    end = torch.ones_like(t)
    bounded = XPrediction().prepare(path, x1).loss(curved, (x1,), (end, x0))
    slope = numbers(path, 1.0)[3] / XPrediction.LOSS_SIGMA
    torch.testing.assert_close(bounded, (slope * (curved(x1, end, None) - x1)).square().mean())
    assert bool(derived(x1, end, None).isfinite().all())
    assert not XPrediction.predicts_velocity


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
def test_trainings_with_every_option_are_repeatable_and_learn(device: str) -> None:
    def trained() -> tuple[dict[str, Tensor], list[float]]:
        data = tuple(x.to(device) for x in spread(200))
        module = seeded_module(lambda: MLPVelocity(4, 3, width=16, depth=2), 0).to(device)
        objective = FlowMatching(time="kappa_directed", coupling="optimal_transport", metric="decoder")
        objective.prepare(LinearPath(), data[0], inverse_jacobian=JACOBIAN, decoder_metric=METRIC)
        result = train(module, objective, data, TrainingOptions(steps=60, learning_rate=1e-2), seed=0)
        return module.state_dict(), result.history.loss.tolist()

    (weights, losses), (again, same) = trained(), trained()
    assert np.mean(losses[-20:]) < 0.9 * np.mean(losses[:5])
    if device == "cpu":
        assert losses == same
        assert all(torch.equal(weights[name], again[name]) for name in weights)


# ---- mistakes


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("inverse_jacobian", {"metric": "latent"}),
        ("inverse_jacobian", {"metric": "latent", "inverse_jacobian": JACOBIAN.T}),
        ("decoder_metric", {"metric": "decoder", "inverse_jacobian": JACOBIAN}),
        (
            "decoder_metric",
            {"metric": "decoder", "inverse_jacobian": JACOBIAN, "decoder_metric": METRIC[:4, :4]},
        ),
        ("metric", {"metric": "latent", "inverse_jacobian": JACOBIAN * math.nan}),
        ("metric", {"metric": "latent", "inverse_jacobian": 0 * JACOBIAN}),
    ],
)
def test_options_that_cannot_be_are_refused(field: str, options: dict[str, Any]) -> None:
    with pytest.raises(PrecfmError, match=f"^{field}: "):
        prepared(spread(), **options)


@pytest.mark.parametrize("kind", [FlowMatching, DenoisingScore])
def test_use_before_prepare_and_data_that_are_no_tensor_are_refused(kind: Any) -> None:
    for use in (
        lambda it: it.draw(8, generator()),
        lambda it: it.loss(curved, spread(), (torch.rand(60),) * 2),
    ):
        with pytest.raises(PrecfmError, match="before prepare"):
            use(kind())
    for wrong in (spread()[0].numpy(), spread()[1]):
        with pytest.raises(PrecfmError, match=r"^z1: "):
            kind().prepare(LinearPath(), wrong)
