"""The ImageNet table as a table to read and as figures: rows are those of `kaconv.paper.table.table_rows`."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox
from pandas.io.formats.style import Styler

from kaviz.style import VARIANT_COLORS, VARIANT_LABELS, VARIANT_MARKERS, WIDTH, place_legend, signed, variant_of

if TYPE_CHECKING:  # it builds the models
    from kaconv.paper.table import TableRow

Row = Mapping[str, Any]

_COSTS: dict[Literal["paper_flops", "params"], str] = {
    "paper_flops": "FLOPs, as the paper counts them",
    "params": "parameters",
}
_ADDED = {
    "paper_flops": "Added FLOPs\n(paper's count)",
    "macs": "Added\nmultiply-adds",
    "params": "Added\nparameters",
}
_ERROR = "top-1 error (%)"
_GROUPS = {"res": "ResNet and ResNeXt", "mobilenet": "MobileNetV2"}


def table_frame(rows: "Iterable[TableRow]") -> pd.DataFrame:
    """The rows as a table with two header lines: computed and measured values beside the published ones."""
    columns = {
        ("parameters", "computed"): lambda row: row["params"],
        ("parameters", "published"): lambda row: row["published"]["params"],
        ("parameters", "agree"): lambda row: row["agrees"]["params"],
        ("FLOPs (paper's count)", "computed"): lambda row: row["paper_flops"],
        ("FLOPs (paper's count)", "published"): lambda row: row["published"]["flops"],
        ("FLOPs (paper's count)", "agree"): lambda row: row["agrees"]["flops"],
        ("multiply-adds", "computed"): lambda row: row["macs"],
        ("top-1 / top-5 error (%)", "published"): lambda row: _errors(row["published"]),
        ("top-1 / top-5 error (%)", "measured"): lambda row: _errors(row["measured"]),
    }
    rows = list(rows)
    frame = {column: [value(row) for row in rows] for column, value in columns.items()}
    return pd.DataFrame(frame, index=[row["name"] for row in rows])


def _errors(errors: Mapping[str, Any] | None) -> str:
    return f"{errors['top1_error']:.2f} / {errors['top5_error']:.2f}" if errors else "not measured"


def style_table(rows: "Iterable[TableRow]") -> Styler:
    """`table_frame` as HTML to be shown: ✓ and ✗, thousands separated, a rule above each family's plain model."""
    rows = list(rows)
    frame = table_frame(rows)
    ruled = {row["name"] for row in rows if variant_of(row["model"]) == "plain"}
    rule = "border-top: 2px solid #999"
    heading = "padding: 2px 4px; white-space: nowrap; text-align:"
    computed, marks = ([column for column in frame.columns if column[1] == kind] for kind in ("computed", "agree"))
    return (
        frame.style.format("{:,}", subset=computed)
        .format(lambda agrees: "✓" if agrees else "✗", subset=marks)
        .set_properties(**{"text-align": "right", "padding": "2px 4px", "white-space": "nowrap"})
        .set_properties(subset=marks, **{"text-align": "center", "font-weight": "bold"})
        .map(lambda agrees: f"color: {'#00704d' if agrees else '#b00020'}", subset=marks)
        .apply(lambda line: [rule if line.name in ruled else ""] * len(line), axis=1)
        .apply_index(lambda names: [rule if name in ruled else "" for name in names])
        .set_table_styles(
            [
                {
                    "selector": "",
                    "props": "font-size: 12px; font-variant-numeric: tabular-nums; border-collapse: collapse",
                },
                {"selector": "th.row_heading", "props": f"{heading} left"},
                {"selector": "th.col_heading", "props": f"{heading} center"},
            ]
        )
    )


def plot_error_against_cost(rows: "Sequence[TableRow]") -> Figure:
    """Top-1 error against FLOPs and against parameters, a line for each family from plain to L to H.

    Small and large models are apart, as their errors are: a row of panels for each group of families.
    """
    groups = _groups(rows)
    figure = Figure(figsize=(WIDTH, 3.0 * len(groups) + 0.3), layout="constrained")
    grid = figure.subplots(len(groups), len(_COSTS), sharey="row", squeeze=False)
    for line, (title, members) in zip(grid, groups.items(), strict=True):
        for axes, cost in zip(line, _COSTS, strict=True):
            plot_error_against(members, cost, ax=axes)
            axes.set_title(title)
        line[1].set_ylabel("")
    for axes in grid[0]:
        axes.set_xlabel("")
    place_legend(figure, _legend(rows), "outside upper center")
    for axes in grid.flat:
        _place_labels(axes)
    return figure


def plot_error_against(
    rows: "Sequence[TableRow]", cost: Literal["paper_flops", "params"], ax: Axes | None = None
) -> Figure | SubFigure:
    """Published top-1 error against one cost; measured errors, where there are any, as open marks.

    Args:
        cost: what is drawn along the x axis.
        ax: drawn into where given.
    """
    if cost not in _COSTS:
        raise ValueError(f"unknown cost {cost!r}; choose from {', '.join(_COSTS)}")
    alone = ax is None
    if ax is None:
        ax = Figure(figsize=(WIDTH / 2, 3.8), layout="constrained").add_subplot()
    for name, members in _families(rows).items():
        ordered = list(members.values())
        x, y = [row[cost] for row in ordered], [row["published"]["top1_error"] for row in ordered]
        ax.plot(x, y, color="0.6", linewidth=1, zorder=1)
        for variant, row in members.items():
            style: dict[str, Any] = {
                "marker": VARIANT_MARKERS[variant],
                "linestyle": "none",
                "color": VARIANT_COLORS[variant],
            }
            ax.plot(row[cost], row["published"]["top1_error"], **style, markersize=7, zorder=2)
            if row["measured"]:
                style |= {"markerfacecolor": "none", "markersize": 11, "markeredgewidth": 1.5}
                ax.plot(row[cost], row["measured"]["top1_error"], **style, zorder=3)
        ax.annotate(name, (x[0], y[0]), (6, 6), textcoords="offset points", fontsize="x-small", color="0.2")
    ax.set_xscale("log")
    costs = [row[cost] for row in rows]
    range_of_costs = max(costs) / min(costs)
    steps = (1, 1.5, 2, 3, 4, 5, 6, 8) if range_of_costs <= 8 else (1, 2, 5) if range_of_costs <= 20 else (1, 3)
    ax.xaxis.set_major_locator(LogLocator(subs=steps))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.margins(x=0.35, y=0.12)
    ax.set_xlabel(f"{_COSTS[cost]} (log)")
    ax.set_ylabel(_ERROR)
    ax.grid(color="0.92")
    ax.set_axisbelow(True)
    if alone:
        ax.legend(handles=_legend(rows), loc="lower left", bbox_to_anchor=(0, 1), fontsize="small")
        _place_labels(ax)
    return ax.figure


