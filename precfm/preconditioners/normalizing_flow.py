"""A normalizing flow behind a whitening: a learned invertible map, conditional on the label if wanted."""

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from precfm.errors import PrecfmError
from precfm.preconditioners.base import FitData, Preconditioner
from precfm.preconditioners.learned import check_open_share, flops_per_step, one_hot, with_validation
from precfm.preconditioners.symmetric_power import check_share
from precfm.preconditioners.whitening import Whitening
from precfm.seeds import generator_for
from precfm.training import TrainingOptions, seeded_module, train

if TYPE_CHECKING:
    from zuko.transforms import MonotonicAffineTransform

MAX_SHIFT = 5.0  # in standard deviations of the whitened data


class NormalizingFlow(Preconditioner):
    """Whitens the data, then applies a normalizing flow that was trained by maximum likelihood.

    The logarithm of every scale and every shift are bounded smoothly, so that points in the tails of the
    latent Gaussian stay near the data instead of being thrown far away. The flow starts as the identity,
    trains on a validation likelihood with early stopping, and is evaluated in float64.

    Arguments:
        kind: `coupling` is affine coupling (fast both ways), `autoregressive` masked affine autoregression
            and `spline` autoregressive rational-quadratic splines (inverted feature by feature).
        conditional: whether the flow depends on the label, as a one-hot context.
        transforms: number of transformations.
        width: hidden units per layer of each transformation's network.
        depth: hidden layers of each transformation's network.
        max_log_scale: bound on the absolute logarithm of each transformation's scale.
        shrinkage: shrinkage of the whitening before the flow, as in `Whitening`.
        steps: most training steps.
        batch_size: rows per step.
        learning_rate: peak learning rate of a cosine schedule.
        validate_every: steps between two validations.
        patience: validations without improvement after which training stops; 0 never stops early.
        validation_share: part of the data held out if `fit` gets no validation data.

    References:
        | Density estimation using Real NVP (Dinh et al., 2016)
        | https://arxiv.org/abs/1605.08803

        | Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017)
        | https://arxiv.org/abs/1705.07057

        | Neural Spline Flows (Durkan et al., 2019)
        | https://arxiv.org/abs/1906.04032

        | Preconditioned (Score and) Flow Matching (Ahamed et al., 2026), normalizing flow as a preconditioner
        | https://arxiv.org/abs/2603.02337
    """

    uses_seed = True

    whitening: Whitening
    flow: nn.Module

    def __init__(
        self,
        kind: Literal["coupling", "autoregressive", "spline"] = "coupling",
        conditional: bool = True,
        transforms: int = 3,
        width: int = 128,
        depth: int = 2,
        max_log_scale: float = 1.5,
        shrinkage: float = 0.0,
        steps: int = 1500,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
        validate_every: int = 100,
        patience: int = 5,
        validation_share: float = 0.1,
    ) -> None:
        super().__init__()
        if kind not in ("coupling", "autoregressive", "spline"):
            raise PrecfmError(f"kind: got {kind!r}, but 'coupling', 'autoregressive' or 'spline' is needed")
        for name, value in {"transforms": transforms, "width": width, "depth": depth}.items():
            if value < 1:
                raise PrecfmError(f"{name}: got {value!r}, but at least 1 is needed")
        if not 0 < max_log_scale <= 5:
            raise PrecfmError(
                f"max_log_scale: got {max_log_scale!r}, but a number above 0 and up to 5 is needed"
            )
        self.kind = kind
        self.conditional = self.needs_labels = conditional
        self.transforms, self.width, self.depth = transforms, width, depth
        self.max_log_scale = max_log_scale
        self.shrinkage = check_share("shrinkage", shrinkage)
        self.steps, self.batch_size, self.learning_rate = steps, batch_size, learning_rate
        self.validate_every, self.patience = validate_every, patience
        self.validation_share = check_open_share("validation_share", validation_share)
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
        """Weights of the flow and free numbers of the whitening."""
        return self.whitening.num_parameters + sum(parameter.numel() for parameter in self.flow.parameters())

    def _allocate(self) -> None:
        self.whitening = Whitening(shrinkage=self.shrinkage).to(self.anchor)
        self.whitening.prepare((self.features,), ())
        self.flow = seeded_module(self._build, seed=0).to(self.anchor)

    def _build(self) -> nn.Module:
        """The flow in float32 with fresh weights; as a map it is the identity."""
        from zuko.flows import MAF, NICE, NSF

        affine = partial(_bounded_affine, max_log_scale=self.max_log_scale)
        common: dict[str, Any] = {
            "features": self.features,
            "context": len(self.classes),
            "transforms": self.transforms,
            "hidden_features": (self.width,) * self.depth,
            "activation": nn.SiLU,
        }
        flow: nn.Module
        if self.kind == "coupling":
            flow = NICE(univariate=affine, **common)
        elif self.kind == "autoregressive":
            flow = MAF(univariate=affine, **common)
        else:
            flow = NSF(slope=math.exp(-self.max_log_scale), **common)
        for module in flow.modules():
            if isinstance(hyper := getattr(module, "hyper", None), nn.Sequential):
                for parameter in hyper[-1].parameters():
                    nn.init.zeros_(parameter)
        return flow

    def _fit(self, data: FitData) -> int:
        data = with_validation(data, self.validation_share, self._name)
        assert data.x_validation is not None
        self.whitening.fit(data.x)
        self.notes.extend(self.whitening.notes)
        self.flow = seeded_module(self._build, data.seed).to(data.x.device)
        training = self._tensors(data.x, data.classes)
        validation = self._tensors(data.x_validation, data.classes_validation)
        per_step = flops_per_step(self.flow, self._loss, training, self.batch_size)
        result = train(
            self.flow,
            self._loss,
            training,
            self.recipe,
            seed=data.seed,
            validation_loss=lambda flow: float(self._negative_log_likelihood(flow, *validation)),
            scratch=data.scratch,
            name="normalizing flow",
        )
        self.flow.to(self.anchor).requires_grad_(False)
        self._describe(data, result.best_step, result.steps_run)
        return self.whitening.flops_per_fit + per_step * result.steps_run

    def _tensors(self, x: Tensor, classes: Tensor | None) -> tuple[Tensor, ...]:
        """Whitened rows and, if conditional, one-hot contexts, in the precision of training."""
        white = self.whitening.forward(x).float()
        context = one_hot(classes, len(self.classes), white.dtype)
        return (white,) if context is None else (white, context)

    def _loss(self, flow: nn.Module, batch: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        return self._negative_log_likelihood(flow, *batch)

    @staticmethod
    def _negative_log_likelihood(flow: nn.Module, white: Tensor, context: Tensor | None = None) -> Tensor:
        """Mean over rows, in nats, of whitened rows."""
        log_prob: Tensor = flow(context).log_prob(white)
        return -log_prob.mean()

    def _describe(self, data: FitData, best_step: int, steps_run: int) -> None:
        """Note what a reader should know: how training ended, the likelihood, and where the tails go."""
        assert data.x_validation is not None
        white = self.whitening.forward(data.x_validation)
        context = one_hot(data.classes_validation, len(self.classes), white.dtype)
        learned = float(self._negative_log_likelihood(self.flow, white, context))
        gaussian = float(0.5 * (white.square() + math.log(2 * math.pi)).sum(dim=1).mean())
        self.notes.append(
            f"validation NLL {learned:.3f} nats after whitening, at step {best_step} of {steps_run} run; "
            f"whitening alone has {gaussian:.3f}"
        )
        if learned >= gaussian:
            self.notes.append(
                "the flow does not beat whitening alone on the validation data: use 'whitening'"
            )
        noise = torch.randn(data.x.shape, generator=generator_for(data.seed, "tails"), dtype=torch.float64)
        tail = self.whitening.forward(self._inverse(1.5 * noise.to(white), data.classes))
        reach = float(tail.abs().max() / self.whitening.forward(data.x).abs().max())
        self.notes.append(
            f"z of 1.5 N(0, I) maps to at most {reach:.2f} times the range of the whitened data"
        )

    def _transform(self, classes: Tensor | None) -> Any:
        return self.flow.transform(one_hot(classes, len(self.classes), self.anchor.dtype))  # type: ignore[operator]

    def _forward(self, x: Tensor, classes: Tensor | None) -> Tensor:
        z: Tensor = self._transform(classes)(self.whitening._forward(x, None))
        return z

    def _inverse(self, z: Tensor, classes: Tensor | None) -> Tensor:
        return self.whitening._inverse(self._transform(classes).inv(z), None)

    def _log_abs_det(self, x: Tensor, classes: Tensor | None) -> Tensor:
        white = self.whitening._forward(x, None)
        _, log_det = self._transform(classes).call_and_ladj(white)
        total: Tensor = self.whitening._log_abs_det(x, None) + log_det
        return total


def _bounded_affine(shift: Tensor, scale: Tensor, max_log_scale: float) -> "MonotonicAffineTransform":
    """The map `exp(a) x + b` with `|a| < max_log_scale` and `|b| < MAX_SHIFT`, both bounded smoothly."""
    from zuko.transforms import MonotonicAffineTransform

    return MonotonicAffineTransform(
        MAX_SHIFT * torch.tanh(shift / MAX_SHIFT), scale, slope=math.exp(-max_log_scale)
    )
