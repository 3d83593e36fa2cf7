"""Figures of the theory, one function each: tables by `<experiment>.<table>` in, a drawing with its caption out."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from precfm.core.statistics import geometric_estimate, t_estimate
from precfm.report.figures.axes import letter, panels
from precfm.report.figures.style import BAND_FROM, FLOOR_LINE, INK, REFERENCE, Drawing, method_styles
from precfm.report.frames import Frames
from precfm.report.reads import LeftOutError, reads
from precfm.report.vocabulary import in_order, split_matched
from precfm.theory.imperfect_preconditioners import steps_bound

KAPPA_COLOURS = ("#c7c7c7", "#8fb7d9", "#4c8fc4", "#1f6aa5", "#0d4375", "#05213d", "#000000")
LIMITS = {"descent": (1e-6, 4), "stochastic": (1e-3, 30)}
WHITENED_LINE = ":"
KIND_MARKS = {
    "none": "o",
    "per channel": "D",
    "shrunk whitening": "s",
    "power": "^",
    "whitening from samples": "v",
}
POINT: dict[str, Any] = {
    "linestyle": "none",
    "marker": "o",
    "markersize": 2.6,
    "capsize": 0,
    "elinewidth": 0.8,
}


@reads("linear_grid.curves")
def descent_curves(frames: Frames) -> Drawing:
    """Excess risk of the slowest direction against steps: closed form as a line, measurement as points."""
    table = _needed(frames, "linear_grid.curves")
    t = table["t"].unique()[np.abs(table["t"].unique() - 0.99).argmin()]
    path = table["path"].iloc[0]
    chosen = table[(table["path"] == path) & (table["t"] == t) & (table["direction"] == "lowest")]
    targets = [name for name in ("velocity", "score") if name in set(chosen["target"])]
    figure, axes = panels(2, 2 * len(targets), height=1.75, sharey="row")
    kappas = sorted(chosen["condition_number"].unique())
    for row, algorithm in enumerate(("descent", "stochastic")):
        for column, (target, moved) in enumerate((a, b) for a in targets for b in (False, True)):
            ax = axes[row, column]
            part = chosen[(chosen["algorithm"] == algorithm) & (chosen["target"] == target)]
            part = part[part["preconditioned"].astype(bool) == moved]
            for colour, kappa in zip(_shades(len(kappas)), kappas, strict=True):
                one = part[part["condition_number"] == kappa].sort_values("step")
                _relative_curve(ax, one, colour)
            ax.set(xscale="symlog", yscale="log", ylim=LIMITS[algorithm], xlabel="steps")
            ax.set_xlim(left=0)
            letter(ax, row * 2 * len(targets) + column, f"{target}, {'P' if moved else 'no P'}")
        axes[row, 0].set_ylabel(f"excess risk, {'GD' if algorithm == 'descent' else 'SGD'}")
    entries = [(f"kappa {k:g}", c) for k, c in zip(kappas, _shades(len(kappas)), strict=True)]
    _colour_legend(figure, entries)
    seeds = int(chosen["n"].max())
    return Drawing(
        figure,
        f"Excess risk of the direction of lowest variance relative to its start, at t = {t:g} on the {path} path. "
        f"Lines: closed form. Points: autograd on samples, mean and 95% t interval over {seeds} seeds. P is "
        "Sigma_t^(-1/2). What is outside of the frame is not shown.",
    )


@reads("steps_to_accuracy.steps")
def steps_against_kappa(frames: Frames) -> Drawing:
    """Steps to accuracy against kappa(Sigma_t), for the slowest direction and for the total."""
    table = _needed(frames, "steps_to_accuracy.steps")
    targets = [name for name in ("velocity", "score") if name in set(table["target"])]
    figure, axes = panels(2, len(targets), height=2.0, sharex=True)
    looks = {("descent", False): ("GD", "o", INK), ("descent", True): ("GD, with P", "^", "#0173b2")}
    looks |= {
        ("stochastic", False): ("SGD", "s", "#de8f05"),
        ("stochastic", True): ("SGD, with P", "v", "#029e73"),
    }
    for row, quantity in enumerate(("lowest", "total")):
        for column, target in enumerate(targets):
            ax = axes[row, column]
            for (algorithm, moved), (label, mark, colour) in looks.items():
                part = table[(table["algorithm"] == algorithm) & (table["target"] == target)]
                part = part[
                    (part["preconditioned"].astype(bool) == moved) & part[f"counts_{quantity}"].astype(bool)
                ]
                part = part[np.isfinite(part[quantity])]
                means = part.groupby(["path", "t", "condition_number"])[
                    ["condition_number_t", quantity]
                ].mean()
                style = {"marker": mark, "color": colour, "markersize": 3.0, "linestyle": "none"}
                ax.plot(means["condition_number_t"], means[quantity], label=label, alpha=0.8, **style)
            line = np.geomspace(10, max(table["condition_number_t"].max(), 20), 50)
            ax.plot(line, 1.15 * line, color=REFERENCE, linewidth=0.9, zorder=0)
            ax.set(xscale="log", yscale="log")
            what = "slowest direction" if quantity == "lowest" else "total excess risk"
            letter(ax, row * len(targets) + column, f"{target}: {what}")
        axes[row, 0].set_ylabel("steps to accuracy")
    for ax in axes[-1]:
        ax.set_xlabel("condition number of Sigma_t")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return Drawing(
        figure,
        "Steps until the excess risk has fallen to the goal, relative to its start, against the condition number of "
        "Sigma_t; mean over seeds of every setting (condition number, t, path). Grey: proportional to kappa. Settings "
        "whose goal is within four times the noise floor of stochastic descent are left out.",
    )


@reads("residual_linear.steps")
def residual_bound(frames: Frames) -> Drawing:
    """Steps after an imperfect preconditioner, beside the bound in the residual condition number."""
    table = _needed(frames, "residual_linear.steps")
    figure, axes = panels(1, 2, height=2.4, sharey=True)
    for position, (column, text) in enumerate(
        (("lowest", "slowest direction"), ("total", "total excess risk"))
    ):
        ax = axes[0, position]
        for kind, group in table.groupby("kind"):
            for kappa, shade in zip(
                sorted(group["condition_number"].unique()), ("#0173b2", "#de8f05"), strict=False
            ):
                one = group[group["condition_number"] == kappa]
                means = one.groupby(["level", "t"])[["residual_kappa_t", column]].mean()
                x, y = means["residual_kappa_t"], means[column].clip(lower=0.5)
                ax.plot(x, y, linestyle="none", marker=KIND_MARKS[str(kind)], color=shade, markersize=3.4)
        line = np.geomspace(1.001, table["residual_kappa_t"].max(), 200)
        ax.plot(line, steps_bound(torch.from_numpy(line), 0.1).numpy(), color=INK, linewidth=0.9, zorder=0)
        ax.set(xscale="log", yscale="log", xlabel="residual condition number of Sigma_t")
        letter(ax, position, text)
    axes[0, 0].set_ylabel("steps to a tenth")
    handles = [
        Line2D([], [], linestyle="none", marker=mark, color=INK, markersize=3.4, label=kind)
        for kind, mark in KIND_MARKS.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=5)
    kappas = ", ".join(f"{k:g}" for k in sorted(table["condition_number"].unique()))
    return Drawing(
        figure,
        f"Steps to a tenth of the excess risk after imperfect preconditioners of data with condition numbers {kappas} "
        "(colours), mean over seeds; counts below one half are drawn there. Line: the bound, which no start exceeds "
        "and the slowest direction attains.",
    )


@reads("residual_networks.grid")
def residual_grid(frames: Frames) -> Drawing:
    """Error of trained networks over residual condition number, width and weight decay."""
    table = _needed(frames, "residual_networks.grid")
    decays = sorted(table["weight_decay"].unique())
    figure, axes = panels(1, len(decays), height=2.2, sharey=True)
    widths = sorted(table["width"].unique())
    shades = _shades(len(widths), first=2)
    for position, decay in enumerate(decays):
        ax = axes[0, position]
        for width, colour in zip(widths, shades, strict=True):
            one = table[(table["weight_decay"] == decay) & (table["width"] == width)]
            _geometric_line(ax, one, "residual_kappa", "log_error_low", colour)
        ax.set(xscale="log", yscale="log", xlabel="residual condition number")
        letter(ax, position, f"weight decay {decay:g}")
    axes[0, 0].set_ylabel("error of low eigenvalues")
    _colour_legend(figure, [(f"width {w}", c) for w, c in zip(widths, shades, strict=True)])
    return Drawing(
        figure,
        "Mean |ln variance ratio| over the lowest quartile of directions, trained networks on Gaussian data of the "
        f"residual condition number; geometric mean and 95% interval over {_seeds(table)}.",
    )


@reads("mixture_linear.components")
def mixture_descent(frames: Frames) -> Drawing:
    """Excess risk of each component of a mixture against steps, linear experts."""
    table = _needed(frames, "mixture_linear.components")
    base = table[(table["ablation"] == "separation") & (table["level"] == 4.0)]
    if base.empty:
        raise LeftOutError("no mixture of separation 4 was run")
    regimes = list(base["regime"].unique())
    figure, axes = panels(1, len(regimes), height=2.2, sharey=True)
    components = sorted(base["component"].unique())
    shades = _shades(len(components), first=1)
    entries = []
    for position, regime in enumerate(regimes):
        ax = axes[0, position]
        for component, colour in zip(components, shades, strict=True):
            one = base[(base["regime"] == regime) & (base["component"] == component)]
            _geometric_line(ax, one[one["relative"] > 1e-25], "step", "relative", colour)
            if position == 0:
                entries.append((f"kappa {one['condition_number'].iloc[0]:g}", colour))
        ax.set(xscale="symlog", yscale="log", ylim=(1e-8, 2), xlabel="steps")
        ax.set_xlim(left=0)
        letter(ax, position, f"experts by {regime}")
    axes[0, 0].set_ylabel("excess risk, relative")
    _colour_legend(figure, entries)
    return Drawing(
        figure,
        "Excess risk of each component of a mixture, relative to its start, under gradient descent on linear experts; "
        f"geometric mean and 95% interval over {_seeds(base)}.",
    )


@reads("mixture_ablations.components")
def mixture_ablations(frames: Frames) -> Drawing:
    """Error of every component when weights or one component's conditioning vary, and the control of scale."""
    table = _needed(frames, "mixture_ablations.components")
    plain, whitened = table[table["method"] == "none"], table[table["method"] == "class_whitening"]
    texts = {"weights": "weight of the worst component", "conditioning": "its condition number"}
    control = plain[plain["ablation"] == "scale"]
    figure, axes = panels(1, 2 if control.empty else 3, height=2.2, sharey=True)
    components = sorted(plain["component"].unique())
    shades = _shades(len(components), first=1)
    for position, (ablation, text) in enumerate(texts.items()):
        ax = axes[0, position]
        for component, colour in zip(components, shades, strict=True):
            one = plain[(plain["ablation"] == ablation) & (plain["component"] == component)]
            _geometric_line(ax, one, "level", "log_error_low", colour)
        worst = whitened[(whitened["ablation"] == ablation) & (whitened["component"] == components[-1])]
        _geometric_line(ax, worst, "level", "log_error_low", shades[-1], WHITENED_LINE)
        ax.set(yscale="log", xlabel=text)
        if ablation == "conditioning":
            ax.set_xscale("log")
        letter(ax, position, f"{ablation} vary")
    axes[0, 0].set_ylabel("error of low eigenvalues")
    last = len(components) - 1
    names = [f"component {c + 1}" + (" (worst)" if c == last else "") for c in components]
    entries = list(zip(names, shades, strict=True))
    if not control.empty:
        entries += _scale_panel(axes[0, 2], control)
        _scale_panel(axes[0, 2], whitened[whitened["ablation"] == "scale"], WHITENED_LINE)
        letter(axes[0, 2], 2, "scale controlled")
    _colour_legend(figure, entries)
    return Drawing(
        figure,
        "Label-conditional networks without preconditioner: mean |ln variance ratio| over the lowest quartile of each "
        f"component's directions; geometric mean and 95% interval over {_seeds(plain)}. Dotted: with per-class "
        "whitening (the worst component). Scale controlled: one mixture of four components that crosses the condition "
        "number with the smallest variance.",
    )


