"""The log-likelihood of a flow, by the instantaneous change of variables along its ODE."""

import math

import torch
from torch import Tensor
from torch.func import jvp, vmap
from torchdiffeq import odeint

from precfm.core.options import Count, checked
from precfm.core.seeds import generator_for
from precfm.flows.objectives import Network
from precfm.flows.sampling import equal_steps

EXACT_UP_TO = 64  # dimensions up to which the trace of the Jacobian is computed, not estimated
CHUNK = 16  # directions of the Jacobian at once
PROBES = 8  # of Hutchinson's estimate, for each point
T_DATA = 1 - 1e-3  # at t = 1 itself the field of data on a surface is singular


@checked
@torch.no_grad()
def log_likelihood(
    field: Network,
    z: Tensor,
    labels: Tensor | None = None,
    *,
    t_data: float = T_DATA,
    t_noise: float = 0.0,
    noise_scale: float = 1.0,
    steps: Count = 100,
    seed: int = 0,
    batch_size: Count = 1024,
) -> Tensor:
    """Log density of points under the flow, in the space of the flow.

    The ODE is solved by the midpoint rule from the data back to the noise together with the divergence of the field:
    log p(z) = log N(z(t_noise); 0, noise_scale^2 I) - int div v dt. The divergence is exact up to 64 dimensions;
    above, it is Hutchinson's estimate from `PROBES` Rademacher vectors for each point, the same at all times, which is
    unbiased.

    Args:
        field: the velocity, `field(z, t, labels)`.
        z: points, shape (n, *dim).
        labels: classes, int64, shape (n,), or None.
        t_data: time at which the points are taken to lie.
        t_noise: time of the noise.
        noise_scale: standard deviation of the noise there.
        steps: of the solver.
        seed: of the estimate's vectors.
        batch_size: points at once.

    Returns:
        Log densities in nats, shape (n,), in the type of `z`.

    Raises:
        PrecfmError: a count is below 1.

    References:
        | Neural Ordinary Differential Equations (Chen et al., 2018), theorem 1, https://arxiv.org/abs/1806.07366
        | FFJORD (Grathwohl et al., 2018), section 3.1, https://arxiv.org/abs/1810.01367

    Example:
        >>> still = log_likelihood(lambda z, t, labels: 0 * z, torch.zeros(1, 2))
        >>> round(float(still), 4)  # a field that does nothing leaves the standard normal density
        -1.8379
    """
    shape = z.shape[1:]
    dim = math.prod(shape)

    def flat_field(rows: Tensor, t: Tensor, asked: Tensor | None) -> Tensor:
        return field(rows.reshape(len(rows), *shape), t, asked).flatten(1)

    times = torch.tensor([t_data, t_noise], dtype=z.dtype, device=z.device)
    generator = generator_for(seed, "trace probes")

    def directions(points: int) -> Tensor:
        """Vectors e with E sum e e^T = I: all axes, or random signs for each point; shape (vectors, points, dim)."""
        if dim <= EXACT_UP_TO:
            return torch.eye(dim)[:, None].expand(dim, points, dim).to(z)
        signs = torch.randint(2, (PROBES, points, dim), generator=generator)
        scaled: Tensor = (2.0 * signs - 1) / PROBES**0.5
        return scaled.to(z)

    found = []
    for start in range(0, len(z), batch_size):
        block = slice(start, start + batch_size)
        asked = None if labels is None else labels[block]

        along = directions(len(z[block]))

        def joint(
            t: Tensor, state: tuple[Tensor, Tensor], asked: Tensor | None = asked, along: Tensor = along
        ) -> tuple[Tensor, Tensor]:
            """The velocity and its divergence, the sum of e^T J e."""
            points, now = state[0], t.expand(len(state[0]))

            def part(e: Tensor) -> Tensor:
                moved = jvp(lambda x: flat_field(x, now, asked), (points,), (e,))[1]
                summed: Tensor = (moved * e).sum(1)
                return summed

            return flat_field(points, now, asked), vmap(part, chunk_size=CHUNK)(along).sum(0)

        begin = (z[block].flatten(1), z.new_zeros(len(z[block])))
        path, change = odeint(joint, begin, times, method="midpoint", options=equal_steps(steps))
        noise = path[-1] / noise_scale
        density = -0.5 * noise.square().sum(1) - dim * (0.5 * math.log(2 * math.pi) + math.log(noise_scale))
        # Solved from data to noise, `change` is minus the integral from noise to data.
        found.append(density + change[-1])
    return torch.cat(found) if found else z.new_zeros(0)
