"""The paper's method as one class: fit, sample, save and load, by name or by object, killed and resumed."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.seeds import derived_seed, seeded_module
from precfm.flows.models.base import VelocityNetwork, Wrapper
from precfm.flows.models.gaussian_skip import GaussianSkip
from precfm.flows.models.mlp import MLPVelocity
from precfm.flows.objectives import FlowMatching
from precfm.flows.paths import LinearPath
from precfm.flows.sampling import evaluation_labels, evaluation_noise
from precfm.preconditioned_flow import PreconditionedFlow
from precfm.preconditioners.base import EXTRA_STATE
from precfm.preconditioners.jacobian import inverse_jacobian
from precfm.preconditioners.low_capacity_flow import LowCapacityFlow
from precfm.preconditioners.scalar import Scalar
from precfm.preconditioners.whitening import Whitening
from precfm.training.options import TrainingOptions
from precfm.training.state import TrainingState

TRAINING = TrainingOptions(steps=12, batch_size=16, checkpoints=(6, 12), save_every=5)
SMALL = {"name": "mlp", "width": 16, "depth": 2}
X = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.1, 3.0]) + 5
LABELS = (torch.arange(200) % 4 == 0).long()  # three of four are of class 0


def small(preconditioner: Any = "whitening", **options: Any) -> PreconditionedFlow:
    return PreconditionedFlow(preconditioner, **{"model": SMALL, "training": TRAINING, **options})


def weights(flow: PreconditionedFlow) -> dict[str, Tensor]:
    return {
        **flow.network.state_dict(),
        **{
            f"map {k}": v
            for k, v in flow.preconditioner.state_dict().items()
            if not k.endswith(f".{EXTRA_STATE}")
        },
    }


def assert_same(first: PreconditionedFlow, second: PreconditionedFlow) -> None:
    assert first.settings == second.settings
    mine, theirs = weights(first), weights(second)
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert torch.equal(mine[name], theirs[name]), name


# ---- fit and sample


def test_numpy_arrays_are_data_too() -> None:
    assert_same(small().fit(X.numpy(), LABELS.numpy(), seed=3), small().fit(X, LABELS, seed=3))


def test_five_lines_from_latents_to_samples() -> None:
    flow = PreconditionedFlow(
        "whitening", training=TrainingOptions(steps=250, batch_size=64, learning_rate=3e-3)
    )
    flow.fit(X, LABELS)
    samples = flow.sample(2000)
    assert samples.dtype == torch.float32
    torch.testing.assert_close(samples.mean(0), X.mean(0), rtol=0, atol=0.6)
    torch.testing.assert_close(samples.std(0), X.std(0), rtol=0.25, atol=0)
    assert flow.log_prob(X[:5], LABELS[:5]).isfinite().all()


def network() -> MLPVelocity:
    """As a flow makes it from the seed 0."""
    return seeded_module(lambda: MLPVelocity(3, 2, width=16, depth=2), 0)


@pytest.mark.parametrize(
    "components",
    [
        {"preconditioner": "whitening", "path": "linear", "objective": "flow_matching"},
        {"preconditioner": Whitening(), "path": LinearPath(), "objective": FlowMatching()},
        {
            "preconditioner": {"name": "whitening", "exponent": 0.5},
            "path": {"name": "precfm.flows.paths:LinearPath"},
            "objective": {"name": "flow_matching", "time": "uniform"},
        },
        {"preconditioner": Whitening().fit(X), "model": network()},
    ],
    ids=["names", "objects", "mappings", "fitted"],
)
def test_names_mappings_and_objects_make_the_same_flow(components: dict[str, Any]) -> None:
    assert_same(small(**components).fit(X, LABELS), small().fit(X, LABELS))


def test_fit_is_prepare_and_train_behind_a_map_of_its_own_seed() -> None:
    learned = {"name": "low_capacity_flow", "steps": 4, "width": 8, "validate_every": 2, "batch_size": 16}
    whole = small(learned).fit(X, LABELS, seed=3)
    fitted = LowCapacityFlow(steps=4, width=8, validate_every=2, batch_size=16)
    parts = small(fitted.fit(X, LABELS, seed=derived_seed(3, "preconditioner")))
    handed_out: list[int] = []
    result = parts.prepare(X, LABELS, seed=3).train(
        seed=3, on_checkpoint=lambda step, _: handed_out.append(step)
    )
    assert_same(whole, parts)
    assert (handed_out, result.steps_run) == ([6, 12], 12)
    assert not whole.network.training


def test_a_second_fit_forgets_the_first_but_no_map_that_came_fitted() -> None:
    others = X * torch.tensor([2.0, 5.0, 0.1])
    again = small(model=network()).fit(others, LABELS, seed=1).fit(X, LABELS)
    assert_same(again, small(model=network()).fit(X, LABELS))
    given = Whitening().fit(others)
    before = copy.deepcopy(given.state_dict())
    flow = small(given).fit(X, LABELS)
    assert flow.preconditioner is given
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())
    assert not torch.allclose(flow.data[0].T.cov(), torch.eye(3), atol=0.1)


def test_the_callers_network_stays_as_it_was() -> None:
    given = network()
    flow = small(model=given, wrappers=["gaussian_skip"]).fit(X, LABELS)
    assert all(torch.equal(value, network().state_dict()[name]) for name, value in given.state_dict().items())
    assert flow.network.network is not given  # type: ignore[union-attr]


def test_data_in_float64_are_trained_in_the_networks_type() -> None:
    flow = small().fit(X.double(), LABELS)
    assert flow.data[0].dtype == flow.sample(3).dtype == torch.float32
    assert flow.log_prob(X[:3].double(), LABELS[:3]).isfinite().all()
    double = small(model=network().double(), wrappers="gaussian_skip").fit(X, LABELS)
    assert double.data[0].dtype == double.sample(3).dtype == torch.float64


def test_latents_may_have_the_shape_of_images() -> None:
    maps = X[:, :2].repeat(1, 4).reshape(200, 2, 2, 2) + torch.randn(
        200, 2, 2, 2, generator=torch.Generator().manual_seed(1)
    )
    vectors, images = small().fit(maps.flatten(1), LABELS), small().fit(maps, LABELS)
    assert torch.equal(vectors.sample(7), images.sample(7).flatten(1))
    expected = vectors.log_prob(maps.flatten(1)[:5], LABELS[:5], steps=9)
    assert torch.equal(images.log_prob(maps[:5], LABELS[:5], steps=9), expected)


def test_data_with_a_gradient_are_taken_without_it() -> None:
    assert_same(small().fit(X.clone().requires_grad_()), small().fit(X))


def test_samples_are_a_function_of_number_labels_and_seed_in_the_datas_proportions() -> None:
    flow = small("class_whitening").fit(X, LABELS)
    state = torch.get_rng_state()
    samples = flow.sample(40, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(samples, flow.sample(40, seed=1))
    assert not torch.equal(samples, flow.sample(40, seed=2))
    asked = evaluation_labels(40, LABELS, 1)
    assert asked.bincount().tolist() == [30, 10]
    assert torch.equal(samples, flow.sample(40, asked, seed=1))
    assert not torch.equal(samples, flow.sample(40, 1 - asked, seed=1))
    assert torch.equal(samples, flow.transport(evaluation_noise(40, 3, 1), asked))
    assert not torch.equal(samples, flow.sample(40, seed=1, solver="euler", steps=3))
    assert flow.sample(0).shape == (0, 3)


class Still(MLPVelocity):
    """Predicts zeros: no velocity, or the noise of x1 = 0."""

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x_t)


@pytest.mark.parametrize("objective", ["flow_matching", "denoising_score"])
def test_transport_goes_from_shared_noise_to_data_space(objective: str) -> None:
    fitted, noise = Whitening().fit(X), evaluation_noise(50, 3, 2)
    made = small(fitted, model=Still(3), objective=objective).prepare(X).transport(noise)
    if objective == "flow_matching":
        torch.testing.assert_close(made, fitted.inverse(noise))
    else:  # without noise, x_t = t x1: the points grow along straight lines
        direction = fitted.forward(made)
        torch.testing.assert_close(torch.cosine_similarity(direction, noise), torch.ones(50))
        assert (direction.norm(dim=1) > noise.norm(dim=1)).all()


@pytest.mark.parametrize("white_path", [False, True])
@pytest.mark.parametrize("white_error", [False, True])
def test_path_and_metric_of_the_error_are_chosen_apart(white_path: bool, white_error: bool) -> None:
    """The four cells: an error e of the flow's space is J e in data space, and W J e in white coordinates."""
    fitted, metric = {
        (False, False): (Scalar(), "latent"),
        (False, True): (Scalar(), "inverse_variance"),
        (True, False): (Whitening(), "latent"),
        (True, True): (Whitening(), "flow"),
    }[white_path, white_error]
    objective = {"name": "flow_matching", "metric": metric}
    flow = small(fitted.fit(X), model=Still(3), objective=objective).prepare(X)
    t, x0 = flow.objective.draw(200, torch.Generator().manual_seed(1))
    matrix = inverse_jacobian(fitted, 3)
    if white_error:
        matrix = Whitening().fit(X).matrix @ matrix
    errors = (flow.data[0] - x0).double() @ matrix.T  # of a field that is zero
    found = flow.objective.loss(flow.network, flow.data, (t, x0)).double()
    torch.testing.assert_close(
        found, errors.square().sum(1).mean() / matrix.square().sum(), rtol=1e-4, atol=0
    )


