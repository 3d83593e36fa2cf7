"""The exact velocity of a Gaussian mixture as a skip connection: a network that learns what the mixture lacks."""

from typing import Literal

import torch
from torch import Tensor

from precfm.core.options import Count, checked
from precfm.flows.gaussian_mixture import ClassMixture
from precfm.flows.models.base import VelocityNetwork, Wrapper
from precfm.flows.paths import ProbabilityPath, per_sample

FLOPS = 12  # element-wise operations of the mixture's velocity for a component and direction; a logarithm counts as one


class MixtureSkip(Wrapper):
    """Velocity v(x_t, t, y) = the exact velocity of a Gaussian mixture of the class + a scaled network.

    With the mixture of class y (`ClassMixture`), its mean m_y, the pooled variances l within classes in their
    eigenbasis U, r = U^T (x_t - alpha_t m_y), and the factors of `precfm.flows.models.gaussian_skip.coefficients` for
    l:

        v = v_mixture(x_t, t, y) + U [ out_scale * network(in_scale * r, t, y) ]

    The network's last layer starts at zero, so training starts from the mixture; the loss stays the plain one, and the
    mixture is not trained. With one component it is a Gaussian skip with a diagonal covariance for each class.

    Args:
        network: what learns the rest.
        path: the probability path that the field is trained on.
        components: Gaussians for each class.
        use: `skip`, as above; `input`: the network alone, which sees the mixture's velocity beside x_t.

    Attributes:
        mixture: the mixture.
        notes: the floor of its variances, after `fit`.

    Raises:
        PrecfmError: an argument is out of its range.

    Example:
        >>> from precfm.flows.models.mlp import MLPVelocity
        >>> from precfm.flows.paths import LinearPath
        >>> model = MixtureSkip(MLPVelocity(2), LinearPath(), components=3)
        >>> model.fit(torch.randn(100, 2, generator=torch.Generator().manual_seed(0)), None)
        >>> model(torch.zeros(5, 2), torch.ones(5)).shape
        torch.Size([5, 2])
    """

    uses_seed = True
    costly_fit = True

    @checked
    def __init__(
        self,
        network: VelocityNetwork,
        path: ProbabilityPath,
        *,
        components: Count = 10,
        use: Literal["skip", "input"] = "skip",
    ) -> None:
        super().__init__(network)
        self.path, self.components, self.use = path, components, use
        if use == "skip":
            network.zero_output()
        else:
            network.extend_input(self.dim)
        self.mixture = ClassMixture(self.dim, max(self.num_classes, 1), components)
        self.declare_fit()

    def fit(
        self,
        z1: Tensor,
        labels: Tensor | None,
        *,
        seed: int = 0,
        validation: tuple[Tensor, Tensor | None] | None = None,
    ) -> None:
        """Fit the mixture, as `Wrapper.fit`; validation rows choose the floor of its variances."""
        self.checked_rows(z1)
        held_out = None
        if validation is not None:
            self.checked_rows(validation[0])
            held_out = validation[0], self.classes_of(validation[1], validation[0])
        self.notes = self.mixture.fit(z1, self.classes_of(labels, z1), held_out, seed=seed)
        self.mark_fitted()

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The velocity at `x_t`, as `VelocityNetwork.forward`; refused before `fit`."""
        self.checked_points(x_t)
        mixture, path, classes = self.mixture, self.path, self.classes_of(labels, x_t)
        time = per_sample(t, x_t)
        along = mixture.to_eigenbasis(x_t, classes, path.alpha(time))
        known = mixture.velocity(along, time, classes, path)
        of_class_means = path.d_alpha(time) * mixture.class_means.index_select(0, classes)
        if self.use == "input":
            known = of_class_means + known @ mixture.basis.T
            learned: Tensor = self.network(torch.cat([x_t, known], dim=1), t, labels)
            return learned
        # The scales of `coefficients`, with fewer passes.
        alpha, sigma = path.alpha(time), path.sigma(time)
        in_scale = torch.addcmul(sigma.square(), alpha.square(), mixture.eigenvalues).rsqrt()
        gain = (path.d_alpha(time) * sigma - path.d_sigma(time) * alpha).abs()
        learned = self.network(in_scale * along, t, labels) * (gain * in_scale * mixture.eigenvalues.sqrt())
        return of_class_means + (known + learned) @ mixture.basis.T

    @property
    def flops_per_fit(self) -> int:
        """See `ClassMixture.fit`."""
        return int(self.mixture.flops)

    @property
    def num_fitted_numbers(self) -> int:
        """Free numbers of the mixture."""
        return self.mixture.num_numbers

    @property
    def flops_per_sample(self) -> int:
        """Element-wise operations of the mixture's velocity."""
        return FLOPS * self.components * self.dim

    @property
    def adds_velocity(self) -> bool:
        """Whether the mixture is a skip."""
        return self.use == "skip"
