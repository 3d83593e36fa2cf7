"""The frames, long tables that reports are made of: which artifacts each is gathered from, and how.

The artifact `frames` reads every artifact that a report needs; what each one stands for (data set, method, seed, or
controlled experiment) is its `about`. One mapping serves the gathering and the lineage of a number.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pandas as pd

from precfm.core.errors import PrecfmError

About: TypeAlias = Mapping[str, Any]
Pairs: TypeAlias = Sequence[tuple[About, Any]]
"""What artifacts stand for, each with the content of one of its files: a data frame, or plain data."""

Frames: TypeAlias = Mapping[str, pd.DataFrame]

STATISTICS = "theory_statistics"
GRIDS = "grids"
NEIGHBOURS = "neighbours of "  # before a method's name: the training images nearest to its samples
CURVE_POINTS = 100  # of a training curve


def stacked(pairs: Pairs) -> pd.DataFrame:
    """One table from many artifacts; what each stands for comes first. Plain data make one row."""
    parts = []
    for about, content in pairs:
        rows = content.copy() if isinstance(content, pd.DataFrame) else pd.DataFrame([content])
        for position, (column, value) in enumerate(about.items()):
            rows.insert(position, column, value)
        parts.append(rows)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def of_several(*roles: Pairs) -> pd.DataFrame:
    """One table from artifacts of several roles, whose files have the same columns."""
    return stacked([pair for pairs in roles for pair in pairs])


def spectra(latents: Pairs, diagnostics: Pairs) -> pd.DataFrame:
    """Spectra of the data, which are of no method and all seeds, and of the spaces of the flows."""
    return of_several(
        [({**about, "method": "none", "seed": 0}, rows) for about, rows in latents], diagnostics
    )


def budgets(flows: Pairs, diagnostics: Pairs, matches: Pairs, skips: Pairs = ()) -> pd.DataFrame:
    """What every flow cost, its preconditioner and fitted skip included, and which baseline would cost as much.

    A matched baseline has no diagnostics of its own: the map that only fixes its scale counts as nothing.
    """
    keys = ("dataset", "method", "seed", "setting")

    def by_run(pairs: Pairs) -> dict[tuple[Any, ...], Mapping[str, Any]]:
        return {tuple(about.get(key) for key in keys): content for about, content in pairs}

    fitted, matched, skipped = by_run(diagnostics), by_run(matches), by_run(skips)
    rows = []
    for about, cost in flows:
        run = tuple(about.get(key) for key in keys)
        before, match, skip = fitted.get(run, {}), matched.get(run, {}), skipped.get(run, {})
        content = {
            "flow_parameters": cost["flow_parameters"],
            "preconditioner_parameters": before.get("num_parameters", 0),
            "flops_per_step": cost["flops_per_step"],
            "fit_flops": before.get("flops_per_fit", 0) + skip.get("fit_flops", 0),
            "fitted_numbers": skip.get("fitted_numbers", 0),
            "inverse_flops_per_sample": before.get("inverse_flops_per_sample", 0),
            "steps": cost["steps"],
            "matched_width": match.get("matched_width"),
            "matched_steps": match.get("matched_steps"),
            "notes": cost["notes"],
        }
        rows.append((about, content))
    return stacked(rows)


def training_curves(flows: Pairs) -> pd.DataFrame:
    """The losses of every flow, thinned: means over `CURVE_POINTS` spans of its steps, each at its last step."""
    return stacked([(about, _thinned(history)) for about, history in flows])


def _thinned(history: pd.DataFrame) -> pd.DataFrame:
    span = (history["step"] * CURVE_POINTS / history["step"].max()).map(math.ceil).rename("span")
    losses = [name for name in ("loss", "validation_loss") if name in history]
    return (
        history.groupby(span)
        .agg({"step": "max", **dict.fromkeys(losses, "mean")})
        .round(6)
        .reset_index(drop=True)
    )


@dataclass(frozen=True)
class FrameSource:
    """What a frame is gathered from.

    Attributes:
        files: by role of the parents of `frames`, the file that is read in each artifact; a pattern stands for several.
        columns: those that a frame must have.
        gather: makes the frame of what the files hold, one argument for each role; None where a script has to.
        keys: the columns by which rows identify artifacts: those of an artifact's `about` that rows repeat.
        where: what an artifact's `about` must say beside.
    """

    files: Mapping[str, str]
    columns: tuple[str, ...] = ()
    gather: Callable[..., pd.DataFrame] | None = stacked
    keys: tuple[str, ...] = ("dataset", "method", "seed")
    where: About = field(default_factory=dict)

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of the artifacts."""
        return tuple(self.files)

    def matches(self, about: About, row: Mapping[str, Any]) -> bool:
        """Whether an artifact may be behind a row: what both say agrees; an empty field says nothing."""
        said = {key: row.get(key) for key in self.keys if key in about}
        agree = all(value in (None, "") or str(value) == str(about[key]) for key, value in said.items())
        return agree and all(about.get(key) == value for key, value in self.where.items())


def _of_run(columns: str) -> tuple[str, ...]:
    return ("dataset", "method", "seed", *columns.split())


