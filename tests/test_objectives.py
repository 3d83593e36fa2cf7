import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import kstest
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.options import options_of
from precfm.core.registry import build
from precfm.core.seeds import seeded_module
from precfm.flows.models.mlp import MLPVelocity
from precfm.flows.objectives import (
    FLOOR,
    DenoisingScore,
    FlowMatching,
    denoising_score_loss,
    flow_matching_loss,
    kappa_directed_time,
    logit_normal_time,
    optimal_coupling,
    score_from_noise,
    uniform_time,
    velocity_from_noise,
)
from precfm.flows.paths import LinearPath, ProbabilityPath, VariancePreservingPath
from precfm.training.trainer import TrainingOptions, train

every_path = pytest.mark.parametrize("path", [LinearPath(), VariancePreservingPath()])
CPU = torch.device("cpu")
MANY = 200_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def silent(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    return torch.zeros_like(x_t)


def gaussian(variance: float, n: int = MANY) -> Tensor:
    return variance**0.5 * torch.randn(n, 1, generator=generator(99), dtype=torch.float64)


def numbers(path: ProbabilityPath, t: float) -> tuple[float, float, float, float]:
    time = torch.tensor(t, dtype=torch.float64)
    schedules = (path.alpha, path.sigma, path.d_alpha, path.d_sigma)
    return tuple(float(schedule(time)) for schedule in schedules)


def test_silent_model_pays_the_second_moment_of_the_velocity() -> None:
    x1 = torch.full((MANY, 2), 3.0)
    linear = flow_matching_loss(silent, LinearPath(), x1, None, generator())
    assert float(linear) == pytest.approx(3.0**2 + 1, rel=0.01)
    curved = flow_matching_loss(silent, VariancePreservingPath(), x1, None, generator())
    assert float(curved) == pytest.approx((math.pi / 2) ** 2 * (3.0**2 + 1) / 2, rel=0.01)
    noise = denoising_score_loss(silent, LinearPath(), x1, None, generator())
    assert float(noise) == pytest.approx(1.0, rel=0.01)


@every_path
@pytest.mark.parametrize("variance", [0.01, 4.0])
def test_exact_gaussian_fields_reach_the_least_possible_risk(path: ProbabilityPath, variance: float) -> None:
    """For x1 ~ N(0, l) the optimal field is linear in x_t, and the risk left is the conditional variance."""

    def total(t: float) -> float:
        alpha, sigma, _, _ = numbers(path, t)
        return alpha**2 * variance + sigma**2

    def left_velocity(t: float) -> float:
        alpha, sigma, d_alpha, d_sigma = numbers(path, t)
        return (
            d_alpha**2 * variance
            + d_sigma**2
            - (alpha * d_alpha * variance + sigma * d_sigma) ** 2 / total(t)
        )

    def left_noise(t: float) -> float:
        return 1 - numbers(path, t)[1] ** 2 / total(t)

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
        best = float(loss(field, path, x1, None, generator(1)))
        assert best == pytest.approx(quad(left, 0, 1)[0], rel=0.02)
        worse = float(loss(lambda x, t, y, f=field: 1.1 * f(x, t, y), path, x1, None, generator(1)))
        assert worse > best


@every_path
def test_noise_loss_is_the_score_loss_weighted_by_the_variance(path: ProbabilityPath) -> None:
    x1 = gaussian(2.0, n=64)
    seen: dict[str, Tensor] = {}

    def model(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        seen.update(x_t=x_t, t=t)
        return torch.sin(x_t) + t[:, None]

    def middle(n: int, generator: torch.Generator, device: torch.device) -> Tensor:
        return 0.05 + 0.9 * torch.rand(n, generator=generator, device=device)

    loss = denoising_score_loss(model, path, x1, None, generator(), middle)
    x_t, t = seen["x_t"], seen["t"]
    sigma = path.sigma(t)[:, None]
    target = -(x_t - path.alpha(t)[:, None] * x1) / sigma**2  # the score of N(alpha x1, sigma^2)
    score = score_from_noise(path, model(x_t, t, None), t)
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
def test_loss_is_a_function_of_its_generator_alone(loss) -> None:  # type: ignore[no-untyped-def]
    x1, labels = torch.randn(32, 3, 4, generator=generator(5)), torch.arange(32)
    handed: list[Tensor | None] = []

    def model(x_t: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        assert t.shape == (32,)
        handed.append(y)
        return x_t * t[:, None, None]

    before = torch.get_rng_state()
    values = [float(loss(model, LinearPath(), x1, labels, generator(seed))) for seed in (7, 7, 8)]
    assert torch.equal(torch.get_rng_state(), before)
    assert values[0] == values[1] != values[2]
    assert all(y is labels for y in handed)


def test_loss_has_the_gradient_of_a_mean_over_batch_and_dimensions() -> None:
    scale = torch.zeros((), requires_grad=True)
    loss = flow_matching_loss(lambda x, t, y: x + scale, LinearPath(), torch.randn(8, 5), None, generator())
    loss.backward()
    assert loss.shape == ()
    again = flow_matching_loss(lambda x, t, y: x + 1e-3, LinearPath(), torch.zeros(8, 5), None, generator())
    none = flow_matching_loss(lambda x, t, y: x, LinearPath(), torch.zeros(8, 5), None, generator())
    assert scale.grad is not None
    assert float(again - none) != 0


def test_times_follow_their_laws() -> None:
    uniform = uniform_time(20_000, generator(), CPU)
    assert kstest(uniform.numpy(), "uniform").pvalue > 0.01
    times = logit_normal_time(0.5, 1.5)(20_000, generator(), CPU).double()
    assert 0 < float(times.min()) < float(times.max()) < 1
    assert kstest(torch.logit(times).numpy(), "norm", args=(0.5, 1.5)).pvalue > 0.01


def test_time_sampler_is_used() -> None:
    def always_the_end(n: int, generator: torch.Generator, device: torch.device) -> Tensor:
        return torch.ones(n, device=device)

    x1 = torch.randn(16, 2)

    def model(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        assert torch.equal(x_t, x1)
        return x_t

    flow_matching_loss(model, LinearPath(), x1, None, generator(), always_the_end)


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan])
def test_a_spread_that_is_not_positive_is_refused(std: float) -> None:
    with pytest.raises(PrecfmError, match=r"std is .*positive"):
        logit_normal_time(0.0, std)


# ---- the classes that a configuration names


def spread(n: int = 60, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Data of condition number about 1e4 in rotated axes, and labels of three classes."""
    source = generator(3)
    basis = torch.linalg.qr(torch.randn(4, 4, generator=source, dtype=torch.float64))[0]
    scales = torch.tensor([3.0, 1.0, 0.3, 0.03], dtype=torch.float64)
    rows = torch.randn(n, 4, generator=source, dtype=torch.float64) * scales @ basis.T
    return rows.to(dtype), torch.randint(3, (n,), generator=source)


def curved(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    return torch.sin(x_t) + t[:, None]


def prepared(
    data: tuple[Tensor, Tensor], path: ProbabilityPath | None = None, **options: object
) -> FlowMatching:
    geometry = {name: options.pop(name, None) for name in ("inverse_jacobian", "decoder_metric")}
    objective = FlowMatching(**options)  # type: ignore[arg-type]
    objective.prepare(path or LinearPath(), *data, **geometry)  # type: ignore[arg-type]
    return objective


@every_path
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_default_options_are_the_plain_losses_to_the_bit(path: ProbabilityPath, dtype: torch.dtype) -> None:
    data = spread(dtype=dtype)
    laws: dict[str, object] = {"uniform": None, "logit_normal": logit_normal_time(0.5, 1.5)}
    for (name, law), (cls, plain) in itertools.product(
        laws.items(), [(FlowMatching, flow_matching_loss), (DenoisingScore, denoising_score_loss)]
    ):
        objective = cls(time=name, time_mean=0.5, time_std=1.5)  # type: ignore[arg-type]
        objective.prepare(path, *data)
        expected = plain(curved, path, *data, generator(7), law)  # type: ignore[arg-type]
        assert torch.equal(objective.loss(curved, data, generator(7)), expected)


def test_configurations_name_the_classes_and_their_options() -> None:
    options = options_of("precfm.flows.objectives:FlowMatching")()
    assert options.model_dump() == {
        "time": "uniform",
        "time_mean": 0.0,
        "time_std": 1.0,
        "coupling": "independent",
        "metric": "flow",
    }
    assert isinstance(build("objectives", {"name": "flow_matching", **options.model_dump()}), FlowMatching)
    assert isinstance(build("objectives", {"name": "denoising_score", "time": "uniform"}), DenoisingScore)


# ---- times


@every_path
@pytest.mark.parametrize("kappa", [1.0, 1e2, 1e5, math.inf])
def test_kappa_directed_times_follow_the_stated_density(path: ProbabilityPath, kappa: float) -> None:
    largest = 2.5
    eigenvalues = torch.tensor([largest / kappa, 1.0, largest], dtype=torch.float64)
    if kappa == 1.0:
        eigenvalues[:] = largest
    basis = torch.linalg.qr(torch.randn(3, 3, generator=generator(), dtype=torch.float64))[0]
    times = kappa_directed_time(path, basis * eigenvalues @ basis.T)(20_000, generator(1), CPU)
    lowest = max(largest / kappa, FLOOR * largest) if kappa > 1 else largest

    def density(t: np.ndarray) -> np.ndarray:
        at = torch.from_numpy(t)
        data, noise = (schedule(at).square().numpy() for schedule in (path.alpha, path.sigma))
        return 1 + np.log((data * largest + noise) / (data * lowest + noise))

    grid = np.linspace(0, 1, 200_001)
    below = np.concatenate([[0.0], np.cumsum((density(grid)[1:] + density(grid)[:-1]) / 2)])
    result = kstest(times.double().numpy(), lambda t: np.interp(t, grid, below / below[-1]))
    assert result.pvalue > 0.01
    assert times.dtype == torch.float32
    assert bool(((times >= 0) & (times <= 1)).all())
    assert len(times.unique()) > 19_000  # between the points of the grid, too
    assert (kstest(times.double().numpy(), "uniform").pvalue > 0.01) == (kappa == 1.0)


def test_kappa_directed_times_are_those_of_the_data() -> None:
    data, seen = spread(4000), []

    def model(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        seen.append(t)
        return x_t

    prepared(data, time="kappa_directed").loss(model, data, generator(5))
    centred = data[0].double() - data[0].double().mean(0)
    law = kappa_directed_time(LinearPath(), centred.T @ centred / (len(centred) - 1))
    assert torch.equal(seen[0], law(4000, generator(5), CPU))
    with pytest.raises(PrecfmError, match="drop constant"):
        prepared((torch.ones(5, 4), torch.zeros(5, dtype=torch.int64)), time="kappa_directed")


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
            best = min(
                float((noise[list(order)] - data).square().sum())
                for order in itertools.permutations(range(len(noise)))
            )
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
    t = torch.rand(60, generator=(source := generator(4)))
    x0 = optimal_coupling(torch.randn(60, 4, generator=source), *data)
    x_t, velocity = LinearPath().sample(x0, data[0], t)
    loss = prepared(data, coupling="optimal_transport").loss(curved, data, generator(4))
    torch.testing.assert_close(loss, (curved(x_t, t, None) - velocity).square().mean())
    assert float(loss) < float(prepared(data).loss(curved, data, generator(4)))


# ---- metric


def errors(data: tuple[Tensor, Tensor], seed: int) -> Tensor:
    """The error of `curved` in the draws that a loss with this seed makes."""
    t = torch.rand(len(data[0]), generator=(source := generator(seed))).to(data[0].dtype)
    x0 = torch.randn(data[0].shape, generator=source, dtype=data[0].dtype)
    x_t, velocity = LinearPath().sample(x0, data[0], t)
    return curved(x_t, t, None) - velocity


def weighted(error: Tensor, matrix: Tensor) -> Tensor:
    """The definition: mean of e^T M e / trace(M)."""
    return torch.einsum("bi,ij,bj->b", error, matrix, error).mean() / matrix.trace()


JACOBIAN = torch.randn(6, 4, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
SQUARE = torch.randn(6, 3, generator=torch.Generator().manual_seed(12), dtype=torch.float64)
METRIC = SQUARE @ SQUARE.T  # rank 3: a decoder that ignores half of the latent space


@pytest.mark.parametrize(
    ("metric", "matrix"),
    [("latent", JACOBIAN.T @ JACOBIAN), ("decoder", JACOBIAN.T @ METRIC @ JACOBIAN)],
)
def test_errors_are_measured_in_the_pulled_back_metric(metric: str, matrix: Tensor) -> None:
    data = spread(dtype=torch.float64)
    objective = prepared(data, metric=metric, inverse_jacobian=JACOBIAN, decoder_metric=METRIC)
    torch.testing.assert_close(objective.loss(curved, data, generator(2)), weighted(errors(data, 2), matrix))


def test_latent_metric_is_the_flow_loss_of_an_isometry_and_the_latent_loss_of_a_linear_map() -> None:
    data = spread(dtype=torch.float64)
    plain = prepared(data).loss(curved, data, generator(2))
    isometry = 7.0 * torch.linalg.qr(JACOBIAN)[0]
    same = prepared(data, metric="latent", inverse_jacobian=isometry).loss(curved, data, generator(2))
    torch.testing.assert_close(same, plain)
    latent = (errors(data, 2) @ JACOBIAN.T).square().sum(1).mean() / JACOBIAN.square().sum()
    found = prepared(data, metric="latent", inverse_jacobian=JACOBIAN).loss(curved, data, generator(2))
    torch.testing.assert_close(found, latent)


def test_inverse_variance_weighs_as_whitening_does_with_a_floored_spectrum() -> None:
    data = spread(dtype=torch.float64)
    centred = data[0] - data[0].mean(0)
    inverse = torch.linalg.inv(centred.T @ centred / 59)
    loss = prepared(data, metric="inverse_variance").loss(curved, data, generator(2))
    torch.testing.assert_close(loss, weighted(errors(data, 2), inverse))
    flat = torch.cat(
        [data[0][:, :1], torch.zeros(60, 1, dtype=torch.float64)], 1
    )  # no variance along one axis
    error = errors((flat, data[1]), 2)
    expected = (error[:, 0].square() * FLOOR + error[:, 1].square()).mean() / (1 + FLOOR)
    found = prepared((flat, data[1]), metric="inverse_variance").loss(curved, (flat, data[1]), generator(2))
    torch.testing.assert_close(found, expected)


# ---- sampling


@every_path
def test_both_objectives_integrate_the_same_velocity(path: ProbabilityPath) -> None:
    data = spread(dtype=torch.float64)
    x0 = torch.randn(60, 4, generator=generator(), dtype=torch.float64)
    t = torch.linspace(0.02, 1, 60, dtype=torch.float64)
    x_t, velocity = path.sample(x0, data[0], t)
    flow, score = FlowMatching(), DenoisingScore()
    assert flow.velocity(curved, path) is curved
    assert torch.equal(flow.start_noise(x0, path), x0)
    assert flow.start == 0.0
    field = score.velocity(lambda x, t, y: x0, path)
    torch.testing.assert_close(field(x_t, t, None), velocity, rtol=1e-9, atol=1e-9)
    alpha, sigma, _, _ = numbers(path, score.start)
    torch.testing.assert_close(score.start_noise(x0, path), x0 * (alpha**2 + sigma**2) ** 0.5)
    assert 0 < score.start < 0.1


ALL_OPTIONS = {
    "time": "kappa_directed",
    "coupling": "optimal_transport",
    "metric": "decoder",
    "inverse_jacobian": JACOBIAN,
    "decoder_metric": METRIC,
}


def trained(device: str) -> tuple[dict[str, Tensor], list[float]]:
    data = tuple(x.to(device) for x in spread(200))
    module = seeded_module(lambda: MLPVelocity(4, 3, width=16, depth=2), 0).to(device)
    objective = prepared(data, **ALL_OPTIONS)  # type: ignore[arg-type]
    result = train(module, objective.loss, data, TrainingOptions(steps=60, learning_rate=1e-2), seed=0)
    return module.state_dict(), result.history.loss.tolist()


def test_trainings_with_every_option_are_repeatable_and_learn() -> None:
    (weights, losses), (again, same) = trained("cpu"), trained("cpu")
    assert losses == same
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert np.mean(losses[-20:]) < 0.9 * np.mean(losses[:5])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_every_option_works_on_an_accelerator() -> None:
    _, losses = trained("cuda")
    assert np.isfinite(losses).all()
    assert np.mean(losses[-20:]) < 0.9 * np.mean(losses[:5])


# ---- mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time": "late"}, "time is 'late'; it must be one of uniform, logit_normal, kappa_directed"),
        ({"time_std": 0.0}, r"time_std: got 0.0, but a positive, finite number is needed"),
        ({"time_std": math.nan}, "time_std: got nan"),
        (
            {"coupling": "sinkhorn"},
            "coupling is 'sinkhorn'; it must be one of independent, optimal_transport",
        ),
        (
            {"metric": "pixels"},
            "metric is 'pixels'; it must be one of flow, latent, decoder, inverse_variance",
        ),
        ({"metric": "latent"}, "metric 'latent' needs the inverse_jacobian"),
        ({"metric": "decoder"}, "metric 'decoder' needs the inverse_jacobian"),
        ({"metric": "decoder", "inverse_jacobian": JACOBIAN}, "metric 'decoder' needs the decoder_metric"),
        (
            {"metric": "decoder", "inverse_jacobian": JACOBIAN, "decoder_metric": METRIC[:4, :4]},
            r"decoder_metric has shape \(4, 4\); it must be \(6, 6\)",
        ),
        (
            {"metric": "latent", "inverse_jacobian": JACOBIAN.T},
            r"inverse_jacobian has shape \(4, 6\); it must be finite and of shape \(dim_x, 4\)",
        ),
        ({"metric": "latent", "inverse_jacobian": JACOBIAN * math.nan}, "must be finite"),
        ({"metric": "latent", "inverse_jacobian": 0 * JACOBIAN}, "trace is 0.0; it must be positive"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(PrecfmError, match=message):
        prepared(spread(), **options)


def test_loss_before_prepare_is_refused() -> None:
    data = spread()
    for cls in (FlowMatching, DenoisingScore):
        with pytest.raises(PrecfmError, match="call prepare with the data first"):
            cls().loss(curved, data, generator())
    with pytest.raises(PrecfmError, match="time_std"):
        DenoisingScore(time_std=-1.0)
