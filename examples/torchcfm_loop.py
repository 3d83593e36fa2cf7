"""torchcfm's own training loop on ill-conditioned latents, plain or behind a map: three lines are new.

pip install torchcfm
python examples/torchcfm_loop.py
"""

import torch
from torch import Tensor
from torchcfm.conditional_flow_matching import ConditionalFlowMatcher
from torchcfm.models.models import MLP
from torchdiffeq import odeint

from precfm import Identity, Preconditioner, Whitening, gaussian


def train_and_sample(
    x1: Tensor, preconditioner: Preconditioner, *, steps: int = 4000, n: int = 10_000, seed: int = 0
) -> Tensor:
    """Samples, shape (n, dim), of a flow that is trained on the latents x1, shape (rows, dim)."""
    torch.manual_seed(seed)
    z1 = preconditioner.fit(x1).forward(x1)  # new
    matcher = ConditionalFlowMatcher(sigma=0.0)
    network = MLP(dim=z1.shape[1], w=256, time_varying=True)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(steps):
        batch = z1[torch.randint(len(z1), (256,))]
        t, z_t, u_t = matcher.sample_location_and_conditional_flow(torch.randn_like(batch), batch)
        loss = (network(torch.cat([z_t, t[:, None]], dim=-1)) - u_t).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def field(t: Tensor, z: Tensor) -> Tensor:
        velocity: Tensor = network(torch.cat([z, t.expand(len(z), 1)], dim=-1))
        return velocity

    with torch.no_grad():
        z: Tensor = odeint(field, torch.randn(n, z1.shape[1]), torch.linspace(0, 1, 51), method="midpoint")[
            -1
        ]
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
