"""Everything that changes while a module trains, and how it is saved and restored."""

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NoReturn

import pandas as pd
import torch
from torch import Tensor, nn

from precfm.core.errors import DivergenceError, PrecfmError
from precfm.training.checkpoints import Scratch
from precfm.training.optimizers import learning_rate_at, optimizers_of
from precfm.training.options import TrainingOptions
from precfm.training.processes import average, of_first


@dataclass(frozen=True)
class TrainingResult:
    """What a training leaves beside the weights.

    Attributes:
        history: one row per step: `step` (from 1), `loss` (of the mini-batch, before the update),
            `learning_rate`, and `validation_loss` (NaN where not validated) if there was validation.
        best_step: step of the weights that the module now has.
        steps_run: steps taken, fewer than asked for if patience ran out.
    """

    history: pd.DataFrame
    best_step: int
    steps_run: int


class TrainingState:
    """Module, moving average, optimizers, step, losses and validations of one training."""

    def __init__(self, module: nn.Module, options: TrainingOptions, device: torch.device, name: str) -> None:
        self.step = 0
        self._module, self._options, self._name = module.train(), options, name
        if options.channels_last:
            module.to(memory_format=torch.channels_last)
        self._average = (
            None if options.ema_decay is None else copy.deepcopy(module).eval().requires_grad_(False)
        )
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._optimizers = optimizers_of(module, options, device, name)
        # On the data's device, so that a step never waits for its loss.
        self._losses = self._no_losses(device)
        self._validations = torch.full((options.steps,), torch.nan, dtype=torch.float64)
        self._best_step, self._checked = 0, 0
        self._best: dict[str, Tensor] = {}

    def descend(self, losses: Iterable[Tensor]) -> None:
        """One step of the optimizers along the mean gradient of all parts and processes, then of the average.

        Args:
            losses: of the parts of this process's mini-batch; each is computed once the one before has its gradient.
        """
        options = self._options
        for optimizer in self._optimizers.values():
            optimizer.zero_grad()
        total = torch.zeros_like(self._losses[0])
        for loss in losses:
            self._require_loss(loss)
            share = loss if options.accumulate == 1 else loss / options.accumulate
            share.sum().backward()  # type: ignore[no-untyped-call]
            total += share.detach()
        average([total])
        average([each.grad for each in self._parameters if each.grad is not None])
        if options.clip_norm is not None:
            self._clip(options.clip_norm)
        for optimizer in self._optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(self.step, options)
            optimizer.step()
        self._losses[self.step] = total
        self.step += 1
        if self._average is not None and options.ema_decay is not None:
            decay = min(options.ema_decay, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                averaged, current = tuple(self._average.parameters()), tuple(self._module.parameters())
                torch._foreach_lerp_(averaged, current, 1 - decay)
                for held, now in zip(self._average.buffers(), self._module.buffers(), strict=True):
                    held.copy_(now)

    def check_finite(self, saves: Scratch) -> float:
        """The latest loss, once every loss and weight so far is known to be finite."""
        finite = self._losses[self._checked : self.step].isfinite()
        if not finite.all():
            self._diverged(self._checked + int((~finite).nonzero()[0, 0]), "the loss is not finite", saves)
        if not torch.stack([weight.isfinite().all() for weight in self._module.state_dict().values()]).all():
            self._diverged(self.step - 1, "the weights are not finite", saves)
        self._checked = self.step
        return float(self._losses[self.step - 1].mean())

    def validate(self, validation_loss: Callable[[nn.Module], float], saves: Scratch) -> None:
        """Record the validation loss of the weights, and the weights if they are the best so far."""
        self.check_finite(saves)
        validated = self._module if self._average is None else self._average
        validated.eval()
        with torch.no_grad():
            value = of_first(float(validation_loss(validated)), self._losses.device)
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
        """All of this as tensors, named `<group>.<name>`, for `restore`."""
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
            for index, moments in optimizer.state_dict()["state"].items():
                groups[f"{kind}{index}"] = moments
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
        self.step = self._checked = int(progress["step"])
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
            for parameter, restored in optimizer.state.items():
                for name, moment in restored.items():
                    if (
                        moment.shape == parameter.shape
                    ):  # in the parameter's memory format, as fused kernels need it
                        restored[name] = torch.empty_like(parameter).copy_(moment)

    def finish(self) -> TrainingResult:
        """Give the module its final weights, and return the history."""
        self._module.load_state_dict(self._best or self.weights())
        self._module.eval()
        if self._options.channels_last:
            self._module.to(memory_format=torch.contiguous_format)
        history = self._history(self._losses[: self.step])
        if self._best_step:
            history["validation_loss"] = self._validations[: self.step].numpy()
        return TrainingResult(history, best_step=self._best_step or self.step, steps_run=self.step)

    def _history(self, losses: Tensor) -> pd.DataFrame:
        rates = [learning_rate_at(step, self._options) for step in range(self.step)]
        steps = range(1, self.step + 1)
        return pd.DataFrame({"step": steps, "loss": losses.cpu().numpy(), "learning_rate": rates})

    def _no_losses(self, device: torch.device) -> Tensor:
        """Room for the loss of each step, shape (steps,)."""
        return torch.zeros(self._options.steps, dtype=torch.float64, device=device)

    def _clip(self, most: float) -> None:
        """Scale the gradient down to a norm."""
        nn.utils.clip_grad_norm_(self._parameters, most)

    def _require_loss(self, loss: object) -> None:
        if not isinstance(loss, Tensor) or loss.shape != self._losses.shape[1:]:
            what = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise PrecfmError(
                f"{self._name}: the objective's loss has {what}; a tensor of one number is needed"
            )

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