def plot_added_cost(rows: "Sequence[TableRow]") -> Figure:
    """Additions of KAConv to each plain model: costs, computed, in percent; top-1 error, published, in points."""
    families = _families(rows)
    figure = Figure(figsize=(WIDTH, 0.62 * len(families) + 1.4), layout="constrained")
    grid = figure.subplots(1, len(_ADDED) + 1, sharey=True)
    for place, members in enumerate(families.values()):
        plain = members["plain"]
        for variant in ("L", "H"):
            row = members[variant]
            for axes, cost in zip(grid, _ADDED, strict=False):
                percent = 100 * (row[cost] / plain[cost] - 1)
                _draw_change(axes, variant, place, percent, f"+{_two_digits(percent)}%")
            points = row["published"]["top1_error"] - plain["published"]["top1_error"]
            _draw_change(grid[-1], variant, place, points, signed(points, "+.2f"))
    for axes, title in zip(grid, (*_ADDED.values(), "Top-1 error\n(points)"), strict=True):
        axes.set_title(title, fontsize="small")
        axes.margins(x=0.7)
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
    for axes in grid[:-1]:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda percent, _: f"{percent:g}%"))
        axes.xaxis.set_minor_locator(NullLocator())
    grid[-1].axvline(0, color=VARIANT_COLORS["plain"], linewidth=1)
    grid[0].set_yticks(range(len(families)), list(families))
    grid[0].set_ylim(len(families) - 0.5, -0.5)
    figure.legend(handles=_legend(rows, variants=("L", "H"), measured=False), loc="outside upper center", ncols=2)
    return figure


def _two_digits(percent: float) -> str:
    return f"{percent:.{max(0, 1 - math.floor(math.log10(percent)))}f}"


def _draw_change(axes: Axes, variant: str, place: int, value: float, text: str) -> None:
    # L above the line, H below: their values can be close, and their numbers must not touch.
    y = place + (-0.18 if variant == "L" else 0.18)
    axes.plot(value, y, marker=VARIANT_MARKERS[variant], color=VARIANT_COLORS[variant], linestyle="none", markersize=7)
    # Away from the line at zero.
    offset, side = ((-7, 0), "right") if value < 0 else ((7, 0), "left")
    style: dict[str, Any] = {"ha": side, "va": "center", "fontsize": "x-small", "color": "0.2"}
    axes.annotate(text, (value, y), offset, textcoords="offset points", **style)


def _families(rows: Iterable[Row]) -> dict[str, dict[str, Row]]:
    """Family name to its rows by variant, plain first."""
    families: dict[str, dict[str, Row]] = {}
    for row in rows:
        family = row["model"].removeprefix("ka_").removesuffix("_l").removesuffix("_h")
        families.setdefault(family, {})[variant_of(row["model"])] = row
    return {members["plain"]["name"]: members for members in families.values()}


def _groups(rows: "Iterable[TableRow]") -> "dict[str, list[TableRow]]":
    groups: dict[str, list[TableRow]] = {}
    for row in rows:
        prefix = next(prefix for prefix in _GROUPS if row["model"].removeprefix("ka_").startswith(prefix))
        groups.setdefault(_GROUPS[prefix], []).append(row)
    return groups


def _legend(rows: Iterable[Row], variants: Sequence[str] = ("plain", "L", "H"), measured: bool = True) -> list[Line2D]:
    def mark(variant: str, **style: Any) -> Line2D:
        return Line2D([], [], linestyle="none", marker=VARIANT_MARKERS[variant], color=VARIANT_COLORS[variant], **style)

    published = ", published" if measured else ""
    handles = [mark(variant, label=VARIANT_LABELS[variant] + published) for variant in variants]
    if measured and any(row["measured"] for row in rows):
        handles.append(mark("plain", label="measured here", markerfacecolor="none", markersize=11, markeredgewidth=1.5))
    return handles


_OFFSETS = [(6, 6), (6, -13), (-6, 6), (-6, -13), (10, -3), (-10, -3), (6, 16), (-6, 16), (6, -24), (-6, -24)]


def _place_labels(axes: Axes) -> None:
    """Move each label of a point to the first place around it that is clear of marks and of other labels."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    drawn = [line.get_path().transformed(axes.transData) for line in axes.lines]
    taken: list[Bbox] = []
    for label in (text for text in axes.texts if isinstance(text, Annotation)):
        for offset in _OFFSETS:
            label.set_position(offset)
            label.set_horizontalalignment("left" if offset[0] > 0 else "right")
            box = label.get_window_extent()
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1
            clear = not any(path.intersects_bbox(box.padded(4), filled=False) for path in drawn)
            if inside and clear and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
