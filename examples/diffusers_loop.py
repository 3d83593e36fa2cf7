"""A U-Net of diffusers on latents of an autoencoder, behind a map: trained as their flow-matching scripts do.

pip install diffusers
python examples/diffusers_loop.py
"""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DModel
from torch import Tensor

from precfm import PerChannel, Preconditioner


def train_and_sample(
    x1: Tensor, preconditioner: Preconditioner, *, steps: int = 200, n: int = 64, seed: int = 0
) -> Tensor:
    """Samples, shape (n, channels, size, size), of a flow trained on latents x1 of that shape."""
    torch.manual_seed(seed)
    z1 = preconditioner.fit(x1).forward(x1)  # new
    channels, size = z1.shape[1], z1.shape[-1]
    network = UNet2DModel(
        sample_size=size, in_channels=channels, out_channels=channels, layers_per_block=1, norm_num_groups=8,
        block_out_channels=(32, 64), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    for _ in range(steps):
        batch = z1[torch.randint(len(z1), (64,))]
        noise, sigma = torch.randn_like(batch), torch.rand(len(batch), 1, 1, 1)
        predicted = network((1 - sigma) * batch + sigma * noise, 1000 * sigma.flatten()).sample
        loss = (predicted - (noise - batch)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    z = torch.randn(n, channels, size, size)
    scheduler.set_timesteps(50)
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            z = scheduler.step(network(z, timestep.expand(n)).sample, timestep, z).prev_sample
    samples: Tensor = preconditioner.inverse(z)  # new
    return samples


def main() -> None:
    """Train on synthetic latents with channels of unequal spread, and compare the spread of the samples."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([1.0, 0.3, 0.1, 0.03])[:, None, None]
    x1 = torch.randn(2000, 4, 8, 8, generator=generator) * spread
    samples = train_and_sample(x1, PerChannel())
    print("standard deviations, sampled over true:", (samples.std(dim=(0, 2, 3)) / spread.flatten()).tolist())


if __name__ == "__main__":
    main()
