"""Synthetic frames with known effects, in the shape that an experiment hands to the report."""

from functools import cache

import numpy as np
import pandas as pd

from precfm.report.frames import CURVE_POINTS, FRAMES, training_curves

DIM = 16
METHODS = (
    "none",
    "scalar",
    "per_channel",
    "whitening",
    "class_whitening",
    "normalizing_flow",
    "third_learned",
    "ours",
)
LEARNED = (
    "normalizing_flow",
    "third_learned",
    "ours",
)  # the others have no randomness: one artifact for all seeds
GAIN = dict(zip(METHODS, (0.0, -0.02, -0.05, -0.25, -0.32, -0.22, -0.1, -0.18), strict=True))
STEPS = (500, 1000, 2000, 3500, 5000)
CLASSIFIERS = ("classifier-0", "classifier-1")
DECODED = tuple(f"{space}-decoded" for space in CLASSIFIERS)
DRAWS = 10  # of the floor
REPLICATES = 20
BANDS = 6


def checkpoints(method: str, seed: int) -> tuple[int, ...]:
    """Of a flow; one with as many training FLOPs ends at a step of its own for every seed."""
    return (*STEPS[:-1], STEPS[-1] + 550 + seed) if method.endswith("-F") else STEPS


def gain(method: str) -> float:
    """The effect of a method; a matched baseline has none."""
    return GAIN.get(method, 0.0)


@cache
def frames(
    seeds: int = 5, methods: tuple[str, ...] = METHODS, dataset: str = "mnist5k-vae"
) -> dict[str, pd.DataFrame]:
    """Made once; not to be changed."""
    rng = np.random.default_rng(7)
    values = records(rng, seeds, methods, dataset)
    costs = budgets(seeds, methods, dataset)
    return {
        "records": values,
        "bootstrap": bootstrap(values),
        "spectra": spectra(rng, seeds, methods, dataset),
        "reconstruction": reconstruction(dataset),
        "path_conditioning": path_conditioning(rng, seeds, methods, dataset),
        "recovery": recovery(rng, seeds, methods, dataset),
        "radial": radial(seeds, methods, dataset),
        "preconditioners": preconditioners(rng, seeds, methods, dataset),
        "budgets": costs,
        "training": training(costs),
        "predictors": predictors(methods, dataset),
    }


def training(costs) -> pd.DataFrame:
    """Histories of trainings, as the frame that is made of them."""
    steps = range(1, 3 * CURVE_POINTS + 1)
    history = pd.DataFrame({"step": steps, "loss": [2 / step**0.1 for step in steps]})
    runs = costs[["dataset", "method", "seed"]].to_dict("records")
    return training_curves([(run, history) for run in runs])


def cell(table, **chosen):
    """The one row of a tidy table with these values."""
    for column, value in chosen.items():
        table = table[table[column] == value]
    assert len(table) == 1
    return table.iloc[0]


def records(rng, seeds, methods, dataset) -> pd.DataFrame:
    rows = []

    def add(method, seed, step, values, key=""):
        key = key or f"{method}-s{seed}"
        for metric, space, value in values:
            judge = space.removesuffix("-decoded")
            extractor = {"classifier-0": "a81f0c33", "classifier-1": "77b0e2d9"}.get(judge, "none")
            counts = (1000, 0 if metric == "nll" else 3000 if method == "floor" else 1000)
            reference = "heldout, decoded" if space in DECODED else "heldout"
            about = (dataset, method, seed, step, metric, space, value)
            rows.append((*about, *counts, reference, 0, extractor, key))

    def noise(size):
        return size * rng.standard_normal()

    for seed in range(seeds):
        luck = noise(0.1)
        for method in methods:
            good = gain(method)
            for step in checkpoints(method, seed):
                base = 1.5 + 25 / step**0.5 * 0.1 + luck + good * (step / 5000) ** 0.3
                for space, scale in zip(CLASSIFIERS, (1.0, 1.7), strict=True):
                    add(method, seed, step, [("frechet", space, scale * (base + noise(0.02)))])
                    add(method, seed, step, [("kid", space, 0.002 * scale * (base + noise(0.02)))])
                of_latents = [
                    ("frechet", "latent-whitened", 2 * base + good),
                    ("eigenvalue_ratio_low", "latent", np.exp(0.5 + 1.4 * good + noise(0.05))),
                    ("eigenvalue_log_error_low", "latent", abs(0.4 + good + noise(0.03))),
                    ("eigenvalue_log_error", "latent", abs(0.3 + 0.7 * good + noise(0.02))),
                ]
                add(method, seed, step, of_latents)
            for space in (*CLASSIFIERS, "latent-whitened"):
                add(method, seed, step, [("precision", space, 0.93 - 0.05 * good + noise(0.01))])
                add(method, seed, step, [("recall", space, 0.9 - 0.06 * good + noise(0.01))])
            for space, scale in zip(DECODED, (1.0, 1.7), strict=True):
                add(method, seed, step, [("frechet", space, scale * (base - 1.05) + noise(0.01))])
            likelihood = [
                ("nll", "latent", 18 + 9 * good + noise(0.1)),
                ("nearer_train", "latent", 0.5 + noise(0.003)),
            ]
            add(method, seed, step, likelihood)
            if method != "none":
                alone = [("frechet", space, 9.0 + 10 * good + noise(0.1)) for space in CLASSIFIERS]
                alone.append(("eigenvalue_log_error_low", "latent", 0.05 + 0.01 * rng.random()))
                if method in LEARNED or seed == 0:  # what has no randomness is listed once
                    add(f"alone:{method}", seed, 0, alone)
                likelihood = [("nll", "latent", 20 + 9 * good + 0.1 * seed * (method in LEARNED))]
                add(f"alone:{method}", seed, 0, likelihood, key=artifact(method, seed))
    for draw in range(DRAWS):
        for space, distance in zip(CLASSIFIERS, (1.1, 1.9), strict=True):
            of_space = {"frechet": distance + noise(0.01), "kid": 0.001, "precision": 0.96, "recall": 0.95}
            add("floor", draw, 0, [(metric, space, value) for metric, value in of_space.items()])
            add("floor", draw, 0, [("frechet", f"{space}-decoded", 0.05 + noise(0.001))])
        of_latents = {"log_error_low": 0.03, "log_error": 0.025, "ratio_low": 1.01}
        add("floor", draw, 0, [("frechet", "latent-whitened", 1.2 + noise(0.01))])
        add(
            "floor",
            draw,
            0,
            [(f"eigenvalue_{name}", "latent", value + noise(0.001)) for name, value in of_latents.items()],
        )
    return pd.DataFrame(rows, columns=[*FRAMES["records"].columns, "artifact"])


