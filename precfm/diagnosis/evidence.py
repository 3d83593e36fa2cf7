"""What this project has measured on data, quoted from published tables; a test holds the quotation to the tables."""

from typing import NamedTuple


class Sides(NamedTuple):
    """A method by the three sides of quality, the lower the better; None where the table has no number.

    Attributes:
        frechet: Frechet distance in the features of a judge to held-out images that went through the encoder.
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
        distance: metric and space of the Frechet distance.
    """

    experiment: str
    revision: str
    setting: str
    what: str
    kappa: float
    sides: dict[str, Sides]
    distance: tuple[str, str] = ("frechet", "classifier-0-decoded")


PUBLISHED = (
    Evidence(
        "mnist-pca64",
        "b882188f4f6a",
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
        "b882188f4f6a",
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
PHOTOGRAPHS = Evidence(
    "flowers",
    "98ff6cd1075e",
    "flowers-dct",
    "photographs as block-DCT maps of 18 x 8 x 8, a U-Net, 1,000 steps, 3 seeds",
    48900.0,
    {
        "scalar": Sides(57.2, 1.17, 38.8),
        "per_channel": Sides(49.1, 0.545, -130.0),
        "per_frequency": Sides(39.2, 0.16, -319.0),
        "low_capacity_flow": Sides(47.5, 0.636, -155.0),
        "gaussian_skip": Sides(44.4, 0.135, -67.8),
        "floor": Sides(2.76, 0.136, None),
    },
    ("frechet_pca64", "imagenet-decoded"),
)
LARGEST_KAPPA = max(each.kappa for each in PUBLISHED)
NAMES = " and ".join(each.experiment for each in PUBLISHED)
ROWS = {
    "scalar": "one scale (no map)",
    "whitening": "whitening",
    "low_capacity_flow": "low-capacity flow",
    "class_whitening": "class whitening",
    "per_channel": "one scale for each channel",
    "per_frequency": "whitening of channels per frequency",
    "normalizing_flow": "normalizing flow",
    "normalizing_flow-P": "one scale, as many parameters",
    "gaussian_skip": "Gaussian skip around the network",
    "mixture_skip": "mixture skip around the network",
    "floor": "floor: real rows",
}
MAPS = ("whitening", "low_capacity_flow", "class_whitening", "normalizing_flow")
MAPS_OF_MAPS = ("per_channel", "per_frequency", "low_capacity_flow")


def quoted() -> list[str]:
    """The quotation as lines of text: a small table for each experiment, and what its columns are."""
    lines = [
        "Frechet: distance of decoded samples to held-out images (judge 0; of flowers:",
        "64 components, an ImageNet network); low: mean |ln variance ratio| of samples",
        "to data in the quarter of directions with the smallest variance; NLL: nats of",
        "held-out latents. The lower the better.",
    ]
    for evidence in (*PUBLISHED, PHOTOGRAPHS):
        lines += [
            "",
            f"{evidence.experiment}, revision {evidence.revision}, condition number {evidence.kappa:g}:",
            f"{evidence.what}",
            f"{'':36}{'Frechet':>9}{'low':>9}{'NLL':>10}",
        ]
        for name, title in ROWS.items():
            if (sides := evidence.sides.get(name)) is None:
                continue
            nll = "" if sides.nll is None else f"{sides.nll:.3g}"
            lines.append(f"{title:36}{sides.frechet:>9.3g}{sides.low:>9.3g}{nll:>10}".rstrip())
    return [
        *lines,
        "",
        "NLL of class whitening: by a few rows; of the Gaussian skip on MNIST: by one",
        "seed of five that diverged. The condition number of flowers is that of the",
        "channels at each frequency; its precision falls behind every map, by the",
        "ImageNet network, and the low-capacity flow has its Frechet distance without",
        "a flow behind it, too. Tables: results/published/NAME/tables/sides.md.",
    ]


def gaussian_skip_quoted() -> str:
    """What leaves the space as it is and still brought second moments nearer."""
    pairs = [(each.sides["scalar"], each.sides["gaussian_skip"]) for each in PUBLISHED]
    low = " and ".join(f"from {scalar.low:g} to {skip.low:g}" for scalar, skip in pairs)
    frechet = " and ".join(f"from {scalar.frechet:g} to {skip.frechet:g}" for scalar, skip in pairs)
    scalar, skip = (PHOTOGRAPHS.sides[name] for name in ("scalar", "gaussian_skip"))
    return (
        f"In {NAMES} it changed |ln variance ratio| of low variances {low}, and the Frechet distance {frechet}; on "
        f"MNIST one seed's likelihood of five diverged. On photographs ({PHOTOGRAPHS.experiment}, condition number "
        f"{PHOTOGRAPHS.kappa:,.0f}, skip along frequencies) it changed them from {scalar.low:g} to {skip.low:g}, and "
        f"from {scalar.frechet:g} to {skip.frechet:g}."
    )


def photographs_quoted() -> str:
    """What maps did where the latents are ill-conditioned."""
    plain, sides = PHOTOGRAPHS.sides["scalar"], PHOTOGRAPHS.sides
    low = " to ".join(f"{pick(sides[name].low for name in MAPS_OF_MAPS):g}" for pick in (min, max))
    return (
        f"on latents of photographs ({PHOTOGRAPHS.experiment}, condition number {PHOTOGRAPHS.kappa:,.0f}, 3 seeds, a "
        f"short training) |ln variance ratio| of low variances fell from {plain.low:g} to {low} behind three maps, and "
        "likelihoods and a Frechet distance improved, but precision fell"
    )
