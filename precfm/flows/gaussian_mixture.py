"""A Gaussian mixture for each class, in closed form: its density, and the velocity of the flow that ends in it."""

import math
import warnings
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from precfm.core.errors import PrecfmError
from precfm.core.options import Count, Fraction, checked
from precfm.core.seeds import derived_seed, generator_for
from precfm.flows.models.bases import Basis, EigenBasis
from precfm.flows.paths import ProbabilityPath

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture

# Smallest variance of a component in a direction, as a share of the pooled variance there: validation rows choose.
FLOORS = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
SMALLEST = 1e-8  # of the pooled variances, relative to the largest: float32 resolves no less
MOST_ITERATIONS = 100  # of EM
# Floating point operations of EM for a row, component, direction and iteration: two products with precisions, two of
# the responsibilities with the rows and their squares.
FLOPS_OF_EM = 8
BLOCK = 2**18  # numbers in a temporary tensor: such blocks stay in a processor's cache


class Posterior(NamedTuple):
    """What x_t tells of its component, in the eigenbasis.

    Attributes:
        log_joint: ln (weight of the component times its density at x_t) + dim / 2 ln 2 pi, shape (batch, components).
        weights: posterior probability w_k of each component, its softmax.
        scaled: q_k = (x_t - alpha_t m_k) / S_k, the component's part of minus the score, (batch, components, dim).
        variances: S_k = alpha_t^2 v_k + sigma_t^2, shape (batch, components, dim).
        own_means: m_k - m_y of the components of each row's class, shape (batch, components, dim).
        own_variances: v_k of them, shape (batch, components, dim).
    """

    log_joint: Tensor
    weights: Tensor
    scaled: Tensor
    variances: Tensor
    own_means: Tensor
    own_variances: Tensor


