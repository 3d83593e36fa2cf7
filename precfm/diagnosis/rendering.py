"""A diagnosis as text for a terminal, and as a picture."""

import itertools
import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from precfm.core.errors import PrecfmError
from precfm.diagnosis.maps import TRIED

if TYPE_CHECKING:
    from precfm.diagnosis.conditioning import Conditioning
    from precfm.diagnosis.diagnosis import Diagnosis

WIDTH = 80  # characters of a line, but for code that is to be pasted
BARS = "▁▂▃▄▅▆▇█"
COLUMNS = 64  # of the small spectrum
MOST_NOTES = 3  # of each map; some have one for each class

Row = tuple[str, ...]

_HEADS: tuple[Row, Row] = (
    ("", "condition", "by", "", "worst", "round", "steps,", "steps,"),
    ("", "number", "chance", "path", "class", "trip", "slowest", "all"),
)
_WORST_CLASS = 4  # position of the column that labels alone have
_LEGEND = {
    "condition number": "largest over smallest variance over all directions of the held-out rows. A range goes from a "
    "lower bound (95%, for Gaussian rows) to what the rows show, which chance makes too large. ≥: the lower bound "
    "alone, since rows are too few, or features too many, for more.",
    "by chance": "what so many rows would show of data whose condition number is 1, or behind an exact whitening "
    "that is fitted to as many: no map shows much less. -: rows are too few to say.",
    "path": "mean over t of ln(condition number) of x_t = t x + (1 - t) noise; 0 is best.",
    "worst class": "the largest condition number within a class. -: too few rows of each.",
    "round trip": "error of mapping there and back in float32, over the smallest standard deviation.",
    "steps": "of gradient descent until a linear model's excess error is 1% of its start: along the slowest "
    "direction, and of all together. Theory of linear models, not of networks.",
}


def text(found: "Diagnosis") -> str:
    """All of it: the rows, the answer, what it rests on."""
    shape = f"{' x '.join(map(str, found.shape))} = " if len(found.shape) > 1 else ""
    labels = f"{found.classes:,} classes" if found.classes else "no labels"
    lines = [
        *_wrapped(
            f"{found.rows:,} rows of {shape}{found.features:,} features ({found.dtype}, {labels}), "
            f"{number(found.rows / found.features)} rows per feature. Maps are fitted to {found.fit_rows:,} rows; all "
            f"numbers are of {found.held_out_rows:,} others, held out (seed {found.seed})."
        ),
        *(line for note in found.notes for line in ["", *_wrapped(f"Look first: {note}")]),
        "",
        *_advice(found),
        "",
        *_spectrum(found.raw),
        "",
        *_table(found),
        "",
        *_legend(found),
    ]
    remarks = _remarks(found)
    if remarks:
        lines += ["", *remarks]
    if found.decoder is not None and found.decoder.refused is not None:
        lines += ["", *_wrapped(f"decoder: not asked, since {found.decoder.refused}")]
    elif found.decoder is not None:
        reduced = f" ({found.decoder.reduced})" if found.decoder.reduced else ""
        lines += [
            "",
            *_wrapped(
                f"decoder: hardly uses {found.decoder.unused} of {found.decoder.directions} directions{reduced}; "
                f"variances along the others differ by a factor of {number(found.decoder.kappa_used)}"
            ),
        ]
    lines += ["", "What this project has measured", *found.recommendation.evidence]
    return "\n".join(lines)