def bootstrap(values) -> pd.DataFrame:
    """Replicates of what has some, at each run's last step: one shift for all runs of a metric, and a little more."""
    rng, parts = np.random.default_rng(11), []
    last = values["step"] == values.groupby(["method", "seed"])["step"].transform("max")
    kinds = {"frechet", "eigenvalue_log_error_low", "eigenvalue_log_error", "nll"}
    for _, rows in values[last & values["metric"].isin(kinds)].groupby(["metric", "space"]):
        size = 0.02 * rows["value"].mean()
        shared, own = size * rng.standard_normal(REPLICATES), 0.1 * size * rng.standard_normal(REPLICATES)
        replicates = [
            texts(value + shared + own * rng.standard_normal(REPLICATES)) for value in rows["value"]
        ]
        parts.append(rows.assign(replicates=replicates))
    return pd.concat(parts, ignore_index=True)[list(FRAMES["bootstrap"].columns)]


def texts(replicates) -> str:
    """Replicates as a field of the frame `bootstrap`, with all digits."""
    return " ".join(map(str, replicates.tolist()))


def artifact(method: str, seed: int) -> str:
    """Key of the diagnostics of a method's preconditioner."""
    return f"{method}-{seed if method in LEARNED else 0}"


KAPPA = dict(zip(METHODS, (124, 124, 110, 1, 1.4, 2.5, 6, 12), strict=True))


def eigenvalues(method: str, scope: str, seed: int) -> np.ndarray:
    """Ascending eigenvalues of the space in which a method's flow is trained."""
    seed = seed if method in LEARNED else 0
    rng = np.random.default_rng([seed, len(scope) * 100 + (int(scope[-1]) if scope != "all" else 0)])
    kappa = KAPPA.get(method, 124)
    if scope != "all":
        kappa *= (1.5 if method == "class_whitening" else 4) * np.exp(0.4 * rng.standard_normal())
    spread = np.linspace(-1, 0, DIM) + 0.02 * rng.standard_normal(DIM)
    return np.sort((2.1 if method == "none" else 1.5) * np.exp(np.log(max(kappa, 1.02)) * spread))


def scopes() -> list[str]:
    return ["all", *(f"class-{label}" for label in range(10))]


def spectra(rng, seeds, methods, dataset) -> pd.DataFrame:
    rows = []

    def add(method, seed, scope, space, key):
        for index, value in enumerate(eigenvalues(method, scope, seed)):
            known = space == "data" and scope == "all"
            sensitivity = 0.8 * value**0.8 if known else np.nan
            rows.append((dataset, method, seed, scope, space, index, value, sensitivity, key))

    for scope in scopes():
        add("none", 0, scope, "data", "latents-0")
        for seed in range(seeds):
            for method in methods:
                add(method, seed, scope, "flow", artifact(method, seed))
    return pd.DataFrame(rows, columns=list(FRAMES["spectra"].columns))


def reconstruction(dataset) -> pd.DataFrame:
    splits = [("train", 3000, 0.7, 0.12), ("validation", 1000, 0.75, 0.13), ("heldout", 1000, 0.8, 0.14)]
    rows = [(dataset, *split, "latents-0") for split in splits]
    return pd.DataFrame(rows, columns=list(FRAMES["reconstruction"].columns))


