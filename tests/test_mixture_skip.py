"""The mixture skip: the fit, the closed forms of the mixture, and the flow that is the mixture alone."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.seeds import seeded_module
from precfm.datasets.synthetic import Gaussian, Mixture, rotation
from precfm.flows.gaussian_mixture import FLOORS, ClassMixture
from precfm.flows.likelihood import T_DATA, log_likelihood
from precfm.flows.models.gaussian_skip import GaussianSkip, coefficients
from precfm.flows.models.mixture_label import MixtureLabel
from precfm.flows.models.mixture_skip import MixtureSkip
from precfm.flows.models.mlp import MLPVelocity
from precfm.flows.paths import LinearPath, ProbabilityPath, VariancePreservingPath
from precfm.flows.sampling import evaluation_noise
from precfm.preconditioned_flow import PreconditionedFlow
from precfm.preconditioners.mixture_flow import MixtureFlow
from precfm.preconditioners.round_trip import round_trip_error
from precfm.preconditioners.scalar import Scalar
from precfm.theory.mixtures import ExactVelocity
from precfm.training.options import TrainingOptions

PATHS: list[ProbabilityPath] = [LinearPath(), VariancePreservingPath()]
every_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
DIM, COMPONENTS, CLASSES = 3, 4, 2
BASIS = rotation(DIM, 0)


def laws() -> list[Mixture]:
    """For each class a mixture whose covariances are diagonal in `BASIS`."""
    source = torch.Generator().manual_seed(1)
    found = []
    for label in range(CLASSES):
        means = 2 * torch.randn(COMPONENTS, DIM, generator=source, dtype=torch.float64) + 10 * label
        variances = 0.02 + torch.rand(COMPONENTS, DIM, generator=source, dtype=torch.float64)
        weights = torch.rand(COMPONENTS, generator=source, dtype=torch.float64) + 0.2
        parts = tuple(Gaussian(v, BASIS, m) for v, m in zip(variances, means, strict=True))
        found.append(Mixture(weights / weights.sum(), parts))
    return found


def known() -> ClassMixture:
    """The mixture of `laws`, by its numbers."""
    mixture = ClassMixture(DIM, CLASSES, COMPONENTS).double()
    mixture.basis.copy_(BASIS)
    for label, law in enumerate(laws()):
        mixture.class_means[label] = law.mean
        mixture.means[label] = torch.stack([part.mean - law.mean for part in law.components]) @ BASIS
        mixture.variances[label] = torch.stack([part.eigenvalues for part in law.components])
        mixture.log_weights[label] = law.weights.log()
    return mixture


def points(n: int = 12) -> tuple[Tensor, Tensor]:
    x = 4 * torch.randn(n, DIM, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return x, torch.arange(n) % CLASSES


def sampled(rows: int = 600, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of the laws, a class after the other, and their classes."""
    parts = [law.sample(rows, seed)[0] for law in laws()]
    return torch.cat(parts), torch.arange(CLASSES).repeat_interleave(rows)


def wrapped(
    components: int = 3, classes: int = CLASSES, path: ProbabilityPath = PATHS[0], **options: Any
) -> MixtureSkip:
    return seeded_module(
        lambda: MixtureSkip(MLPVelocity(DIM, classes, width=16), path, components=components, **options), 0
    )


# ---- closed forms


def test_the_density_is_that_of_its_components() -> None:
    x, classes = points()
    found = known().log_prob(x, classes)
    for row, (point, label) in enumerate(zip(x, classes.tolist(), strict=True)):
        law = laws()[label]
        densities = [
            stats.multivariate_normal(c.mean.numpy(), c.cov.numpy()).pdf(point.numpy())
            for c in law.components
        ]
        assert float(found[row]) == pytest.approx(math.log(float(law.weights.numpy() @ densities)), rel=1e-9)