# ---- wrappers


class Recorder(Wrapper):
    """Adds nothing, and remembers when and on what it was fitted."""

    order: list["Recorder"] = []  # noqa: RUF012

    def __init__(self, network: VelocityNetwork, path: LinearPath, *, place: int = 0) -> None:
        super().__init__(network)
        self.path, self.place = path, place

    def fit(self, z1: Tensor, labels: Tensor | None, *, seed: int = 0, validation: Any = None) -> None:
        self.z1, self.labels, self.seed = z1, labels, seed
        self.order.append(self)

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        velocity: Tensor = self.network(x_t, t, labels)
        return velocity


RECORDER = f"{__name__}:Recorder"


def test_wrappers_are_fitted_on_mapped_data_the_innermost_first() -> None:
    Recorder.order.clear()
    places = [{"name": RECORDER, "place": 1}, {"name": RECORDER, "place": 2}]
    flow = small("whitening", wrappers=places).fit(X, LABELS)
    assert [recorder.place for recorder in Recorder.order] == [1, 2]
    outer = flow.network
    assert isinstance(outer, Recorder)
    assert outer.network is Recorder.order[0]
    for recorder in Recorder.order:
        torch.testing.assert_close(recorder.z1, flow.preconditioner.forward(X))
        assert torch.equal(recorder.labels, LABELS)
        assert recorder.path is flow.path
    assert len({recorder.seed for recorder in Recorder.order}) == 2


