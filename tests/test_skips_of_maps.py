"""Skips of feature maps: the basis, the exact velocity of fields that it diagonalises, and what the network sees."""

from typing import Any

import pytest
import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.seeds import seeded_module
from precfm.flows.models.base import VelocityNetwork
from precfm.flows.models.bases import EigenBasis, FrequencyBasis, PatchBasis
from precfm.flows.models.gaussian_skip import GaussianSkip
from precfm.flows.models.mixture_skip import MixtureSkip
from precfm.flows.models.mlp import MLPVelocity
from precfm.flows.paths import LinearPath
from precfm.geometry.cosines import cosine_transform
from precfm.preconditioned_flow import PreconditionedFlow
from precfm.training.options import TrainingOptions

SHAPE = (2, 4, 6)
DIM = 48


def field(n: int, seed: int = 0) -> Tensor:
    """Gaussian maps that are stationary and mirrored at their edges: independent at each frequency, channels mixed."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, *SHAPE, generator=generator, dtype=torch.float64)
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    falling = 1 / (1.0 + rows + columns).double()
    mixed = torch.einsum("cd,ndhw->nchw", torch.tensor([[1.0, 0.0], [0.8, 0.3]]).double(), noise)
    return cosine_transform(mixed * falling, inverse=True)


def exact_velocity(x_t: Tensor, t: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """E[x1 - x0 | x_t] of x1 ~ N(mean, covariance), by dense matrices, for one time."""
    time, eye = float(t[0]), torch.eye(DIM, dtype=torch.float64)
    of_x_t = time**2 * covariance + (1 - time) ** 2 * eye
    gain = torch.linalg.solve(of_x_t, time * covariance - (1 - time) * eye)
    return (mean + (x_t.flatten(1) - time * mean) @ gain).reshape(x_t.shape)


@pytest.mark.parametrize("basis", [EigenBasis(SHAPE), FrequencyBasis(SHAPE), PatchBasis(SHAPE, 2)])
def test_a_basis_is_orthonormal_and_sees_the_variances_along_it(basis: Any) -> None:
    rows = field(400).flatten(1)
    rows = rows - rows.mean(0)
    variances, rotation = basis.spectrum(basis.second_moment(rows) / len(rows))
    along = basis.to(rows, rotation)
    torch.testing.assert_close(basis.back(along, rotation), rows)
    torch.testing.assert_close(along.square().sum(1), rows.square().sum(1))
    found = along.square().mean(0).reshape(basis.samples, -1)
    torch.testing.assert_close(found.mean(0), variances.reshape(basis.samples, -1)[0])
    within = along.reshape(
        len(rows), -1, basis.size
    )  # a group's numbers are uncorrelated, summed over what shares it
    groups = (within.transpose(0, 1).mT @ within.transpose(0, 1)).reshape(
        basis.samples, -1, basis.size, basis.size
    )
    summed = groups.sum(0)
    torch.testing.assert_close(summed, torch.diag_embed(summed.diagonal(dim1=-2, dim2=-1)), atol=1e-9, rtol=0)


def test_frequencies_make_the_skip_of_a_stationary_field_exact() -> None:
    data = torch.cat([field(3000), field(3000, seed=1) + 1])
    labels = torch.arange(2).repeat_interleave(3000)
    network = MLPVelocity(SHAPE, 2, width=4)
    skip = GaussianSkip(network, LinearPath(), directions="frequency").double()
    skip.fit(data, labels)
    x_t, t = torch.randn(5, *SHAPE, dtype=torch.float64), torch.full((5,), 0.7, dtype=torch.float64)
    asked = torch.tensor([0, 1, 0, 1, 1])
    means = torch.stack([data[labels == label].mean(0).flatten() for label in range(2)])
    # With the covariance that the basis leaves, which is the data's own but for chance, it is exact.
    basis, variances = skip._basis, skip.eigenvalues[0]
    eye = torch.eye(DIM, dtype=torch.float64)
    directions = basis.to(eye, skip.basis[0])
    covariance = directions * variances @ directions.T
    torch.testing.assert_close(skip(x_t, t, asked), exact_velocity(x_t, t, means[asked], covariance))
    truth = field(20_000, seed=2).flatten(1)
    error = covariance - truth.T @ truth / len(truth)
    assert float(error.norm()) < 0.05 * float(covariance.norm())
    assert skip.num_fitted_numbers == 24 * 3 + 2 * DIM


@pytest.mark.parametrize(
    "wrapper",
    [
        {"skip": "mean"},
        {"skip": "none", "directions": "patches"},
        {"directions": "patches"},
        {"directions": "frequency"},
        {"directions": "frequency", "output_scaling": False},
        {"directions": "eigen"},
        {"components": 2, "directions": "frequency"},
        {"components": 2, "directions": "patches"},
        {"components": 2, "directions": "eigen"},
    ],
    ids=str,
)
def test_the_network_sees_and_gives_values_at_positions(wrapper: dict[str, Any]) -> None:
    data, labels = field(300), torch.arange(300) % 2
    seen: list[Tensor] = []

    class Spy(VelocityNetwork):
        """Answers a bump at one position of one channel, and its input is kept."""

        def __init__(self) -> None:
            super().__init__()
            self.shape, self.num_classes = SHAPE, 2
            self.size = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

        def zero_output(self) -> None:
            torch.nn.init.zeros_(self.size)

        def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
            seen.append(x_t)
            bump = torch.zeros_like(x_t)
            bump[:, 1, 2, 3] = 1
            return bump * self.size

    kind: Any = MixtureSkip if "components" in wrapper else GaussianSkip
    model = kind(Spy(), LinearPath(), **wrapper).double()
    model.fit(data, labels, validation=(data[:50], labels[:50]))
    t = torch.full((300,), 0.6, dtype=torch.float64)
    x_t = 0.6 * data + 0.4 * torch.randn(300, *SHAPE, dtype=torch.float64)
    skip = model(x_t, t, labels)
    torch.nn.init.ones_(model.network.size)
    added = (model(x_t, t, labels) - skip)[0]
    assert added.shape == SHAPE
    assert int(added.abs().argmax()) == 1 * 24 + 2 * 6 + 3  # where the network put it
    assert 0.8 < float(seen[0].square().mean()) < 1.2  # unit variance
    # At the same positions: along with the point that it is scaled from, not with rotated numbers.
    correlation = (seen[0] * x_t).sum() / (seen[0].norm() * x_t.norm())
    assert float(correlation) > 0.6


def test_a_flow_on_maps_with_a_skip_and_a_null_class_samples_and_has_a_density() -> None:
    data, labels = field(200).float() + 1, torch.arange(200) % 2
    for name in ("gaussian_skip", "mixture_skip"):
        wrapper = {"name": name, "directions": "frequency"} | ({"components": 2} if "mix" in name else {})
        flow = PreconditionedFlow(
            "scalar",
            model={"name": "dit", "width": 16, "depth": 1, "heads": 2, "label_dropout": 0.2},
            wrappers=(wrapper,),
            training=TrainingOptions(steps=3, batch_size=8),
        ).fit(data, labels)
        # The same skip around a network that does not matter, as the pipeline keeps it.
        mlp = {"name": "mlp", "width": 8, "label_dropout": 0.2}
        alone = PreconditionedFlow(flow.preconditioner, model=mlp, wrappers=(wrapper,))
        alone.prepare(data, labels, fitted_wrappers=flow.wrapper_state()).zero_network()
        flow.zero_network()
        torch.testing.assert_close(
            alone.sample(6, steps=4, guidance=1.5), flow.sample(6, steps=4, guidance=1.5)
        )
        assert bool(flow.log_prob(data[:2], labels[:2], steps=2).isfinite().all())
        drawn = flow.sample(300, steps=20)
        assert abs(float(drawn.mean() - data.mean())) < 0.1
        assert 0.7 < float(drawn.var() / data.var()) < 1.3


@pytest.mark.parametrize("kind", [GaussianSkip, MixtureSkip])
def test_a_skip_stays_in_full_precision_under_autocast(kind: Any) -> None:
    data, t = field(100).float(), torch.full((100,), 0.7)
    model = kind(MLPVelocity(SHAPE, width=4), LinearPath(), directions="frequency")
    model.fit(data, None)
    alone = model(data, t)  # the network says zero
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(data, t), alone)


def test_what_a_shape_does_not_have_is_refused() -> None:
    for options, shape, name in [
        ({"directions": "frequency"}, (5,), "directions"),
        ({"directions": "patches", "patch": 4}, SHAPE, "patch"),
        ({"directions": "eigen"}, (16, 64, 64), "directions"),
        ({"skip": "classwise", "directions": "frequency"}, SHAPE, "skip"),
    ]:
        with pytest.raises(PrecfmError, match=f"^{name}: got"):
            GaussianSkip(MLPVelocity(shape, width=2), LinearPath(), **options)  # type: ignore[arg-type]
    skip = seeded_module(lambda: GaussianSkip(MLPVelocity(SHAPE, width=4), LinearPath(), skip="mean"), 0)
    with pytest.raises(PrecfmError, match=r"^z1: got shape"):
        skip.fit(torch.zeros(4, DIM), None)


def test_few_rows_are_noted() -> None:
    skip = GaussianSkip(MLPVelocity(SHAPE, width=4), LinearPath(), directions="frequency")
    skip.fit(field(15).float(), None)
    assert len(skip.notes) == 1
    skip.fit(field(30).float(), None)
    assert skip.notes == []
