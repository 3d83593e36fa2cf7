"""The analytic Gaussian velocity as a skip connection: a network that only learns what is not Gaussian."""

from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.options import Count, Neutral, checked
from precfm.flows.models.base import VelocityNetwork, Wrapper
from precfm.flows.models.bases import Directions, basis_of
from precfm.flows.paths import ProbabilityPath, per_sample

ROWS_PER_FEATURE = 10  # a class with fewer rows than this per feature leans on the pooled covariance
# Smallest eigenvalue over the largest of the pooled covariance: float32 resolves a standard deviation of 1e-4
# of the largest one to about a thousandth.
FLOOR = 1e-8


class Coefficients(NamedTuple):
    """What scales a direction at a time; shapes broadcast from times (batch, 1) and eigenvalues (..., dim).

    Attributes:
        skip: factor of the centred point in the velocity; 0 without a skip.
        in_scale: gives the network's input unit variance.
        out_scale: standard deviation of what the network has to fit, the target minus the skip.
    """

    skip: Tensor
    in_scale: Tensor
    out_scale: Tensor


def coefficients(
    eigenvalues: Tensor, t: Tensor, path: ProbabilityPath, with_skip: bool = True
) -> Coefficients:
    """Skip and scales along directions in which the data have the given variances.

    With a, s the path's weights, a', s' their derivatives and l an eigenvalue, x_t has the variance
    S = a^2 l + s^2 and the covariance C = a a' l + s s' with the target u = a' x1 + s' x0. For Gaussian data the
    best prediction of u is C / S times the centred point, and what it leaves has the variance
    Var(u) - C^2 / S = (a' s - s' a)^2 l / S. Without a skip the network has to fit u itself, of variance
    a'^2 l + s'^2.

    Args:
        eigenvalues: positive, shape (dim,) or (batch, dim).
        t: times in [0, 1], shape (batch, 1).
        path: the probability path.
        with_skip: whether the skip takes the Gaussian part out of the target.

    Returns:
        The coefficients, each broadcastable to (batch, dim).

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), appendix B.6,
        whose c_skip, c_in and c_out these become for one variance in all directions,
        https://arxiv.org/abs/2206.00364

    Example:
        >>> from precfm.flows.paths import LinearPath
        >>> half = coefficients(torch.tensor([1.0]), torch.tensor([[0.5]]), LinearPath())
        >>> [round(float(value), 3) for value in half]
        [0.0, 1.414, 1.414]
    """
    alpha, sigma, d_alpha, d_sigma = path.alpha(t), path.sigma(t), path.d_alpha(t), path.d_sigma(t)
    variance = alpha.square() * eigenvalues + sigma.square()
    if with_skip:
        skip = (alpha * d_alpha * eigenvalues + sigma * d_sigma) / variance
        out_scale = (d_alpha * sigma - d_sigma * alpha).abs() * (eigenvalues / variance).sqrt()
    else:
        skip = torch.zeros_like(variance)
        out_scale = (d_alpha.square() * eigenvalues + d_sigma.square()).sqrt()
    return Coefficients(skip, variance.rsqrt(), out_scale)


