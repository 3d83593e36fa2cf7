"""The component of a Gaussian mixture as the network's condition: what the mixture skip knows, in no velocity."""

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.options import Count, checked
from precfm.core.seeds import generator_for
from precfm.flows.gaussian_mixture import ClassMixture
from precfm.flows.models.adapted import AdaptedNetwork
from precfm.flows.models.base import VelocityNetwork, Wrapper
from precfm.flows.paths import ProbabilityPath


class MixtureLabel(Wrapper):
    """A network that is told which component of its class's mixture (`ClassMixture`) a point belongs to.

    The network is built again with a label for each component of each class: `label * components + component`. Those
    are the labels of `forward`, whereas `num_classes` stays the number of classes. A flow (`PreconditionedFlow`) trains
    with `training_labels` of z1, and samples with `drawn_labels` of the classes that it is asked for. Its density sums
    over the components, and takes as many times as long.

    Args:
        network: its class and options count; its weights are drawn anew.
        path: the probability path that the field is trained on.
        components: Gaussians for each class.

    Attributes:
        mixture: the mixture.
        notes: the floor of its variances, after `fit`.

    Raises:
        PrecfmError: an argument is out of its range, or the network is a wrapper.

    Example:
        >>> from precfm.flows.models.mlp import MLPVelocity
        >>> from precfm.flows.paths import LinearPath
        >>> model = MixtureLabel(MLPVelocity(2), LinearPath(), components=3)
        >>> z1 = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        >>> model.fit(z1, None)
        >>> model(z1, torch.ones(100), model.training_labels(z1, None)).shape
        torch.Size([100, 2])
    """

    uses_seed = True
    costly_fit = True

    @checked
    def __init__(self, network: VelocityNetwork, path: ProbabilityPath, *, components: Count = 10) -> None:
        if isinstance(network, Wrapper):
            raise PrecfmError(
                f"wrappers: got a {type(network).__name__} inside a MixtureLabel, which has other labels; it stands "
                "alone"
            )
        if isinstance(network, AdaptedNetwork):
            raise PrecfmError(
                "wrappers: got 'mixture_label', which builds its network anew with other labels; a registered model is "
                f"needed, not a {type(network.module).__name__}"
            )
        if network.label_dropout:
            raise PrecfmError(
                f"label_dropout: got {network.label_dropout} inside a MixtureLabel, whose labels are components; 0 is "
                "needed"
            )
        classes = max(network.num_classes, 1)
        super().__init__(type(network)(network.shape, classes * components, **network.options))  # type: ignore[call-arg]
        self.num_classes = network.num_classes
        self.path, self.components = path, components
        self.mixture = ClassMixture(self.dim, classes, components)
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
        """The velocity at `x_t`, as `VelocityNetwork.forward`, for labels of components; refused before `fit`."""
        self.checked_points(x_t)
        velocity: Tensor = self.network(x_t, t, labels)
        return velocity

    def training_labels(self, z1: Tensor, labels: Tensor | None) -> Tensor:
        """The component of its class that each row most probably comes from, int64, shape (n,).

        Args:
            z1: rows, shape (n, dim).
            labels: their classes, shape (n,); None without classes.
        """
        classes = self.classes_of(labels, z1)
        return classes * self.components + self.mixture.log_joint(z1, classes).argmax(1)

    def drawn_labels(self, rows: Tensor, labels: Tensor | None, seed: int) -> Tensor:
        """For each row a component of the class asked for, drawn by the mixture's weights, int64, shape (n,).

        Args:
            rows: as many as are needed, shape (n, dim).
            labels: classes, shape (n,); None without classes.
            seed: of the draw, which the CPU makes.
        """
        classes = self.classes_of(labels, rows)
        level = torch.rand(len(rows), 1, generator=generator_for(seed, "mixture components")).to(rows)
        below = self.mixture.log_weights[classes].exp().cumsum(1).to(rows) < level
        return classes * self.components + below.sum(1).clamp(max=self.components - 1)

    def labels_with_weights(self, rows: Tensor, labels: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """For each component its labels and the logarithms of its weights, for all rows; arguments as above."""
        classes = self.classes_of(labels, rows)
        return [
            (classes * self.components + each, self.mixture.log_weights[classes, each])
            for each in range(self.components)
        ]

    @property
    def flops_per_fit(self) -> int:
        """See `ClassMixture.fit`."""
        return int(self.mixture.flops)

    @property
    def num_fitted_numbers(self) -> int:
        """Free numbers of the mixture."""
        return self.mixture.num_numbers
