"""A normalizing flow behind a whitening: a learned invertible map, conditional on the label if wanted."""

import math
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from precfm.core.options import Count, checked
from precfm.preconditioners.likelihood_flow import MAX_SHIFT, LikelihoodFlow

if TYPE_CHECKING:
    from zuko.transforms import MonotonicAffineTransform


class NormalizingFlow(LikelihoodFlow):
    """Whitens the data, then applies a normalizing flow that was trained by maximum likelihood.

    The logarithm of every scale and every shift are bounded smoothly, so that points in the tails of the
    latent Gaussian stay near the data instead of being thrown far away. The flow starts as the identity,
    trains on a validation likelihood with early stopping, and is evaluated in float64. A flow that diverged is
    refused: its likelihood, or its round trip on the data and the tails, says so.

    Arguments:
        kind: `coupling` is affine coupling (fast both ways), `autoregressive` masked affine autoregression
            and `spline` autoregressive rational-quadratic splines (inverted feature by feature).
        transforms: number of transformations.
        width: hidden units per layer of each transformation's network.
        depth: hidden layers of each transformation's network.
        max_log_scale: bound on the absolute logarithm of each transformation's scale.
        inherited: see `LearnedPreconditioner`; the label enters as a one-hot context.

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

    @checked
    def __init__(
        self,
        kind: Literal["coupling", "autoregressive", "spline"] = "coupling",
        *,
        transforms: Count = 3,
        width: Count = 128,
        depth: Count = 2,
        max_log_scale: Annotated[float, Field(gt=0, le=5)] = 1.5,
        **inherited: Any,
    ) -> None:
        super().__init__(**inherited)
        self.kind = kind
        self.transforms, self.width, self.depth = transforms, width, depth
        self.max_log_scale = max_log_scale

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

    def _negative_log_likelihood(
        self, network: nn.Module, white: Tensor, classes: Tensor | None = None
    ) -> Tensor:
        log_prob: Tensor = network(self._context(classes, white.dtype)).log_prob(white)
        return -log_prob.mean()

    def _context(self, classes: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """One-hot rows (batch, number of classes) of class positions (batch,)."""
        return None if classes is None else nn.functional.one_hot(classes, len(self.classes)).to(dtype)

    def _forward(self, x: Tensor, classes: Tensor | None) -> Tensor:
        context, z = self._context(classes, self.anchor.dtype), self.whitening._forward(x, None)
        for transform in self._layers:
            z = transform(context)(z)
        return z

    def _inverse(self, z: Tensor, classes: Tensor | None) -> Tensor:
        context = self._context(classes, self.anchor.dtype)
        for transform in reversed(self._layers):
            z = transform(context).inv(z)
        return self.whitening._inverse(z, None)

    @property
    def _layers(self) -> nn.ModuleList:
        """One after the other, since a graph of zuko's composition of them cannot be compiled."""
        return self.network.transform.transforms  # type: ignore[return-value, union-attr]

    def _log_abs_det(self, x: Tensor, classes: Tensor | None) -> Tensor:
        context, white = self._context(classes, self.anchor.dtype), self.whitening._forward(x, None)
        _, log_det = self.network.transform(context).call_and_ladj(white)  # type: ignore[operator]
        total: Tensor = self.whitening._log_abs_det(x, None) + log_det
        return total


def _bounded_affine(shift: Tensor, scale: Tensor, max_log_scale: float) -> "MonotonicAffineTransform":
    """The map `exp(a) x + b` with `|a| < max_log_scale` and `|b| < MAX_SHIFT`, both bounded smoothly."""
    from zuko.transforms import MonotonicAffineTransform

    return MonotonicAffineTransform(
        MAX_SHIFT * torch.tanh(shift / MAX_SHIFT), scale, slope=math.exp(-max_log_scale)
    )