def test_a_skip_knows_the_moments_of_the_mapped_data() -> None:
    whitening = Whitening().fit(X)
    flow = small(whitening, wrappers="gaussian_skip").prepare(X, LABELS)
    assert isinstance(flow.network, GaussianSkip)
    z1 = whitening.forward(X)
    for label in (0, 1):
        torch.testing.assert_close(flow.network.means[label], z1[label == LABELS].mean(0))
    assert flow.notes == []
    few = small(whitening, wrappers=[{"name": "gaussian_skip", "skip": "classwise"}]).prepare(
        X[:40], LABELS[:40]
    )
    (note,) = few.notes
    assert "class 1 has 10 rows" in note


# ---- killed and resumed


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize(
    ("name", "steps"), [("whitening", 8), ("low_capacity_flow", 5), ("low_capacity_flow", 20)]
)
def test_a_killed_fit_run_again_ends_in_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, steps: int
) -> None:
    """Killed after so many steps: of the map, which takes 12, and of the flow behind it."""
    learned = {"steps": 12, "width": 8, "validate_every": 2, "batch_size": 16}
    spec = {"name": name, **(learned if name == "low_capacity_flow" else {})}
    options = {
        "wrappers": ["gaussian_skip"],
        "objective": {"name": "flow_matching", "coupling": "optimal_transport"},
    }
    taken, descend = [0], TrainingState.descend

    def dying(self: TrainingState, loss: Tensor) -> None:
        if taken[0] == steps:
            raise Killed
        taken[0] += 1
        descend(self, loss)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "descend", dying)
        with pytest.raises(Killed):
            small(spec, **options).fit(X, LABELS, scratch=tmp_path)
    assert any(tmp_path.rglob("state-*")) == (steps != 5)
    resumed = small(spec, **options).fit(X, LABELS, scratch=tmp_path)
    whole = small(spec, **options).fit(X, LABELS)
    assert_same(resumed, whole)
    for name, flow in {"resumed": resumed, "whole": whole}.items():
        flow.save(tmp_path / name)
    for file in ("flow.json", "network.safetensors", "preconditioner.safetensors"):
        assert (tmp_path / "resumed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


# ---- through several maps


def test_equal_maps_are_one_and_the_last_is_sampled_through() -> None:
    fitted = Whitening().fit(X)
    plain, twice = small(fitted).fit(X, LABELS), small()
    steps = list[int]()
    result = twice.train_through(
        [fitted, copy.deepcopy(fitted)], X, LABELS, on_checkpoint=lambda step, _: steps.append(step)
    )
    assert_same(twice, plain)
    assert (steps, result.steps_run) == ([6, 12], 12)

    scalar = Scalar().fit(X)
    other, behind_last = small(), small(scalar).fit(X, LABELS)
    other.train_through([fitted, scalar], X, LABELS)
    assert other.preconditioner is scalar
    assert torch.equal(other.data[0], behind_last.data[0])
    noise = evaluation_noise(4, 3, 0)
    assert not torch.allclose(other.transport(noise, LABELS[:4]), behind_last.transport(noise, LABELS[:4]))


@pytest.mark.parametrize("steps", [4, 8, 11])
def test_a_killed_training_through_maps_ends_in_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    maps = [Scalar().fit(X), Whitening().fit(X)]
    options = {"objective": {"name": "flow_matching", "metric": "latent"}}
    taken, descend = [0], TrainingState.descend

    def dying(self: TrainingState, loss: Tensor) -> None:
        if taken[0] == steps:
            raise Killed
        taken[0] += 1
        descend(self, loss)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "descend", dying)
        with pytest.raises(Killed):
            small(**options).train_through(maps, X, scratch=tmp_path)
    resumed, whole = small(**options), small(**options)
    resumed.train_through(maps, X, scratch=tmp_path)
    whole.train_through(maps, X)
    assert_same(resumed, whole)


