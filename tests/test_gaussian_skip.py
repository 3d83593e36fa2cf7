"""The Gaussian skip connection: exact on Gaussians, EDM as a special case, each option on its own."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.seeds import seeded_module
from precfm.datasets.synthetic import Gaussian, Mixture, gaussian, mixture
from precfm.flows.models.gaussian_skip import FLOOR, GaussianSkip, coefficients
from precfm.flows.models.mlp import MLPVelocity
from precfm.flows.objectives import FlowMatching
from precfm.flows.paths import LinearPath, ProbabilityPath, VariancePreservingPath
from precfm.theory.mixtures import ExactVelocity
from precfm.training.options import TrainingOptions
from precfm.training.trainer import train

PATHS: list[ProbabilityPath] = [LinearPath(), VariancePreservingPath()]
every_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
SKIPS = ("none", "scalar", "mean", "covariance", "classwise")
every_skip = pytest.mark.parametrize("skip", SKIPS)
DIM = 4
PLAIN: dict[str, Any] = {"skip": "none", "input_scaling": False, "output_scaling": False}


def exact_rows(law: Gaussian) -> Tensor:
    """Rows whose sample mean and covariance (divisor n - 1) are exactly those of the law."""
    dim = law.dim
    simplex = torch.cat([torch.eye(dim), -torch.eye(dim)]).double() * math.sqrt((2 * dim - 1) / 2)
    return law.mean + (simplex * law.eigenvalues.sqrt()) @ law.basis.T


def law_rows(law: Mixture, times: int = 10) -> tuple[Tensor, Tensor]:
    """Exact rows of each component, repeated so that no class counts as small; divisors corrected."""
    parts = []
    for component in law.components:
        rows = exact_rows(component).repeat(times, 1)
        n = len(rows)
        correction = math.sqrt((n - 1) / n * (n / times) / (n / times - 1))
        parts.append(component.mean + (rows - component.mean) * correction)
    labels = torch.arange(len(parts)).repeat_interleave(len(parts[0]))
    return torch.cat(parts), labels


def unfitted(
    dim: int, classes: int, path: ProbabilityPath = PATHS[0], width: int = 16, **options: Any
) -> GaussianSkip:
    return seeded_module(
        lambda: GaussianSkip(MLPVelocity(dim, classes, width=width, depth=2), path, **options), 0
    )


def fitted(x1: Tensor, labels: Tensor | None, classes: int, **options: Any) -> GaussianSkip:
    model = unfitted(x1.shape[1], classes, **options).to(x1.dtype)
    model.fit(x1, labels)
    return model


def awake(model: GaussianSkip) -> GaussianSkip:
    """Weights at random everywhere, the last layer too."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in model.network.head.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return model


