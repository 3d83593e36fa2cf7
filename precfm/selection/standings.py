"""Where candidates stand: paired differences to the best, the one-standard-error rule, who goes on."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

DEFAULT = "scalar"  # kept unless another candidate beats it


class Standing(NamedTuple):
    """Where a candidate stands in a rung.

    Attributes:
        scores: by seed, the lower the better.
        projected: mean over seeds, if the next steps change as much as the last ones did.
        difference: mean paired difference to the best, projected; at least 0.
        standard_error: of the difference.
    """

    scores: list[float]
    projected: float
    difference: float
    standard_error: float


def standings(
    scores: Mapping[str, Tensor], before: Mapping[str, Tensor] | None = None, doublings: float = 0.0
) -> dict[str, Standing]:
    """Each candidate against the best of them.

    The variance of a mean paired difference is that of the means over rows, over the number of seeds, and that of the
    means over seeds, over the number of rows: the rows are the same for all seeds, so that more seeds do not lower it.

    Args:
        scores: by name, shape (seeds, rows), paired in both; one column where rows are not scored one by one.
        before: the same after half of the steps; where it is missing, nothing is projected.
        doublings: of the steps, by which the scores are projected, linearly in the logarithm of the steps.
    """
    ahead = {name: now + doublings * (now - before[name]) if before else now for name, now in scores.items()}
    best = min(ahead, key=lambda name: float(ahead[name].mean()), default="")
    found = {}
    for name, each in ahead.items():
        difference = each - ahead[best]
        variance = sum(
            float(difference.mean(dim=1 - axis).var()) / difference.shape[axis]
            for axis in (0, 1)
            if difference.shape[axis] > 1
        )
        found[name] = Standing(
            scores[name].mean(dim=1).tolist(),
            float(each.mean()),
            float(difference.mean()),
            math.sqrt(variance),
        )
    return found


def preferred(table: Mapping[str, Standing]) -> tuple[str, str]:
    """The first candidate within one standard error of the best.

    Args:
        table: from simple to complex.

    Returns:
        Its name, and the reason.
    """
    best = best_of(table)
    chosen = next(name for name, each in table.items() if each.difference <= each.standard_error)

    def behind(name: str) -> str:
        return f"{table[name].difference:.3g} (standard error {table[name].standard_error:.2g})"

    if chosen != best:
        return chosen, (
            f"{chosen} is the simplest within one standard error of the best, {best}, which is better by "
            f"{behind(chosen)}"
        )
    reason = f"{best} is the best"
    if best != DEFAULT and DEFAULT in table:
        reason += f", better than {DEFAULT}, the default, by {behind(DEFAULT)}"
    return chosen, reason


def best_of(table: Mapping[str, Standing]) -> str:
    """Name of the candidate with the lowest projected score."""
    return min(table, key=lambda name: table[name].projected)


def rung_steps(challengers: int, most: int) -> list[int]:
    """Steps of each rung, doubling up to `most`: one that drops nobody, one for each halving to three, the last."""
    halvings = max(0, math.ceil(math.log2(max(challengers, 1) / 3)))
    return sorted({max(1, most // 2**rung) for rung in range(halvings + 2)})


def better_half(table: Mapping[str, Standing]) -> set[str]:
    """The default, and the better half of its challengers."""
    challengers = sorted((name for name in table if name != DEFAULT), key=lambda name: table[name].projected)
    return {*challengers[: -(-len(challengers) // 2)], *({DEFAULT} & set(table))}
