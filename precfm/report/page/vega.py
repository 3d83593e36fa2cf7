"""Interactive charts as Vega-Lite specifications that hold their data, made by Vega-Altair; and the code to draw them.

Methods are switched on and off by the parameter `hidden`, which the page's script sets from a row of checkboxes; all
else is chosen by inputs that Vega makes of the specification.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import altair as alt
import pandas as pd

from precfm.core.statistics import INDICATIVE_BELOW
from precfm.report.figures.style import method_styles
from precfm.report.frames import Frames
from precfm.report.vocabulary import ALONE, in_order, method_label, split_matched

_OTHER = "#6b6b6b"  # what is no flow: data, floor, maps alone
_HEIGHT = 360
_DASHES = {"": [1, 0], "-P": [5, 3], "-F": [2, 2]}
_DIGITS = ".4~g"
_LOG_TICKS = 5
_APART = 4  # pixels between labels
_AXES = {"gridColor": "#e8e8e8", "domainColor": "#767676", "tickColor": "#767676", "labelColor": "#333"}
_FONT = {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "titleColor": "#333"}


@dataclass(frozen=True)
class Chart:
    """One interactive chart.

    Attributes:
        item: the figure or table that it stands at, as `figure spectra`.
        caption: what it shows and how its numbers were made.
        spec: its specification.
        methods: by label, the colour; those that are switched on and off.
        hidden: the labels of those that are off at first.
    """

    item: str
    caption: str
    spec: dict[str, Any]
    methods: dict[str, str] = field(default_factory=dict)
    hidden: list[str] = field(default_factory=list)


@cache
def javascript() -> str:
    """The code that draws the charts: Vega, Vega-Lite and Vega-Embed, nothing of which is fetched."""
    import vl_convert

    version = alt.SCHEMA_VERSION.removeprefix("v").rpartition(".")[0]
    snippet = "window.vegaEmbed = vegaEmbed;"
    code: str = vl_convert.javascript_bundle(snippet, vl_version=version)
    return code.replace("</script", "<\\/script")


def lines(
    item: str,
    caption: str,
    rows: pd.DataFrame,
    frames: Frames,
    *,
    x: Sequence[str],
    y: str = "",
    log: str = "",
    choice: str = "",
) -> Chart:
    """Lines with their intervals, one for each method; the data set, and what else there is a choice of, are chosen.

    Args:
        item: as of the chart.
        caption: the same.
        rows: columns dataset, method, those named by `x`, value, low, high, n; shown, if there is a choice; floor, if
            there is one.
        frames: for the colours of methods.
        x: the columns that the axis shows, one at a time.
        y: the title of the other axis.
        log: which of the axes are logarithmic: some of "xy".
        choice: what the column `shown` chooses.
    """
    methods = _Methods(rows["method"], frames)
    params = [_dataset(rows)]
    if choice:
        params.append(_choice("shown", list(dict.fromkeys(rows["shown"])), choice))
    params.append(_choice("x", x, "against"))
    several = bool(rows["n"].max() >= INDICATIVE_BELOW)  # intervals of fewer seeds would hide the lines
    params.append(alt.param(name="intervals", value=several, bind=alt.binding_checkbox(name="intervals ")))
    shown = " && datum.shown == shown" if choice else ""
    base = (
        methods.chart(rows, shown)
        .transform_calculate(x="toNumber(datum[x])")
        .transform_filter("isValid(datum.x)")
    )
    across = alt.X(
        "x:Q",
        title=x[0] if len(x) == 1 else None,
        scale=_scale("x" in log),
        # Steps and FLOPs are written as 2k and 3T.
        axis=_axis("x", log=True, format="~s") if "x" in log else _axis("x"),
    )
    up, low = (
        alt.Y(f"{end}:Q", title=y or None, scale=_scale("y" in log), axis=_axis("y", log="y" in log))
        for end in ("value", "low")
    )
    ends = {end: f"intervals && isValid(datum.{end}) ? datum.{end} : datum.value" for end in ("low", "high")}
    tips = [alt.Tooltip("method:N"), _tip("x", "at"), _tip("value", y or "value")]
    layers: list[alt.Chart] = [
        base.transform_calculate(**ends)
        .mark_area(opacity=0.14)
        .encode(x=across, y=low, y2="high:Q", color=methods.colour),
        base.mark_line(strokeWidth=1.8).encode(x=across, y=up, color=methods.colour, strokeDash=methods.dash),
        base.mark_point(filled=True, size=24, opacity=0.9).encode(
            x=across, y=up, color=methods.colour, tooltip=tips
        ),
    ]
    if "floor" in rows:
        layers.append(base.mark_rule(strokeDash=[6, 3], color=_OTHER).encode(y=alt.Y("mean(floor):Q")))
    return Chart(item, caption, _spec(layers, params, methods.off), methods.colours, methods.off)


def points(item: str, caption: str, rows: pd.DataFrame, frames: Frames, *, first: Sequence[str]) -> Chart:
    """Two of several numbers of every method against each other, with their intervals; which two is chosen.

    Args:
        item: as of the chart.
        caption: the same.
        rows: columns dataset, method, shown (which number), value, low, high.
        frames: for the colours of methods.
        first: the numbers that the axes show at first.
    """
    methods = _Methods(rows["method"], frames)
    numbers = list(dict.fromkeys(rows["shown"]))
    wide = rows.pivot_table(index=["dataset", "method"], columns="shown", values=["value", "low", "high"])
    wide.columns = wide.columns.map(lambda pair: f"{pair[0]} {numbers.index(pair[1])}")
    base, encoded = methods.chart(wide.reset_index()), {}
    for axis, channel in (("x", alt.X), ("y", alt.Y)):
        for end in ("value", "low", "high"):
            name = f"{axis}_{end}"
            base = base.transform_calculate(
                **{name: f"toNumber(datum['{end} ' + indexof({numbers}, {axis})])"}
            )
            encoded[name] = channel(f"{name}:Q", title=None, scale=_scale(), axis=_axis(axis, format=_DIGITS))
    base = base.transform_filter("isValid(datum.x_value) && isValid(datum.y_value)")
    x, y = encoded["x_value"], encoded["y_value"]
    tips = [alt.Tooltip("method:N"), _tip("x_value", "across"), _tip("y_value", "up")]
    layers = [
        base.mark_rule(strokeWidth=1.5).encode(x=encoded["x_low"], x2="x_high:Q", y=y, color=methods.colour),
        base.mark_rule(strokeWidth=1.5).encode(y=encoded["y_low"], y2="y_high:Q", x=x, color=methods.colour),
        base.mark_point(filled=True, size=60, opacity=1).encode(x=x, y=y, color=methods.colour, tooltip=tips),
        base.mark_text(align="left", dx=7, dy=-7, fontSize=11, color="#333").encode(
            x=x, y=y, text="method:N"
        ),
    ]
    across, up = _choice("x", numbers, "across", first[0]), _choice("y", numbers, "up", first[1])
    return Chart(
        item, caption, _spec(layers, [_dataset(rows), across, up], methods.off), methods.colours, methods.off
    )


class _Methods:
    """How the methods of a chart are written and drawn; at first without matched baselines and maps alone."""

    def __init__(self, names: "pd.Series[str]", frames: Frames) -> None:
        styles, ordered = method_styles(frames), in_order(names)
        self.colours = {
            method_label(name): styles[name].colour if name in styles else _OTHER for name in ordered
        }
        self.off = [
            method_label(name) for name in ordered if split_matched(name)[1] or name.startswith(ALONE)
        ]
        dashes = [_DASHES[split_matched(name)[1]] for name in ordered]
        self.colour = alt.Color("method:N", legend=None, scale=self._scale([*self.colours.values()]))
        self.dash = alt.StrokeDash("method:N", legend=None, scale=self._scale(dashes))

    def _scale(self, values: list[Any]) -> alt.Scale:
        return alt.Scale(domain=[*self.colours], range=values)

    def chart(self, rows: pd.DataFrame, also: str = "") -> alt.Chart:
        """A chart of the rows of the chosen data set; numbers are text of four digits, a third of what JSON takes."""
        text = rows.assign(method=rows["method"].map(method_label)).to_csv(index=False, float_format="%.4g")
        data = alt.InlineData(values=text, format=alt.CsvDataFormat(type="csv"))
        chart: alt.Chart = alt.Chart(data).transform_filter(
            f"!hidden[datum.method] && datum.dataset == dataset{also}"
        )
        return chart


def _tip(name: str, title: str) -> alt.Tooltip:
    return alt.Tooltip(f"{name}:Q", format=_DIGITS, title=title)


def _scale(log: bool = False) -> alt.Scale:
    return (
        alt.Scale(type="log", nice=False, padding=12)
        if log
        else alt.Scale(zero=False, nice=False, padding=12)
    )


def _axis(channel: str, *, log: bool = False, **options: Any) -> alt.Axis:
    """An axis whose labels keep apart, however narrow the screen."""
    # Of a logarithmic axis the count chooses which multiples of the powers of ten have labels.
    room = "ceil(width / 60)" if channel == "x" else "ceil(height / 40)"
    ticks: Any = _LOG_TICKS if log else alt.ExprRef(room)
    return alt.Axis(labelOverlap="greedy", labelSeparation=_APART, tickCount=ticks, **options)


def _choice(name: str, options: Sequence[str], label: str, first: str = "") -> alt.Parameter:
    """A choice of one of several; without an input where there is only one."""
    bind = alt.binding_radio if label == "against" else alt.binding_select
    bound: Mapping[str, Any] = (
        {"bind": bind(options=[*options], name=f"{label} ")} if len(options) > 1 else {}
    )
    return alt.param(name=name, value=first or options[0], **bound)


def _dataset(rows: pd.DataFrame) -> alt.Parameter:
    """The choice of a data set with its setting; at first the one with most methods."""
    methods = rows.groupby("dataset")["method"].nunique()
    return _choice("dataset", list(methods.index), "data set", str(methods.idxmax()))


def _spec(layers: Sequence[alt.Chart], params: Sequence[alt.Parameter], off: Sequence[str]) -> dict[str, Any]:
    chart = alt.layer(*layers).properties(
        width="container",
        height=_HEIGHT,
        background="white",
        padding={"left": 12, "top": 5, "right": 28, "bottom": 5},
    )
    chart = chart.add_params(alt.param(name="hidden", value=dict.fromkeys(off, True)), *params)
    chart = chart.configure(font="system-ui, sans-serif", autosize={"type": "fit-x", "contains": "padding"})
    spec: dict[str, Any] = chart.configure_axis(**_AXES, **_FONT).configure_view(stroke=None).to_dict()
    return spec
