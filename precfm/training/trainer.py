"""Training: one short loop that can be killed, since a step is a pure function of (state, seed, step number).

To resume, run the same command again: a training that was killed at any moment and started again on the same
machine ends in the same bytes as one that never was.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from tqdm import tqdm

from precfm.core.errors import PrecfmError
from precfm.core.seeds import derived_seed
from precfm.core.tensors import require_tensor
from precfm.training.batches import Part, Rows, TensorRows, batches_of_steps, parts_of_step
from precfm.training.checkpoints import Scratch, checksum
from precfm.training.draws import Objective
from precfm.training.execution import executing
from precfm.training.options import TrainingOptions
from precfm.training.processes import first_before_others, rank_and_size
from precfm.training.state import TrainingResult, TrainingState

CHECK_EVERY = 100  # steps between checks of the loss: each makes the host wait for an accelerator
SHOW_EVERY = 10.0  # seconds between lines of progress


def train(
    module: nn.Module,
    objective: Objective,
    data: tuple[Tensor, ...] | Rows,
    options: TrainingOptions,
    *,
    seed: int,
    validation_loss: Callable[[nn.Module], float] | None = None,
    scratch: str | Path | None = None,
    facts: Mapping[str, Any] | None = None,
    on_checkpoint: Callable[[int, nn.Module], None] | None = None,
    name: str = "training",
) -> TrainingResult:
    """Train a module in place; afterwards it has the averaged and best validated weights, in evaluation mode.

    The initial weights are the caller's; `precfm.core.seeds.seeded_module` makes them from a seed. Wherever "the
    weights" are validated, handed out or left in the module, the moving average is meant if `ema_decay` is set.

    Where torch.distributed is set up (`accelerate launch`, `torchrun`), all processes call this with equal arguments
    and train together, each on its share of every mini-batch: `batch_size` is that of all of them. The losses are those
    of one process up to rounding. The first process alone saves, shows progress and hands out checkpoints.

    Args:
        module: what to train, where it is to be trained.
        objective: what to minimise.
        data: tensors of equal length, on the device of the module or on the CPU, or rows that are read when they are
            needed, such as `precfm.training.shards.ShardedRows`; a mini-batch is the same random rows of each.
        options: how to train.
        seed: all randomness of step k is a function of (seed, k): the rows and the objective's draws, which the CPU
            makes whatever the device, and torch's global generator, which a module with dropout uses and which is
            left as it was found.
        validation_loss: called without gradient every `validate_every` steps; the weights of the smallest
            value win.
        scratch: folder for saves to resume from; None saves nothing. Delete it when the result is safe.
        facts: plain values that tell this training from others, beside its data, initial weights, options and seed:
            the objective's options, say. The saves of a training that differs in any of these are refused.
        on_checkpoint: `on_checkpoint(step, module)` gets the weights at each of `options.checkpoints`
            that was reached: in order, after the last step, and in a resumed run too.
        name: the training's name in messages.

    Returns:
        The history, and which step the weights are of.

    Raises:
        PrecfmError: the arguments do not fit together, or the scratch folder is of another training.
        DivergenceError: the loss or the weights are no longer finite.
    """
    rows, device = _checked_data(module, data, name)
    rank, processes = rank_and_size()
    _check_kinds(objective, options, processes, name)
    if options.validate_every and validation_loss is None:
        raise PrecfmError(
            f"{name}: validate_every is {options.validate_every}; give validation_loss too, or set 0"
        )
    identity = {} if scratch is None else {**(facts or {}), **_identity(module, rows, options, seed, device)}
    with first_before_others():
        saves = Scratch(None if scratch is None else Path(scratch), identity, name, writes=rank == 0)
        saved = saves.latest_state(options.checkpoints)
    state = TrainingState(module, options, device, name)
    if saved is not None:
        state.restore(saved)

    def parts(step: int) -> list[Part]:
        return parts_of_step(
            objective, rows, options.batch_size, seed, step, device,
            parts=options.accumulate, share=(rank, processes),
        )  # fmt: skip

    progress = progress_bar(options.steps, state.step, name, disable=rank > 0)
    with _global_randomness(device) as seed_globally:
        with executing(module, options, device, name) as check_called, progress:
            for mine in batches_of_steps(parts, range(state.step, options.steps), device):
                if state.out_of_patience:
                    break
                seed_globally(derived_seed(seed, "global", state.step, *([rank] if rank else [])))
                state.descend(objective.loss(module, batch, draws) for batch, draws in mine)

                last = state.step == options.steps
                if _due(state.step, CHECK_EVERY, last):
                    check_called()
                    progress.set_postfix(loss=f"{state.check_finite(saves):.4g}", refresh=False)
                    progress.update(state.step - progress.n)
                if validation_loss is not None and _due(state.step, options.validate_every, last):
                    state.validate(validation_loss, saves)
                if state.step in options.checkpoints:
                    state.check_finite(saves)
                    saves.save_checkpoint(state.step, state.weights())
                if last or state.out_of_patience or _due(state.step, options.save_every):
                    state.check_finite(saves)
                    saves.save_state(state.step, state.tensors())

        if on_checkpoint is not None and rank == 0:
            handed_out = copy.deepcopy(module).eval()
            for step in options.checkpoints:
                if step <= state.step:
                    seed_globally(derived_seed(seed, "checkpoint", step))
                    handed_out.load_state_dict(saves.checkpoint(step))
                    on_checkpoint(step, handed_out)
    return state.finish()


def _due(step: int, every: int, last: bool = False) -> bool:
    """Whether something done every so many steps (0: never) and perhaps at the last is due."""
    return every > 0 and (last or step % every == 0)


def progress_bar(steps: int, step: int, name: str, *, disable: bool = False) -> "tqdm[NoReturn]":
    """A line on standard error now and then: of so many steps, this one is reached."""
    return tqdm(
        total=steps, desc=name, initial=step, mininterval=SHOW_EVERY, maxinterval=SHOW_EVERY, disable=disable
    )


@contextmanager
def _global_randomness(device: torch.device) -> Iterator[Callable[[int], object]]:
    """Lend torch's global generator of a device, and give it back as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if device.type == "cuda":
            yield torch.cuda.default_generators[device.index or 0].manual_seed
        else:
            yield torch.default_generator.manual_seed


