"""The exact velocity of a Gaussian mixture as a skip connection: a network that learns what the mixture lacks."""

from typing import Annotated, Literal

import torch
from torch import Tensor

from precfm.core.options import Count, Neutral, checked
from precfm.flows.gaussian_mixture import ClassMixture
from precfm.flows.models.base import VelocityNetwork, Wrapper
from precfm.flows.models.bases import Directions, basis_of
from precfm.flows.paths import ProbabilityPath, per_sample

FLOPS = 12  # element-wise operations of the mixture's velocity for a component and direction; a logarithm counts as one


class MixtureSkip(Wrapper):
    """Velocity v(x_t, t, y) = the exact velocity of a Gaussian mixture of the class + a scaled network.

    With the mixture of class y (`ClassMixture`), its mean m_y, the pooled variances l within classes in their
    eigenbasis U, r = U^T (x_t - alpha_t m_y), and the factors of `precfm.flows.models.gaussian_skip.coefficients` for
    l:

        v = v_mixture(x_t, t, y) + U [ out_scale * network(in_scale * r, t, y) ]

    Of a feature map the network gets and gives values at positions, as in a `GaussianSkip`. A null class (of
    `label_dropout`) has no mixture, but the mean of all data and the pooled covariance.

    The network's last layer starts at zero, so training starts from the mixture; the loss stays the plain one, and the
    mixture is not trained. With one component it is a Gaussian skip with a diagonal covariance for each class.

    Args:
        network: what learns the rest.
        path: the probability path that the field is trained on.
        components: Gaussians for each class.
        use: `skip`, as above; `input`: the network alone, which sees the mixture's velocity beside x_t.
        directions: along which covariances are diagonal, `eigen`; of feature maps rather `frequency` or `patches`, see
            `precfm.flows.models.bases`.
        patch: positions of a patch along each axis.

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
        directions: Annotated[Directions, Neutral("eigen")] = "eigen",
        patch: Annotated[Count, Neutral(2)] = 2,
    ) -> None:
        super().__init__(network)
        self.path, self.components, self.use = path, components, use
        self.directions, self.patch = directions, patch
        basis = basis_of(directions, self.shape, patch)
        if use == "skip":
            network.zero_output()
        else:
            network.extend_input(self.dim)
        self.mixture = ClassMixture(self.dim, max(self.num_labels, 1), components, basis)
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
        with torch.autocast(x_t.device.type, enabled=False):  # rotated in bfloat16, small variances are lost
            mixture, path, classes = self.mixture, self.path, self.classes_of(labels, x_t)
            rows = x_t.flatten(1)
            time = per_sample(t, rows)
            along = mixture.to_eigenbasis(rows, classes, path.alpha(time))
            known = mixture.velocity(along, time, classes, path)
            of_class_means = path.d_alpha(time) * mixture.class_means.index_select(0, classes)
            if self.use == "input":
                seen = torch.cat([rows, of_class_means + mixture.from_eigenbasis(known)], dim=1)
            else:  # the scales of `coefficients`, with fewer passes
                alpha, sigma = path.alpha(time), path.sigma(time)
                in_scale = torch.addcmul(sigma.square(), alpha.square(), mixture.eigenvalues).rsqrt()
                gain = (path.d_alpha(time) * sigma - path.d_sigma(time) * alpha).abs()
                seen = self._at_positions(in_scale * along)
        learned: Tensor = self.network(seen, t, labels)
        if self.use == "input":
            return learned
        with torch.autocast(x_t.device.type, enabled=False):
            learned = learned.flatten(1).to(rows.dtype)
            if len(self.shape) > 1:
                learned = mixture.directions.to(learned, mixture.basis)
            learned = learned * (gain * in_scale * mixture.eigenvalues.sqrt())
            return (of_class_means + mixture.from_eigenbasis(known + learned)).reshape(x_t.shape)

    def _at_positions(self, along: Tensor) -> Tensor:
        """What the network sees: of a feature map values at positions, of vectors the eigenbasis."""
        if len(self.shape) == 1:
            return along
        return self.mixture.from_eigenbasis(along).reshape(-1, *self.shape)

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
