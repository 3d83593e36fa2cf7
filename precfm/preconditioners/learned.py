"""What trained preconditioners have in common: whitening, held-out data, early stopping, counted FLOPs."""

from abc import abstractmethod
from dataclasses import replace

import torch
from torch import Tensor, nn

from precfm.core.errors import PrecfmError
from precfm.core.options import Count, Fraction, Natural, Patience, Positive, Share, checked
from precfm.core.seeds import generator_for, seeded_module
from precfm.flows.compute import flops_per_step
from precfm.preconditioners.base import FitData, Preconditioner
from precfm.preconditioners.whitening import Whitening
from precfm.training.trainer import TrainingOptions, train


class LearnedPreconditioner(Preconditioner):
    """Whitening, then a network that is trained on the whitened data and kept at its best validation loss.

    A subclass builds the network, states its loss, and maps with it; it may adjust itself in `_settle` once
    the network is trained. Training runs in float32, the maps in float64.

    Arguments:
        conditional: whether the network depends on the label.
        shrinkage: shrinkage of the whitening before the network, as in `Whitening`.
        steps: most training steps.
        batch_size: rows per step.
        learning_rate: peak learning rate of a cosine schedule.
        validate_every: steps between two validations.
        patience: validations without improvement after which training stops; 0 never stops early.
        validation_share: part of the data held out if `fit` gets no validation data.

    Attributes:
        whitening: the whitening before the network.
        network: what is trained.
        recipe: how it is trained.
    """

    uses_seed = True

    whitening: Whitening
    network: nn.Module

    @checked
    def __init__(
        self,
        *,
        conditional: bool,
        shrinkage: Share,
        steps: Count,
        batch_size: Count,
        learning_rate: Positive,
        validate_every: Natural,
        patience: Patience,
        validation_share: Fraction,
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
            clip_norm=10.0,
            validate_every=validate_every,
            patience=patience,
        )

    @property
    def num_parameters(self) -> int:
        """Weights of the network and free numbers of the whitening."""
        return self.whitening.num_parameters + sum(
            parameter.numel() for parameter in self.network.parameters()
        )

    @abstractmethod
    def _build(self) -> nn.Module:
        """The network in float32 with fresh weights, drawn from torch's global generator."""

    @abstractmethod
    def _loss(self, network: nn.Module, batch: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """Training loss of whitened rows and, if conditional, class positions."""

    def _validation_loss(
        self, network: nn.Module, batch: tuple[Tensor, ...], generator: torch.Generator
    ) -> Tensor:
        """Loss by which the best weights are chosen."""
        return self._loss(network, batch, generator)

    def _settle(self, data: FitData) -> None:
        """What remains to be done or noted once the network is trained; `data` has a validation part."""

    def _allocate(self) -> None:
        self.whitening = Whitening(shrinkage=self.shrinkage).to(self.anchor)
        self.whitening.prepare((self.features,), ())
        self.network = seeded_module(self._build, seed=0).to(self.anchor)

    def _fit(self, data: FitData) -> int:
        data = with_validation(data, self.validation_share, self._name)
        assert data.x_validation is not None
        self.whitening.fit(data.x)
        self.notes.extend(self.whitening.notes)
        self.network = seeded_module(self._build, data.seed).to(data.x.device)
        training = self._tensors(data.x, data.classes)
        validation = self._tensors(data.x_validation, data.classes_validation)

        def validation_loss(network: nn.Module) -> float:
            generator = generator_for(
                data.seed, "validation loss", device=data.x.device
            )  # the same each time
            return float(self._validation_loss(network, validation, generator))

        per_step = flops_per_step(self.network, self._loss, training, self.batch_size)
        result = train(
            self.network,
            self._loss,
            training,
            self.recipe,
            seed=data.seed,
            validation_loss=validation_loss,
            scratch=data.scratch,
            name=self._name,
        )
        self.network.to(self.anchor).requires_grad_(False)
        self.notes.append(
            f"trained for {result.steps_run} of {self.steps} steps; best at step {result.best_step}"
        )
        self.flops_per_fit = self.whitening.flops_per_fit + per_step * result.steps_run
        self._settle(data)
        return self.flops_per_fit

    @property
    def _smallest_std(self) -> float:
        """Smallest standard deviation of the training data, as far as the whitening did not shrink it."""
        return 1 / float(torch.linalg.matrix_norm(self.whitening.matrix, ord=2))

    def _tensors(self, x: Tensor, classes: Tensor | None) -> tuple[Tensor, ...]:
        white = self.whitening.forward(x).float()
        return (white,) if classes is None else (white, classes)


def with_validation(data: FitData, share: float, what: str) -> FitData:
    """The data with a validation part: the given one, or else a random share of the training rows.

    Args:
        data: what the fit received.
        share: part of the rows to hold out if no validation data was given, in (0, 1).
        what: name of the preconditioner, for messages.

    Returns:
        Data whose validation part is not None.

    Raises:
        PrecfmError: there are too few rows to hold one out and keep two.
    """
    if data.x_validation is not None:
        return data
    rows = len(data.x)
    held_out = max(1, round(share * rows))
    if rows - held_out < 2:
        raise PrecfmError(
            f"{what}: x has {rows} rows, but at least 3 are needed to hold one out for validation"
        )
    order = torch.randperm(rows, generator=generator_for(data.seed, "validation rows")).to(data.x.device)
    validation, training = order[:held_out], order[held_out:]
    return replace(
        data,
        x=data.x[training],
        classes=None if data.classes is None else data.classes[training],
        x_validation=data.x[validation],
        classes_validation=None if data.classes is None else data.classes[validation],
    )