def _wrapped(paragraph: str, indent: str = "") -> list[str]:
    return textwrap.wrap(paragraph, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def _advice(found: "Diagnosis") -> list[str]:
    advice = found.recommendation
    basis = "measured by short trainings" if advice.measured else "by second moments; no flow was trained"
    lines = [f"Recommendation ({basis}): {advice}"]
    for paragraph in advice.reason.splitlines():
        lines += _wrapped(paragraph, "  " if advice.measured else "")
    lines += ["", textwrap.indent(advice.code, "    ")]
    if advice.action == "use" and advice.candidate in {each.name for each in found.maps}:
        lines += ["", "For files, in the shell:", ""]
        lines += [f"    precfm fit LATENTS --map {advice.candidate} --output map.safetensors"]
    if advice.alternative:
        lines += ["", *_wrapped(advice.alternative), "", textwrap.indent(advice.alternative_code, "    ")]
    return lines


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
    """Variances along eigendirections over their mean, on a logarithmic scale, raw and behind each map.

    Raises:
        PrecfmError: as `require_plot`.
    """
    require_plot(file)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 3.6), layout="constrained")
    axes = figure.subplots()
    styles = itertools.cycle(["-", "--"])  # so that spectra that coincide are both seen
    for (name, each), style in zip(_rows(found), styles, strict=False):
        mean = sum(each.spectrum) / len(each.spectrum)
        spectrum = [max(value / mean, 1e-30) for value in each.spectrum]
        label = f"{name}: {_kappa(each)}"
        axes.plot(range(1, len(spectrum) + 1), spectrum, style, label=label, linewidth=1.2)
    axes.axhline(1, color="0.7", linewidth=0.8, zorder=0)
    axes.set(
        yscale="log",
        xlabel="direction, from smallest to largest variance",
        ylabel="variance over the mean variance",
        title=f"{found.held_out_rows:,} held-out rows of {found.features:,} features: {found.recommendation}",
    )
    figure.legend(loc="outside right upper", fontsize="small", title="condition number\n(flat is best: 1)")
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
    return [f"Variances of the rows, from smallest to largest: {ends} (logarithmic)", blocks]


def _table(found: "Diagnosis") -> list[str]:
    trips = {each.name: (each.floor, each.round_trip) for each in found.maps}
    rows = [*_HEADS]
    for name, each in _rows(found):
        floor, trip = trips.get(name, (each.floor, math.nan))
        rows.append(
            (
                name,
                _kappa(each),
                number(floor),
                number(each.mean_log_kappa),
                number(max(each.class_kappas.values(), default=math.nan)) if found.classes else "-",
                "-" if math.isnan(trip) else f"{trip:.0e}",
                number(each.steps_slowest),
                number(each.steps_total),
            )
        )
    if not found.classes:
        rows = [row[:_WORST_CLASS] + row[_WORST_CLASS + 1 :] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for name, *cells in rows:
        numbers = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *numbers]).rstrip())
    return lines


def _legend(found: "Diagnosis") -> list[str]:
    """What the columns are."""
    width = max(map(len, _LEGEND)) + 2
    lines = []
    for column, meaning in _LEGEND.items():
        if column != "worst class" or found.classes:
            lines += textwrap.wrap(
                f"{column:{width}}{meaning}", WIDTH, subsequent_indent=" " * width, break_on_hyphens=False
            )
    return lines


def _remarks(found: "Diagnosis") -> list[str]:
    """What names mean that are no registered ones, why maps were not tried, and what their fits noted."""
    remarks = []
    for each in found.maps:
        spec = TRIED[each.name].spec
        if not isinstance(spec, str) and each.refused is None:
            options = ", ".join(f"{name}={value}" for name, value in spec.items() if name != "name")
            remarks.append(f"{each.name}: is {spec['name']} with {options}")
    remarks += [f"{each.name}: not tried, {each.refused}" for each in found.maps if each.refused is not None]
    for each in found.maps:
        remarks += [f"{each.name}: {note}" for note in each.notes[:MOST_NOTES]]
        if len(each.notes) > MOST_NOTES:
            remarks.append(f"{each.name}: {len(each.notes) - MOST_NOTES:,} more notes, which JSON gives")
    return [line for remark in remarks for line in _wrapped(remark, "  ")]


def _kappa(each: "Conditioning") -> str:
    """The condition number from its lower bound to what the rows show, or the bound alone."""
    low, high = number(each.at_least), number(each.kappa)
    if not math.isfinite(each.kappa):
        return f"≥ {low}"
    return high if low == high else f"{low}-{high}"


def number(value: float) -> str:
    """Three digits, in at most six characters; `-` where it is infinite or not known."""
    if not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if 1000 <= value < 1e5 else f"{value:.3g}".replace("e+0", "e").replace("e+", "e")