def test_maps_that_do_not_go_together_are_refused() -> None:
    fitted = Whitening().fit(X)
    flat = Whitening().fit(X[:, :2])
    for field, flow, maps in [
        ("maps", small(), []),
        ("maps", small(), [fitted] * 13),
        ("wrappers", small(wrappers=["gaussian_skip"]), [fitted]),
        ("Whitening", small(), [fitted, Whitening()]),
        ("x", small(), [fitted, flat]),
    ]:
        with pytest.raises(PrecfmError, match=f"^{field}: "):
            flow.train_through(maps, X)


@pytest.mark.parametrize(
    "change",
    [
        {"objective": "denoising_score"},
        {"objective": {"name": "flow_matching", "time": "logit_normal"}},
        {"path": "variance_preserving"},
        {"training": TrainingOptions(**{**TRAINING.model_dump(), "batch_size": 17})},
        {"preconditioner": "scalar"},
    ],
    ids=str,
)
def test_the_scratch_folder_of_another_flow_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    small().fit(X, LABELS, scratch=tmp_path)
    with pytest.raises(PrecfmError, match="another training"):
        small(**change).fit(X, LABELS, scratch=tmp_path)


def test_the_scratch_folder_of_another_decoder_metric_is_refused(tmp_path: Path) -> None:
    objective = {"name": "flow_matching", "metric": "decoder"}
    for _ in range(2):
        small(objective=objective).fit(X, decoder_metric=torch.eye(3), scratch=tmp_path)
    with pytest.raises(PrecfmError, match="another training"):
        small(objective=objective).fit(X, decoder_metric=2 * torch.eye(3), scratch=tmp_path)


