"""What trained preconditioners have in common: whitening, held-out data, early stopping, counted FLOPs."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from precfm.core.options import Count, Fraction, Natural, Positive, checked
from precfm.core.seeds import generator_for, seeded_module
from precfm.flows.compute import flops_per_step
from precfm.preconditioners.base import Preconditioner
from precfm.preconditioners.fit_data import FitData, FitRows
from precfm.preconditioners.symmetric_power import Shrinkage
from precfm.preconditioners.whitening import Whitening
from precfm.training.checkpoints import checksum
from precfm.training.draws import Objective
from precfm.training.options import TrainingOptions
from precfm.training.trainer import train


class LearnedPreconditioner(Preconditioner):
    """Whitening, then a network that is trained on the whitened data and kept at its best validation loss.

    A subclass builds the network, states its objective, and maps with it; it may adjust itself in `_settle` once
    the network is trained, and put another map than a matrix of all features before the network (`_first_map`).
    Training runs in float32, the maps in float64.

    Arguments:
        conditional: whether the network depends on the label, where a fit gets labels.
        shrinkage: shrinkage of the whitening before the network, as in `Whitening`.
        steps: most training steps.
        batch_size: rows per step.
        learning_rate: peak learning rate of a cosine schedule.
        validate_every: steps between two validations.
        patience: validations without improvement after which training stops; 0 never stops early.
        validation_share: part of the data held out if `fit` gets no validation data.

    Attributes:
        whitening: the map before the network.
        network: what is trained.
        recipe: how it is trained.
    """

    uses_seed = True
    validation_draws = 1  # draws of the objective per validation row

    whitening: Preconditioner
    network: nn.Module

    @checked
    def __init__(
        self,
        *,
        conditional: bool = True,
        shrinkage: Shrinkage = 0.0,
        steps: Count = 1500,
        batch_size: Count = 256,
        learning_rate: Positive = 1e-3,
        validate_every: Natural = 100,
        patience: Natural = 5,
        validation_share: Fraction = 0.1,
    ) -> None:
        super().__init__()
        self.conditional = self.needs_labels = conditional
        self.shrinkage = shrinkage
        self.steps, self.batch_size, self.learning_rate = steps, batch_size, learning_rate
        self.validate_every, self.patience = validate_every, patience
        self.validation_share = validation_share
        self.recipe = TrainingOptions(
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            schedule="cosine",
            ema_decay=None,  # the best validated weights are kept
            clip_norm=10.0,
            validate_every=validate_every,
            patience=patience,
        )

    @property
    def num_parameters(self) -> int:
        """Weights of the network and free numbers of the map before it."""
        return self.whitening.num_parameters + sum(
            parameter.numel() for parameter in self.network.parameters()
        )

    def _first_map(self) -> Preconditioner:
        """An unfitted map for rows of `_first_shape`; it needs no labels."""
        return Whitening(shrinkage=self.shrinkage)

    @property
    def _first_shape(self) -> tuple[int, ...]:
        return (self.features,)

    @abstractmethod
    def _build(self) -> nn.Module:
        """The network in float32 with fresh weights, drawn from torch's global generator."""

    @abstractmethod
    def _objective(self, white: Tensor) -> Objective:
        """What the training minimises, for whitened rows (rows, features) and, if conditional, class positions."""

    def _settle(self, data: FitRows, validation_loss: float) -> None:
        """What remains to be done or noted once the network is trained.

        Args:
            data: the rows of the fit, with a validation part.
            validation_loss: that of the weights which were kept.
        """

    def _allocate(self) -> None:
        self.whitening = self._first_map().to(self.anchor)
        self.whitening.allocate(self._first_shape, ())
        self.network = seeded_module(self._build, seed=0).to(self.anchor)

    def _fit(self, data: FitData) -> int:
        rows = data.rows().with_validation(self.validation_share)
        assert rows.x_validation is not None
        self.whitening = self._first_map().fit(rows.x.reshape(-1, *self._first_shape))
        self.notes.extend(self.whitening.notes)
        self.network = seeded_module(self._build, rows.seed).to(rows.x.device)
        training = self._tensors(rows.x, rows.classes)
        objective = self._objective(training[0])
        held_out = tuple(
            tensor.repeat_interleave(self.validation_draws, dim=0)
            for tensor in self._tensors(rows.x_validation, rows.classes_validation)
        )
        generator = generator_for(rows.seed, "validation loss")
        draws = tuple(draw.to(rows.x.device) for draw in objective.draw(len(held_out[0]), generator))

        @torch.no_grad()
        def validation_loss(network: nn.Module) -> float:
            return float(objective.loss(network, held_out, draws))

        per_step = flops_per_step(self.network, objective, training, self.batch_size)
        result = train(
            self.network,
            objective,
            training,
            self.recipe,
            seed=rows.seed,
            validation_loss=validation_loss,
            scratch=rows.scratch,
            facts={
                "options": self.options,
                "validation": None if rows.scratch is None else checksum(held_out),
            },
            name=self._name,
        )
        best = validation_loss(self.network)
        self.network.to(self.anchor).requires_grad_(False)
        self.notes.append(
            f"trained for {result.steps_run} of {self.steps} steps; best at step {result.best_step}"
        )
        self.flops_per_fit = self.whitening.flops_per_fit + per_step * result.steps_run
        self._settle(rows, best)
        return self.flops_per_fit

    def _expect_labels(self, given: bool) -> None:
        self.needs_labels = self.conditional and given
        if self.conditional and not given:
            self.notes.append("there are no labels: the map is the same for all rows")

    def _smallest_std(self, data: FitRows) -> float:
        """Smallest standard deviation of the training data, as far as the whitening did not shrink it."""
        matrix: Tensor = self.whitening.matrix  # type: ignore[assignment]
        return 1 / float(torch.linalg.matrix_norm(matrix, ord=2))

    def _tensors(self, x: Tensor, classes: Tensor | None) -> tuple[Tensor, ...]:
        white = self.whitening._forward(x, None).float()
        return (white,) if classes is None else (white, classes)
