"""What this project has measured on data, quoted from published tables; a test holds the quotation to the tables."""

from typing import NamedTuple


class Sides(NamedTuple):
    """A method by the three sides of quality, the lower the better; None where the table has no number.

    Attributes:
        frechet: Frechet distance in the features of judge 0 to held-out images that went through the encoder.
        low: mean |ln variance ratio| along the quarter of directions with the smallest variance.
        nll: negative log-likelihood of held-out latents in nats.
    """

    frechet: float
    low: float
    nll: float | None


class Evidence(NamedTuple):
    """A published experiment: results/published/NAME/tables/sides.csv and latents.csv, manifest.json.

    Attributes:
        experiment: its name.
        revision: that made it.
        setting: of the table's rows.
        what: the data and the training.
        kappa: condition number of the latents.
        sides: by method.
    """

    experiment: str
    revision: str
    setting: str
    what: str
    kappa: float
    sides: dict[str, Sides]


PUBLISHED = (
    Evidence(
        "mnist-pca64",
        "b43847079634",
        "mnist-pca64-tuned",
        "all of MNIST in 64 principal components, tuned recipe, 10,000 steps, 5 seeds",
        43.8,
        {
            "none": Sides(9.85, 0.126, 2.92),
            "scalar": Sides(8.51, 0.124, -0.349),
            "whitening": Sides(17.2, 0.103, 6.95),
            "class_whitening": Sides(37.7, 0.127, 14000.0),
            "normalizing_flow": Sides(38.0, 0.0331, 21.6),
            "low_capacity_flow": Sides(18.8, 0.0739, 12.2),
            "gaussian_skip": Sides(11.7, 0.0282, 681000000.0),
            "mixture_skip": Sides(10.5, 3.08, 6.1),
            "normalizing_flow-P": Sides(6.46, 0.127, -5.55),
            "floor": Sides(1.56, 0.0318, None),
        },
    ),
    Evidence(
        "fashion-pca64",
        "b43847079634",
        "fashion_mnist-pca64",
        "the same of Fashion-MNIST",
        250.0,
        {
            "none": Sides(2.02, 0.155, -15.4),
            "scalar": Sides(1.97, 0.159, -15.6),
            "whitening": Sides(4.9, 0.196, -5.92),
            "class_whitening": Sides(9.13, 0.026, 642.0),
            "normalizing_flow": Sides(8.34, 0.0427, -2.84),
            "low_capacity_flow": Sides(5.47, 0.102, -6.68),
            "gaussian_skip": Sides(1.74, 0.101, -15.0),
            "mixture_skip": Sides(1.34, 0.106, -18.9),
            "normalizing_flow-P": Sides(1.55, 0.162, -19.3),
            "floor": Sides(0.329, 0.0147, None),
        },
    ),
)
LARGEST_KAPPA = max(each.kappa for each in PUBLISHED)
NAMES = " and ".join(each.experiment for each in PUBLISHED)
MAPS = ("whitening", "low_capacity_flow", "class_whitening", "normalizing_flow")


def quoted() -> list[str]:
    """The quotation, a sentence for each experiment and side of quality."""
    return [line for evidence in PUBLISHED for line in _quoted(evidence)]


def gaussian_skip_quoted() -> str:
    """What leaves the space as it is and still brought second moments nearer, in one sentence."""
    pairs = [(each.sides["scalar"], each.sides["gaussian_skip"]) for each in PUBLISHED]
    low = ", ".join(f"{scalar.low:g} to {skip.low:g}" for scalar, skip in pairs)
    frechet = ", ".join(f"{scalar.frechet:g} to {skip.frechet:g}" for scalar, skip in pairs)
    return (
        "Where second moments count most, wrappers=['gaussian_skip'] leaves the space as it is; in "
        f"{NAMES} it changed |ln variance ratio| from {low} and the Frechet distance from {frechet}."
    )


def _quoted(evidence: Evidence) -> list[str]:
    sides = evidence.sides
    scalar, floor = sides["scalar"], sides["floor"]
    wider, gaussian, mixture = (
        sides[name] for name in ("normalizing_flow-P", "gaussian_skip", "mixture_skip")
    )

    def each(field: str) -> str:
        return ", ".join(f"{getattr(sides[name], field):.3g} {name.replace('_', ' ')}" for name in MAPS)

    return [
        f"Experiment {evidence.experiment}, revision {evidence.revision} (tables/sides: {evidence.what}; condition "
        f"number {evidence.kappa:g}):",
        f"Perceptual distance (Frechet, judge 0, decoded; floor {floor.frechet:g}) lost with every map: "
        f"{scalar.frechet:g} with one scale; {each('frechet')}; a flow without a map that has as many parameters as "
        f"the normalizing flow with its: {wider.frechet:g}.",
        f"Second moments (|ln variance ratio|, lowest quarter; floor {floor.low:g}): {scalar.low:g} with one scale; "
        f"{each('low')}.",
        f"Likelihood (nats, lower is better) lost with every map: {scalar.nll:g} with one scale; {each('nll')} (class "
        "whitening by a few rows).",
        f"Skips, which leave the space as it is: Gaussian {gaussian.frechet:g} and {gaussian.low:g} by the first two, "
        f"mixture {mixture.frechet:g} and {mixture.low:g}.",
    ]
