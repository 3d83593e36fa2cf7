"""All seeds of a method trained in one batched computation: stacked weights, batched products.

For small networks on a GPU, whose kernels one training does not fill. Each seed has the draws, the initial weights, the
clipping and the average of its own training, so that its results are those of `precfm.training.trainer.train` up to
rounding.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from precfm.core.errors import PrecfmError
from precfm.training.batches import Part, Rows, TensorRows, batches_of_steps, parts_of_step
from precfm.training.checkpoints import Scratch, checksum
from precfm.training.draws import Objective
from precfm.training.execution import executing
from precfm.training.options import TrainingOptions
from precfm.training.state import TrainingResult, TrainingState
from precfm.training.trainer import CHECK_EVERY, progress_bar


class Stacked(nn.Module):
    """Modules of one architecture as one: every weight and buffer with the module's place as its first dimension.

    Args:
        modules: of equal architecture.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        weights, buffers = stack_module_state(list(modules))  # type: ignore[arg-type]
        trained = {name: weight.requires_grad for name, weight in modules[0].named_parameters()}
        self._names = [*weights], [*buffers]  # which have dots, as names in a module may not
        self.weights = nn.ParameterList(
            nn.Parameter(each.detach().clone(), requires_grad=trained[name]) for name, each in weights.items()
        )
        for position, each in enumerate(buffers.values()):
            self.register_buffer(f"buffer{position}", each.detach().clone())

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weights and buffers by the modules' own names, each of shape (modules, *shape)."""
        return (
            dict(zip(self._names[0], self.weights, strict=True)),
            dict(zip(self._names[1], self.buffers(), strict=True)),
        )

    def copied_to(self, modules: Sequence[nn.Module]) -> Sequence[nn.Module]:
        """The modules, each with its weights and buffers, in evaluation mode."""
        stacked = {name: value for part in self.state() for name, value in part.items()}
        for position, module in enumerate(modules):
            with torch.no_grad():
                for name, held in [*module.named_parameters(), *module.named_buffers()]:
                    held.copy_(stacked[name][position])
            module.eval()
        return modules


