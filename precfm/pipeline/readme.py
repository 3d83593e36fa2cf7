"""The table of claims in the README: both rulings, and the one number that says most, of the merged verdicts."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from math import exp
from operator import neg
from typing import Any, NamedTuple

from precfm.core.statistics import INDICATIVE_BELOW
from precfm.report.claims_document import PHOTOGRAPHS
from precfm.report.formatting import MISSING, number_text
from precfm.report.vocabulary import method_label

HEAD = (
    "| claim | theory | data | photographs | the number that says most, with its 95% interval |\n"
    "| --- | --- | --- | --- | --- |\n"
)
_BLOCK = re.compile(r"(<!-- claims: [^\n]*-->\n).*?(<!-- end -->)", re.DOTALL)
_FRECHET = "ln ratio of Frechet distances to decoded images (classifier-0-decoded)"


class Shown(NamedTuple):
    """What the table says of a claim.

    Attributes:
        claim: in a few words.
        statistic: the deciding statistic whose number is shown.
        words: what that number is.
        ratio: whether the statistic is the logarithm of a ratio, which is what is shown then.
        short_of: how far a value falls short of the claim, up to a constant; a decrease is claimed by default.
        method: whose number is shown; by default that of the method for which the least favourable one is best.
    """

    claim: str
    statistic: str
    words: str
    ratio: bool = False
    short_of: Callable[[float], float] = float
    method: str | None = None


def _from_one(value: float) -> float:
    return abs(value - 1)


SHOWN = {
    "C1": Shown("errors are weighted by Σ_t", "identity_relative_error", "largest relative difference"),
    "C2": Shown(
        "steps grow in proportion to κ",
        "descent_total_steps_slope_linear",
        "slope of ln steps over ln κ, total error, linear path, the one of three conditions that fails (claimed: 1)",
        short_of=_from_one,
    ),
    "C3": Shown(
        "with Σ_t^(-1/2) they do not",
        "preconditioned_descent_steps_slope",
        "slope of ln steps over ln κ (claimed: 0)",
        short_of=abs,
    ),
    "C4": Shown(
        "the same for the score",
        "score_descent_total_steps_slope_linear",
        "slope of ln steps over ln κ, total error, linear path (claimed: 1)",
        short_of=_from_one,
    ),
    "C5a": Shown(
        "in mixtures the slowest component controls",
        "slowest_component_excess_share",
        "its share of the excess risk in networks (claimed: at least .5)",
        short_of=neg,
    ),
    "C5b": Shown(
        "and that is the worst-conditioned one (whatever its scale: ours)",
        "scale_control_kappa_against_scale",
        "effect of κ minus that of scale on ln error (claimed: at least 0)",
        short_of=neg,
    ),
    "C6": Shown(
        "learned maps condition the path better than no map (they do), and better than whitening per class (ours)",
        "mean ln kappa(Sigma_t), all classes, beyond whitening in closed form",
        "mean ln κ(Σ_t), difference to whitening per class (claimed: at most −.405; less than that is left)",
    ),
    "C7": Shown(
        "low variances are recovered better",
        "mean |ln variance ratio|, lowest quartile (latent)",
        "mean error of ln variance, difference (claimed: at most −.05)",
    ),
    "C8a": Shown("images are better", _FRECHET, "Fréchet distance, ratio", ratio=True),
    "C8a-score": Shown("the same for the score", _FRECHET, "Fréchet distance, ratio", ratio=True),
    "C8b": Shown(
        "second moments are better (our side of quality)",
        "mean |ln variance ratio|, lowest quartile (latent)",
        "mean error of ln variance, difference (claimed: at most −.05; its other criterion is met)",
        method="low_capacity_flow",
    ),
    "C8b-score": Shown(
        "the same for the score",
        "ln ratio of Frechet distances, second moments (latent-whitened)",
        "whitened Fréchet distance, ratio",
        ratio=True,
    ),
    "C8c": Shown(
        "likelihoods are better (our side of quality)",
        "negative log-likelihood (latent)",
        "nats, difference (behind class whitening a few rows decide, which leaves it open)",
        method="whitening",
    ),
    "C8c-score": Shown("the same for the score", "negative log-likelihood (latent)", "nats, difference"),
    "C9": Shown(
        "it helps late rather than early (on a Gaussian, which whitening alone solves)",
        "horizon_gain_difference_cosine",
        "gain at the long minus gain at the short horizon (claimed: at least 0)",
        short_of=neg,
    ),
    "C10": Shown(
        "the gain survives baselines of equal cost, and a Gaussian skip (ours); in images there is no gain",
        _FRECHET,
        "Fréchet distance, ratio to the strongest of these",
        ratio=True,
    ),
    "C11": Shown("the gain follows the map's quality", "", ""),
    "S1": Shown("ours: a mixture skip is better on all sides", _FRECHET, "Fréchet distance, ratio", True),
}


def with_claims(text: str, claims: Sequence[Mapping[str, Any]]) -> str:
    """The README with its table of claims made anew; as it is where it has no place for one.

    Args:
        text: the README; the table stands between `<!-- claims: ... -->` and `<!-- end -->`.
        claims: of the merged `claims.json`.
    """
    photographs = {
        each["claim"].removesuffix(PHOTOGRAPHS): each["data"]
        for each in claims
        if each["claim"].endswith(PHOTOGRAPHS)
    }
    rows = [
        _row(each, photographs.get(each["claim"], MISSING))
        for each in claims
        if not each["claim"].endswith(PHOTOGRAPHS)
    ]
    return _BLOCK.sub(lambda found: f"{found[1]}{HEAD}{''.join(rows)}{found[2]}", text)


def _row(claim: Mapping[str, Any], photographs: str) -> str:
    shown = SHOWN.get(claim["claim"], Shown(claim["text"], "", ""))
    heading = f"{claim['claim']}: {claim['verdict']}".lower()
    anchor = re.sub(r"[^\w -]", "", heading).replace(" ", "-")
    name = f"[{claim['claim']}](results/published/claims.md#{anchor}) {shown.claim}"
    rulings = (claim[side] if side in claim["rule"] else MISSING for side in ("theory", "data"))
    return f"| {name} | {' | '.join(rulings)} | {photographs} | {_effect(claim, shown)} |\n"


def _effect(claim: Mapping[str, Any], shown: Shown) -> str:
    """The number of each experiment that counts, of the method for which the least favourable one is best.

    All statistics of data that are shown fall where the claim holds, so the largest value is the least favourable.
    """
    found = {
        each["experiment"]: [
            row
            for row in each["statistics"]
            if row["statistic"] == shown.statistic and row["role"] == "decides" and row["value"] is not None
        ]
        for each in claim["by_experiment"]
    }
    enough = {name: rows for name, rows in found.items() if rows and _n(rows) >= INDICATIVE_BELOW}
    by_method = _by_method((name, row) for name, rows in (enough or found).items() for row in rows)
    if shown.method is not None:
        by_method = {shown.method: by_method.get(shown.method, [])}
    if not any(by_method.values()):
        return MISSING

    def shortfall(each: tuple[str, Any]) -> float:
        return shown.short_of(each[1]["value"])

    method, its = min(by_method.items(), key=lambda each: max(map(shortfall, each[1])))
    worst = [max(group, key=shortfall) for _, group in groupby(its, key=lambda each: each[0])]
    baselines = {row["baseline"] for _, row in worst if row["baseline"]}
    against = f" to {method_label(baselines.pop())}" if shown.ratio and len(baselines) == 1 else ""
    numbers = ", ".join(f"{_number(row, shown.ratio)} (`{name}`)" for name, row in worst)
    return f"{method_label(method)}, {shown.words}{against}: {numbers}".removeprefix(", ")


def _by_method(rows: Iterable[tuple[str, Any]]) -> dict[str, list[tuple[str, Any]]]:
    found: dict[str, list[tuple[str, Any]]] = {}
    for name, row in rows:
        found.setdefault(row["method"], []).append((name, row))
    return found


def _n(rows: Sequence[Mapping[str, Any]]) -> int:
    return min(int(row["n"]) for row in rows)


def _number(row: Mapping[str, Any], ratio: bool) -> str:
    value, low, high = (
        None if row[end] is None else number_text(exp(row[end]) if ratio else row[end])
        for end in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]" if low != high else str(value)
