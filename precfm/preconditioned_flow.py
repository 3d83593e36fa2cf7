"""Precondition-then-match as one class: map the data, train a flow there, sample there, map back."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from precfm.core.components import component
from precfm.core.errors import PrecfmError
from precfm.core.options import validated
from precfm.core.registry import build, name_of
from precfm.core.seeds import derived_seed, seeded_module
from precfm.core.tensors import require_tensor
from precfm.flows.alternation import CountedSteps, InTurn
from precfm.flows.compute import flops_per_step, matched_width, num_parameters
from precfm.flows.description import (
    FlowDescription,
    flow_spec,
    read_description,
    require_imported,
    write_description,
)
from precfm.flows.guidance import guided
from precfm.flows.likelihood import T_DATA, LogLikelihood, log_likelihood_with_error
from precfm.flows.models.adapted import AdaptedNetwork, roles
from precfm.flows.models.base import VelocityNetwork, Wrapper
from precfm.flows.models.mixture_label import MixtureLabel
from precfm.flows.objectives import VelocityObjective
from precfm.flows.paths import ProbabilityPath
from precfm.flows.sampling import Solver, evaluation_labels, evaluation_noise, integrate
from precfm.flows.settings import FlowSettings, Spec
from precfm.preconditioners.base import Preconditioner
from precfm.preconditioners.inputs import as_tensor, checked_labels
from precfm.preconditioners.jacobian import inverse_jacobian
from precfm.preconditioners.saving import load as load_preconditioner
from precfm.preconditioners.saving import save as save_preconditioner
from precfm.training.batches import Rows
from precfm.training.checkpoints import checksum
from precfm.training.options import TrainingOptions
from precfm.training.state import TrainingResult
from precfm.training.trainer import train

MOST_CLASSES = 2**16  # the network holds a vector for each class up to the largest label
WEIGHTS, MAP = "network.safetensors", "preconditioner.safetensors"
DEFAULT_TRAINING = TrainingOptions(learning_rate=2e-3, schedule="cosine")


class PreconditionedFlow:
    """A flow that is trained and sampled behind an invertible map of the data.

    With the map P: z1 = P(x1) is what the velocity network is trained on; a sample is P^-1 of where the network's ODE
    carries noise. A component is given as the name of a registered class (`"whitening"`), as a name with options
    (`{"name": "whitening", "exponent": 0.25}`), or as an object.

    Args:
        preconditioner: the map P. One that comes fitted is left as it is. The default, whitening, makes all
            directions of the data equally easy for gradient training; `"none"` is plain flow matching.
        model: the velocity network v(z_t, t, y). Of an object a copy is trained, from the weights that it has; it may
            be any module, see `precfm.flows.models.adapted.AdaptedNetwork`.
        wrappers: around the network, the innermost first, as names or with options (`"gaussian_skip"`).
        path: from noise to data.
        objective: what the network is trained for.
        training: how; the default is Adam with a moving average and a cosine schedule from 2e-3 over 5,000 steps.

    Attributes:
        preconditioner: the map.
        settings: how the flow is built and trained.
        network: the velocity network with its wrappers; after `fit`, in evaluation mode.
        objective: the objective.
        path: the probability path.
        data: z1, and labels if there are any (with the wrapper `mixture_label`, those of components): what the network
            is trained on; only after `prepare` or `fit`.

    Raises:
        PrecfmError: a name is unknown, an option is wrong, or the components do not go together.

    References:
        Preconditioned (Score and) Flow Matching (Ahamed et al., 2026), https://arxiv.org/abs/2603.02337

    Example:
        >>> x1 = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 0, 4)
        >>> flow = PreconditionedFlow(training=TrainingOptions(steps=20, batch_size=32)).fit(x1)
        >>> flow.sample(3).shape, flow.log_prob(x1[:2]).shape
        (torch.Size([3, 4]), torch.Size([2]))
    """

    preconditioner: Preconditioner
    path: ProbabilityPath
    objective: VelocityObjective
    network: VelocityNetwork
    data: tuple[Tensor, ...]

    def __init__(
        self,
        preconditioner: str | Spec | Preconditioner = "whitening",
        *,
        model: str | Spec | nn.Module = "mlp",
        wrappers: Sequence[str | Spec] = (),
        path: str | Spec | ProbabilityPath = "linear",
        objective: str | Spec | VelocityObjective = "flow_matching",
        training: TrainingOptions = DEFAULT_TRAINING,
    ) -> None:
        if isinstance(model, Wrapper):
            raise PrecfmError(
                f"model: got a {type(model).__name__}, which is a wrapper; its network is needed here, and its name in "
                "wrappers"
            )
        self.preconditioner = component("preconditioners", preconditioner, Preconditioner)
        self.path = component("paths", path, ProbabilityPath)
        self.objective = component("objectives", objective, VelocityObjective)
        around = (wrappers,) if isinstance(wrappers, str | Mapping) else wrappers
        network: Spec
        if isinstance(model, nn.Module) and not isinstance(model, VelocityNetwork):
            roles(model)
            network = {"name": name_of("models", type(model))}
        else:
            network = flow_spec("models", model)
        self.settings = FlowSettings(
            model=network,
            wrappers=tuple(flow_spec("wrappers", wrapper) for wrapper in around),
            path=flow_spec("paths", path),
            objective=flow_spec("objectives", objective),
            training=training,
        )
        if self.settings.wrappers and not self.objective.predicts_velocity:
            raise PrecfmError(
                f"wrappers: got {self.settings.wrappers[0]['name']!r}, which adds a velocity to what the network "
                f"predicts; objective {self.settings.objective['name']!r} needs () here, since it predicts no velocity"
            )
        self._came_fitted = self.preconditioner.fitted
        self._given = model if isinstance(model, nn.Module) else None
        self._label_counts: tuple[int, ...] = ()  # of the training data, by class
        self._shape: tuple[int, ...] = ()  # of one datum in the flow's space
        self._facts: dict[str, str] = {}  # what tells a training from others, beside settings and data

    @classmethod
    def from_settings(
        cls, settings: FlowSettings, preconditioner: Preconditioner, model: nn.Module | None = None
    ) -> Self:
        """A flow as its settings say, behind a preconditioner; `model` in place of the network that they name."""
        return cls(
            preconditioner,
            model=settings.model if model is None else model,
            wrappers=settings.wrappers,
            path=settings.path,
            objective=settings.objective,
            training=settings.training,
        )

    def fit(
        self,
        x1: Tensor | NDArray[Any],
        labels: Tensor | NDArray[Any] | None = None,
        *,
        seed: int = 0,
        validation: tuple[Tensor, Tensor | None] | None = None,
        decoder_metric: Tensor | None = None,
        scratch: str | Path | None = None,
        on_checkpoint: Callable[[int, nn.Module], None] | None = None,
    ) -> Self:
        """Fit the preconditioner, unless it came fitted, and train the flow behind it; a second fit forgets the first.

        Args:
            x1: data, shape (n, *dim); a numpy array is taken, too.
            labels: classes from 0, int64, shape (n,), or None.
            seed: seed of everything random.
            validation: data and labels by which a learned preconditioner stops early, see `Preconditioner.fit`, and
                by which a wrapper chooses, see `Wrapper.fit`.
            decoder_metric: the decoder's pull-back metric in the space of `x1`, shape (dim, dim), where the
                preconditioner or the objective needs it.
            scratch: folder for saves; a killed fit, run again, goes on from there and ends in the same bytes. Delete
                it when the result is safe.
            on_checkpoint: gets the step and the network at each of `training.checkpoints`.

        Returns:
            The flow itself.

        Raises:
            PrecfmError: data, labels and components do not fit together.
            DivergenceError: the training diverged.
        """
        rows: Tensor = as_tensor(x1)
        classes = _checked_labels(rows, as_tensor(labels))
        folder = None if scratch is None else Path(scratch)
        if not self._came_fitted:
            self.preconditioner.fit(
                rows,
                classes,
                validation=validation,
                metric=decoder_metric,
                seed=derived_seed(seed, "preconditioner"),
                scratch=None if folder is None else folder / "preconditioner",
            )
        self.prepare(rows, classes, seed=seed, decoder_metric=decoder_metric, validation=validation)
        self.train(seed=seed, scratch=folder, on_checkpoint=on_checkpoint)
        return self

    def prepare(
        self,
        x1: Tensor,
        labels: Tensor | None = None,
        *,
        seed: int = 0,
        decoder_metric: Tensor | None = None,
        validation: tuple[Tensor, Tensor | None] | None = None,
        fitted_wrappers: Mapping[str, Tensor] | None = None,
        label_counts: Sequence[int] | None = None,
    ) -> Self:
        """Map the data, build the network with fresh weights, fit its wrappers, and bind the objective.

        What `fit` does between preconditioner and training, for those who look at an untrained flow.

        Args:
            x1: data, shape (n, *dim).
            labels: classes from 0, int64, shape (n,), or None.
            seed: seed of the initial weights, and of the wrappers' fits.
            decoder_metric: as in `fit`.
            validation: held-out data and labels, by which a wrapper chooses; see `Wrapper.fit`.
            fitted_wrappers: what `wrapper_state` of an equal flow gave: the wrappers take it instead of a fit.
            label_counts: rows of each class in all data, where `x1` are some of many that `train` then gets as `rows`.

        Returns:
            The flow itself.

        Raises:
            PrecfmError: the preconditioner is not fitted, the fitted wrappers are others, or data, labels and
                components do not fit together; or some of the data were given, but something is fitted to all.
        """
        labels = _checked_labels(x1, labels)
        z1 = self.preconditioner.forward(x1.detach(), labels)
        if label_counts is not None and self.needs_all_rows(fitted_wrappers is not None):
            raise PrecfmError(
                "label_counts: given, but wrappers or objective are fitted to all rows; None is needed"
            )
        counted = () if labels is None else tuple(torch.bincount(labels).tolist())
        self._label_counts = counted if label_counts is None else tuple(label_counts)
        self._shape = tuple(z1.shape[1:])
        if not self._shape:
            raise PrecfmError(f"x1: got shape {tuple(x1.shape)}; (n, *dim) is needed")
        network = seeded_module(lambda: self._build(len(self._label_counts)), seed)
        if labels is not None and not self._uses_labels(network):
            raise PrecfmError("labels: got some, but neither the model nor the preconditioner has classes")
        if labels is None and network.label_dropout:
            raise PrecfmError(f"label_dropout: got {network.label_dropout} without labels; 0 is needed")
        z1 = z1.to(_weights_of(network).dtype)
        self.network = network.to(z1.device, z1.dtype)
        if fitted_wrappers is None:
            held_out = None if validation is None else self._mapped(*validation)
            for position, wrapper in enumerate(self._wrappers):
                wrapper.fit(z1, labels, seed=derived_seed(seed, "wrapper", position), validation=held_out)
        else:
            self._load_wrappers(fitted_wrappers)
        self.data = self._as_trained(z1, labels)
        jacobian = None
        if self.objective.needs_inverse_jacobian:
            jacobian = inverse_jacobian(self.preconditioner, z1[0].numel(), labels)
        self.objective.prepare(
            self.path,
            z1,
            inverse_jacobian=jacobian,
            decoder_metric=decoder_metric,
            label_dropout=self.network.label_dropout,
            null_class=self.network.num_classes,
        )
        needed = decoder_metric if self.objective.needs_decoder_metric else None
        self._facts = {} if needed is None else {"decoder_metric": checksum((needed,))}
        return self

    def train(
        self,
        *,
        seed: int = 0,
        scratch: str | Path | None = None,
        on_checkpoint: Callable[[int, nn.Module], None] | None = None,
        name: str = "flow",
        rows: Rows | None = None,
    ) -> TrainingResult:
        """Train a prepared flow; see `precfm.training.trainer.train`.

        Args:
            seed: of the training.
            scratch: as in `fit`.
            on_checkpoint: as in `fit`.
            name: of the training in messages.
            rows: all training data as `mapped_rows` gives them, in place of `data`; such as
                `precfm.training.shards.ShardedRows`, of which only the rows of a mini-batch are in memory.

        Raises:
            PrecfmError: the flow is not prepared, or the scratch folder is of another training.
            DivergenceError: the training diverged.
        """
        self._require_prepared()
        return train(
            self.network,
            self.objective,
            self.data if rows is None else rows,
            self.settings.training,
            seed=seed,
            scratch=scratch,
            facts=self._identity(),
            on_checkpoint=on_checkpoint,
            name=name,
        )

    def needs_all_rows(self, has_fitted_wrappers: bool = False) -> bool:
        """Whether `prepare` fits something to all training data, so that it has to have them at once."""
        return self.objective.is_fitted or bool(self.settings.wrappers and not has_fitted_wrappers)

    def mapped_rows(self, x1: Tensor, labels: Tensor | None = None) -> tuple[Tensor, ...]:
        """Rows as a prepared flow is trained on them, as in `data`.

        Args:
            x1: data, shape (n, *dim).
            labels: classes from 0, int64, shape (n,), or None.

        Returns:
            z1, and labels if there are any (with the wrapper `mixture_label` those of components).

        Raises:
            PrecfmError: the flow is not prepared, or data and labels do not fit it.
        """
        self._require_prepared()
        return self._as_trained(*self._mapped(x1, labels, "x1"))

    def train_through(
        self,
        maps: Sequence[Preconditioner],
        x1: Tensor,
        labels: Tensor | None = None,
        *,
        seed: int = 0,
        decoder_metric: Tensor | None = None,
        scratch: str | Path | None = None,
        on_checkpoint: Callable[[int, nn.Module], None] | None = None,
        name: str = "flow",
    ) -> TrainingResult:
        """Train one network behind one map after the other, as where map and flow are fitted in turns.

        Each map has an equal share of the steps. It is one training: the optimizer, the schedule and the average of the
        weights go on when the map changes, steps and checkpoints are counted over the whole, and the scratch folder is
        one. The last map becomes the flow's own, through which it samples.

        Args:
            maps: fitted preconditioners, in their order.
            x1: data, shape (n, *dim); they are held once for each map.
            labels: classes from 0, int64, shape (n,), or None.
            seed: seed of the initial weights and of the training.
            decoder_metric: as in `fit`.
            scratch: as in `fit`.
            on_checkpoint: as in `fit`.
            name: of the training in messages.

        Returns:
            What the training leaves beside the weights.

        Raises:
            PrecfmError: there are no maps or more than steps, or the flow has wrappers, which know one space; or as
                `prepare` and `train`.
            DivergenceError: the training diverged.
        """
        steps, spaces = self.settings.training.steps, list[Tensor]()
        if not 1 <= len(maps) <= steps:
            raise PrecfmError(
                f"maps: got {len(maps)}; 1 to {steps} are needed, since each has a share of the steps"
            )
        if self.settings.wrappers:
            raise PrecfmError(
                f"wrappers: got {self.settings.wrappers[0]['name']!r}, which is fitted in the space of one map; () is "
                "needed to train through several"
            )
        objectives = []
        for preconditioner in maps:
            self.preconditioner, self._came_fitted = preconditioner, True
            self.objective = copy.deepcopy(self.objective)
            self.prepare(x1, labels, seed=seed, decoder_metric=decoder_metric)
            spaces.append(self.data[0])
            objectives.append(self.objective)

        def hand_out(step: int, module: nn.Module) -> None:
            assert isinstance(module, CountedSteps)
            if on_checkpoint is not None:
                on_checkpoint(step, module.network)

        return train(
            CountedSteps(self.network),
            InTurn(objectives, steps),
            (*spaces, *self.data[1:]),
            self.settings.training,
            seed=seed,
            scratch=scratch,
            facts=self._identity(),
            on_checkpoint=hand_out,
            name=name,
        )

    def sample(
        self,
        n: int,
        labels: Tensor | None = None,
        *,
        seed: int = 0,
        solver: Solver = "midpoint",
        steps: int = 50,
        guidance: float = 1.0,
    ) -> Tensor:
        """Draw samples of the data.

        Args:
            n: how many.
            labels: classes to ask for, shape (n,); for a flow with classes None asks in the training data's
                proportions.
            seed: of the noise and of the order of the labels.
            solver: of the ODE, see `precfm.flows.sampling.integrate`.
            steps: of the solver.
            guidance: weight of the class in classifier-free guidance, see `precfm.flows.guidance.guided`; other than 1
                for a network that was trained with `label_dropout`.

        Returns:
            Samples, shape (n, *dim), in the type of the network's weights: float32, if nothing else was given.

        Raises:
            PrecfmError: the flow is not fitted, the labels do not fit, or there is nothing to guide by.
        """
        self._require_network()
        if labels is None and self._label_counts:
            counts = torch.tensor(self._label_counts)
            classes = torch.arange(len(counts)).repeat_interleave(counts)
            labels = evaluation_labels(n, classes, seed)
        noise = evaluation_noise(n, self._shape, seed)
        return self.transport(noise, labels, solver=solver, steps=steps, seed=seed, guidance=guidance)

    def transport(
        self,
        noise: Tensor,
        labels: Tensor | None = None,
        *,
        solver: Solver = "midpoint",
        steps: int = 50,
        seed: int = 0,
        guidance: float = 1.0,
    ) -> Tensor:
        """Carry given noise to samples, so that several flows can share it.

        Args:
            noise: standard normal, shape (n, *dim).
            labels: classes to ask for, shape (n,), or None.
            solver: of the ODE.
            steps: of the solver.
            seed: of the components, where the wrapper `mixture_label` draws them.
            guidance: as in `sample`.

        Returns:
            Samples in data space, shape (n, *dim).

        Raises:
            PrecfmError: the flow is not fitted, the labels do not fit, or there is nothing to guide by.
        """
        self._require_network()
        require_tensor(noise, "noise", floating=True)
        self._check_asked(labels)
        weights = _weights_of(self.network)
        asked = None if labels is None else labels.to(weights.device)
        start = noise.to(weights) * self.objective.start_scale(self.path)
        told = asked
        if isinstance(self.network, MixtureLabel):
            told = self.network.drawn_labels(start, asked, seed)
        field = self.objective.velocity(self.network, self.path)
        if guidance != 1:
            if asked is None or not self.network.label_dropout:
                raise PrecfmError(
                    f"guidance: got {guidance}, but 1 is needed without labels, and for a network that was trained "
                    "without label_dropout"
                )
            field = guided(field, guidance, self.network.num_classes)
        z1 = integrate(
            field,
            start,
            told,
            solver=solver,
            steps=steps,
            t0=self.objective.start,
        )
        return self.preconditioner.inverse(z1, asked)

    def log_prob(self, x: Tensor, labels: Tensor | None = None, *, steps: int = 32, seed: int = 0) -> Tensor:
        """The values of `log_prob_with_error` alone, shape (n,)."""
        return self.log_prob_with_error(x, labels, steps=steps, seed=seed).values

    def log_prob_with_error(
        self, x: Tensor, labels: Tensor | None = None, *, steps: int = 32, seed: int = 0
    ) -> LogLikelihood:
        """Log density of data: log p(x) = log p_flow(P(x)) + log |det dP/dx|.

        Args:
            x: data, shape (n, *dim).
            labels: classes, shape (n,), where the flow was fitted with labels.
            steps: nodes of the quadrature.
            seed: of the trace's estimate above 64 dimensions.

        Returns:
            Log densities in nats, shape (n,), with the error of an estimated trace; see
            `precfm.flows.likelihood.log_likelihood_with_error`. The error of a map's estimated determinant is not in
            it, because all points share it; see `log_abs_det_deviations` of the preconditioner.

        Raises:
            PrecfmError: the flow is not fitted, or its preconditioner has no log-determinant.
        """
        self._require_network()
        # The density at the time T_DATA is that of alpha_t z1 + sigma_t z0, whose noise is small.
        alpha = float(self.path.alpha(torch.tensor(T_DATA, dtype=torch.float64)))
        self._check_asked(labels)
        labels = _checked_labels(x, labels, "x")
        z1 = self.preconditioner.forward(x, labels).to(_weights_of(self.network).dtype)
        change = self.preconditioner.log_abs_det_jacobian(x, labels) + z1[0:1].numel() * math.log(alpha)

        def density(told: Tensor | None) -> LogLikelihood:
            return log_likelihood_with_error(
                self.objective.velocity(self.network, self.path),
                alpha * z1,
                told,
                t_noise=self.objective.start,
                noise_scale=self.objective.start_scale(self.path),
                steps=steps,
                seed=seed,
            )

        if isinstance(self.network, MixtureLabel):
            parts = self.network.labels_with_weights(z1, labels)
            found = _mixed([(density(told), log_weights) for told, log_weights in parts])
        else:
            found = density(labels)
        return replace(found, values=change + found.values)

    def to(self, device: torch.device | str) -> Self:
        """Move the map and, if there is one, the network."""
        self.preconditioner.to(device)
        if hasattr(self, "network"):
            self.network.to(device)
        return self

    @property
    def num_parameters(self) -> int:
        """Parameters of the velocity network; the preconditioner counts its own."""
        self._require_network()
        return num_parameters(self.network)

    @property
    def notes(self) -> list[str]:
        """What a reader of the results should know of the network and its wrappers."""
        self._require_network()
        several = [module.notes for module in self.network.modules() if isinstance(module, VelocityNetwork)]
        return [note for notes in several for note in notes]

    @property
    def flops_per_step(self) -> int:
        """Floating point operations of one training step of a prepared flow, element-wise ones of wrappers included."""
        self._require_prepared()
        rows = self.settings.training.batch_size
        of_wrappers = rows * sum(wrapper.flops_per_sample for wrapper in self._wrappers)
        return flops_per_step(self.network, self.objective, self.data, rows) + of_wrappers

    def wrapper_state(self) -> dict[str, Tensor]:
        """What the wrappers of a prepared flow took from the data, for `prepare` of an equal one; no network weights.

        Returns:
            Their buffers, by the wrapper's place (0 is the innermost) and the buffer's name, as in `0.means`.
        """
        self._require_network()
        return {
            f"{position}.{name}": value
            for position, wrapper in enumerate(self._wrappers)
            for name, value in wrapper.fitted_state().items()
        }

    def wrapper_facts(self) -> dict[str, Any]:
        """What the wrappers cost, as plain data: `flops_per_fit`, `num_fitted_numbers`, and `notes`."""
        self._require_network()
        return {
            "flops_per_fit": sum(wrapper.flops_per_fit for wrapper in self._wrappers),
            "num_fitted_numbers": sum(wrapper.num_fitted_numbers for wrapper in self._wrappers),
            "notes": [note for wrapper in self._wrappers for note in wrapper.notes],
        }

    def zero_network(self) -> Self:
        """Set the network's last layer to zero: what is left is the skip alone, and it samples and has a density.

        Returns:
            The flow itself, in evaluation mode.

        Raises:
            PrecfmError: no wrapper adds a velocity.
        """
        self._require_network()
        if not any(wrapper.adds_velocity for wrapper in self._wrappers):
            names = [wrapper["name"] for wrapper in self.settings.wrappers]
            raise PrecfmError(f"wrappers: got {names}, none of which adds a velocity; a skip is needed")
        self.network.zero_output()
        self.network.eval().requires_grad_(False)
        return self

    def network_of_width(self, width: int) -> VelocityNetwork:
        """A network like this flow's, of another width, with fresh weights."""
        self._require_network()
        return self._build(self.network.num_classes, self.settings.with_width(width))

    def matched_width(self, extra_parameters: int) -> int:
        """Width of the network that has as many parameters as this flow's and `extra_parameters` together.

        Raises:
            PrecfmError: the network has no width, or no width has as many parameters.
        """
        self._require_network()
        width = getattr(self._innermost, "width", None)
        if width is None:
            raise PrecfmError(
                f"model: got {self.settings.model}; a baseline of matched parameters needs a network with a 'width' "
                "(matched: [] does without)"
            )
        multiple = self._innermost.width_multiple
        return matched_width(self.network_of_width, width, extra_parameters, multiple_of=multiple)

    def description(self) -> dict[str, Any]:
        """How to build the flow again without data or weights, as plain data; see `from_description`."""
        self._require_network()
        described = FlowDescription(
            settings=self.settings,
            shape=self._shape,
            num_classes=self.network.num_classes,
            label_counts=self._label_counts,
        )
        return described.model_dump(mode="json")

    @classmethod
    def from_description(
        cls, description: Mapping[str, Any], preconditioner: Preconditioner, model: nn.Module | None = None
    ) -> Self:
        """A flow with fresh weights, as `description` says, behind a fitted preconditioner; then `load_weights`.

        Args:
            description: of the flow.
            preconditioner: its map.
            model: its network, where a description cannot build it; as in `load`.

        Raises:
            PrecfmError: the description is damaged, or names a class that is unknown or of a package that was not
                imported.
        """
        described = validated(FlowDescription, description)
        require_imported(described.settings, model=model is None)
        flow = cls.from_settings(described.settings, preconditioner, model)
        flow._shape, flow._label_counts = described.shape, described.label_counts
        flow.network = seeded_module(lambda: flow._build(described.num_classes), seed=0)
        return flow

    def load_weights(self, file: str | Path) -> Self:
        """Give the network the weights in a safetensors file, and their type; it is then frozen, in evaluation mode."""
        self._require_network()
        try:
            weights = load_file(file)
            self.network.to(next(each.dtype for each in weights.values() if each.is_floating_point()))
            self.network.load_state_dict(weights)
        except (SafetensorError, RuntimeError, OSError, StopIteration) as error:
            reason = " ".join(str(error).split())
            raise PrecfmError(f"{file}: are no weights of this network ({reason})") from None
        self.network.eval().requires_grad_(False)
        return self

    def save(self, folder: str | Path) -> None:
        """Write the fitted flow to a folder: its preconditioner, description and weights; no pickle.

        Raises:
            PrecfmError: the flow is not fitted, or a file lies where the folder should be.
        """
        self._require_network()
        require_imported(self.settings, model=not isinstance(self._innermost, AdaptedNetwork))
        place = Path(folder)
        if place.is_file():
            raise PrecfmError(f"{place}: is a file; a folder is needed")
        save_preconditioner(self.preconditioner, place / MAP)
        save_weights(self.network, place / WEIGHTS)
        write_description(place, self.description(), (MAP, WEIGHTS))

    @classmethod
    def load(cls, folder: str | Path, model: nn.Module | None = None) -> Self:
        """Read what `save` wrote, on the CPU.

        Args:
            folder: that `save` wrote.
            model: a network like the one that was trained, with any weights: needed where it is no
                `VelocityNetwork`, which a file cannot build again.

        Raises:
            PrecfmError: a file is missing or damaged, or of a package that was not imported.
        """
        place = Path(folder)
        description = read_description(place, (MAP, WEIGHTS))
        preconditioner = load_preconditioner(place / MAP)
        return cls.from_description(description, preconditioner, model).load_weights(place / WEIGHTS)

    def _build(self, num_classes: int, settings: FlowSettings | None = None) -> VelocityNetwork:
        """The network with its wrappers; weights from torch's global generator."""
        chosen = settings or self.settings
        if self._given is not None and settings is None:
            network = copy.deepcopy(self._given)
            if not isinstance(network, VelocityNetwork):
                network = AdaptedNetwork(network, self._shape, num_classes)
            if network.shape != self._shape:
                raise PrecfmError(
                    f"model: got a network for samples of shape {network.shape}; the data need {self._shape}"
                )
        else:
            network = build("models", chosen.model, shape=self._shape, num_classes=num_classes)
        for wrapper in chosen.wrappers:
            if isinstance(network, MixtureLabel):
                raise PrecfmError(
                    f"wrappers: got {wrapper['name']!r} around a MixtureLabel, which has other labels; it stands alone"
                )
            network = build("wrappers", wrapper, network=network, path=self.path)
        return network

    def _identity(self) -> dict[str, Any]:
        """What tells a training from others, beside data, weights and options."""
        return {**self.settings.model_dump(mode="json", exclude={"training"}), **self._facts}

    @property
    def _wrappers(self) -> list[Wrapper]:
        """The innermost first."""
        return [module for module in self.network.modules() if isinstance(module, Wrapper)][::-1]

    @property
    def _innermost(self) -> VelocityNetwork:
        """The network without its wrappers."""
        return self._wrappers[0].network if self._wrappers else self.network

    def _load_wrappers(self, state: Mapping[str, Tensor]) -> None:
        for position, wrapper in enumerate(self._wrappers):
            place = f"{position}."
            wrapper.load_fitted_state(
                {name.removeprefix(place): each for name, each in state.items() if name.startswith(place)}
            )

    def _as_trained(self, z1: Tensor, labels: Tensor | None) -> tuple[Tensor, ...]:
        if isinstance(self.network, MixtureLabel):
            return z1, self.network.training_labels(z1, labels)
        return (z1,) if labels is None else (z1, labels)

    def _mapped(
        self, x: Tensor, labels: Tensor | None, name: str = "validation"
    ) -> tuple[Tensor, Tensor | None]:
        """Further data in the space and the type of the network."""
        labels = _checked_labels(x, labels, name)
        z = self.preconditioner.forward(x.detach(), labels)
        return z.to(_weights_of(self.network)), labels

    def _check_asked(self, labels: Tensor | None) -> None:
        """Refuse classes that would have no effect."""
        if labels is not None:
            require_tensor(labels, "labels")
            if not self._label_counts or not self._uses_labels(self.network):
                raise PrecfmError("labels: got some, but the flow has no classes; None is needed")

    def _uses_labels(self, network: VelocityNetwork) -> bool:
        return bool(network.num_classes) or self.preconditioner.needs_labels

    def _require_network(self) -> None:
        if not hasattr(self, "network"):
            raise PrecfmError(
                "PreconditionedFlow: used before fit; call fit(x1, labels), or load a saved one"
            )

    def _require_prepared(self) -> None:
        if not hasattr(self, "data"):
            raise PrecfmError(
                "PreconditionedFlow: has no data to train on; call fit(x1, labels), or prepare before train"
            )


