"""flow_matching's own training loop and solver on ill-conditioned latents, plain or behind a map: three lines are new.

pip install flow_matching
python examples/flow_matching_loop.py
"""

import torch
from flow_matching.path import AffineProbPath
from flow_matching.path.scheduler import CondOTScheduler
from flow_matching.solver import ODESolver
from flow_matching.utils import ModelWrapper
from torch import Tensor, nn

from precfm import Identity, Preconditioner, Whitening, gaussian


class Velocity(ModelWrapper):
    """A velocity network as flow_matching's solver calls it."""

    def __init__(self, dim: int, width: int = 256) -> None:
        super().__init__(
            nn.Sequential(
                nn.Linear(dim + 1, width), nn.SELU(), nn.Linear(width, width), nn.SELU(),
                nn.Linear(width, width), nn.SELU(), nn.Linear(width, dim),
            )
        )  # fmt: skip

    def forward(self, x: Tensor, t: Tensor, **extras: Tensor) -> Tensor:
        """The velocity at x, shape (batch, dim), and t, shape (batch,) or ()."""
        velocity: Tensor = self.model(torch.cat([x, t.expand(len(x))[:, None]], dim=-1))
        return velocity


def train_and_sample(
    x1: Tensor, preconditioner: Preconditioner, *, steps: int = 4000, n: int = 10_000, seed: int = 0
) -> Tensor:
    """Samples, shape (n, dim), of a flow that is trained on the latents x1, shape (rows, dim)."""
    torch.manual_seed(seed)
    z1 = preconditioner.fit(x1).forward(x1)  # new
    path, network = AffineProbPath(scheduler=CondOTScheduler()), Velocity(z1.shape[1])
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(steps):
        batch = z1[torch.randint(len(z1), (256,))]
        point = path.sample(x_0=torch.randn_like(batch), x_1=batch, t=torch.rand(len(batch)))
        loss = (network(point.x_t, point.t) - point.dx_t).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    solver = ODESolver(velocity_model=network)
    z = solver.sample(x_init=torch.randn(n, z1.shape[1]), method="midpoint", step_size=0.02)
    samples: Tensor = preconditioner.inverse(z)  # new
    return samples


def main() -> None:
    """Print sampled over true variance along the five directions of smallest variance."""
    law = gaussian(dim=16, condition_number=1e4)
    x1 = law.sample(20_000, seed=0).float()
    variances, directions = torch.linalg.eigh(law.cov)
    for preconditioner in (Identity(), Whitening()):
        samples = train_and_sample(x1, preconditioner).double()
        ratios = (samples @ directions).var(dim=0) / variances
        print(type(preconditioner).__name__, [round(float(ratio), 2) for ratio in ratios[:5]])


if __name__ == "__main__":
    main()