class ClassMixture(nn.Module):
    """For each class a mixture of Gaussians whose covariances are diagonal in one eigenbasis.

    The basis is that of the covariance within classes, pooled over them, or `directions`. Rows and times are arguments
    of the methods; points are given in the eigenbasis, after `to_eigenbasis`, relative to alpha_t times the mean of
    their class, so that a large mean costs no digits.

    Args:
        dim: of a row.
        classes: number of classes, at least 1.
        components: Gaussians for each class.
        directions: the kind of basis; None for the eigenvectors of one covariance.

    Attributes:
        basis: U, one direction per column, shape (dim, dim); with other `directions` their rotation.
        eigenvalues: pooled variances within classes along them, shape (dim,).
        class_means: m_y, not rotated, shape (classes, dim).
        means: m_k - m_y of each component, rotated, shape (classes, components, dim).
        variances: v_k, shape (classes, components, dim).
        log_weights: logarithms of the components' probabilities within their class, shape (classes, components).
        floor: share of the pooled variance below which no variance falls, shape ().
        flops: floating point operations of the fit, shape (), int64.

    Example:
        >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)).double()
        >>> mixture = ClassMixture(2, 1, 3).double()
        >>> notes = mixture.fit(x, torch.zeros(200, dtype=torch.int64))
        >>> mixture.log_prob(x, torch.zeros(200, dtype=torch.int64)).shape
        torch.Size([200])
    """

    basis: Tensor
    eigenvalues: Tensor
    class_means: Tensor
    means: Tensor
    variances: Tensor
    log_weights: Tensor
    floor: Tensor
    flops: Tensor

    @checked
    def __init__(
        self, dim: Count, classes: Count, components: Count, directions: Basis | None = None
    ) -> None:
        super().__init__()
        self.dim, self.classes, self.components = dim, classes, components
        self.directions = directions or EigenBasis((dim,))
        *groups, size, _ = self.directions.rotation_shape
        for name, value in {
            "basis": torch.eye(size).repeat(*groups, 1, 1),
            "eigenvalues": torch.ones(dim),
            "class_means": torch.zeros(classes, dim),
            "means": torch.zeros(classes, components, dim),
            "variances": torch.ones(classes, components, dim),
            "log_weights": torch.full((classes, components), -math.log(components)),
            "floor": torch.tensor(0.0),
            "flops": torch.tensor(0),
        }.items():
            self.register_buffer(name, value)

    @property
    def num_numbers(self) -> int:
        """Free numbers: the basis with its variances as a symmetric matrix, means, and the components."""
        of_components = self.classes * (self.components * (2 * self.dim + 1) - 1)
        return self.directions.num_numbers + self.classes * self.dim + of_components

    @torch.no_grad()
    def fit(
        self,
        x: Tensor,
        classes: Tensor,
        validation: tuple[Tensor, Tensor] | None = None,
        *,
        seed: int = 0,
        validation_share: Fraction = 0.1,
    ) -> list[str]:
        """Fit by expectation maximization, each class by itself, and choose the floor of the variances.

        Directions are scaled to pooled variance one, so that a floor is a share of it. EM runs with the lowest floor
        added to the variances; then all variances are raised to the floor of `FLOORS` under which validation rows are
        most likely. A class without rows takes the mean of all and the pooled covariance.

        Args:
            x: rows, shape (n, *dim); here and below, what has more axes is flattened.
            classes: of the rows, int64, shape (n,).
            validation: rows and classes that choose the floor; None holds out a share of `x`.
            seed: of the starts (k-means++) and of what is held out.
            validation_share: what is held out.

        Returns:
            Sentences on the floor, and on classes in which EM did not converge.

        Raises:
            PrecfmError: a class has fewer than two rows for a component, or no class varies.

        References:
            Scikit-learn: Machine Learning in Python (Pedregosa et al., 2011), `sklearn.mixture.GaussianMixture`.
        """
        if validation is None:
            order = torch.randperm(len(x), generator=generator_for(seed, "validation rows")).to(x.device)
            held_out, kept = order.tensor_split([max(1, round(validation_share * len(x)))])
            validation = x[held_out], classes[held_out]
            x, classes = x[kept], classes[kept]
        counts = torch.bincount(classes, minlength=self.classes)
        self._require_rows(counts)
        self.double()
        scaled = self._fit_within_classes(x.double().flatten(1), classes, counts)
        flops = self.directions.flops(len(x))
        unfinished = 0
        self.log_weights.fill_(-math.log(self.components))
        shares = torch.ones_like(self.variances)
        for label in counts.nonzero().flatten().tolist():
            found = _em(scaled[classes == label], self.components, derived_seed(seed, "mixture", label))
            self.means[label] = torch.from_numpy(found.means_) * self.eigenvalues.sqrt().cpu()
            shares[label] = torch.from_numpy(found.covariances_)
            self.log_weights[label] = torch.from_numpy(found.weights_).log()
            unfinished += not found.converged_
            per_iteration = FLOPS_OF_EM * int(counts[label]) * self.components * self.dim
            flops += (found.n_iter_ + 1) * per_iteration  # the start costs about as much as an iteration
        self._choose_floor(shares, validation[0].double(), validation[1])
        flops += len(FLOORS) * len(validation[0]) * FLOPS_OF_EM * self.components * self.dim
        self.flops.fill_(flops)
        raised, floor = float((shares < self.floor).double().mean()), float(self.floor)
        self.to(validation[0].dtype)
        notes = [
            f"variances of the mixture are at least {floor:g} of the pooled ones, which validation rows chose; "
            f"{raised:.0%} of them were raised to it"
        ]
        if unfinished:
            notes.append(f"EM did not converge in {MOST_ITERATIONS} iterations in {unfinished} classes")
        return notes

    def _fit_within_classes(self, x: Tensor, classes: Tensor, counts: Tensor) -> Tensor:
        """Means of classes, pooled variances and basis; returns the rows in scaled directions."""
        sums = torch.zeros_like(self.class_means).index_add_(0, classes, x)
        means = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), x.mean(dim=0))
        centred = x - means[classes]
        degrees = max(len(x) - int((counts > 0).sum()), 1)
        eigenvalues, basis = self.directions.spectrum(self.directions.second_moment(centred) / degrees)
        if not float(eigenvalues.max()) > 0:
            raise PrecfmError("z1: does not vary within any class; rows that differ are needed")
        self.class_means.copy_(means)
        self.basis.copy_(basis)
        self.eigenvalues.copy_(eigenvalues.clamp(min=SMALLEST * float(eigenvalues.max())))
        self.means.zero_()
        return self.directions.to(centred, basis) / self.eigenvalues.sqrt()

    def _choose_floor(self, shares: Tensor, x: Tensor, classes: Tensor) -> None:
        """Raise the variances, given as shares of the pooled ones, to the floor under which rows are most likely."""
        likelihoods = []
        for floor in FLOORS:
            self.variances.copy_(shares.clamp(min=floor) * self.eigenvalues)
            likelihoods.append(float(self.log_prob(x, classes).mean()))
        self.floor.fill_(FLOORS[max(range(len(FLOORS)), key=likelihoods.__getitem__)])
        self.variances.copy_(shares.clamp(min=float(self.floor)) * self.eigenvalues)

    def to_eigenbasis(self, x: Tensor, classes: Tensor, alpha: Tensor | float = 1.0) -> Tensor:
        """U^T (x - alpha m_y), shape (n, dim)."""
        return self.directions.to(
            x.flatten(1) - alpha * self.class_means.index_select(0, classes), self.basis
        )

    def from_eigenbasis(self, along: Tensor) -> Tensor:
        """U times coordinates along the directions, shape (n, dim)."""
        return self.directions.back(along, self.basis)

    def log_prob(self, x: Tensor, classes: Tensor) -> Tensor:
        """Log density of rows under the mixture of their class, in nats, shape (n,)."""
        return self.log_joint(x, classes).logsumexp(1)

    def log_joint(self, x: Tensor, classes: Tensor) -> Tensor:
        """Log density of rows and each component of their class together, in nats, shape (n, components)."""
        rows = self.to_eigenbasis(x, classes)
        one, zero = rows.new_ones(len(rows), 1), rows.new_zeros(len(rows), 1)
        found = [
            self.posterior(rows[part], classes[part], one[part], zero[part]).log_joint
            for part in self._blocks(len(rows))
        ]
        constant = 0.5 * self.dim * math.log(2 * math.pi)
        return torch.cat(found) - constant if found else rows.new_zeros(0, self.components)

    def posterior(self, rows: Tensor, classes: Tensor, alpha: Tensor, sigma: Tensor) -> Posterior:
        """Which component x_t comes from.

        Args:
            rows: U^T (x_t - alpha_t m_y), shape (batch, dim).
            classes: shape (batch,).
            alpha: alpha_t, shape (batch, 1).
            sigma: sigma_t, shape (batch, 1).
        """
        # Of whole rows `index_select` takes half the time of an index.
        means, own, logs = (
            each.index_select(0, classes) for each in (self.means, self.variances, self.log_weights)
        )
        offsets = torch.addcmul(rows[:, None], alpha[..., None], means, value=-1)
        variances = torch.addcmul(sigma.square()[..., None], alpha.square()[..., None], own)
        scaled = offsets / variances
        # The logarithm takes as long as all products: one for each pair of directions.
        pairs = variances[..., : self.dim // 2] * variances[..., self.dim - self.dim // 2 :]
        log_det = pairs.log().sum(-1)
        if self.dim % 2:
            log_det = log_det + variances[..., self.dim // 2].log()
        joint = logs - 0.5 * ((offsets * scaled).sum(-1) + log_det)
        return Posterior(joint, joint.softmax(1), scaled, variances, means, own)

    def velocity(self, rows: Tensor, t: Tensor, classes: Tensor, path: ProbabilityPath) -> Tensor:
        """The exact velocity E[alpha_t' x1 + sigma_t' x0 | x_t, class] for data of the mixture, in the eigenbasis.

        Given the component, E[x1] = m_k + alpha_t v_k q_k and E[x0] = sigma_t q_k, see `Posterior`; their posterior
        means are products of the weights with matrices. The part of the class mean, alpha_t' m_y, is the caller's.

        Args:
            rows: U^T (x_t - alpha_t m_y), shape (batch, dim).
            t: times, shape (batch, 1).
            classes: shape (batch,).
            path: the probability path.

        Returns:
            Velocities in the eigenbasis, shape (batch, dim).
        """
        schedules = path.alpha(t), path.sigma(t), path.d_alpha(t), path.d_sigma(t)
        blocks = self._blocks(len(rows))
        if len(blocks) == 1:  # slices cost a small network a per cent of its step
            return self._velocity(rows, classes, *schedules)
        parts = [self._velocity(rows[b], classes[b], *(each[b] for each in schedules)) for b in blocks]
        return torch.cat(parts) if parts else torch.zeros_like(rows)

    def _velocity(
        self, rows: Tensor, classes: Tensor, alpha: Tensor, sigma: Tensor, d_alpha: Tensor, d_sigma: Tensor
    ) -> Tensor:
        known = self.posterior(rows, classes, alpha, sigma)
        weights = known.weights[:, None]
        noise = (weights @ known.scaled)[:, 0] * sigma
        spread = (weights @ (known.own_variances * known.scaled))[:, 0]
        data = torch.addcmul((weights @ known.own_means)[:, 0], alpha, spread)
        return torch.addcmul(d_alpha * data, d_sigma, noise)

    def jacobian(self, rows: Tensor, t: Tensor, classes: Tensor, path: ProbabilityPath) -> Tensor:
        """The derivative of `velocity` by the rows, in closed form, shape (batch, dim, dim); arguments as there.

        With the velocity v_k = alpha_t' m_k + g_k S_k q_k of a component, g_k = (alpha_t alpha_t' v_k +
        sigma_t sigma_t') / S_k, and grad w_k = w_k (sum_j w_j q_j - q_k), it is
        diag(sum_k w_k g_k) + sum_k w_k v_k (sum_j w_j q_j - q_k)^T. All rows are held at once: the caller's blocks
        bound the memory.
        """
        alpha, sigma, d_alpha, d_sigma = path.alpha(t), path.sigma(t), path.d_alpha(t), path.d_sigma(t)
        known = self.posterior(rows, classes, alpha, sigma)
        weights, scaled = known.weights[:, None], known.scaled
        slope = (alpha * d_alpha)[:, None] * known.own_variances + (sigma * d_sigma)[:, None]
        own = d_alpha[:, None] * known.own_means + slope * scaled
        gradients = known.weights[..., None] * (weights @ scaled - scaled)  # of the weights
        found = own.mT @ gradients
        found.diagonal(dim1=1, dim2=2).add_((weights @ (slope / known.variances))[:, 0])
        return found

    def raise_variances(self, floor: float) -> None:
        """Raise all variances to at least a share of the pooled ones: a smoother law, no longer the likeliest."""
        self.variances.copy_(torch.maximum(self.variances, floor * self.eigenvalues))
        self.floor.clamp_(min=floor)

    def _require_rows(self, counts: Tensor) -> None:
        few = ((counts > 0) & (counts < 2 * self.components)).nonzero().flatten().tolist()
        if few or not int(counts.sum()):
            label = few[0] if few else 0
            raise PrecfmError(
                f"components: got {self.components}, but class {label} has {int(counts[label])} rows; at least two "
                "rows for each component are needed"
            )

    def _blocks(self, rows: int) -> list[slice]:
        size = max(1, BLOCK // (self.components * self.dim))
        return [slice(start, start + size) for start in range(0, rows, size)]


def _em(rows: Tensor, components: int, seed: int) -> "GaussianMixture":
    """Expectation maximization for one class."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(
        components,
        covariance_type="diag",
        reg_covar=FLOORS[0],
        max_iter=MOST_ITERATIONS,
        init_params="k-means++",
        random_state=seed % 2**32,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mixture.fit(rows.cpu().numpy())