def save_weights(network: nn.Module, file: Path) -> None:
    """Write a network's weights as safetensors."""
    save_file({name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}, file)


def _mixed(parts: Sequence[tuple[LogLikelihood, Tensor]]) -> LogLikelihood:
    """The density of a mixture from those of its parts and the logarithms of their weights."""
    joint = torch.stack([found.values + log_weights for found, log_weights in parts])
    # The parts share the estimate's vectors, so that their errors may add up.
    errors = torch.stack([found.trace_error for found, _ in parts])
    evaluations = sum(found.function_evaluations for found, _ in parts)
    return LogLikelihood(joint.logsumexp(0), (joint.softmax(0) * errors).sum(0), evaluations)


def _checked_labels(x: Tensor, labels: Tensor | None, name: str = "x1") -> Tensor | None:
    """Classes from 0 as int64, on the device of the data."""
    require_tensor(x, name, floating=True)
    if labels is None:
        return None
    found = checked_labels(labels, len(x), x.device)
    low, high = (int(bound) for bound in found.aminmax()) if len(found) else (0, 0)
    if low < 0 or high >= MOST_CLASSES:
        wrong = low if low < 0 else high
        raise PrecfmError(f"labels: got {wrong}; classes in 0..{MOST_CLASSES - 1} are needed")
    return found


def _weights_of(network: nn.Module) -> Tensor:
    """One of a network's weights, for its type and device."""
    return next(network.parameters())