@every_path
@pytest.mark.parametrize("t", [0.0, 0.4, 0.95, 1.0])
def test_the_velocity_is_exact_at_all_times(path: ProbabilityPath, t: float) -> None:
    mixture, (x, classes) = known(), points()
    time = torch.full((len(x), 1), t, dtype=torch.float64)
    along = mixture.to_eigenbasis(x, classes, path.alpha(time))
    found = (
        mixture.velocity(along, time, classes, path) @ BASIS.T
        + path.d_alpha(time) * mixture.class_means[classes]
    )
    for label, law in enumerate(laws()):
        rows = classes == label
        torch.testing.assert_close(
            found[rows], ExactVelocity(law, path)(x[rows], time[rows, 0]), rtol=1e-8, atol=1e-8
        )


@every_path
def test_the_jacobian_is_that_of_the_velocity_in_blocks_of_any_size(
    path: ProbabilityPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixture, (rows, classes) = known(), points()
    time = torch.linspace(0, 1, len(rows), dtype=torch.float64)[:, None]
    velocity = mixture.velocity(rows, time, classes, path)
    expected = torch.autograd.functional.jacobian(lambda x: mixture.velocity(x, time, classes, path), rows)
    found = mixture.jacobian(rows, time, classes, path)
    torch.testing.assert_close(found, torch.einsum("ninj->nij", expected))
    monkeypatch.setattr("precfm.flows.gaussian_mixture.BLOCK", 5 * COMPONENTS * DIM)
    torch.testing.assert_close(mixture.velocity(rows, time, classes, path), velocity)
    assert mixture.velocity(rows[:0], time[:0], classes[:0], path).shape == (0, DIM)


# ---- the fit


def test_a_fit_finds_a_mixture_and_its_own_basis() -> None:
    (x, classes), (new, labels) = sampled(2000), sampled(2000, seed=1)
    mixture = ClassMixture(DIM, CLASSES, COMPONENTS).double()
    mixture.fit(x, classes, (new, labels))
    truth = known().log_prob(new, labels).mean()
    one = ClassMixture(DIM, CLASSES, 1).double()
    one.fit(x, classes, (new, labels))
    gaps = [float(truth - each.log_prob(new, labels).mean()) for each in (mixture, one)]
    # The pooled basis is not quite that of the components, which are not centred in one point.
    assert 0 < gaps[0] < 0.3 * gaps[1]
    centred = torch.cat([x[classes == k] - x[classes == k].mean(0) for k in range(CLASSES)])
    pooled = one.basis @ torch.diag(one.eigenvalues) @ one.basis.T
    torch.testing.assert_close(pooled, centred.T @ centred / (len(x) - CLASSES))
    torch.testing.assert_close(one.class_means[1], x[classes == 1].mean(0))


def test_validation_rows_choose_the_floor_and_share_no_row_with_the_fit() -> None:
    """Few rows for many components: an own variance is worth little; many rows for a true one: much."""
    few, many = ClassMixture(DIM, 1, 10).double(), ClassMixture(DIM, CLASSES, COMPONENTS).double()
    x, classes = sampled()
    ones = torch.randn(600, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (note,) = few.fit(
        ones[:40], torch.zeros(40, dtype=torch.int64), (ones[40:], torch.zeros(560, dtype=torch.int64))
    )
    many.fit(x, classes, sampled(seed=1))
    assert float(few.floor) == FLOORS[-1]
    assert f"{FLOORS[-1]:g} of the pooled" in note
    assert float(many.floor) < FLOORS[-1]
    for mixture in (few, many):
        assert bool((mixture.variances >= 0.999 * mixture.floor * mixture.eigenvalues).all())
    held_out = ClassMixture(DIM, CLASSES, COMPONENTS).double()
    held_out.fit(x, classes)  # a tenth of the rows chooses
    assert not torch.equal(held_out.class_means, many.class_means)


def test_a_fit_is_a_function_of_its_seed_and_counts_its_work() -> None:
    x, classes = sampled()
    states, flops = [], []
    for seed, components in [(0, 3), (0, 3), (1, 3), (0, 12)]:
        torch.manual_seed(seed + components)
        mixture = ClassMixture(DIM, CLASSES, components).double()
        mixture.fit(x, classes, seed=seed)
        states.append(mixture.state_dict())
        flops.append(int(mixture.flops))
    same = [
        all(torch.equal(a[name], b[name]) for name in a)
        for a, b in ((states[0], states[1]), (states[0], states[2]))
    ]
    assert same == [True, False]
    assert flops[3] > 2 * flops[0] > 2 * 8 * 2 * 1080 * 3 * DIM  # at least two passes over the rows


def test_a_class_without_rows_takes_what_all_have() -> None:
    x, classes = sampled()
    mixture = ClassMixture(DIM, 4, 3).double()
    mixture.fit(x, 2 * classes, (x, 2 * classes))
    torch.testing.assert_close(mixture.class_means[[1, 3]], x.mean(0).expand(2, DIM))
    assert not mixture.means[1].any()
    torch.testing.assert_close(mixture.variances[1], mixture.eigenvalues.expand(3, DIM))


@pytest.mark.parametrize(
    ("components", "rows"),
    [(301, 600), (31, 61)],
    ids=["more than half the rows", "after a tenth is held out"],
)
def test_too_many_components_are_refused(components: int, rows: int) -> None:
    x, classes = sampled(rows)
    with pytest.raises(PrecfmError, match=r"^components: .*class 0"):
        wrapped(components).fit(x.float(), classes)


# ---- the map


def gapped(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Of each class two narrow clusters far apart, with a few rows in the gap."""
    source, classes = torch.Generator().manual_seed(seed), torch.arange(rows) % 2
    x = 0.02 * torch.randn(rows, 2, generator=source, dtype=torch.float64)
    x[:, 0] += torch.arange(rows) // 2 % 2 * 2 - 1
    x[: rows // 100, 0] = 2 * torch.rand(rows // 100, generator=source, dtype=torch.float64) - 1
    x[:, 1] += classes
    return x, classes


def test_the_map_is_smoothed_until_points_in_a_gap_come_back() -> None:
    (x, classes), (new, asked) = gapped(800, 0), gapped(800, 1)
    options = {"components": 2, "solver_steps": 40}
    rough, fitted = (MixtureFlow(**options, tolerance=each).fit(x, classes) for each in (1e9, 1e-2))
    assert round_trip_error(rough, new.float(), asked) > 1e-2
    assert round_trip_error(fitted, new.float(), asked) <= 1e-2
    assert float(rough.mixture.floor) < float(fitted.mixture.floor)
    to_noise = fitted.forward(new, asked).square().sum(1) / 2 + math.log(2 * math.pi)
    density = fitted.log_abs_det_jacobian(new, asked) - to_noise
    white = fitted.whitening.forward(new)
    expected = fitted.mixture.log_prob(white, asked)
    torch.testing.assert_close(density, expected + fitted.whitening.log_det, rtol=0, atol=1e-2)
    with pytest.raises(PrecfmError, match=r"^solver_steps: "):
        MixtureFlow(**options, tolerance=1e-12).fit(x, classes)


# ---- the wrapper


@every_path
def test_the_network_is_scaled_by_the_pooled_variances(path: ProbabilityPath) -> None:
    x, classes = sampled()
    model = wrapped(path=path).double()
    model.fit(x, classes)
    points_t, labels = points()
    times = torch.linspace(0.1, 1, len(labels), dtype=torch.float64)
    alone = model(points_t, times, labels)
    torch.nn.init.normal_(model.network.head.weight)
    mixture = model.mixture
    found = coefficients(mixture.eigenvalues, times[:, None], path)
    along = (points_t - path.alpha(times)[:, None] * mixture.class_means[labels]) @ mixture.basis
    learned = (found.out_scale * model.network(found.in_scale * along, times, labels)) @ mixture.basis.T
    torch.testing.assert_close(model(points_t, times, labels), alone + learned)
    assert model.network.head.weight.requires_grad
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"network"}


def test_as_input_the_mixture_is_seen_and_not_added() -> None:
    x, classes = sampled()
    alone, model = wrapped(), wrapped(use="input")
    for each in (alone, model):
        each.fit(x.float(), classes)
    (rows, labels), t = points(), torch.full((12,), 0.7)
    velocity = alone(rows.float(), t, labels)
    expected = model.network(torch.cat([rows.float(), velocity], 1), t, labels)
    torch.testing.assert_close(model(rows.float(), t, labels), expected)
    assert expected.shape == (12, DIM)
    assert not model.adds_velocity
    with pytest.raises(PrecfmError, match=r"^x_t: "):
        MLPVelocity(DIM)(torch.zeros(2, 2 * DIM), t[:2])


def test_bad_input_is_refused() -> None:
    x, classes = sampled()
    model = wrapped().double()
    for wrong, labels, held_out, field in [
        (x[:, :2], classes, None, "z1"),
        (x.index_fill(0, torch.tensor([7]), math.nan), classes, None, "z1: .*row 7"),
        (x, None, None, "labels: missing"),
        (x, classes + 1, None, "labels: got 2"),
        (torch.ones_like(x), classes, None, "z1: does not vary"),
        (x, classes, (x, None), "labels: missing"),
        (x, classes, (x[:, :2], classes), "z1"),
    ]:
        with pytest.raises(PrecfmError, match=f"^{field}"):
            model.fit(wrong, labels, validation=held_out)
    with pytest.raises(PrecfmError, match="before fit"):
        model(x, torch.zeros(len(x)), classes)
    with pytest.raises(PrecfmError, match=r"^components: got 0"):
        wrapped(0)


# ---- the component as a label

TRAINING = TrainingOptions(steps=6, batch_size=32)


def flow_of(wrapper: Any, preconditioner: Any = "scalar", **options: Any) -> PreconditionedFlow:
    model = {"name": "mlp", "width": 16, "depth": 2}
    return PreconditionedFlow(preconditioner, model=model, wrappers=[wrapper], training=TRAINING, **options)


def labelled(components: int = COMPONENTS) -> MixtureLabel:
    network = MLPVelocity(DIM, CLASSES, width=16)
    return seeded_module(lambda: MixtureLabel(network, PATHS[0], components=components), 0)


def test_labels_are_the_likeliest_components_and_drawn_by_their_weights() -> None:
    model = labelled()
    model.mixture = known()
    x, classes = sampled(50)
    found = model.training_labels(x, classes)
    for label, law in enumerate(laws()):
        rows = classes == label
        joint = torch.stack(
            [
                part_weight.log()
                + torch.distributions.MultivariateNormal(
                    part.mean, part.basis @ torch.diag(part.eigenvalues) @ part.basis.T
                ).log_prob(x[rows])
                for part_weight, part in zip(law.weights, law.components, strict=True)
            ]
        )
        assert torch.equal(found[rows], label * COMPONENTS + joint.argmax(0))
    n = 4000
    asked = torch.ones(n, dtype=torch.int64)
    drawn = model.drawn_labels(torch.zeros(n, DIM), asked, 0)
    assert torch.equal(drawn, model.drawn_labels(torch.zeros(n, DIM), asked, 0))
    assert not torch.equal(drawn, model.drawn_labels(torch.zeros(n, DIM), asked, 1))
    shares = drawn.bincount(minlength=CLASSES * COMPONENTS) / n
    assert not shares[:COMPONENTS].any()
    torch.testing.assert_close(shares[COMPONENTS:].double(), laws()[1].weights, rtol=0, atol=0.03)


def test_a_flow_of_components_is_sampled_saved_and_has_a_density(tmp_path: Path) -> None:
    x, classes = sampled()
    flow = flow_of({"name": "mixture_label", "components": 3}).fit(x.float(), classes)
    z1, components = flow.data
    assert torch.equal(components // 3, classes)
    assert len(components.unique()) == 6
    asked = classes[::140]
    made = flow.sample(9, asked, seed=1)
    assert not torch.equal(made, flow.transport(evaluation_noise(9, DIM, 1), asked, seed=2))
    flow.save(tmp_path / "flow")
    loaded = PreconditionedFlow.load(tmp_path / "flow")
    assert torch.equal(loaded.sample(9, seed=1), flow.sample(9, seed=1))

    taken = flow_of({"name": "mixture_label", "components": 3}, flow.preconditioner)
    taken.prepare(x.float(), classes, fitted_wrappers=flow.wrapper_state()).train()
    assert torch.equal(taken.data[1], components)
    assert torch.equal(taken.sample(9, seed=1), flow.sample(9, seed=1))
    assert flow.wrapper_facts()["flops_per_fit"] > 0

    model = flow.network
    assert isinstance(model, MixtureLabel)
    alpha = float(flow.path.alpha(torch.tensor(T_DATA)))
    each = [
        model.mixture.log_weights[asked, k] + log_likelihood(model, alpha * z1[::140], asked * 3 + k)
        for k in range(3)
    ]
    change = flow.preconditioner.log_abs_det_jacobian(x[::140].float()) + DIM * math.log(alpha)
    torch.testing.assert_close(
        flow.log_prob(x[::140].float(), asked), torch.logsumexp(torch.stack(each), 0) + change
    )


def test_components_of_data_without_labels() -> None:
    x, _ = sampled()
    flow = flow_of({"name": "mixture_label", "components": 4}).fit(x.float())
    assert len(flow.data[1].unique()) == 4
    assert flow.sample(5).shape == (5, DIM)
    assert flow.log_prob(x[:2].float()).isfinite().all()


@pytest.mark.parametrize("wrappers", [["mixture_label", "gaussian_skip"], ["gaussian_skip", "mixture_label"]])
def test_labels_of_components_stand_alone(wrappers: list[str]) -> None:
    x, classes = sampled()
    flow = PreconditionedFlow("scalar", wrappers=wrappers, training=TRAINING)
    with pytest.raises(PrecfmError, match=r"^wrappers: .*MixtureLabel"):
        flow.fit(x.float(), classes)


# ---- in a flow


@pytest.mark.parametrize("name", ["mixture_skip", "gaussian_skip"])
@every_path
def test_a_skip_alone_is_the_flow_of_its_own_law(name: str, path: ProbabilityPath) -> None:
    """Samples have the law's moments and log_prob its density, whatever the network has learnt before."""
    x, classes = sampled(seed=3)
    options = {"components": COMPONENTS} if name == "mixture_skip" else {"skip": "classwise"}
    flow = flow_of({"name": name, **options}, path=path).fit(x.float(), classes).zero_network()
    n = 1500
    z = flow.preconditioner.forward(
        flow.transport(evaluation_noise(n, DIM, 0), torch.ones(n, dtype=torch.int64)), None
    )
    skip = flow.network
    if isinstance(skip, MixtureSkip):
        mixture, weights = skip.mixture, skip.mixture.log_weights[1].exp()
        centres = mixture.means[1]
        mean = mixture.class_means[1] + weights @ centres @ mixture.basis.T
        spread = centres - weights @ centres
        cov = torch.diag(weights @ mixture.variances[1]) + spread.T @ (weights[:, None] * spread)
        cov = mixture.basis @ cov @ mixture.basis.T
    else:
        assert isinstance(skip, GaussianSkip)
        mean, cov = skip.means[1], skip.basis[1] @ torch.diag(skip.eigenvalues[1]) @ skip.basis[1].T
    scale = cov.diagonal().sqrt()
    assert float(((z.mean(0) - mean) / scale).abs().max()) < 4 / math.sqrt(n)
    torch.testing.assert_close(
        z.T.cov() / scale / scale[:, None], cov / scale / scale[:, None], rtol=0, atol=0.1
    )

    asked = classes[::200]
    density = flow.log_prob(x[::200].float(), asked)
    at, change = (call(x[::200].float(), None) for call in (
        flow.preconditioner.forward, flow.preconditioner.log_abs_det_jacobian
    ))  # fmt: skip
    if isinstance(skip, MixtureSkip):
        expected = skip.mixture.log_prob(at, asked)
    else:
        laws_of = [
            torch.distributions.MultivariateNormal(
                skip.means[k], skip.basis[k] @ torch.diag(skip.eigenvalues[k]) @ skip.basis[k].T
            )
            for k in range(CLASSES)
        ]
        expected = torch.stack([laws_of[k].log_prob(row) for k, row in zip(asked.tolist(), at, strict=True)])
    torch.testing.assert_close(density, expected + change, rtol=0, atol=0.05)


def test_only_a_skip_stands_alone() -> None:
    x, classes = sampled()
    for wrapper in (
        {"name": "mixture_skip", "components": 2, "use": "input"},
        {"name": "gaussian_skip", "skip": "none"},
    ):
        with pytest.raises(PrecfmError, match=r"^wrappers: "):
            flow_of(wrapper, Scalar().fit(x)).prepare(x.float(), classes).zero_network()


def test_a_mixture_fitted_elsewhere_makes_the_same_flow(tmp_path: Path) -> None:
    (x, classes), held_out = sampled(), sampled(seed=5)
    skip = {"name": "mixture_skip", "components": 3}
    whole = flow_of(skip).fit(x.float(), classes, validation=(held_out[0].float(), held_out[1]))
    fitted = flow_of(skip, whole.preconditioner)
    fitted.prepare(x.float(), classes, validation=(held_out[0].float(), held_out[1]))
    state = {name: value.clone() for name, value in fitted.wrapper_state().items()}
    assert {name.split(".")[0] for name in state} == {"0"}
    assert not any("network" in name for name in state)

    taken = flow_of(skip, whole.preconditioner).prepare(x.float(), classes, fitted_wrappers=state)
    taken.train()
    for name, value in taken.network.state_dict().items():
        assert torch.equal(value, whole.network.state_dict()[name]), name
    facts, again = fitted.wrapper_facts(), taken.wrapper_facts()
    assert facts["flops_per_fit"] == again["flops_per_fit"] > 0
    assert facts["num_fitted_numbers"] == 6 + CLASSES * DIM + CLASSES * (3 * 2 * DIM + 2)
    assert len(facts["notes"]) == len(whole.notes) == 1
    plain = PreconditionedFlow(
        whole.preconditioner, model={"name": "mlp", "width": 16, "depth": 2}, training=TRAINING
    )
    plain.prepare(x.float(), classes)
    assert taken.num_parameters == plain.num_parameters
    assert taken.flops_per_step - plain.flops_per_step >= 32 * 12 * 3 * DIM

    for wrong in ({}, {**state, "0.more": torch.ones(1)}, {**state, "0.mixture.basis": torch.eye(DIM + 1)}):
        with pytest.raises(PrecfmError, match=r"^fitted_wrappers: "):
            flow_of(skip, whole.preconditioner).prepare(x.float(), classes, fitted_wrappers=wrong)

    whole.save(tmp_path / "flow")
    loaded = PreconditionedFlow.load(tmp_path / "flow")
    assert torch.equal(loaded.sample(5), whole.sample(5))
    assert torch.equal(copy.deepcopy(loaded).zero_network().sample(5), whole.zero_network().sample(5))


def test_without_labels_there_is_one_class() -> None:
    x, _ = sampled()
    flow = flow_of({"name": "mixture_skip", "components": 5}).fit(x.float())
    assert flow.network.mixture.means.shape == (1, 5, DIM)  # type: ignore[union-attr, index]
    assert flow.sample(7).shape == (7, DIM)