# ---- save and load


@pytest.mark.parametrize(
    ("preconditioner", "options", "labels"),
    [
        ("whitening", {}, None),
        ("class_whitening", {"wrappers": [{"name": "gaussian_skip", "skip": "classwise"}]}, LABELS),
        ({"name": "composition", "stages": [{"name": "per_channel"}, {"name": "whitening"}]}, {}, LABELS),
        ("scalar", {"objective": "denoising_score", "path": "variance_preserving"}, LABELS),
        (
            "class_whitening",
            {"model": MLPVelocity(3, 0, width=8)},
            LABELS,
        ),  # a network that is blind to labels
        ("whitening", {"model": MLPVelocity(3, width=8).double()}, None),
    ],
)
def test_a_saved_flow_comes_back(tmp_path: Path, preconditioner: Any, options: Any, labels: Any) -> None:
    flow = small(preconditioner, **options).fit(X, labels)
    flow.save(tmp_path / "flow")
    state = torch.get_rng_state()
    again = PreconditionedFlow.load(str(tmp_path / "flow"))
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(again, flow)
    assert again.description() == flow.description()
    assert torch.equal(again.sample(20, seed=5), flow.sample(20, seed=5))
    asked = None if labels is None else labels[:4]
    assert torch.equal(again.log_prob(X[:4], asked, steps=9), flow.log_prob(X[:4], asked, steps=9))
    again.fit(X, labels, seed=2)  # from fresh weights, behind the same map
    assert again.preconditioner.fitted


def test_a_flow_is_saved_to_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PrecfmError, match="file: is a file"):
        small().fit(X).save(tmp_path / "file")


def test_a_description_builds_the_flow_again_without_weights(tmp_path: Path) -> None:
    flow = small(wrappers=["gaussian_skip"]).fit(X, LABELS)
    description = json.loads(json.dumps(flow.description()))
    again = PreconditionedFlow.from_description(description, flow.preconditioner)
    assert again.settings == flow.settings
    assert again.description() == description
    settings = PreconditionedFlow.from_settings(flow.settings, Whitening()).settings
    assert settings == flow.settings
    assert settings.model == {"name": "mlp", "width": 16, "depth": 2, "time_features": 32}  # defaults, too
    flow.save(tmp_path)
    again.load_weights(tmp_path / "network.safetensors")
    assert torch.equal(again.sample(5), flow.sample(5))
    assert flow.network_of_width(24).network.width == 24  # type: ignore[union-attr]
    assert small(model=network()).fit(X, LABELS).network_of_width(24).width == 24


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    small(wrappers=["gaussian_skip"]).fit(X, LABELS).save(folder)
    return folder


def copied(saved: Path, folder: Path) -> Path:
    for file in saved.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize("name", ["flow.json", "network.safetensors", "preconditioner.safetensors"])