RADIAL = "radial.csv"  # of feature maps alone
FRAMES: Mapping[str, FrameSource] = {
    "records": FrameSource(
        {"evaluations": "records.csv", "likelihoods": "records.csv"},
        _of_run("step metric space value n_real n_generated reference evaluation_seed extractor"),
        of_several,
    ),
    "bootstrap": FrameSource(
        {"evaluations": "bootstrap.csv", "likelihoods": "bootstrap.csv"},
        _of_run("step metric space replicates"),
        of_several,
    ),
    "recovery": FrameSource({"evaluations": "recovery.csv"}, _of_run("step index eigenvalue ratio")),
    "radial": FrameSource({"evaluations": RADIAL}, _of_run("step channel band variance ratio")),
    GRIDS: FrameSource({"evaluations": "grid.safetensors"}, gather=None),
    "spectra": FrameSource(
        {"latents": "spectrum.csv", "diagnostics": "spectrum.csv"},
        _of_run("scope space index eigenvalue decoder_sensitivity artifact"),
        spectra,
    ),
    "reconstruction": FrameSource(
        {"latents": "reconstruction.csv"},
        ("dataset", "split", "rows", "squared_error", "clamped_share", "artifact"),
    ),
    "path_conditioning": FrameSource(
        {"diagnostics": "path_conditioning.csv"},
        _of_run("scope t condition_number effective_rank artifact"),
    ),
    "preconditioners": FrameSource(
        {"diagnostics": "preconditioner.json"},
        _of_run(
            "num_parameters flops_per_fit residual_condition_number round_trip_error tail_round_trip_error notes "
            "artifact"
        ),
    ),
    "budgets": FrameSource(
        {
            "flows": "cost.json",
            "diagnostics": "preconditioner.json",
            "budgets": "budget.json",
            "skips": "cost.json",
        },
        _of_run(
            "flow_parameters preconditioner_parameters flops_per_step fit_flops inverse_flops_per_sample steps "
            "matched_width matched_steps"
        ),
        budgets,
    ),
    "training": FrameSource({"flows": "history.csv"}, _of_run("step loss"), training_curves),
    "predictors": FrameSource(
        {"kernels": "predictors.csv"},
        _of_run(
            "kernel_condition_number kernel_effective_condition initial_residual predicted_steps threshold"
        ),
    ),
    STATISTICS: FrameSource(
        {"theory": "*.csv"},
        ("claim", "statistic", "value", "low", "high", "n", "room", "note"),
        gather=None,
        keys=(),
    ),
}


def sources_of(name: str) -> FrameSource:
    """What a frame is gathered from.

    The rows of `theory_statistics` carry a claim; the tables behind them are what the claim's function declares that
    it reads.

    Args:
        name: one of `FRAMES`, or `<experiment>.<table>` for a table of a controlled experiment.

    Raises:
        PrecfmError: there is no such frame.
    """
    if name in FRAMES:
        return FRAMES[name]
    experiment, dot, table = name.partition(".")
    if not dot:
        raise PrecfmError(f"got the frame '{name}'; known are {', '.join(FRAMES)} and <experiment>.<table>")
    return FrameSource({"theory": f"{table}.csv"}, keys=("seed",), where={"run": experiment})


def available(about: Mapping[str, Sequence[About]]) -> frozenset[str]:
    """The frames that these artifacts can give, as `precfm.report.reads.wanted` takes them.

    Args:
        about: by role of the parents of `frames`, what each artifact stands for.

    Returns:
        Names of `FRAMES`, and `<experiment>.*` for all tables of each controlled experiment.
    """
    found = {name for name, source in FRAMES.items() if any(about.get(role) for role in source.roles)}
    return frozenset(found | {f"{each['run']}.*" for each in about.get("theory", ())})


def gathered(pairs: Callable[[str, str], Pairs]) -> dict[str, pd.DataFrame]:
    """All frames of data sets.

    Args:
        pairs: gives, for a role and a file, what each artifact stands for and what the file holds.

    Returns:
        Frames by name, without those that have no rows.
    """
    frames = {}
    for name, source in FRAMES.items():
        if source.gather is not None:
            frames[name] = source.gather(*(pairs(role, file) for role, file in source.files.items()))
    return {name: frame for name, frame in frames.items() if not frame.empty}


def theory_tables(pairs: Iterable[tuple[About, Mapping[str, pd.DataFrame]]]) -> dict[str, pd.DataFrame]:
    """The tables of the controlled experiments as `<experiment>.<table>`, the seeds of each one below the other.

    Args:
        pairs: what each artifact stands for (`run`, `seed`), and its tables by name.
    """
    parts: dict[str, list[pd.DataFrame]] = {}
    for about, tables in pairs:
        for name, table in tables.items():
            seeded = table if "seed" in table else table.assign(seed=about["seed"])
            parts.setdefault(f"{about['run']}.{name}", []).append(seeded)
    return {name: pd.concat(several, ignore_index=True) for name, several in parts.items()}


def first_of_each_method(about: Sequence[About]) -> list[int]:
    """Which evaluations give the sample grids: of the first data set, the first seed of each method.

    Returns:
        Positions in `about`.
    """
    found: dict[str, int] = {}
    for position, each in enumerate(about):
        if each["dataset"] == about[0]["dataset"]:
            found.setdefault(each["method"], position)
    return list(found.values())


def read_frames(
    read: Callable[[str], pd.DataFrame], files: Collection[str], names: Iterable[str]
) -> dict[str, Any]:
    """Those of the named frames that the artifact `frames` holds.

    Args:
        read: gives the table in one of its files.
        files: the names of its files.
        names: of frames.
    """
    return {name: read(f"{name}.csv") for name in names if f"{name}.csv" in files}