def points(n: int, dim: int, t: float, classes: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    x_t = torch.randn(n, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x_t, torch.full((n,), t, dtype=torch.float64), torch.arange(n) % classes


@every_path
@given(
    dim=st.integers(1, 12),
    log_kappa=st.floats(0, 6),
    t=st.floats(0, 1),
    seed=st.integers(0, 20),
    shift=st.floats(-3, 3),
)
@settings(max_examples=40, deadline=None)
def test_an_untrained_field_is_the_exact_velocity_of_a_gaussian(
    path: ProbabilityPath, dim: int, log_kappa: float, t: float, seed: int, shift: float
) -> None:
    law = gaussian(dim, 10**log_kappa if dim > 1 else 1.0, seed=seed)
    law = Gaussian(law.eigenvalues, law.basis, law.mean + shift)
    model = fitted(exact_rows(law), None, 0, path=path)
    x_t, times, _ = points(9, dim, t)
    expected = ExactVelocity(Mixture(torch.ones(1).double(), (law,)), path)(x_t, times)
    assert torch.allclose(
        model(x_t, times), expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()) + 1e-9
    )


@every_path
@pytest.mark.parametrize("t", [0.0, 0.3, 0.99, 1.0])
def test_an_untrained_classwise_field_is_the_exact_conditional_velocity_of_a_mixture(
    path: ProbabilityPath, t: float
) -> None:
    law = mixture(DIM, [1, 30, 1e4], seed=1)
    model = fitted(*law_rows(law), 3, skip="classwise", path=path)
    assert model.notes == []
    x_t, times, labels = points(9, DIM, t, classes=3)
    expected = ExactVelocity(law, path)(x_t, times, labels)
    assert torch.allclose(model(x_t, times, labels), expected, rtol=1e-8, atol=1e-8)


@every_path
def test_a_float32_field_is_near_the_exact_velocity_up_to_both_ends(path: ProbabilityPath) -> None:
    law = gaussian(16, 1e6, seed=3)
    model = fitted(law.sample(5000, 0).float(), None, 0, path=path)
    reference = fitted(law.sample(5000, 0), None, 0, path=path)
    for t in (0.0, 1e-4, 0.5, 0.999, 0.9999, 1.0):
        x1, x0 = law.sample(50, 1), torch.randn(50, 16, generator=torch.Generator().manual_seed(0)).double()
        times = torch.full((50,), t).double()
        x_t = path.sample(x0, x1, times)[0]
        error = model(x_t.float(), times.float()) - reference(x_t, times)
        assert float(error.detach().abs().max()) < 2e-3


@every_path
@pytest.mark.parametrize("t", [0.1, 0.6, 0.95])
def test_coefficients_against_monte_carlo(path: ProbabilityPath, t: float) -> None:
    generator = torch.Generator().manual_seed(0)
    eigenvalues = torch.tensor([1e-2, 0.5, 4.0]).double()
    x1 = torch.randn(200_000, 3, generator=generator).double() * eigenvalues.sqrt()
    x0 = torch.randn(200_000, 3, generator=generator).double()
    time = torch.tensor([[t]]).double()
    x_t, velocity = path.sample(x0, x1, time.expand(len(x1), 1)[:, 0])
    slope = (x_t * velocity).sum(0) / x_t.square().sum(0)
    skip, in_scale, out_scale = (value[0] for value in coefficients(eigenvalues, time, path))
    assert torch.allclose(skip, slope, rtol=0.02, atol=0.02)
    assert torch.allclose((in_scale * x_t).square().mean(0), torch.ones(3).double(), rtol=0.02)
    assert torch.allclose(((velocity - slope * x_t).std(0)), out_scale, rtol=0.02)
    none = coefficients(eigenvalues, time, path, with_skip=False)
    assert torch.equal(none.skip, torch.zeros(1, 3).double())
    assert torch.allclose(velocity.std(0), none.out_scale[0], rtol=0.02)


@given(t=st.floats(0.01, 0.99), sigma_data=st.floats(0.05, 20))
def test_the_scalar_skip_is_the_denoiser_of_edm(t: float, sigma_data: float) -> None:
    """x_t / t = x1 + noise of sigma = (1 - t) / t; v = (D - x_t) / (1 - t); table 1 of Karras et al. (2022)."""
    sigma = (1 - t) / t
    c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    c_out = sigma * sigma_data / math.sqrt(sigma**2 + sigma_data**2)
    c_in = 1 / math.sqrt(sigma**2 + sigma_data**2)
    variance, time = (torch.tensor([[value]], dtype=torch.float64) for value in (sigma_data**2, t))
    found = coefficients(variance, time, LinearPath())
    assert float(found.skip) == pytest.approx((c_skip / t - 1) / (1 - t), rel=1e-9, abs=1e-9)
    assert float(found.in_scale) == pytest.approx(c_in / t, rel=1e-9)
    assert float(found.out_scale) == pytest.approx(c_out / (1 - t), rel=1e-9)


def parts(model: GaussianSkip) -> tuple[Tensor, Tensor, Tensor]:
    """Means, covariances and eigenvalues that a fitted field holds."""
    eye = torch.eye(model.dim).to(model.eigenvalues)
    basis = model.basis if hasattr(model, "basis") else eye[None]
    return model.means, basis * model.eigenvalues[:, None] @ basis.mT, model.eigenvalues


def test_each_skip_knows_what_it_says_and_nothing_more() -> None:
    law = mixture(DIM, [5, 100, 1e3], [0.2, 0.3, 0.5], seed=2)
    x, labels = law.sample(3000, 0)
    x = x + 0.7
    own_means = torch.stack([x[labels == k].mean(0) for k in range(3)])
    own = torch.stack([x[labels == k].T.cov() for k in range(3)])
    counts = torch.bincount(labels).double()
    pooled = ((counts - 1)[:, None, None] * own).sum(0) / (len(x) - 3)
    isotropic = torch.eye(DIM).double()
    expected = {
        "none": (torch.zeros(3, DIM).double(), (x.T @ x / len(x))[None]),
        "scalar": (torch.zeros(3, DIM).double(), x.square().mean() * isotropic[None]),
        "mean": (own_means, pooled.trace() / DIM * isotropic[None]),
        "covariance": (own_means, pooled[None]),
        "classwise": (own_means, own),
    }
    for skip in SKIPS:
        means, covariances, _ = parts(fitted(x, labels, 3, skip=skip))
        assert torch.allclose(means, expected[skip][0], atol=1e-12)
        assert torch.allclose(covariances, expected[skip][1], atol=1e-10)


def test_an_untrained_field_of_each_skip() -> None:
    """Written out by hand at one time, with a matrix inverse instead of an eigenbasis."""
    law = mixture(DIM, [5, 100, 1e3], seed=2)
    x, labels = law.sample(3000, 0)
    t, (x_t, times, asked) = 0.8, points(6, DIM, 0.8, classes=3)
    for skip in SKIPS:
        model = fitted(x, labels, 3, skip=skip)
        means, covariances, _ = parts(model)
        found = model(x_t, times, asked)
        for row, label in enumerate(asked.tolist()):
            cov, mean = covariances[label if skip == "classwise" else 0], means[label]
            eye = torch.eye(DIM).double()
            field = (t * cov - (1 - t) * eye) @ torch.linalg.inv(t**2 * cov + (1 - t) ** 2 * eye)
            expected = mean + field @ (x_t[row] - t * mean) if skip != "none" else torch.zeros(DIM).double()
            assert torch.allclose(found[row], expected, rtol=1e-9, atol=1e-9)


@every_path
@every_skip
@pytest.mark.parametrize("scalings", [(False, False), (True, False), (False, True), (True, True)])
def test_the_network_is_scaled_as_asked(
    skip: Any, scalings: tuple[bool, bool], path: ProbabilityPath
) -> None:
    law = mixture(DIM, [5, 100, 1e3], seed=2)
    x, labels = law.sample(3000, 0)
    options = {"skip": skip, "input_scaling": scalings[0], "output_scaling": scalings[1], "path": path}
    model = fitted(x, labels, 3, **options)
    x_t, times, asked = points(6, DIM, 0.7, classes=3)
    before = model(x_t, times, asked)
    field = awake(model)(x_t, times, asked) - (0 if model.plain else before)
    if model.plain:
        assert torch.equal(field, model.network(x_t, times, asked))
        return
    which = asked if skip == "classwise" else torch.zeros_like(asked)
    basis = model.basis[which] if hasattr(model, "basis") else torch.eye(DIM).double().repeat(6, 1, 1)
    found = coefficients(model.eigenvalues[which], times[:, None], path, skip != "none")
    centred = x_t - path.alpha(times)[:, None] * model.means[asked]
    along = (basis.mT @ centred[..., None])[..., 0] * found.in_scale
    learned = model.network(along if scalings[0] else x_t, times, asked)
    if scalings[1]:
        learned = (basis @ (found.out_scale * learned)[..., None])[..., 0]
    assert torch.allclose(field, learned, rtol=1e-9, atol=1e-9)


def test_without_skip_and_scaling_it_is_the_plain_network() -> None:
    model, mlp = unfitted(DIM, 3, **PLAIN), seeded_module(lambda: MLPVelocity(DIM, 3, width=16, depth=2), 0)
    x_t, t, labels = points(6, DIM, 0.4, 3)
    assert torch.equal(model(x_t.float(), t.float(), labels), mlp(x_t.float(), t.float(), labels))
    assert {name.removeprefix("network.") for name in model.state_dict()} == set(mlp.state_dict())


@every_skip
def test_training_reaches_every_weight_and_leaves_the_statistics(skip: Any) -> None:
    x, labels = mixture(DIM, [5, 1e3], seed=2).sample(500, 0)
    model = fitted(x.float(), labels, 2, skip=skip)
    start = copy.deepcopy(model.state_dict())
    parameters = {name for name, _ in model.named_parameters()}
    objective = FlowMatching().prepare(LinearPath(), x.float())
    options = TrainingOptions(steps=3, batch_size=64, ema_decay=0.5)
    train(model, objective, (x.float(), labels), options, seed=0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, start[name]) is (name not in parameters), name


def test_what_is_not_gaussian_is_learnt_on_top() -> None:
    one = torch.ones(1, dtype=torch.float64)
    law = Mixture(
        one.repeat(2) / 2, tuple(Gaussian(0.04 * one, torch.eye(1).double(), m * one) for m in (-1, 1))
    )
    x = law.sample(4000, 0)[0].float()
    model = fitted(x, None, 0, width=32)
    t = torch.full((200,), 0.8)
    x_t = LinearPath().sample(torch.randn(200, 1, generator=torch.Generator().manual_seed(0)), x[:200], t)[0]
    expected = ExactVelocity(law, LinearPath())(x_t, t)
    before = float((model(x_t, t) - expected).detach().square().mean())
    objective, options = (
        FlowMatching().prepare(LinearPath(), x),
        TrainingOptions(steps=300, learning_rate=1e-2),
    )
    train(model, objective, (x,), options, seed=0)
    assert float((model(x_t, t) - expected).detach().square().mean()) < 0.3 * before


@every_skip
@pytest.mark.parametrize("classes", [0, 3])
def test_weights_carry_the_statistics_and_whether_there_are_any(skip: Any, classes: int) -> None:
    x, labels = mixture(DIM, [5, 100, 1e3], seed=2).sample(200, 0)
    model, again = awake(fitted(x.float(), labels, classes, skip=skip)), unfitted(DIM, classes, skip=skip)
    x_t, t, asked = points(6, DIM, 0.4, classes=3)
    for unready in (again, copy.deepcopy(again)):
        unready.load_state_dict(unready.state_dict())
        with pytest.raises(PrecfmError, match="before fit"):
            unready(x_t.float(), t.float(), asked)
    again.load_state_dict(model.state_dict())
    expected = model(x_t.float(), t.float(), asked)
    for same in (again, copy.deepcopy(model)):
        assert torch.equal(same(x_t.float(), t.float(), asked), expected)


def test_a_wrapper_may_stand_around_another() -> None:
    """Untrained, the outer one alone counts: the inner one's output is what it adds to."""
    x, labels = mixture(DIM, [5, 1e3], seed=2).sample(500, 0)
    inner = fitted(x, labels, 2, skip="mean")
    outer = GaussianSkip(
        inner, LinearPath(), skip="classwise", input_scaling=False, output_scaling=False
    ).double()
    outer.fit(x, labels)
    x_t, t, asked = points(6, DIM, 0.3, classes=2)
    both = inner(x_t, t, asked) + fitted(x, labels, 2, skip="classwise")(x_t, t, asked)
    torch.testing.assert_close(outer(x_t, t, asked), both)
    assert (outer.dim, outer.num_classes) == (DIM, 2)
    assert outer.options == {"skip": "classwise", "input_scaling": False, "output_scaling": False} | {
        "directions": "eigen",
        "patch": 2,
    }


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 25, 40])
def test_small_classes_lean_on_the_pooled_covariance(rows: int) -> None:
    x, labels = mixture(DIM, [5, 1e3], seed=2).sample(600, 0)
    keep = torch.cat([(labels == 0).nonzero()[:rows, 0], (labels == 1).nonzero()[:, 0]])
    x, labels = x[keep], labels[keep]
    model = fitted(x, labels, 2, skip="classwise")
    covariances = parts(model)[1]
    scatter = [
        (own - own.mean(0)).T @ (own - own.mean(0)) if len(own) else torch.zeros(DIM, DIM).double()
        for own in (x[labels == 0], x[labels == 1])
    ]
    pooled = (scatter[0] + scatter[1]) / (len(x) - (2 if rows else 1))
    weight = max(0.0, 1 - rows / (10 * DIM))
    expected = weight * pooled + (1 - weight) * scatter[0] / max(rows - 1, 1)
    assert torch.allclose(covariances[0], expected, atol=1e-10)
    assert torch.allclose(covariances[1], scatter[1] / (len(x) - rows - 1), atol=1e-10)
    assert len(model.notes) == (1 if weight else 0)
    assert all(f"class 0 has {rows} rows" in note for note in model.notes)
    assert torch.allclose(model.means[0], x[labels == 0].mean(0) if rows else x.mean(0))
    velocity = model(*points(6, DIM, 1.0, classes=2))
    assert bool(velocity.isfinite().all())