@pytest.mark.parametrize("how", ["missing", "cut", "emptied", "flipped", "of another save"])
def test_a_damaged_file_is_refused_by_name(saved: Path, tmp_path: Path, name: str, how: str) -> None:
    folder = copied(saved, tmp_path)
    file = folder / name
    content = bytearray(file.read_bytes())
    if how == "missing":
        file.unlink()
    elif how == "of another save":
        small(wrappers=["gaussian_skip"]).fit(X + X**2, LABELS, seed=1).save(folder / "other")
        file.write_bytes((folder / "other" / name).read_bytes())
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes({"cut": content[: len(content) // 2], "emptied": b"", "flipped": content}[how])
    with pytest.raises(PrecfmError, match=str(folder)):
        PreconditionedFlow.load(folder)


def rewrite(folder: Path, **changes: Any) -> None:
    description = json.loads((folder / "flow.json").read_text())
    for place, value in changes.items():
        *above, last = place.split("__")
        target = description
        for key in above:
            target = target[key]
        target[last] = value
    (folder / "flow.json").write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("settings", None), ("settings__path", {}), ("settings__path", {"name": "straight"}),
        ("settings__model__width", 17), ("settings__model__width", 0), ("settings__model__breadth", 16),
        ("settings__training__steps", "many"), ("shape", [4]), ("shape", []), ("num_classes", -1),
        ("label_counts", ["a"]), ("sha256", {}), ("extra", 1),
    ],
)  # fmt: skip
def test_a_changed_description_is_refused(saved: Path, tmp_path: Path, place: str, value: Any) -> None:
    folder = copied(saved, tmp_path)
    rewrite(folder, **{place: value})
    with pytest.raises(PrecfmError):
        PreconditionedFlow.load(folder)


@pytest.mark.parametrize("group", ["model", "path", "objective"])
def test_a_file_runs_no_code(saved: Path, tmp_path: Path, group: str) -> None:
    """Neither a function that is there anyway, nor the module of another package."""
    folder = copied(saved, tmp_path)
    trace = tmp_path / "called"
    rewrite(folder, **{f"settings__{group}": {"name": "os:system", "command": f"touch {trace}"}})
    with pytest.raises(PrecfmError, match="os:system"):
        PreconditionedFlow.load(folder)
    assert not trace.exists()
    rewrite(folder, **{f"settings__{group}": {"name": "turtledemo.clock:Path"}})
    with pytest.raises(PrecfmError, match=r"import turtledemo\.clock"):
        PreconditionedFlow.load(folder)
    assert "turtledemo" not in sys.modules


def test_what_no_file_can_name_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    class Local(MLPVelocity):
        pass

    flow = small(model=Local(3, 2)).fit(X, LABELS)
    with pytest.raises(PrecfmError, match="Local"):
        flow.save(tmp_path / "flow")
    assert not (tmp_path / "flow").exists()


# ---- mistakes


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("preconditioners: got 'whitning'.*whitening", {"preconditioner": "whitning"}),
        ("models: got 'mpl'.*mlp", {"model": "mpl"}),
        ("wrappers: got 'mlp'.*gaussian_skip", {"wrappers": "mlp"}),
        ("paths: got 'curved'.*linear", {"path": "curved"}),
        ("objectives: got 'score'.*denoising_score", {"objective": "score"}),
        ("models: got .*width.*'name'", {"model": {"width": 3}}),
        ("paths: got 3", {"path": 3}),
        ("'whitening': exponnt: got 1", {"preconditioner": {"name": "whitening", "exponnt": 1}}),
        ("'mlp': width: got 0", {"model": {"name": "mlp", "width": 0}}),
        ("'gaussian_skip': skip: got 'all'", {"wrappers": [{"name": "gaussian_skip", "skip": "all"}]}),
        ("models: .*VelocityNetwork", {"model": "torch.nn:Linear"}),
        ("model: got a GaussianSkip", {"model": GaussianSkip(network(), LinearPath())}),
        ("wrappers: got 'gaussian_skip'", {"wrappers": "gaussian_skip", "objective": "denoising_score"}),
        ("wrappers: got 'mixture_skip'", {"wrappers": "mixture_skip", "objective": "x_prediction"}),
        (r"training\.steps: got 0", {"training": {"steps": 0}}),
        (r"training\.validate_every: got 5", {"training": TrainingOptions(validate_every=5)}),
    ],
)
def test_components_are_judged_when_the_flow_is_made(words: str, options: dict[str, Any]) -> None:
    with pytest.raises(PrecfmError, match=words):
        PreconditionedFlow(**options)