def _scale_panel(ax: Axes, control: pd.DataFrame, line: str = "-") -> list[tuple[str, str]]:
    """Error against the smallest variance, a line for each condition number; entries of the legend."""
    kappas = sorted(control["condition_number"].round(6).unique())
    entries = []
    for kappa, colour in zip(kappas, ("#029e73", "#de8f05"), strict=False):
        one = control[control["condition_number"].round(6) == kappa]
        _geometric_line(ax, one, "smallest_variance", "log_error_low", colour, line)
        entries.append((f"kappa {kappa:g}", colour))
    ax.set(xscale="log", yscale="log", xlabel="smallest variance")
    return entries


@reads("mixture_networks.components")
def mixture_methods(frames: Frames) -> Drawing:
    """The refutation test: preconditioners and compute-matched baselines, by component."""
    table = _needed(frames, "mixture_networks.components")
    regimes = list(table["regime"].unique())
    styles = method_styles({"mixture": table})
    figure, axes = panels(1, len(regimes), height=3.3, sharey=True)
    components = sorted(table["component"].unique())
    for position, regime in enumerate(regimes):
        ax = axes[0, position]
        part = table[table["regime"] == regime]
        methods = in_order(m for m in part["method"].unique() if m != "floor")
        for place, method in enumerate(methods):
            shift = (place - (len(methods) - 1) / 2) * 0.07
            for component in components:
                values = part[(part["method"] == method) & (part["component"] == component)]["log_error_low"]
                estimate = geometric_estimate(values)
                style = styles[method].line(linestyle="none", **_mark_of(method, styles[method].colour))
                x = components.index(component) + shift
                ax.plot([x], [estimate.value], **style)
                if estimate.n >= BAND_FROM:
                    ax.plot([x, x], [estimate.low, estimate.high], color=styles[method].colour, linewidth=0.7)
        floor = part[part["method"] == "floor"]["log_error_low"].mean()
        ax.axhline(floor, **FLOOR_LINE)
        kappas = [part[part["component"] == c]["condition_number"].iloc[0] for c in components]
        ax.set_xticks(range(len(components)), [f"{k:g}" for k in kappas])
        ax.set(yscale="log", xlabel="condition number of the component")
        letter(ax, position, f"conditioned on {regime}" if regime == "labels" else "unconditional")
    axes[0, 0].set_ylabel("error of low eigenvalues")
    shown = in_order(m for m in table["method"].unique() if m != "floor")
    handles = [
        Line2D(
            [], [], label=styles[m].label, **styles[m].line(linestyle="none", **_mark_of(m, styles[m].colour))
        )
        for m in shown
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return Drawing(
        figure,
        "Mean |ln variance ratio| over the lowest quartile of each component's directions: flows with a preconditioner "
        "beside wider and longer flows without; geometric mean and 95% interval over "
        f"{_seeds(table)}. Hollow: wider, bars: longer. Dashed: an independent draw of the law.",
    )


@reads("trained_factors.summary", optional=("trained_budgets.summary",))
def trained_factors(frames: Frames) -> Drawing:
    """Low-eigenvalue error of trained networks, one factor at a time, with the solver's floor."""
    table = pd.concat(
        [frames[k] for k in ("trained_factors.summary", "trained_budgets.summary") if k in frames]
        or [_needed(frames, "trained_factors.summary")]
    )
    factors = table[table["factor"] != "budget"]
    base = table[(table["factor"] == "budget") & table["step"].isin([0, *factors["step"].unique()])]
    table = pd.concat([base.assign(level="base"), factors])
    cells = list(dict.fromkeys(zip(table["factor"], table["level"], strict=True)))
    figure, axes = panels(1, 1, height=0.9 + 0.24 * len(cells))
    ax = axes[0, 0]
    looks = {"none": ("none", INK, "o"), "whitening": ("whitening", "#0173b2", "^")}
    looks |= {"exact:none": ("exact field", REFERENCE, "|")}
    for place, (factor, level) in enumerate(cells):
        for method, (_, colour, mark) in looks.items():
            one = table[(table["factor"] == factor) & (table["level"] == level) & (table["method"] == method)]
            if one.empty:
                continue
            estimate = geometric_estimate(one["log_error_low"])
            ax.plot([estimate.value], [place], marker=mark, color=colour, markersize=4)
            if estimate.n >= BAND_FROM:
                ax.plot([estimate.low, estimate.high], [place, place], color=colour, linewidth=0.8)
    ax.set_yticks(
        range(len(cells)), [level if factor == "budget" else f"{factor}: {level}" for factor, level in cells]
    )
    ax.invert_yaxis()
    ax.set(xscale="log", xlabel="error of low eigenvalues")
    handles = [
        Line2D([], [], linestyle="none", marker=mark, color=colour, label=label)
        for label, colour, mark in looks.values()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return Drawing(
        figure,
        "Mean |ln variance ratio| over the lowest quartile of directions; networks trained on Gaussian data, one "
        f"factor at a time around the base; geometric mean and 95% interval over {_seeds(table)}. Exact field: the "
        "solver's floor.",
    )


@reads("trained_budgets.summary")
def trained_budgets(frames: Frames) -> Drawing:
    """Low-eigenvalue error against training steps: a plateau, or only a delay."""
    table = _needed(frames, "trained_budgets.summary")
    figure, axes = panels(1, 2, height=2.3)
    trained = table[table["step"] > 0]
    looks = {"none": INK, "whitening": "#0173b2"}
    for position, (column, text) in enumerate(
        (("log_error_low", "error of low eigenvalues"), ("log_error", "error of all eigenvalues"))
    ):
        ax = axes[0, position]
        for method, colour in looks.items():
            _geometric_line(ax, trained[trained["method"] == method], "step", column, colour)
        floor = table[table["method"] == "exact:none"][column].mean()
        if math.isfinite(floor):
            ax.axhline(floor, **FLOOR_LINE)
        ax.set(xscale="log", yscale="log", xlabel="training steps", ylabel=text)
        letter(ax, position, text)
    _colour_legend(figure, list(looks.items()))
    return Drawing(
        figure,
        "Mean |ln variance ratio| of generated samples against training steps, constant learning rate; geometric "
        f"mean and 95% interval over {_seeds(table)}. Dashed: the solver's floor (exact field, as many samples).",
    )


def _needed(frames: Frames, name: str) -> pd.DataFrame:
    if name not in frames or frames[name].empty:
        raise LeftOutError(f"there is no table {name}")
    return frames[name]


def _seeds(table: pd.DataFrame) -> str:
    count = table["seed"].nunique()
    few = " (too few for an interval)" if count < BAND_FROM else ""
    return f"{count} seed{'s' if count != 1 else ''}{few}"


def _mark_of(method: str, colour: str) -> dict[str, Any]:
    """Filled marks for preconditioners, hollow ones for matched baselines: wider open, longer as a bar."""
    suffix = split_matched(method)[1]
    look: dict[str, Any] = {"markersize": 4.0, "markeredgecolor": colour, "markeredgewidth": 0.8}
    if suffix == "-P":
        look["markerfacecolor"] = "white"
    if suffix == "-F":
        look["marker"] = "_"
    return look


def _shades(count: int, first: int = 0) -> Sequence[str]:
    """Colours from light to dark, evenly over the scale."""
    places = np.linspace(first, len(KAPPA_COLOURS) - 1, count).round().astype(int)
    return [KAPPA_COLOURS[place] for place in places]


def _relative_curve(ax: Axes, one: pd.DataFrame, colour: str) -> None:
    """One setting: theory as a line, measurement as points with intervals, relative to the start."""
    start = one[one["step"] == 0][["theory", "mean"]].iloc[0]
    ax.plot(one["step"], one["theory"] / start["theory"], color=colour, linewidth=1.0)
    middle = one["mean"] / start["mean"]
    low = (middle - one["low"] / start["mean"]).clip(lower=0, upper=middle * 0.999)
    high = one["high"] / start["mean"] - middle
    ax.errorbar(one["step"], middle, yerr=[low, high], color=colour, **POINT)


def _geometric_line(ax: Axes, table: pd.DataFrame, x: str, y: str, colour: str, line: str = "-") -> None:
    """Geometric mean over seeds as a line, its interval as bars."""
    estimator = geometric_estimate if (table[y] > 0).all() else t_estimate
    points = [(float(str(at)), estimator(group[y])) for at, group in table.groupby(x)]
    if not points:
        return
    ax.plot(
        [at for at, _ in points],
        [e.value for _, e in points],
        color=colour,
        linestyle=line,
        marker="o",
        markersize=2.6,
        linewidth=1,
    )
    for at, estimate in points:
        if estimate.n >= BAND_FROM:
            ax.plot([at, at], [estimate.low, estimate.high], color=colour, linewidth=0.7)


def _colour_legend(figure: Figure, entries: Sequence[tuple[str, str]]) -> None:
    handles = [Line2D([], [], color=colour, label=label) for label, colour in entries]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 7))