@every_skip
def test_flat_directions_are_floored_and_both_ends_are_finite(skip: Any) -> None:
    x, labels = mixture(DIM, [5, 100], seed=2).sample(300, 0)
    x[:, 1] = 0.5
    x[:, 3] = x[:, 0]
    x[labels == 1] = x[labels == 1][0].clone()  # a class of one repeated image
    for dtype in (torch.float32, torch.float64):
        model = awake(fitted(x.to(dtype), labels, 2, skip=skip))
        pooled = fitted(x.to(dtype), labels, 2, skip="none" if skip in ("none", "scalar") else "covariance")
        assert float(model.eigenvalues.min()) >= 0.99 * FLOOR * float(pooled.eigenvalues.max())
        for t in (0.0, 0.5, 1.0):
            x_t, times, asked = points(6, DIM, t, classes=2)
            assert bool(model(x_t.to(dtype), times.to(dtype), asked).isfinite().all())


def test_bad_input_is_refused() -> None:
    x, labels = mixture(DIM, [5, 100], seed=2).sample(50, 0)
    model = unfitted(DIM, 2)
    for wrong, asked, field in [
        (x[:, :2], labels, "z1: got shape"),
        (x[:1], labels[:1], "z1: got shape"),
        (x.index_fill(0, torch.tensor([7]), math.nan), labels, "z1: .*row 7"),
        (x, None, "labels: missing"),
        (x, labels[:-1], "labels: got shape"),
        (x, labels + 1, "labels: got 2"),
        (torch.ones(50, DIM), labels, "z1: does not vary"),
    ]:
        with pytest.raises(PrecfmError, match=f"^{field}"):
            model.fit(wrong, asked)
    model.fit(x, labels)
    for x_t, asked, field in [
        (torch.zeros(1, 5), labels[:1], "x_t: got shape"),
        (torch.zeros(1, 4), torch.tensor([2]), "labels: got 2"),
        (torch.zeros(1, 4), None, "labels: missing"),
    ]:
        with pytest.raises(PrecfmError, match=f"^{field}"):
            model(x_t, torch.zeros(1), asked)
    for field, wrong in {"path": "linear", "network": "mlp"}.items():
        with pytest.raises(PrecfmError, match=f"^{field}: got "):
            GaussianSkip(**{"network": MLPVelocity(DIM), "path": LinearPath(), field: wrong})
