"""A diagnosis as text for a terminal, and as a picture."""

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from precfm.core.errors import PrecfmError

if TYPE_CHECKING:
    from precfm.diagnosis.conditioning import Conditioning
    from precfm.diagnosis.diagnosis import Diagnosis

WIDTH = 100  # characters of a line
BARS = "▁▂▃▄▅▆▇█"
COLUMNS = 64  # of the small spectrum

Row = tuple[str, ...]

_HEAD: Row = (
    "",
    "kappa",
    "at least",
    "chance",
    "path",
    "worst class",
    "round trip",
    "steps slowest",
    "steps total",
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
    """All of it, the answer last."""
    shape = f"{' x '.join(map(str, found.shape))} = " if len(found.shape) > 1 else ""
    labels = f"{found.classes} classes" if found.classes else "no labels"
    lines = [
        f"{found.rows:,} rows of {shape}{found.features:,} features ({found.dtype}, {labels}): "
        f"{found.rows / found.features:.3g} rows a feature",
        f"maps fitted to {found.fit_rows:,} rows, all numbers of {found.held_out_rows:,} others (seed {found.seed})",
        "",
        *_spectrum(found.raw),
        "",
        *_table(found),
        *textwrap.wrap(_LEGEND, WIDTH),
    ]
    if found.decoder is not None and found.decoder.refused is not None:
        lines += ["", f"decoder: not asked, since {found.decoder.refused}"]
    elif found.decoder is not None:
        lines += [
            "",
            f"decoder: hardly uses {found.decoder.unused} of {found.decoder.directions} directions; variances along "
            f"the others differ by a factor of {_number(found.decoder.kappa_used)}",
        ]
    advice = found.recommendation
    basis = "measured by short trainings" if advice.measured else "by second moments; no flow was trained"
    lines += ["", f"Recommendation ({basis}): {advice}"]
    for paragraph in advice.reason.splitlines():
        lines += textwrap.wrap(paragraph, WIDTH, subsequent_indent="  " if advice.measured else "")
    lines += ["", "What this project has measured of such cases:"]
    for sentence in advice.evidence:
        lines += textwrap.wrap(sentence, WIDTH, initial_indent="  ", subsequent_indent="    ")
    return "\n".join([*lines, "", textwrap.indent(advice.code, "    ")])


def plot_spectra(found: "Diagnosis", file: Path) -> None:
    """Variances along eigendirections on a logarithmic scale, raw and behind each map.

    Raises:
        PrecfmError: matplotlib is not installed, or does not know the file's ending.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise PrecfmError(f"{file}: a plot needs matplotlib; pip install matplotlib") from None
    figure = Figure(figsize=(6.75, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, each in _rows(found):
        spectrum = [max(value, 1e-30) for value in each.spectrum]
        axes.plot(
            range(1, len(spectrum) + 1), spectrum, label=f"{name} ($\\kappa$ {_kappa(each)})", linewidth=1.2
        )
    axes.set(
        yscale="log",
        xlabel="eigendirection, smallest variance first",
        ylabel="variance of held-out rows",
        title=f"{found.held_out_rows:,} held-out rows of {found.features:,} features: {found.recommendation}",
    )
    axes.legend(fontsize="small")
    try:
        figure.savefig(file, dpi=150)
    except ValueError as error:
        raise PrecfmError(f"{file}: cannot be drawn ({error})") from None


def _rows(found: "Diagnosis") -> "list[tuple[str, Conditioning]]":
    behind = [(each.name, each.conditioning) for each in found.maps if each.conditioning is not None]
    return [("raw", found.raw), *behind]


def _spectrum(raw: "Conditioning") -> list[str]:
    """The raw spectrum in one line of blocks, logarithmic."""
    count = len(raw.spectrum)
    columns = min(count, COLUMNS)
    logs = [math.log10(max(value, 1e-30)) for value in raw.spectrum]
    chosen = [logs[round(i * (count - 1) / max(columns - 1, 1))] for i in range(columns)]
    low, high = min(chosen), max(chosen)
    heights = [round((value - low) / max(high - low, 1e-9) * (len(BARS) - 1)) for value in chosen]
    blocks = "".join(BARS[height] for height in heights)
    ends = f"variances {_number(raw.spectrum[0])} to {_number(raw.spectrum[-1])}"
    return [f"spectrum (log) {blocks} {ends}"]


def _table(found: "Diagnosis") -> list[str]:
    trips = {each.name: (each.floor, each.round_trip) for each in found.maps}
    rows = [_HEAD]
    for name, each in _rows(found):
        floor, trip = trips.get(name, (each.floor, math.nan))
        rows.append(
            (
                name,
                _kappa(each),
                _number(each.at_least),
                _number(floor),
                _number(each.mean_log_kappa),
                _number(max(each.class_kappas.values(), default=math.nan)) if found.classes else "-",
                "-" if math.isnan(trip) else f"{trip:.0e}",
                _number(each.steps_slowest),
                _number(each.steps_total),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = []
    for name, *cells in rows:
        numbers = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *numbers]))
    lines += [f"{each.name}: not tried, {each.refused}" for each in found.maps if each.refused is not None]
    return lines + [f"{each.name}: {note}" for each in found.maps for note in each.notes]


def _kappa(each: "Conditioning") -> str:
    return _number(each.kappa)


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "?"
    return f"{value:,.0f}" if 1000 <= value < 1e7 else f"{value:.3g}"
