"""Times log-likelihoods of a trained flow beside adaptive solvers with the traces of FFJORD's code, and their errors.

    python benchmarks/likelihood.py                    # a minute on one thread; writes benchmarks/likelihood.md
    python benchmarks/likelihood.py --features F.npy   # float, shape (n, 64), in the place of the synthetic data

All solve the same ODE from t = 0.999 to 0 for the same points under the same network, an MLP of 3 x 256 that was
trained for 4,000 steps on a mixture of ten Gaussians of condition number 44. The peers integrate the divergence as a
further state of torchdiffeq's solver: exactly, by one backward pass for each dimension (`divergence_bf` in FFJORD's
`lib/layers/odefunc.py`), or by one random vector for each point, the same at all times (`divergence_approx`). Errors
are differences to 96 nodes in float64.
"""

import argparse
import copy
import math
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchdiffeq import odeint

from precfm.datasets.synthetic import mixture
from precfm.flows.likelihood import T_DATA, log_likelihood
from precfm.preconditioned_flow import PreconditionedFlow
from precfm.training.options import TrainingOptions

OUTPUT = Path(__file__).with_suffix(".md")
DIM, POINTS = 64, 200

Trace = Callable[[Tensor, Tensor, Tensor], Tensor]


def trained(features: Tensor | None) -> tuple[nn.Module, Tensor, Tensor | None]:
    """A network, and new points in its space with their labels."""
    if features is None:
        law = mixture(DIM, [44.0] * 10, seed=0)
        x, labels = law.sample(20_000 + POINTS, 0)
    else:
        x, labels = features[torch.randperm(len(features), generator=torch.Generator().manual_seed(0))], None
    x = x.float()
    options = TrainingOptions(steps=4000, learning_rate=2e-3, schedule="cosine")
    flow = PreconditionedFlow("scalar", training=options)
    flow.fit(x[POINTS:], None if labels is None else labels[POINTS:])
    z = flow.preconditioner.forward(x[:POINTS]) * T_DATA
    return flow.network.eval().requires_grad_(False), z, None if labels is None else labels[:POINTS]


def every_row(velocity: Tensor, x: Tensor, _signs: Tensor) -> Tensor:
    """FFJORD's `divergence_bf`."""
    total = torch.zeros(len(x))
    for i in range(x.shape[1]):
        total += torch.autograd.grad(velocity[:, i].sum(), x, create_graph=True)[0][:, i].detach()
    return total


def one_probe(velocity: Tensor, x: Tensor, signs: Tensor) -> Tensor:
    """FFJORD's `divergence_approx`."""
    return (torch.autograd.grad(velocity, x, signs, create_graph=True)[0] * signs).sum(1).detach()


class Joint:
    """Position and log density as one state, which a solver of torchdiffeq carries from data to noise."""

    def __init__(self, network: nn.Module, trace: Trace, **solver: object) -> None:
        self.network, self.trace, self.solver, self.evaluations = network, trace, solver, 0

    def __call__(self, z: Tensor, labels: Tensor | None) -> Tensor:
        signs = 2.0 * torch.randint(2, z.shape, generator=torch.Generator().manual_seed(0)) - 1
        self.evaluations = 0

        def field(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            self.evaluations += 1
            with torch.enable_grad():
                x = state[0].detach().requires_grad_()
                velocity = self.network(x, t.expand(len(x)), labels)
                return velocity.detach(), self.trace(velocity, x, signs)

        path, change = odeint(field, (z, torch.zeros(len(z))), torch.tensor([T_DATA, 0.0]), **self.solver)
        return -0.5 * path[-1].square().sum(1) - 0.5 * DIM * math.log(2 * math.pi) + change[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=Path)
    chosen = parser.parse_args().features
    torch.set_num_threads(1)
    network, z, labels = trained(torch.from_numpy(np.load(chosen, allow_pickle=False)) if chosen else None)
    precise = copy.deepcopy(network).double()
    reference = log_likelihood(precise, z.double(), labels, steps=96)

    def nodes(steps: int) -> Callable[[Tensor, Tensor | None], Tensor]:
        return lambda z, labels: log_likelihood(network, z, labels, steps=steps)

    midpoint = {"method": "midpoint", "options": {"step_size": T_DATA / 50}}
    calls: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
        "precfm, 32 nodes (default)": nodes(32),
        "precfm, 24 nodes": nodes(24),
        "midpoint, 50 steps, exact trace": Joint(network, every_row, **midpoint),
        "dopri5 1e-5, exact trace": Joint(network, every_row, method="dopri5", rtol=1e-5, atol=1e-5),
        "dopri5 1e-3, exact trace": Joint(network, every_row, method="dopri5", rtol=1e-3, atol=1e-3),
        "dopri5 1e-5, one random vector": Joint(network, one_probe, method="dopri5", rtol=1e-5, atol=1e-5),
    }
    lines, ours = [], 0.0
    for who, call in calls.items():
        call(z[:8], None if labels is None else labels[:8])  # first calls are nobody's time
        start = time.process_time()
        found = call(z, labels)
        seconds = (time.process_time() - start) * 1000 / POINTS
        ours = ours or seconds
        error = (found.double() - reference).abs()
        count = call.evaluations if isinstance(call, Joint) else who.split()[1]
        lines.append(
            f"| {who} | {seconds:.1f} | {seconds / ours:.2f} | {count} | {error.mean():.1g} | {error.max():.1g} |"
        )
        print(lines[-1], flush=True)
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "torchdiffeq"))
    data = "given features" if chosen else "a mixture of ten Gaussians"
    OUTPUT.write_text(
        "# Log-likelihoods: measured times and errors\n\n"
        f"Made by `python benchmarks/likelihood.py`; {packages}.\n"
        f"{POINTS} points of dimension {DIM}, {data}; mean log density {reference.mean():.2f} nats.\n"
        "Processor seconds on one thread for 1,000 points; evaluations of velocity and trace together; errors in nats\n"
        "per point. Ours evaluates 32 traces and 132 velocities, each of which costs a 64th of a trace.\n\n"
        "| who | seconds | x ours | evaluations | mean error | largest error |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |\n" + "\n".join(lines) + "\n"
    )


if __name__ == "__main__":
    main()
