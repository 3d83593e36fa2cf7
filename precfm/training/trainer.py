"""Training: one short loop that can be killed, since a step is a pure function of (state, seed, step number).

To resume, run the same command again: a training that was killed at any moment and started again on the same
machine ends in the same bytes as one that never was.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, NoReturn, TypeAlias, TypeVar

import pandas as pd
import torch
from torch import Tensor, nn

from precfm.core.errors import DivergenceError, PrecfmError
from precfm.core.progress import progress_bar
from precfm.core.seeds import derived_seed
from precfm.core.tensors import require_tensor
from precfm.training.checkpoints import Scratch, fingerprint

LossFunction: TypeAlias = Callable[[nn.Module, tuple[Tensor, ...], torch.Generator], Tensor]
"""`loss(module, mini_batch, generator)`: a scalar; all its randomness comes from the generator."""

Module = TypeVar("Module", bound=nn.Module)

LOOK_EVERY = 100  # steps between looks at the loss: each look makes the host wait for an accelerator


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Args:
        steps: optimizer steps.
        batch_size: rows per step, drawn with replacement.
        learning_rate: peak learning rate.
        schedule: what the learning rate does after the warm-up; `cosine` falls towards zero.
        warmup_steps: steps over which the learning rate rises linearly to its peak.
        optimizer: `adam` (with betas 0.9 and 0.999, weight decay decoupled as in AdamW), plain `sgd`, or `muon`:
            steps of orthogonalised momentum for the matrices in parts of the module called `hidden`, `adam` for
            all else (biases, embeddings, first and last layers), as its author advises. Its updates are scaled
            to the size of Adam's, so that one learning rate and schedule serves both.
        weight_decay: strength of the weight decay.
        ema_decay: decay of the exponential moving average of the weights; None keeps none. At step k it is at
            most (1 + k) / (10 + k), so that the average forgets the initial weights early.
        clip_norm: largest norm of the gradient; None does not clip.
        checkpoints: steps whose weights are handed out, increasing.
        validate_every: steps between validations (the last step is validated too); 0 never validates.
        patience: stop after this many validations in a row without a new best; 0 never stops early.
        save_every: steps between saves to the scratch folder; 0 saves only at the end.

    Raises:
        PrecfmError: a value is out of its range.

    References:
        | Muon: An optimizer for hidden layers in neural networks (Jordan et al., 2024)
        | https://kellerjordan.github.io/posts/muon/
        | Muon is Scalable for LLM Training (Liu et al., 2025), section 2.2 for the scale of the updates
        | https://arxiv.org/abs/2502.16982
    """

    steps: int = 5000
    batch_size: int = 256
    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    optimizer: Literal["adam", "sgd", "muon"] = "adam"
    weight_decay: float = 0.0
    ema_decay: float | None = None
    clip_norm: float | None = None
    checkpoints: tuple[int, ...] = ()
    validate_every: int = 0
    patience: int = 0
    save_every: int = 1000

    def __post_init__(self) -> None:
        allowed: dict[str, tuple[bool, str]] = {
            "steps": (self.steps >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "learning_rate": (0 < self.learning_rate < math.inf, "positive and finite"),
            "schedule": (self.schedule in ("constant", "cosine"), "'constant' or 'cosine'"),
            "warmup_steps": (0 <= self.warmup_steps < self.steps, f"in 0..{self.steps - 1}"),
            "optimizer": (self.optimizer in ("adam", "sgd", "muon"), "'adam', 'sgd' or 'muon'"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or positive and finite"),
            "ema_decay": (self.ema_decay is None or 0 <= self.ema_decay < 1, "in [0, 1), or None"),
            "clip_norm": (self.clip_norm is None or self.clip_norm > 0, "positive, or None"),
            "checkpoints": (
                all(1 <= step <= self.steps for step in self.checkpoints)
                and list(self.checkpoints) == sorted(set(self.checkpoints)),
                f"increasing steps in 1..{self.steps}",
            ),
            "validate_every": (self.validate_every >= 0, "0 or positive"),
            "patience": (
                self.patience == 0 or (self.patience > 0 and self.validate_every > 0),
                "0, or positive together with validate_every",
            ),
            "save_every": (self.save_every >= 0, "0 or positive"),
        }
        for field in fields(self):
            good, wanted = allowed[field.name]
            if not good:
                raise PrecfmError(
                    f"training: {field.name} is {getattr(self, field.name)!r}; it must be {wanted}"
                )


@dataclass(frozen=True)
class TrainingResult:
    """What a training leaves beside the weights.

    Args:
        history: one row per step: `step` (from 1), `loss` (of the mini-batch, before the update),
            `learning_rate`, and `validation_loss` (NaN where not validated) if there was validation.
        best_step: step of the weights that the module now has.
        steps_run: steps taken, fewer than asked for if patience ran out.
    """

    history: pd.DataFrame
    best_step: int
    steps_run: int


def train(
    module: nn.Module,
    loss_function: LossFunction,
    data: tuple[Tensor, ...],
    options: TrainingOptions,
    *,
    seed: int,
    validation_loss: Callable[[nn.Module], float] | None = None,
    scratch: str | Path | None = None,
    on_checkpoint: Callable[[int, nn.Module], None] | None = None,
    name: str = "training",
) -> TrainingResult:
    """Train a module in place; afterwards it has the averaged and best validated weights, in evaluation mode.

    The initial weights are the caller's; `seeded_module` makes them from a seed. Wherever "the weights" are
    validated, handed out or left in the module, the moving average is meant if `ema_decay` is set.

    Args:
        module: what to train, on the device of the data.
        loss_function: the loss of a mini-batch.
        data: tensors of equal length; a mini-batch is the same random rows of each.
        options: how to train.
        seed: all randomness of step k is a function of (seed, k): the generator that draws the rows and is
            given to the loss, and torch's global one, which dropout uses and which is left as it was found.
        validation_loss: called without gradient every `validate_every` steps; the weights of the smallest
            value win.
        scratch: folder for saves to resume from; None saves nothing. Delete it when the result is safe.
        on_checkpoint: `on_checkpoint(step, module)` gets the weights at each of `options.checkpoints`
            that was reached: in order, after the last step, and in a resumed run too.
        name: the training's name in messages.

    Returns:
        The history, and which step the weights are of.

    Raises:
        PrecfmError: the arguments do not fit together, the scratch folder is of another training, or the loss
            is no longer finite.
    """
    device = _checked_device(module, data, name)
    if not isinstance(options, TrainingOptions):
        raise PrecfmError(
            f"{name}: options are of type {type(options).__name__}, but TrainingOptions(...) are needed"
        )
    if options.validate_every and validation_loss is None:
        raise PrecfmError(
            f"{name}: validate_every is {options.validate_every}; give validation_loss too, or set 0"
        )
    identity = {} if scratch is None else _identity(module, data, options, seed)
    saves = Scratch(None if scratch is None else Path(scratch), identity, name)
    run = _Run(module, options, device, name)
    saved = saves.latest_state(options.checkpoints)
    if saved is not None:
        run.restore(saved)

    generator, shown = torch.Generator(device), run.step
    with _global_randomness(device) as seed_globally, progress_bar(options.steps, name, run.step) as progress:
        while run.step < options.steps and not run.out_of_patience:
            generator.manual_seed(derived_seed(seed, "step", run.step))
            seed_globally(derived_seed(seed, "global", run.step))
            rows = torch.randint(len(data[0]), (options.batch_size,), generator=generator, device=device)
            loss = loss_function(module, tuple(tensor[rows] for tensor in data), generator)
            run.descend(loss)

            last = run.step == options.steps
            if _due(run.step, LOOK_EVERY, last):
                progress.set(loss=f"{run.look(saves):.4g}")
                progress.update(run.step - shown)
                shown = run.step
            if validation_loss is not None and _due(run.step, options.validate_every, last):
                run.validate(validation_loss, saves)
            if run.step in options.checkpoints:
                run.look(saves)
                saves.save_checkpoint(run.step, run.weights())
            if last or run.out_of_patience or _due(run.step, options.save_every):
                run.look(saves)
                saves.save_state(run.step, run.tensors())

        if on_checkpoint is not None:
            handed_out = copy.deepcopy(module).eval()
            for step in options.checkpoints:
                if step <= run.step:
                    seed_globally(derived_seed(seed, "checkpoint", step))
                    handed_out.load_state_dict(saves.checkpoint(step))
                    on_checkpoint(step, handed_out)
    return run.finish()


def learning_rate_at(step: int, options: TrainingOptions) -> float:
    """Learning rate of the update number `step`, counted from 0: linear warm-up, then constant or cosine.

    Example:
        >>> options = TrainingOptions(steps=10, learning_rate=1.0, warmup_steps=2, schedule="cosine")
        >>> [round(learning_rate_at(step, options), 2) for step in (0, 1, 2, 6, 9)]
        [0.5, 1.0, 1.0, 0.5, 0.04]
    """
    if step < options.warmup_steps:
        return options.learning_rate * (step + 1) / options.warmup_steps
    if options.schedule == "constant":
        return options.learning_rate
    progress = (step - options.warmup_steps) / (options.steps - options.warmup_steps)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


class _Run:
    """Everything that changes while training: module, average, optimizer, step, losses, validations."""

    def __init__(self, module: nn.Module, options: TrainingOptions, device: torch.device, name: str) -> None:
        self.step = 0
        self._module, self._options, self._name = module.train(), options, name
        self._average = (
            None if options.ema_decay is None else copy.deepcopy(module).eval().requires_grad_(False)
        )
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._optimizers = _optimizers(module, options, device, name)
        # On the data's device, so that a step never waits for its loss.
        self._losses = torch.zeros(options.steps, dtype=torch.float64, device=device)
        self._validations = torch.full((options.steps,), torch.nan, dtype=torch.float64)
        self._best_step, self._looked = 0, 0
        self._best: dict[str, Tensor] = {}

    def descend(self, loss: Tensor) -> None:
        """One step of the optimizer along the gradient of `loss`, then of the average."""
        options = self._options
        for optimizer in self._optimizers.values():
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if options.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, options.clip_norm)
        for optimizer in self._optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(self.step, options)
            optimizer.step()
        self._losses[self.step] = loss.detach()
        self.step += 1
        if self._average is not None and options.ema_decay is not None:
            decay = min(options.ema_decay, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                averaged, current = tuple(self._average.parameters()), tuple(self._module.parameters())
                torch._foreach_lerp_(averaged, current, 1 - decay)
                for held, now in zip(self._average.buffers(), self._module.buffers(), strict=True):
                    held.copy_(now)

    def look(self, saves: Scratch) -> float:
        """The latest loss, once every loss and weight so far is known to be finite."""
        finite = self._losses[self._looked : self.step].isfinite()
        if not finite.all():
            self._diverged(self._looked + int((~finite).nonzero()[0]), "the loss is not finite", saves)
        if not torch.stack([weight.isfinite().all() for weight in self._module.state_dict().values()]).all():
            self._diverged(self.step - 1, "the weights are not finite", saves)
        self._looked = self.step
        return float(self._losses[self.step - 1])

    def validate(self, validation_loss: Callable[[nn.Module], float], saves: Scratch) -> None:
        """Record the validation loss of the weights, and the weights if they are the best so far."""
        self.look(saves)
        judged = self._module if self._average is None else self._average
        judged.eval()
        with torch.no_grad():
            value = float(validation_loss(judged))
        self._module.train()
        if not math.isfinite(value):
            self._diverged(self.step - 1, f"the validation loss is {value}", saves)
        if self._best_step == 0 or value < float(self._validations[self._best_step - 1]):
            self._best_step = self.step
            self._best = {name: tensor.clone() for name, tensor in self.weights().items()}
        self._validations[self.step - 1] = value

    @property
    def out_of_patience(self) -> bool:
        """Whether the last `patience` validations all failed to be the best."""
        if not self._options.patience:
            return False
        since_best = int(self._validations[self._best_step : self.step].isfinite().sum())
        return since_best >= self._options.patience

    def weights(self) -> dict[str, Tensor]:
        """The weights that count now: averaged, if there is an average."""
        return (self._module if self._average is None else self._average).state_dict()

    def tensors(self) -> dict[str, Tensor]:
        """All of this as named tensors, for `restore`."""
        groups: dict[str, dict[str, Tensor]] = {
            "module": self._module.state_dict(),
            "average": {} if self._average is None else self._average.state_dict(),
            "best": self._best,
            "progress": {
                "step": torch.tensor(self.step),
                "best_step": torch.tensor(self._best_step),
                "losses": self._losses[: self.step],
                "validations": self._validations[: self.step],
            },
        }
        for kind, optimizer in self._optimizers.items():
            for index, state in optimizer.state_dict()["state"].items():
                groups[f"{kind}{index}"] = state
        return {
            f"{group}.{name}": tensor for group, named in groups.items() for name, tensor in named.items()
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go back to what `tensors` returned."""
        groups: dict[str, dict[str, Tensor]] = {}
        for full_name, tensor in tensors.items():
            group, _, name = full_name.partition(".")
            groups.setdefault(group, {})[name] = tensor
        self._module.load_state_dict(groups.pop("module"))
        if self._average is not None:
            self._average.load_state_dict(groups.pop("average"))
        self._best = {name: tensor.to(self._losses.device) for name, tensor in groups.pop("best", {}).items()}
        progress = groups.pop("progress")
        self.step = self._looked = int(progress["step"])
        self._best_step = int(progress["best_step"])
        self._losses[: self.step] = progress["losses"].to(self._losses.device)
        self._validations[: self.step] = progress["validations"]
        for kind, optimizer in self._optimizers.items():
            moments = {
                int(group.removeprefix(kind)): named
                for group, named in groups.items()
                if group.startswith(kind)
            }
            optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})

    def finish(self) -> TrainingResult:
        """Give the module its final weights and tell the history."""
        self._module.load_state_dict(self._best or self.weights())
        self._module.eval()
        history = pd.DataFrame(
            {
                "step": range(1, self.step + 1),
                "loss": self._losses[: self.step].cpu().numpy(),
                "learning_rate": [learning_rate_at(step, self._options) for step in range(self.step)],
            }
        )
        if self._best_step:
            history["validation_loss"] = self._validations[: self.step].numpy()
        return TrainingResult(history, best_step=self._best_step or self.step, steps_run=self.step)

    def _diverged(self, step: int, what: str, saves: Scratch) -> NoReturn:
        saved = saves.last_saved_step()
        kept = (
            "no state was saved"
            if saved is None
            else f"the state after step {saved} is kept in the scratch folder"
        )
        rate = learning_rate_at(step, self._options)
        raise DivergenceError(
            f"{self._name}: {what} at step {step + 1} with learning rate {rate:g}; "
            f"lower learning_rate or set clip_norm ({kept})"
        )


def _optimizers(
    module: nn.Module, options: TrainingOptions, device: torch.device, name: str
) -> dict[str, torch.optim.Optimizer]:
    """The optimizers, by a name for their saved state; fused (one kernel for all parameters) where torch has it."""
    named = {key: weight for key, weight in module.named_parameters() if weight.requires_grad}
    hidden = []
    if options.optimizer == "muon":
        hidden = [key for key, weight in named.items() if weight.ndim == 2 and "hidden" in key.split(".")]
        if not hidden:
            raise PrecfmError(
                f"{name}: optimizer is 'muon', but the module has no matrix in a part called 'hidden'; "
                "use 'adam' or a network with hidden layers"
            )
    rate, decay, fused = options.learning_rate, options.weight_decay, device.type in ("cpu", "cuda")
    optimizers: dict[str, torch.optim.Optimizer] = {}
    rest = [weight for key, weight in named.items() if key not in hidden]
    if rest:
        kind = torch.optim.SGD if options.optimizer == "sgd" else torch.optim.AdamW
        optimizers["optimizer"] = kind(rest, lr=rate, weight_decay=decay, fused=fused)
    if hidden:
        matrices = [named[key] for key in hidden]
        optimizers["muon"] = torch.optim.Muon(
            matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
        )
    return optimizers


def _due(step: int, every: int, last: bool = False) -> bool:
    """Whether something done every so many steps (0: never) and perhaps at the last is due."""
    return every > 0 and (last or step % every == 0)


@contextmanager
def _global_randomness(device: torch.device) -> Iterator[Callable[[int], object]]:
    """Lend torch's global generator of a device, and give it back as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if device.type == "cuda":
            yield torch.cuda.default_generators[device.index or 0].manual_seed
        else:
            yield torch.default_generator.manual_seed


def _checked_device(module: nn.Module, data: tuple[Tensor, ...], name: str) -> torch.device:
    """The one device of module and data."""
    if isinstance(data, Tensor):
        raise PrecfmError(f"{name}: data is one tensor, but a tuple of tensors is needed: (data,)")
    for position, tensor in enumerate(data):
        require_tensor(tensor, f"{name}: data[{position}]")
    lengths = [len(tensor) for tensor in data]
    if not lengths or lengths[0] == 0 or len(set(lengths)) > 1:
        raise PrecfmError(f"{name}: the data tensors have lengths {lengths}; they must be equal and positive")
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise PrecfmError(
            f"{name}: the module has no parameter that requires a gradient; there is nothing to train"
        )
    devices = {str(tensor.device) for tensor in (*data, *module.parameters(), *module.buffers())}
    if len(devices) > 1:
        raise PrecfmError(
            f"{name}: module and data lie on {', '.join(sorted(devices))}; put them on one device"
        )
    return data[0].device


def _identity(
    module: nn.Module, data: tuple[Tensor, ...], options: TrainingOptions, seed: int
) -> dict[str, object]:
    """What a saved state must agree on before a training goes on from it."""
    return {
        "seed": seed,
        **{f"options.{field}": value for field, value in asdict(options).items()},
        "initial_weights": fingerprint(module.state_dict()),
        "data": fingerprint(data),
        "device": data[0].device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
