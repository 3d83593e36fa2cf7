"""A diagnosis as text for a terminal, and as a picture."""

import itertools
import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from precfm.core.errors import PrecfmError

if TYPE_CHECKING:
    from precfm.diagnosis.conditioning import Conditioning
    from precfm.diagnosis.diagnosis import Diagnosis

WIDTH = 80  # characters of a line, but for code that is to be pasted
BARS = "▁▂▃▄▅▆▇█"
COLUMNS = 64  # of the small spectrum
MOST_NOTES = 3  # of each map; some have one for each class

Row = tuple[str, ...]

_HEADS: tuple[Row, Row] = (
    ("", "", "at", "", "", "worst", "round", "steps", "steps"),
    ("", "kappa", "least", "chance", "path", "class", "trip", "slowest", "total"),
)
_LEGEND = (
    "kappa: condition number of the held-out rows' covariance; at least: a lower bound of that of the data (95%, "
    "for Gaussian rows); chance: what isotropic data, or any data behind a whitening, would show with so many "
    "rows; path: mean of ln kappa(Sigma_t) over t; worst class: kappa in it; round trip: error over the smallest "
    "standard deviation; steps: of gradient descent on a linear model until the excess risk of the slowest "
    "direction, or all of it, is 1% of its start: what theory predicts of linear models, not of networks. ?: the "
    "rows do not tell."
)


def text(found: "Diagnosis") -> str:
    """All of it: the rows, the answer, what it rests on."""
    shape = f"{' x '.join(map(str, found.shape))} = " if len(found.shape) > 1 else ""
    labels = f"{found.classes:,} classes" if found.classes else "no labels"
    lines = [
        *textwrap.wrap(
            f"{found.rows:,} rows of {shape}{found.features:,} features ({found.dtype}, {labels}), "
            f"{number(found.rows / found.features)} rows a feature; maps fitted to {found.fit_rows:,} rows, all "
            f"numbers of {found.held_out_rows:,} others (seed {found.seed})",
            WIDTH,
        ),
        "",
        *_advice(found),
        "",
        *_spectrum(found.raw),
        "",
        *_table(found),
        *_remarks(found),
        "",
        *textwrap.wrap(_LEGEND, WIDTH),
    ]
    if found.decoder is not None and found.decoder.refused is not None:
        lines += ["", *textwrap.wrap(f"decoder: not asked, since {found.decoder.refused}", WIDTH)]
    elif found.decoder is not None:
        lines += [
            "",
            *textwrap.wrap(
                f"decoder: hardly uses {found.decoder.unused} of {found.decoder.directions} directions; variances "
                f"along the others differ by a factor of {number(found.decoder.kappa_used)}",
                WIDTH,
            ),
        ]
    lines += ["", "What this project has measured:"]
    for sentence in found.recommendation.evidence:
        lines += textwrap.wrap(sentence, WIDTH, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines)


def _advice(found: "Diagnosis") -> list[str]:
    advice = found.recommendation
    basis = "measured by short trainings" if advice.measured else "by second moments; no flow was trained"
    lines = [f"Recommendation ({basis}): {advice}"]
    for paragraph in advice.reason.splitlines():
        lines += textwrap.wrap(paragraph, WIDTH, subsequent_indent="  " if advice.measured else "")
    return [*lines, "", textwrap.indent(advice.code, "    ")]


def require_plot(file: Path) -> None:
    """Refuse a picture that could not be written, before anything is measured.

    Raises:
        PrecfmError: matplotlib is not installed or does not know the file's ending, or the folder does not exist.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise PrecfmError(f"{file}: a plot needs matplotlib; pip install matplotlib") from None
    known = Figure().canvas.get_supported_filetypes()
    if file.suffix.removeprefix(".") not in known:
        raise PrecfmError(f"{file}: ends in '{file.suffix}'; one of {', '.join(sorted(known))} is needed")
    if not file.absolute().parent.is_dir():
        raise PrecfmError(f"{file}: there is no folder {file.parent}")


def plot_spectra(found: "Diagnosis", file: Path) -> None:
    """Variances along eigendirections on a logarithmic scale, raw and behind each map.

    Raises:
        PrecfmError: as `require_plot`.
    """
    require_plot(file)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 3.6), layout="constrained")
    axes = figure.subplots()
    styles = itertools.cycle(["-", "--"])  # so that spectra that coincide are both seen
    for (name, each), style in zip(_rows(found), styles, strict=False):
        spectrum = [max(value, 1e-30) for value in each.spectrum]
        label = f"{name} ($\\kappa$ {_kappa(each)})"
        axes.plot(range(1, len(spectrum) + 1), spectrum, style, label=label, linewidth=1.2)
    axes.set(
        yscale="log",
        xlabel="eigendirection, smallest variance first",
        ylabel="variance of held-out rows",
        title=f"{found.held_out_rows:,} held-out rows of {found.features:,} features: {found.recommendation}",
    )
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(file, dpi=150)


def _rows(found: "Diagnosis") -> "list[tuple[str, Conditioning]]":
    behind = [(each.name, each.conditioning) for each in found.maps if each.conditioning is not None]
    return [("raw", found.raw), *behind]


def _spectrum(raw: "Conditioning") -> list[str]:
    """The raw spectrum as a line of blocks below its title."""
    count = len(raw.spectrum)
    columns = min(count, COLUMNS)
    logs = [math.log10(max(value, 1e-30)) for value in raw.spectrum]
    chosen = [logs[round(i * (count - 1) / max(columns - 1, 1))] for i in range(columns)]
    low, high = min(chosen), max(chosen)
    heights = [round((value - low) / max(high - low, 1e-9) * (len(BARS) - 1)) for value in chosen]
    blocks = "".join(BARS[height] for height in heights)
    ends = f"{number(raw.spectrum[0])} to {number(raw.spectrum[-1])}"
    return [f"spectrum: variances from {ends}, on a logarithmic scale", blocks]


def _table(found: "Diagnosis") -> list[str]:
    trips = {each.name: (each.floor, each.round_trip) for each in found.maps}
    rows = [*_HEADS]
    for name, each in _rows(found):
        floor, trip = trips.get(name, (each.floor, math.nan))
        rows.append(
            (
                name,
                _kappa(each),
                number(each.at_least),
                number(floor),
                number(each.mean_log_kappa),
                number(max(each.class_kappas.values(), default=math.nan)) if found.classes else "-",
                "-" if math.isnan(trip) else f"{trip:.0e}",
                number(each.steps_slowest),
                number(each.steps_total),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS[0]))]
    lines = []
    for name, *cells in rows:
        numbers = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *numbers]).rstrip())
    return lines


def _remarks(found: "Diagnosis") -> list[str]:
    """Why maps were not tried, and what their fits noted."""
    remarks = [f"{each.name}: not tried, {each.refused}" for each in found.maps if each.refused is not None]
    for each in found.maps:
        remarks += [f"{each.name}: {note}" for note in each.notes[:MOST_NOTES]]
        if len(each.notes) > MOST_NOTES:
            remarks.append(f"{each.name}: {len(each.notes) - MOST_NOTES:,} more notes, which JSON gives")
    return [line for remark in remarks for line in textwrap.wrap(remark, WIDTH, subsequent_indent="  ")]


def _kappa(each: "Conditioning") -> str:
    return number(each.kappa)


def number(value: float) -> str:
    """Three digits, in at most six characters; `?` where it is infinite or not known."""
    if not math.isfinite(value):
        return "?"
    return f"{value:,.0f}" if 1000 <= value < 1e5 else f"{value:.3g}".replace("e+0", "e").replace("e+", "e")
