"""Log-likelihoods against densities in closed form, in the flow's space and, behind any map, in the data's."""

from typing import Any

import pytest
import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.datasets.synthetic import mixture
from precfm.flows.likelihood import EXACT_UP_TO, log_likelihood, log_likelihood_with_error
from precfm.flows.objectives import DenoisingScore, Network
from precfm.flows.paths import LinearPath, ProbabilityPath, VariancePreservingPath
from precfm.preconditioned_flow import PreconditionedFlow
from precfm.preconditioners.scalar import Scalar
from precfm.theory.mixtures import ExactVelocity

PATHS: list[ProbabilityPath] = [LinearPath(), VariancePreservingPath()]
every_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def law_of(dim: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Mean and covariance of a Gaussian in rotated axes, with standard deviations down to 10^-spread."""
    basis = torch.linalg.qr(draw(1, dim, dim))[0]
    return draw(2, dim), basis * torch.logspace(-2 * spread, 0, dim, dtype=torch.float64) @ basis.T


def exact_field(mean: Tensor, cov: Tensor, path: ProbabilityPath) -> Network:
    """alpha' m + C_t S_t^-1 (x - alpha m), C_t = alpha alpha' cov + sigma sigma' I, S_t = alpha^2 cov + sigma^2 I."""
    eye = torch.eye(len(cov), dtype=cov.dtype)

    def field(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        a, s, da, ds = (schedule(t[0]) for schedule in (path.alpha, path.sigma, path.d_alpha, path.d_sigma))
        gain = (a * da * cov + s * ds * eye) @ torch.linalg.inv(a**2 * cov + s**2 * eye)
        return da * mean + (x - a * mean) @ gain.T

    return field


def sample(n: int, mean: Tensor, cov: Tensor) -> Tensor:
    return mean + draw(6, n, len(mean)) @ torch.linalg.cholesky(cov).T


def density(x: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
    return torch.distributions.MultivariateNormal(mean, cov).log_prob(x)


@every_path
@pytest.mark.parametrize("t_data", [0.7, 1.0])
def test_an_exact_gaussian_field_has_the_density_of_its_law(path: ProbabilityPath, t_data: float) -> None:
    mean, cov = law_of(4)
    t = torch.tensor(t_data, dtype=torch.float64)
    at = path.alpha(t) * mean, path.cov_t(cov, t)
    z = sample(200, *at)
    found = log_likelihood(exact_field(mean, cov, path), z, t_data=t_data)
    torch.testing.assert_close(found, density(z, *at), rtol=0, atol=1e-3)
    single = log_likelihood(exact_field(mean.float(), cov.float(), path), z.float(), t_data=t_data)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), found, rtol=0, atol=1e-3)


def test_an_exact_mixture_field_has_the_density_of_each_class_and_of_all() -> None:
    """The fields bend, so that the divergence changes from point to point; labels stay with their rows."""
    law = mixture(2, [4, 30], [0.3, 0.7], seed=3)
    z, labels = law.sample(30, 0)
    each = torch.stack(
        [density(z, c.mean, c.basis * c.eigenvalues @ c.basis.T) for c in law.components], dim=1
    )
    field, options = ExactVelocity(law, LinearPath()), {"t_data": 1.0, "steps": 100}
    found = log_likelihood(field, z, labels, batch_size=20, **options)
    torch.testing.assert_close(found, each[torch.arange(30), labels], rtol=0, atol=1e-3)
    marginal = torch.logsumexp(each + law.weights.log(), dim=1)
    torch.testing.assert_close(log_likelihood(field, z, **options), marginal, rtol=0, atol=1e-3)


@every_path
def test_a_noise_prediction_has_the_density_of_the_field_that_it_stands_for(path: ProbabilityPath) -> None:
    objective, variance = DenoisingScore(), 1.5

    def noise(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        return (path.sigma(t) / (path.alpha(t) ** 2 * variance + path.sigma(t) ** 2))[:, None] * x

    z = variance**0.5 * draw(3, 100, 2)
    found = log_likelihood(
        objective.velocity(noise, path),
        z,
        t_data=1.0,
        t_noise=objective.start,
        noise_scale=objective.start_scale(path),
    )
    expected = density(z, torch.zeros(2).double(), variance * torch.eye(2).double())
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-3)


def test_the_trace_is_exact_up_to_a_dimension_and_has_its_error_above() -> None:
    """Errors in units of the standard error that comes with them have a mean square of one."""
    for dim in (EXACT_UP_TO, EXACT_UP_TO + 1):
        mean, cov = law_of(dim, spread=0.5)
        z, path = draw(4, 20, dim), LinearPath()
        exact = density(z, path.alpha(torch.tensor(0.999)) * mean, path.cov_t(cov, 0.999))
        found, again, other = (
            log_likelihood_with_error(exact_field(mean, cov, path), z, seed=seed) for seed in (0, 0, 1)
        )
        assert torch.equal(found.values, again.values)
        if dim <= EXACT_UP_TO:
            assert torch.equal(found.values, other.values)
            assert not found.trace_error.any()
            torch.testing.assert_close(found.values, exact, rtol=0, atol=1e-3)
        else:
            assert not torch.equal(found.values, other.values)
            # Errors of a few vectors scatter, so single quotients have the tails of Student's t.
            quotients = torch.cat([(each.values - exact) / each.trace_error for each in (found, other)])
            assert 0.5 < float(quotients.square().median()) / 0.455 < 2
            assert float(found.trace_error.max()) < 1


def test_the_field_is_evaluated_as_often_as_is_said_and_no_gradient_is_kept() -> None:
    times, layer = [], torch.nn.Linear(2, 2)

    def field(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        times.append(float(t[0]))
        moved: Tensor = layer(x)
        return moved

    found = log_likelihood_with_error(field, torch.zeros(3, 2), t_data=0.9, t_noise=0.2, steps=30)
    assert not found.values.requires_grad
    assert len(times) == found.function_evaluations
    assert (min(times), max(times)) == pytest.approx((0.2, 0.9))
    assert log_likelihood(field, torch.zeros(0, 2)).shape == (0,)
    with pytest.raises(PrecfmError, match="steps"):
        log_likelihood(field, torch.zeros(3, 2), steps=0)


# ---- in data space


@pytest.mark.parametrize(
    "preconditioner",
    [
        "none",
        "scalar",
        "per_channel",
        "whitening",
        {"name": "whitening", "exponent": 0.25},
        {"name": "composition", "stages": [{"name": "per_channel"}, {"name": "whitening"}]},
    ],
    ids=str,
)
def test_the_density_of_data_does_not_depend_on_the_map(preconditioner: Any) -> None:
    """An untrained Gaussian skip has the density of the Gaussian with the data's own moments, behind any affine map."""
    x = sample(500, *law_of(3)).float()
    flow = PreconditionedFlow(preconditioner, wrappers="gaussian_skip")
    flow.preconditioner.fit(x)
    found = flow.prepare(x).log_prob(x[:100], steps=32).double()
    expected = density(x[:100].double(), x.double().mean(0), x.double().T.cov())
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


def test_a_map_without_a_determinant_is_refused() -> None:
    x = draw(5, 60, 2).float()
    opaque = Scalar().fit(x)
    opaque.has_log_det = False
    flow = PreconditionedFlow(opaque).prepare(x)
    with pytest.raises(PrecfmError, match=r"Scalar: .*determinant"):
        flow.log_prob(x)