@pytest.mark.parametrize(
    "use",
    [
        lambda flow: flow.sample(3),
        lambda flow: flow.transport(torch.zeros(3, 3)),
        lambda flow: flow.log_prob(X),
        lambda flow: flow.train(),
        lambda flow: flow.save("nowhere"),
        lambda flow: flow.description(),
        lambda flow: flow.load_weights("nowhere"),
        lambda flow: flow.num_parameters,
        lambda flow: flow.flops_per_step,
        lambda flow: flow.notes,
        lambda flow: flow.network_of_width(3),
        lambda flow: flow.prepare(X),
    ],
)
def test_use_before_fit_is_refused(use: Any) -> None:
    with pytest.raises(PrecfmError, match=r"call fit\(x"):
        use(small())


def test_a_loaded_flow_has_no_data_to_train_on(saved: Path) -> None:
    with pytest.raises(PrecfmError, match=r"call fit\(x1"):
        PreconditionedFlow.load(saved).train()


@pytest.mark.parametrize(
    ("field", "x1", "labels"),
    [
        ("labels: are missing", X, None),
        ("labels: ", X, LABELS[:-1]),
        ("labels: ", X, LABELS.float()),
        ("labels: got -1", X, LABELS - 1),
        ("labels: got 1000000000", X, LABELS * 10**9),
        ("x1: ", X.long(), LABELS),
        ("x: ", X.index_fill(0, torch.tensor([7]), torch.nan), LABELS),
        ("x1: got shape", X[:, 0], LABELS),
    ],
)
def test_data_that_do_not_fit_are_refused(field: str, x1: Any, labels: Any) -> None:
    with pytest.raises(PrecfmError, match=f"^{field}"):
        small("class_whitening").fit(x1, labels)


def test_networks_of_other_shapes_are_refused() -> None:
    with pytest.raises(PrecfmError, match=r"^model: .*\(5,\)"):
        small(model=MLPVelocity(5)).fit(X)


def test_labels_that_do_not_fit_are_refused() -> None:
    flow = small().fit(X, LABELS)
    for call in (
        lambda: flow.sample(3, torch.tensor([0, 1])),
        lambda: flow.sample(3, torch.tensor([0, 1, 2])),
        lambda: flow.sample(3, [0, 1, 1]),  # type: ignore[arg-type]
        lambda: flow.transport(torch.zeros(3, 3)),
        lambda: flow.log_prob(X),
    ):
        with pytest.raises(PrecfmError, match=r"^labels: "):
            call()
    without = small().fit(X)
    for call in (lambda: without.sample(3, torch.zeros(3).long()), lambda: without.log_prob(X, LABELS)):
        with pytest.raises(PrecfmError, match=r"^labels: .*no classes"):
            call()
    with pytest.raises(PrecfmError, match=r"^labels: "):  # which neither network nor map would use
        PreconditionedFlow("none", model=MLPVelocity((3,), 0, width=8)).fit(X, LABELS)
    with pytest.raises(PrecfmError, match=r"^n: got -1"):
        flow.sample(-1)
    with pytest.raises(PrecfmError, match=r"^steps: got 0"):
        flow.log_prob(X[:2], LABELS[:2], steps=0)