class GaussianSkip(Wrapper):
    """Velocity v(x_t, t, y) = the exact velocity of a Gaussian fitted to the data + a scaled network.

    With class mean m_y, eigenvalues l and eigenbasis U of a covariance, r = U^T (x_t - alpha_t m_y) and the
    factors of `coefficients`:

        v = alpha_t' m_y + U [ skip * r + out_scale * network(in_scale * r, t, y) ]

    The network's last layer starts at zero, so training starts from the Gaussian solution; the loss stays the
    plain one. What the Gaussian is:

    * `none`: no skip. Scales take eigenvalues and basis from the second moment of all data about zero. With both
      scalings off this is exactly the plain network: no statistics, last layer not at zero. With the input scaling
      alone the network sees Sigma_t^(-1/2) x_t in the eigenbasis, not centred: behind a map that centres the data, as
      `scalar` does, the second moment is their covariance.
    * `scalar`: mean zero and one variance for all directions and classes, E|x1|^2 / dim, as EDM does.
    * `mean`: class means, and one variance: the mean variance within classes.
    * `covariance`: class means and the covariance within classes, pooled over them.
    * `classwise`: class means and each class's own covariance; with n_y < 10 dim rows it is
      w Sigma_pooled + (1 - w) Sigma_y, w = 1 - n_y / (10 dim). It stores and gathers one basis per class.

    Of a feature map the network gets and gives values at positions, so that a convolution sees neighbours: with the
    basis B in the place of U it is v = alpha_t' m_y + B [ skip * r + out_scale * B^T network(B (in_scale * r)) ].

    A class without rows, such as the null class of `label_dropout`, takes the mean of all data and the pooled
    covariance. Eigenvalues are floored at 1e-8 of
    the largest one of the pooled covariance, so that nothing is singular at t = 1.

    Args:
        network: what learns the rest.
        path: the probability path that the field is trained on.
        skip: what the Gaussian knows of the data.
        input_scaling: whether the network sees in_scale * r; otherwise x_t itself.
        output_scaling: whether its output is multiplied by out_scale and rotated by U; otherwise it is added as
            it is.
        directions: `eigen`, U as above; of feature maps, for which one covariance of all numbers needs too many rows,
            `frequency` or `patches`, see `precfm.flows.models.bases`.
        patch: positions of a patch along each axis.

    Attributes:
        notes: sentences on classes with too few rows, after `fit`.

    Raises:
        PrecfmError: an argument is out of its range.

    References:
        | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
        | https://arxiv.org/abs/2206.00364

        | Regularized Discriminant Analysis (Friedman, 1989), for mixing with the pooled covariance
        | https://doi.org/10.1080/01621459.1989.10478752

    Example:
        >>> from precfm.flows.models.mlp import MLPVelocity
        >>> from precfm.flows.paths import LinearPath
        >>> model = GaussianSkip(MLPVelocity(2), LinearPath())
        >>> data = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        >>> model.fit(data, None)
        >>> model(torch.zeros(5, 2), torch.ones(5)).shape
        torch.Size([5, 2])
    """

    means: Tensor
    eigenvalues: Tensor
    basis: Tensor

    @checked
    def __init__(
        self,
        network: VelocityNetwork,
        path: ProbabilityPath,
        *,
        skip: Literal["none", "scalar", "mean", "covariance", "classwise"] = "covariance",
        input_scaling: bool = True,
        output_scaling: bool = True,
        directions: Annotated[Directions, Neutral("eigen")] = "eigen",
        patch: Annotated[Count, Neutral(2)] = 2,
    ) -> None:
        super().__init__(network)
        self.path, self.skip = path, skip
        self.input_scaling, self.output_scaling = input_scaling, output_scaling
        self.directions, self.patch = directions, patch
        self.plain = skip == "none" and not input_scaling and not output_scaling
        if self.plain:
            return
        if skip == "classwise" and self._at_positions:
            raise PrecfmError(
                f"skip: got 'classwise' for feature maps of shape {self.shape}, where each point would gather a "
                "basis of its own; 'covariance' is needed"
            )
        network.zero_output()
        classes = max(self.num_labels, 1)
        spectra = classes if skip == "classwise" else 1
        # One variance for all directions needs the trace alone, of a map that of single positions.
        single = self._isotropic and self._at_positions
        self._basis = basis_of(*(("patches", self.shape, 1) if single else (directions, self.shape, patch)))
        self.register_buffer("means", torch.zeros(classes, self.dim))
        self.register_buffer("eigenvalues", torch.ones(spectra, self.dim))
        if not self._isotropic:
            *groups, size, _ = self._basis.rotation_shape
            self.register_buffer("basis", torch.eye(size).repeat(spectra, *groups, 1, 1))
        self.declare_fit()

    @torch.no_grad()
    def fit(
        self,
        z1: Tensor,
        labels: Tensor | None,
        *,
        seed: int = 0,
        validation: tuple[Tensor, Tensor | None] | None = None,
    ) -> None:
        """Fill means, eigenvalues and bases, as `Wrapper.fit`; nothing is random, and nothing is validated."""
        self.checked_rows(z1)
        if self.plain:
            return
        x, classes = z1.double().flatten(1), self.classes_of(labels, z1)
        counts = torch.bincount(classes, minlength=len(self.means))
        means, degrees = x.new_zeros(self.means.shape), len(x)
        if self._centred:
            sums = torch.zeros_like(means).index_add_(0, classes, x)
            means = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), x.mean(dim=0))
            degrees -= int((counts > 0).sum())
        centred = x - means[classes]
        pooled = self._basis.second_moment(centred) / max(degrees, 1)
        if not float(pooled.diagonal(dim1=-2, dim2=-1).sum()) > 0:
            raise PrecfmError("z1: does not vary within any class; rows that differ are needed")
        self.notes = self._basis.few_rows(degrees) if self._at_positions else []
        self._fill_spectra(pooled, [centred[classes == label] for label in range(len(means))])
        self.means.copy_(means)
        self.mark_fitted()

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The velocity at `x_t`, as `VelocityNetwork.forward`; refused before `fit`."""
        self.checked_points(x_t)
        if self.plain:
            plain: Tensor = self.network(x_t, t, labels)
            return plain
        with torch.autocast(x_t.device.type, enabled=False):  # rotated in bfloat16, small variances are lost
            rows, classes = x_t.flatten(1), self.classes_of(labels, x_t)
            time = per_sample(t, rows)
            mean = self.means[classes]
            eigenvalues = self.eigenvalues[classes] if self.skip == "classwise" else self.eigenvalues
            skip, in_scale, out_scale = coefficients(eigenvalues, time, self.path, self.skip != "none")
            along = self._to_eigenbasis(rows - self.path.alpha(time) * mean, classes)
            seen = in_scale * along if self.input_scaling else rows
            if self.input_scaling and self._at_positions:
                seen = self._from_eigenbasis(seen, classes)
        learned: Tensor = self.network(seen.reshape(x_t.shape), t, labels).flatten(1).to(rows.dtype)
        with torch.autocast(x_t.device.type, enabled=False):
            velocity = self.path.d_alpha(time) * mean
            if self.output_scaling:
                if self._at_positions:
                    learned = self._to_eigenbasis(learned, classes)
                found = velocity + self._from_eigenbasis(skip * along + out_scale * learned, classes)
            else:
                found = velocity + self._from_eigenbasis(skip * along, classes) + learned
        return found.reshape(x_t.shape)

    @property
    def num_fitted_numbers(self) -> int:
        """Class means, and variances or symmetric matrices; nothing where all is plain."""
        if self.plain:
            return 0
        spectra = len(self.eigenvalues)
        of_spectra = 1 if self._isotropic else spectra * self._basis.num_numbers
        return of_spectra + (self.means.numel() if self._centred else 0)

    @property
    def adds_velocity(self) -> bool:
        """Whether there is a skip."""
        return self.skip != "none"

    @property
    def _centred(self) -> bool:
        return self.skip not in ("none", "scalar")

    @property
    def _at_positions(self) -> bool:
        """Whether data are feature maps, of which the network has to see positions."""
        return len(self.shape) > 1

    @property
    def _isotropic(self) -> bool:
        return self.skip in ("scalar", "mean")

    def _fill_spectra(self, pooled: Tensor, centred: list[Tensor]) -> None:
        """Eigenvalues and bases from the pooled covariance and the centred rows of each class."""
        if self._isotropic:
            self.eigenvalues.fill_(pooled.trace() / len(pooled))
            return
        spectrum = self._basis.spectrum(pooled)
        floor = FLOOR * float(spectrum[0].max())
        spectra = [spectrum]
        if self.skip == "classwise":
            covariances = [self._shrunk(label, rows, pooled) for label, rows in enumerate(centred)]
            spectra = [self._basis.spectrum(each) for each in covariances]
        self.eigenvalues.copy_(torch.stack([variances.clamp(min=floor) for variances, _ in spectra]))
        self.basis.copy_(torch.stack([rotation for _, rotation in spectra]))

    def _rotation(self, classes: Tensor) -> Tensor:
        return self.basis[classes] if self.skip == "classwise" else self.basis[0]

    def _to_eigenbasis(self, rows: Tensor, classes: Tensor) -> Tensor:
        return rows if self._isotropic else self._basis.to(rows, self._rotation(classes))

    def _from_eigenbasis(self, along: Tensor, classes: Tensor) -> Tensor:
        return along if self._isotropic else self._basis.back(along, self._rotation(classes))

    def _shrunk(self, label: int, centred: Tensor, pooled: Tensor) -> Tensor:
        """A class's covariance, mixed with the pooled one where the rows are few; shape (dim, dim)."""
        weight = max(0.0, 1 - len(centred) / (ROWS_PER_FEATURE * self.dim))
        if weight > 0 and label < max(self.num_classes, 1):
            self.notes.append(
                f"class {label} has {len(centred)} rows of {self.dim} features: covariance {weight:.2f} of the "
                f"pooled one and {1 - weight:.2f} of its own"
            )
        return weight * pooled + (1 - weight) * centred.T @ centred / max(len(centred) - 1, 1)