def _checked_data(module: nn.Module, data: tuple[Tensor, ...] | Rows, name: str) -> tuple[Rows, torch.device]:
    """The data as rows, and the one device of the module, where the training is."""
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise PrecfmError(
            f"{name}: module: has no parameter that requires a gradient, so there is nothing to train"
        )
    devices = {tensor.device for tensor in (*module.parameters(), *module.buffers())}
    rows: Rows
    if isinstance(data, tuple):
        _check_tensors(data, name)
        rows, places = TensorRows(data), {tensor.device for tensor in data}
        if places != {torch.device("cpu")} or {device.type for device in devices} != {"cuda"}:
            devices |= places
    elif isinstance(data, Rows) and len(data):
        rows = data
    else:
        raise PrecfmError(
            f"{name}: data: got {type(data).__name__}; a tuple of tensors is needed, as in (data,), or rows with "
            "`gather`"
        )
    if len(devices) > 1:
        raise PrecfmError(
            f"{name}: module and data lie on {', '.join(sorted(map(str, devices)))}; one device is needed, or the CPU "
            "for all data of a module on a GPU"
        )
    return rows, devices.pop()


def _check_tensors(data: tuple[Tensor, ...], name: str) -> None:
    """Refuse tensors of different lengths, and numbers that are not finite."""
    for position, tensor in enumerate(data):
        require_tensor(tensor, f"{name}: data[{position}]")
        if not (finite := tensor.isfinite()).all():
            place = (~finite).nonzero()[0].tolist()
            raise PrecfmError(
                f"{name}: data[{position}]: holds {float(tensor[tuple(place)])} at {place}; every number must be finite"
            )
    lengths = [len(tensor) for tensor in data]
    if not lengths or lengths[0] == 0 or len(set(lengths)) > 1:
        raise PrecfmError(
            f"{name}: data: got tensors of lengths {lengths}; equal and positive ones are needed"
        )


def _check_kinds(objective: object, options: object, processes: int, name: str) -> None:
    """Refuse a bare function or mapping, as other libraries take them, and batches that cannot be cut."""
    if not (hasattr(objective, "draw") and hasattr(objective, "loss")):
        raise PrecfmError(
            f"{name}: objective: got a {type(objective).__name__}; an object with draw and loss, such as "
            "NotRandom(function), is needed"
        )
    if not isinstance(options, TrainingOptions):
        raise PrecfmError(f"{name}: options: got a {type(options).__name__}; TrainingOptions are needed")
    parts = options.accumulate * processes
    if options.batch_size % parts:
        raise PrecfmError(
            f"{name}: batch_size: got {options.batch_size}; a multiple of {parts} is needed, of {processes} processes "
            f"and accumulate {options.accumulate}"
        )
    if parts > 1 and getattr(objective, "couples_rows", False):
        raise PrecfmError(
            f"{name}: accumulate: got {options.accumulate} with {processes} processes, but the loss couples the rows "
            "of a whole mini-batch; 1 and one process are needed"
        )


def _identity(
    module: nn.Module, rows: Rows, options: TrainingOptions, seed: int, device: torch.device
) -> dict[str, object]:
    """What a saved state must agree on before a training goes on from it."""
    _, processes = rank_and_size()
    return {
        "seed": seed,
        **{f"options.{field}": value for field, value in options.model_dump().items()},
        "initial_weights": checksum(module.state_dict()),
        "data": rows.checksum(),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **({"processes": processes} if processes > 1 else {}),
    }
