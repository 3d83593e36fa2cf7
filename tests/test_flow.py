"""The main flow from its specification: what matching and tuning change, and that sampling undoes preconditioning."""

import pytest
import torch

from precfm.core.errors import PrecfmError
from precfm.preconditioned_flow import bind, generate, matched, tuned, width_of
from precfm.preconditioners.scalar import Scalar
from precfm.preconditioners.whitening import Whitening

SPEC = {
    "model": {"name": "mlp", "width": 16, "depth": 1},
    "path": {"name": "linear"},
    "objective": {"name": "flow_matching"},
    "training": {"steps": 100, "batch_size": 8, "learning_rate": 1e-3, "checkpoints": [50, 100]},
}
BUDGET = {"matched_width": 23, "matched_steps": 140}


@pytest.fixture
def data():
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.1, 3.0]) + 5
    return x, torch.arange(200) % 2


def test_a_baseline_of_matched_parameters_is_wider_and_nothing_else():
    assert matched(SPEC, BUDGET, "P") == {**SPEC, "model": {"name": "mlp", "width": 23, "depth": 1}}


def test_a_baseline_of_matched_training_is_longer_and_nothing_else():
    longer = matched(SPEC, BUDGET, "F")
    assert longer["training"] == {**SPEC["training"], "steps": 140, "checkpoints": [50, 140]}
    assert {**longer, "training": SPEC["training"]} == SPEC


def test_a_model_without_width_has_no_baseline_of_matched_parameters():
    with pytest.raises(PrecfmError, match=r"'convnet' has no option 'width'.*matched"):
        width_of({"model": {"name": "convnet"}})


def test_a_recipe_changes_time_rate_and_schedule():
    recipe = {"time": "logit_normal", "learning_rate": 4e-3, "schedule": "cosine", "score": 1.0}
    spec = tuned(SPEC, recipe)
    assert spec["objective"] == {"name": "flow_matching", "time": "logit_normal"}
    assert spec["training"] == {**SPEC["training"], "learning_rate": 4e-3, "schedule": "cosine"}
    assert SPEC["objective"] == {"name": "flow_matching"}


def test_a_flow_is_bound_to_data_in_the_space_of_its_preconditioner(data):
    x, labels = data
    whitening = Whitening().fit(x)
    flow = bind(SPEC, whitening, x, labels, seed=0)
    assert torch.allclose(torch.cov(flow.data[0].T), torch.eye(3), atol=1e-4)
    assert flow.description["options"] == {"dim": 3, "num_classes": 2, "width": 16, "depth": 1}
    assert flow.training.steps == 100


def test_a_model_that_knows_moments_is_told_those_of_the_flows_space(data):
    x, labels = data
    flow = bind({**SPEC, "model": {"name": "gaussian_skip", "width": 16}}, Whitening().fit(x), x, labels, 0)
    assert torch.allclose(flow.model.means.mean(0), torch.zeros(3), atol=0.3)


class Still(torch.nn.Module):
    """Predicts what leaves the noise where it is: no velocity, or the noise of x1 = 0."""

    def forward(self, z, t, y=None):
        return torch.zeros_like(z)


def test_an_error_measured_in_the_latents_weighs_directions_as_they_are_there(data):
    x, labels = data

    def loss(fitted, metric):
        spec = {**SPEC, "objective": {"name": "flow_matching", "metric": metric}}
        flow = bind(spec, fitted, x, labels, 0)
        return float(flow.objective.loss(Still(), flow.data, torch.Generator().manual_seed(1)))

    scalar, whitening = Scalar().fit(x), Whitening().fit(x)
    assert loss(scalar, "latent") == pytest.approx(loss(scalar, "flow"), rel=1e-4)
    assert loss(whitening, "latent") != pytest.approx(loss(whitening, "flow"), rel=1e-2)


@pytest.mark.parametrize("objective", ["flow_matching", "denoising_score"])
def test_samples_come_back_to_data_space(data, objective):
    x, labels = data
    fitted = Whitening().fit(x)
    noise = torch.randn(50, 3, generator=torch.Generator().manual_seed(2))
    spec = {**SPEC, "objective": {"name": objective}}
    made = generate(spec, Still(), fitted, noise, labels[:50], "midpoint", 20)
    assert made.shape == (50, 3)
    if objective == "flow_matching":
        assert torch.allclose(made, fitted.inverse(noise, labels[:50]))
    else:  # without noise, x_t = t x1: the points grow along straight lines
        direction = fitted.forward(made, labels[:50])
        assert torch.allclose(torch.cosine_similarity(direction, noise), torch.ones(50), atol=1e-3)
        assert (direction.norm(dim=1) > noise.norm(dim=1)).all()