def path_conditioning(rng, seeds, methods, dataset) -> pd.DataFrame:
    rows = []
    for seed in range(seeds):
        for method in methods:
            for scope in scopes():
                values = eigenvalues(method, scope, seed)
                for t in np.linspace(0, 1, 41):
                    path = t**2 * values + (1 - t) ** 2
                    share = path / path.sum()
                    rank = float(np.exp(-(share * np.log(share)).sum()))
                    kappa = path.max() / path.min()
                    rows.append((dataset, method, seed, scope, t, kappa, rank, artifact(method, seed)))
    return pd.DataFrame(rows, columns=list(FRAMES["path_conditioning"].columns))


def recovery(rng, seeds, methods, dataset) -> pd.DataFrame:
    rows = []
    reference = eigenvalues("none", "all", 0)
    for method in (*methods, *(f"alone:{m}" for m in methods if m != "none"), "floor"):
        for seed in range(DRAWS if method == "floor" else seeds):
            for step in checkpoints(method, seed)[-2:] if method in methods else (0,):
                excess = max(0.0, 0.7 + 2.2 * GAIN.get(method, -0.32))
                logs = excess * np.linspace(1, 0, DIM) ** 2 + 0.05 * rng.standard_normal(DIM)
                for index in range(DIM):
                    rows.append(
                        (dataset, method, seed, step, index, reference[index], float(np.exp(logs[index])))
                    )
    return pd.DataFrame(rows, columns=list(FRAMES["recovery"].columns))


def radial(seeds, methods, dataset) -> pd.DataFrame:
    """Of maps of two channels; high frequencies have too much power in one and too little in the other."""
    rng, rows = np.random.default_rng(13), []
    for method in (*methods, *(f"alone:{m}" for m in methods if m != "none"), "floor"):
        for seed in range(DRAWS if method == "floor" else seeds):
            for step in checkpoints(method, seed)[-2:] if method in methods else (0,):
                excess = 0.0 if method == "floor" else max(0.1, 0.7 + 2.2 * GAIN.get(method, 0.0))
                for channel, sign in enumerate((1, -0.5)):
                    logs = sign * excess * np.linspace(0, 1, BANDS) + 0.03 * rng.standard_normal(BANDS)
                    for band, log in enumerate(logs):
                        power = 4.0 / (1 + band)
                        rows.append((dataset, method, seed, step, channel, band, power, float(np.exp(log))))
    return pd.DataFrame(rows, columns=list(FRAMES["radial"].columns))


def preconditioners(rng, seeds, methods, dataset) -> pd.DataFrame:
    rows = []
    for method in methods:
        cost = (120_000, 3e13) if method in LEARNED else (272 * (method != "none"), 1e7)
        errors = (3e-4, 4e-3) if method in LEARNED else (1e-7, 1e-7)
        remarks = {"class_whitening": "3 classes had fewer than 200 rows; shrinkage 0.02 applied"}
        for seed in range(seeds):
            values = eigenvalues(method, "all", seed)
            about = (*cost, values[-1] / values[0], *errors, remarks.get(method, ""))
            rows.append((dataset, method, seed, *about, artifact(method, seed)))
    return pd.DataFrame(rows, columns=list(FRAMES["preconditioners"].columns))


def budgets(seeds, methods, dataset) -> pd.DataFrame:
    rows = []
    for method in methods:
        learned = method in LEARNED
        for seed in range(seeds):
            about = (150_000, 120_000 if learned else 272 * (method != "none"), 1e9)
            fit = (3e11 + 1e9 * seed, 2e5) if learned else (1e7 * (method != "none"), 512)
            matched = (300, 5300 + seed) if learned else (np.nan, np.nan)
            rows.append((dataset, method, seed, *about, *fit, STEPS[-1], *matched))
    return pd.DataFrame(rows, columns=list(FRAMES["budgets"].columns))


def predictors(methods, dataset) -> pd.DataFrame:
    rows = []
    for method in methods:
        steps = 2e4 * np.exp(8 * gain(method) + 0.1 * len(method))
        rows.append((dataset, method, 0, 4e3, 120.0, 0.6, steps, 0.05))
    return pd.DataFrame(rows, columns=list(FRAMES["predictors"].columns))


def images(
    methods: tuple[str, ...] = METHODS, n: int = 24, size: int = 28, channels: int = 1
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:size, :size] / size
    grids = {}
    for method in ("held-out", *methods):
        centre = 0.5 + 0.15 * rng.standard_normal((n, 2))
        radius = np.hypot(y - centre[:, :1, None], x - centre[:, 1:, None])
        ring = 255 * np.exp(-(((radius - 0.22) / 0.06) ** 2))
        grids[method] = np.repeat(ring[:, None], channels, axis=1).astype(np.uint8)
    return grids
