"""Figures of the cost of kernel attention in time and memory, from the rows of `kaconv.bench.benchmark`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from pandas.io.formats.style import Styler

from kaviz.style import VARIANT_COLORS, WIDTH, place_legend

if TYPE_CHECKING:  # it runs the models
    from kaconv.bench.benchmark import BenchmarkRow

Row = Mapping[str, Any]

_MODES: dict[Literal["inference", "training"], str] = {"inference": "Inference", "training": "Training step"}
_LABELS = {"reference": "KAConv, reference", "eager": "KAConv, eager", "fused": "KAConv, fused"}
_LABELS |= {"plain-compiled": "plain, compiled", "fused-compiled": "KAConv, fused, compiled"}
_LABELS |= {"plain-optimized": "plain, optimized", "fused-optimized": "KAConv, fused, optimized"}
# Okabe and Ito's colours again; KAConv's forms are filled, its peers open.
_MARKS = {
    "plain": ("o", VARIANT_COLORS["plain"]),
    "reference": ("X", "#56B4E9"),
    "eager": ("s", "#0072B2"),
    "fused": ("D", "#D55E00"),
    "plain-compiled": ("*", VARIANT_COLORS["plain"]),
    "fused-compiled": ("P", "#D55E00"),
    "plain-optimized": (">", VARIANT_COLORS["plain"]),
    "fused-optimized": ("h", "#D55E00"),
    "SE": ("^", "#009E73"),
    "SK": ("v", "#CC79A7"),
    "CondConv": ("p", "#B07B00"),
}
_OPEN = ("SE", "SK", "CondConv")
_LEFT, _RIGHT = 1.35, 2.2  # free space beside the outermost marks, as factors; the right one holds the numbers


def speed_frame(rows: "Iterable[BenchmarkRow]") -> pd.DataFrame:
    """Times, ratios, distances from the floor and memory as a table, a line for each row; NaN: not measured.

    "compile s", the seconds that compiling took, is a column where there are compiled rows.
    """
    columns = {
        "ms": lambda measured, plain: measured["median_ms"],
        "× plain": lambda measured, plain: measured["ratio"],
        "× floor": lambda measured, plain: measured["floor_ms"] and measured["median_ms"] / measured["floor_ms"],
        "MiB": lambda measured, plain: measured["peak_bytes"] / 2**20,
        "extra MiB": lambda measured, plain: plain and (measured["peak_bytes"] - plain["peak_bytes"]) / 2**20,
    }
    rows = list(rows)
    measurements = [row[mode] for row in rows for mode in _MODES]
    if any(measurement is not None and measurement.get("compile_seconds") for measurement in measurements):
        columns["compile s"] = lambda measured, plain: measured.get("compile_seconds")
    plain = _plain_rows(rows)
    frame = {
        (_MODES[mode], name): [row[mode] and value(row[mode], plain[row["model"]][mode]) for row in rows]
        for mode in _MODES
        for name, value in columns.items()
    }
    index = pd.MultiIndex.from_tuples([(row["model"], row["variant"]) for row in rows], names=["model", "variant"])
    return pd.DataFrame(frame, index=index, dtype=float)


def style_speed(rows: "Iterable[BenchmarkRow]") -> Styler:
    """`speed_frame` as HTML to be shown."""
    frame = speed_frame(rows)
    decimals = {"× plain": "{:.2f}", "extra MiB": "{:+.1f}"}
    cell = "padding: 2px 6px; white-space: nowrap; text-align:"
    return (
        frame.style.format({column: decimals.get(column[1], "{:,.1f}") for column in frame}, na_rep="–")
        .set_properties(**{"text-align": "right", "padding": "2px 6px", "white-space": "nowrap"})
        .set_table_styles(
            [
                {
                    "selector": "",
                    "props": "font-size: 12px; font-variant-numeric: tabular-nums; border-collapse: collapse",
                },
                {"selector": "th.row_heading", "props": f"{cell} left; vertical-align: top"},
                {"selector": "th.col_heading", "props": f"{cell} center"},
            ]
        )
    )


def plot_time_ratios(rows: "Sequence[BenchmarkRow]") -> Figure:
    """Time relative to the plain model in the same round, median and quartiles, with the floor of each model.

    Beside each mark its ratio and the time of a step in ms.
    """

    def value(measured: Row, plain: Row) -> tuple[float, str]:
        return measured["ratio"], f"{_digits(measured['median_ms'])} ms"

    def details(axes: Axes, y: float, row: Row, measured: Row, plain: Row) -> None:
        axes.plot(measured["ratio_quartiles"], (y, y), color=_MARKS[row["variant"]][1], linewidth=3, alpha=0.45)
        if measured["floor_ms"]:
            axes.plot(measured["floor_ms"] / plain["median_ms"], y, **_FLOOR)

    figure = _plot_ratios(rows, "time relative to the plain model (log)", value, details)
    handles = [
        Line2D([], [], **_FLOOR, label="roofline floor"),
        Line2D([], [], color="0.4", linewidth=3, alpha=0.45, label="quartiles over the rounds"),
    ]
    place_legend(figure, handles, "outside upper center")
    return figure


_FLOOR: dict[str, Any] = {"marker": "|", "markersize": 9, "markeredgewidth": 1.5, "color": "0.25", "linestyle": "none"}


def plot_peak_memory(rows: "Sequence[BenchmarkRow]") -> Figure:
    """Peak memory of a step beyond weights, optimizer state and batch, relative to the plain model's.

    Beside each mark its ratio and the memory in MiB.
    """

    def value(measured: Row, plain: Row) -> tuple[float, str]:
        return measured["peak_bytes"] / plain["peak_bytes"], f"{_digits(measured['peak_bytes'] / 2**20)} MiB"

    return _plot_ratios(rows, "peak memory relative to the plain model (log)", value)


def _plot_ratios(
    rows: Sequence[Row],
    label: str,
    value: Callable[[Row, Row], tuple[float, str]],
    details: Callable[[Axes, float, Row, Row, Row], None] | None = None,
) -> Figure:
    """Inference and training side by side on one scale; a line for each variant, below its model's name.

    Args:
        value: (measurement, that of the plain model) to (ratio, what else to write beside the mark).
        details: draws more at a height into axes.
    """
    models = list(dict.fromkeys(row["model"] for row in rows))
    lines: list[str | Row] = []
    for model in models:
        lines += [model, *(row for row in rows if row["model"] == model)]
    plain = _plain_rows(rows)
    figure = Figure(figsize=(WIDTH, 0.25 * len(lines) + 1.3), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, (mode, title) in zip(panels, _MODES.items(), strict=True):
        axes.set_title(title)
        axes.set_xscale("log")
        axes.axvline(1, color=VARIANT_COLORS["plain"], linewidth=1, zorder=0)
        for y, row in enumerate(lines):
            if isinstance(row, str):
                continue
            axes.axhline(y, color="0.93", linewidth=1, zorder=0)
            measured, base = row[mode], plain[row["model"]][mode]
            if measured is None or base is None:
                _write(axes, 1, y, "not measured")
                continue
            if details:
                details(axes, y, row, measured, base)
            ratio, text = value(measured, base)
            _mark(axes, ratio, y, row["variant"])
            shown = "" if measured is base else f"{ratio:.2f}×, " if ratio < 10 else f"{_digits(ratio)}×, "
            _write(axes, max(ratio, measured["ratio_quartiles"][1]) if details else ratio, y, shown + text)
    _scale(panels[0], lines)
    figure.supxlabel(label, fontsize="medium")
    return figure


def _digits(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _plain_rows(rows: Iterable[Row]) -> dict[str, Row]:
    return {row["model"]: row for row in rows if row["variant"] == "plain"}


def _mark(axes: Axes, x: float, y: float, variant: str) -> None:
    marker, color = _MARKS[variant]
    face = "white" if variant in _OPEN else color
    axes.plot(x, y, marker=marker, color=color, markerfacecolor=face, markersize=7, linestyle="none", zorder=3)


def _write(axes: Axes, x: float, y: float, text: str) -> None:
    label = axes.annotate(text, (x, y), (7, 0), textcoords="offset points", va="center", fontsize="x-small")
    label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})  # over the lines behind it


def _scale(axes: Axes, lines: Sequence[str | Row]) -> None:
    """The scales that all panels share: names of models and variants, and ratios with room for what is written."""
    low, high = axes.get_xlim()
    axes.set_xlim(low / _LEFT, high * max(_RIGHT, (high / low) ** 0.65))
    ticks = LogLocator(subs=(1, 2, 5) if high < 30 * low else (1,)).tick_values(low, high)
    axes.set_xticks([tick for tick in ticks if low <= tick <= 1.3 * high])  # none below the written numbers
    axes.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}×"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(len(lines) - 0.4, -0.6)
    names = [line if isinstance(line, str) else str(_LABELS.get(line["variant"], line["variant"])) for line in lines]
    axes.set_yticks(range(len(lines)), names, fontsize="small")
    for panel in axes.figure.axes:
        panel.tick_params(axis="y", length=0)
    for line, label in zip(lines, axes.get_yticklabels(), strict=True):
        if isinstance(line, str):
            label.set_fontweight("bold")