class StackedState(TrainingState):
    """The state of trainings side by side: a loss and a norm of the gradient for each of them."""

    def __init__(self, trained: Stacked, seeds: int, *rest: Any) -> None:
        self._seeds = seeds
        super().__init__(trained, *rest)

    def _no_losses(self, device: torch.device) -> Tensor:
        return torch.zeros(self._options.steps, self._seeds, dtype=torch.float64, device=device)

    def _clip(self, most: float) -> None:
        gradients = [each.grad for each in self._parameters if each.grad is not None]
        norms = torch.stack([each.flatten(1).norm(dim=1) for each in gradients]).norm(dim=0)
        scale = (most / (norms + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
        for each in gradients:
            each.mul_(scale.view(-1, *[1] * (each.ndim - 1)))

    def results(self) -> list[TrainingResult]:
        """What each training leaves beside its weights, which the stack now has, averaged if there is an average."""
        self._module.load_state_dict(self.weights())
        columns = self._losses[: self.step].unbind(dim=1)
        return [TrainingResult(self._history(losses), self.step, self.step) for losses in columns]


def train_many(
    modules: Sequence[nn.Module],
    objective: Objective | Sequence[Objective],
    data: tuple[Tensor, ...] | Sequence[tuple[Tensor, ...]],
    options: TrainingOptions,
    *,
    seeds: Sequence[int],
    scratch: str | Path | None = None,
    facts: Mapping[str, Any] | None = None,
    on_checkpoint: Callable[[int, int, nn.Module], None] | None = None,
    name: str = "trainings",
) -> list[TrainingResult]:
    """Train modules of one architecture in place, each under its seed, as `train` would train them one by one.

    Args:
        modules: what to train, one for each seed, on one device; they must not draw random numbers themselves.
        objective: what to minimise, which calls the module and asks for nothing else of it; or one for each seed, that
            draw what is theirs and whose losses are one and the same function.
        data: tensors of equal length that all seeds share; or such a tuple for each seed, all of the same shapes, as
            behind maps that depend on the seed.
        options: how to train, without validation, and not by `muon`.
        seeds: one for each module.
        scratch: as in `train`.
        facts: as in `train`.
        on_checkpoint: `on_checkpoint(position, step, module)` gets the weights of each seed, by its position, at each
            of `options.checkpoints`; after the last step.
        name: of all in messages.

    Returns:
        The history of each.

    Raises:
        PrecfmError: the arguments do not fit together, or cannot be batched.
        DivergenceError: a loss or a weight is no longer finite; all trainings stop.
    """
    objectives = list(objective) if isinstance(objective, Sequence) else [objective] * len(seeds)
    each = [data] * len(seeds) if isinstance(data, tuple) and isinstance(data[0], Tensor) else list(data)
    _refuse_what_cannot_be_batched(modules, objectives, each, seeds, options, name)
    rows: list[Rows] = [TensorRows(tensors) for tensors in each]
    stack, base = Stacked(modules), copy.deepcopy(modules[0]).train()
    device = stack.weights[0].device
    identity = {} if scratch is None else {**(facts or {}), **_identity(stack, rows, options, seeds, device)}
    saves = Scratch(None if scratch is None else Path(scratch), identity, name)
    saved = saves.latest_state(options.checkpoints)
    state = StackedState(stack, len(seeds), options, device, name)
    if saved is not None:
        state.restore(saved)

    def loss(weights: Any, buffers: Any, batch: tuple[Tensor, ...], draws: tuple[Tensor, ...]) -> Tensor:
        def module(*given: Any) -> Any:
            return functional_call(base, (weights, buffers), given)

        return objectives[0].loss(module, batch, draws)  # type: ignore[arg-type]

    def parts(step: int) -> list[Part]:
        apart = [
            parts_of_step(one, own, options.batch_size, seed, step, device, parts=options.accumulate)
            for one, own, seed in zip(objectives, rows, seeds, strict=True)
        ]
        cut = [zip(*part, strict=True) for part in zip(*apart, strict=True)]
        return [(_stacked(batches), _stacked(draws)) for batches, draws in cut]

    losses = torch.vmap(loss)
    if options.compile:
        losses = torch.compile(
            losses, mode=None if options.compile is True else options.compile, dynamic=False
        )
    progress = progress_bar(options.steps, state.step, name)
    with (
        executing(base, options.model_copy(update={"compile": False}), device, name) as check_called,
        progress,
    ):
        for mine in batches_of_steps(parts, range(state.step, options.steps), device):
            state.descend(losses(*stack.state(), batch, draws) for batch, draws in mine)
            last = state.step == options.steps
            if last or state.step % CHECK_EVERY == 0:
                check_called()
                progress.set_postfix(loss=f"{state.check_finite(saves):.4g}", refresh=False)
                progress.update(state.step - progress.n)
            if state.step in options.checkpoints:
                state.check_finite(saves)
                saves.save_checkpoint(state.step, state.weights())
            if last or (options.save_every and state.step % options.save_every == 0):
                state.check_finite(saves)
                saves.save_state(state.step, state.tensors())
    results = state.results()
    final = copy.deepcopy(stack)
    if on_checkpoint is not None:
        for step in options.checkpoints:
            stack.load_state_dict(saves.checkpoint(step))
            for position, module in enumerate(stack.copied_to(modules)):
                on_checkpoint(position, step, module)
    final.copied_to(modules)
    return results


def _stacked(several: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.stack(tensors) for tensors in zip(*several, strict=True))


def _refuse_what_cannot_be_batched(
    modules: Sequence[nn.Module],
    objectives: Sequence[object],
    data: Sequence[object],
    seeds: Sequence[int],
    options: TrainingOptions,
    name: str,
) -> None:
    if not len(modules) == len(objectives) == len(data) == len(seeds) > 0:
        raise PrecfmError(
            f"{name}: seeds: got {len(seeds)} for {len(modules)} modules, {len(objectives)} objectives and {len(data)} "
            "data sets; as many of each are needed"
        )
    shapes = [{key: value.shape for key, value in module.state_dict().items()} for module in modules]
    if any(shape != shapes[0] for shape in shapes):
        raise PrecfmError(f"{name}: modules: got different architectures; one is needed")
    if options.validate_every or options.optimizer == "muon":
        raise PrecfmError(
            f"{name}: options: got validate_every {options.validate_every} and optimizer {options.optimizer!r}; 0, and "
            "'adam' or 'sgd', are needed where seeds train side by side"
        )
    if any(getattr(each, "couples_rows", False) for each in objectives):
        raise PrecfmError(
            f"{name}: objective: couples the rows of a mini-batch; each seed has to train alone"
        )
    if any(isinstance(part, nn.modules.dropout._DropoutNd) and part.p for part in modules[0].modules()):
        raise PrecfmError(f"{name}: modules: have dropout; each seed has to train alone")


def _identity(
    stack: Stacked, rows: Sequence[Rows], options: TrainingOptions, seeds: Sequence[int], device: torch.device
) -> dict[str, Any]:
    """As that of one training."""
    return {
        "seeds": list(seeds),
        **{f"options.{field}": value for field, value in options.model_dump().items()},
        "initial_weights": checksum(stack.state_dict()),
        "data": [own.checksum() for own in rows],
        "device": device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
