"""Effects of interventions on the attention on a model's decisions: the rows of `kaconv.attention.effects`, drawn.

Each function makes a figure of its own, or draws in the place of `ax`, and attaches its numbers as a table, which
`kaviz.figures.figure_data` gives back.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from kaviz.figures import attach_data
from kaviz.plots.map_grid import (
    MOST_CELLS_WITH_NUMBERS,
    ROW_NAMES,
    Scale,
    attention_bar,
    below,
    draw_map,
    ends,
    figure_title,
    frame,
    write_numbers,
)
from kaviz.style import (
    SEQUENTIAL,
    VARIANT_COLORS,
    VARIANT_MARKERS,
    WIDTH,
    canvas,
    finish_grid,
    fit,
    place_legend,
    signed,
    variant_of,
)

if TYPE_CHECKING:  # their imports take seconds; who has rows has them already
    from kaconv.attention.effects import CorrelationRow, PooledEffectRow, RemovalRow

Row = Mapping[str, Any]

_COLUMNS = 4  # panels in a line


class _Measure(NamedTuple):
    title: str
    unit: str
    form: str  # of its numbers


_MEASURES = {
    "error_change": _Measure("Change of the test error", "percentage points", "+.1f"),
    "changed": _Measure("Decisions that turn", "% of the decisions", ".0f"),
    "log_probability_change": _Measure("Change of the class's log-probability", "natural logarithm", "+.2f"),
}


def plot_effects(
    rows: "Sequence[PooledEffectRow]", ax: Axes | None = None, *, measure: str = "error_change"
) -> Figure | SubFigure:
    """Effects of each intervention in each layer, all on one axis: a panel for each layer, or, of many, a row.

    Args:
        rows: those of `kaconv.attention.effects.pool_effects`.
        measure: what is drawn: "error_change"; "changed", the share of decisions that turn; or
            "log_probability_change".

    Raises:
        ValueError: for another measure.
    """
    shown = _measure(measure)
    every, models = cast("Sequence[Row]", rows), _distinct(rows, "model")
    across, down = "layer", "intervention"
    if len(_distinct(rows, across)) > _COLUMNS:
        across, down = down, across
    panels, lines = _distinct(rows, across), _distinct(rows, down)
    figure = canvas(ax, (WIDTH, 0.19 * len(lines) * (len(models) + 0.5) + 2.1))
    grid = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axes, panel in zip(grid, panels, strict=True):
        axes.axvline(0, color="black", linewidth=1, zorder=1)
        for row in (row for row in every if row[across] == panel):
            place = lines.index(row[down]) + _offset(row, models, 0.3)
            _draw_effect(axes, row, measure, place, upright=False)
            end = max(0, row[f"{measure}_interval"][1], *row[f"{measure}_values"])
            style: dict[str, Any] = {"va": "center", "fontsize": "x-small", "color": _color(row)}
            text = signed(row[measure], shown.form)
            axes.annotate(text, (end, place), (5, 0), textcoords="offset points", **style)
        axes.set_title(fit(panel, 0.75 * WIDTH / len(panels), "x-small"), fontsize="x-small")
        axes.set_xlabel(shown.unit, fontsize="small")
        axes.tick_params(labelsize="small")
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: signed(value, "g")))
        axes.grid(axis="x", color="0.92")
        axes.set_axisbelow(True)
    drawn = [0, *(end for row in every for end in (*row[f"{measure}_interval"], *row[f"{measure}_values"]))]
    low, high = min(drawn), max(drawn)
    room = 0.5 * len(panels) / (WIDTH - 1.5)  # of a panel, for the numbers: half an inch, without ticks
    reach = (high - low or 1) / (1 - room)
    grid[0].set_xlim(low - 0.05 * reach, low + reach)
    ticks = MaxNLocator(4 if len(panels) <= _COLUMNS else 2).tick_values(low, high)
    grid[0].set_xticks([tick for tick in ticks if low <= tick <= high])
    grid[0].set_yticks(range(len(lines)), lines)
    grid[0].set_ylim(len(lines) - 0.5, -0.5)
    _legend(figure, rows)
    figure_title(figure, f"{shown.title} where the attention is replaced")
    return attach_data(figure, _effect_frame(rows, measure))


def plot_transplants(
    rows: "Sequence[PooledEffectRow]", ax: Axes | None = None, *, measure: str = "error_change"
) -> Figure | SubFigure:
    """Effects of another image's attention, and the part that its class has in them, layer by layer.

    On the left (above, where there are many layers) the effect of the attention of an image of the same class and of
    another; on the right, how often another class's attention leads to a decision for that class.

    Args:
        rows: those of `kaconv.attention.effects.pool_effects`, with both transplants.
        measure: of the left panel, as in `plot_effects`.

    Raises:
        ValueError: if a transplant was not measured, or for another measure.
    """
    from kaconv.attention.effects import (  # whose imports take seconds; who has rows has it already
        OTHER_CLASS,
        SAME_CLASS,
    )

    shown = _measure(measure)
    every = cast("Sequence[Row]", rows)
    same, other = ([row for row in every if row["intervention"] == name] for name in (SAME_CLASS, OTHER_CLASS))
    if not same or len(same) != len(other):
        raise ValueError(f"rows must have the interventions {SAME_CLASS!r} and {OTHER_CLASS!r} of the same layers")
    layers, models = _distinct(same, "layer"), _distinct(same, "model")
    few = len(layers) <= _COLUMNS
    figure = canvas(ax, (WIDTH, 4.2 if few else 6.5))
    left, right = figure.subplots(1, 2) if few else figure.subplots(2, 1, sharex=True)
    left.axhline(0, color="black", linewidth=1, zorder=1)
    aside = 0.16 / len(models)
    for near, far in zip(same, other, strict=True):
        place = layers.index(near["layer"]) + _offset(near, models, 0.4)
        for values in zip(near[f"{measure}_values"], far[f"{measure}_values"], strict=True):
            left.plot([place - aside, place + aside], values, color=_color(near), linewidth=1, alpha=0.5)
        _draw_effect(left, near, measure, place - aside, upright=True)
        _draw_effect(left, far, measure, place + aside, upright=True)
        _draw_effect(right, far, "donors_class", place, upright=True)
    left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: signed(value, "+g" if "+" in shown.form else "g")))
    left.set_ylabel(shown.unit)
    left.set_title(f"{shown.title}:\nsame class → another class", fontsize="small")
    right.set_ylim(bottom=-0.03 * right.get_ylim()[1])  # room for a whole mark at 0
    right.set_ylabel("% of the decisions")
    right.set_title("Decisions for the donor's class,\nwhere that is another class", fontsize="small")
    for axes in (left, right):
        axes.set_xticks(range(len(layers)), layers, fontsize="x-small", rotation=20 if few else 90)
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
    _legend(figure, same)
    figure_title(figure, "Decisions with the attention of another image")
    frames = [_effect_frame([*same, *other], measure), _effect_frame(other, "donors_class")]
    return attach_data(figure, pd.concat(frames, ignore_index=True))


def plot_removals(rows: "Sequence[RemovalRow]", ax: Axes | None = None) -> Figure | SubFigure:
    """Mean attention of each kernel position and the cost of its removal, layer by layer; numbers in percent.

    The cost is by how much the probability of the images' class falls, as a geometric mean over the images. All costs
    share one scale, which a square root stretches near 0.

    Args:
        rows: those of `kaconv.attention.effects.measure_removals` for one network of each model, with the model's name.

    Raises:
        ValueError: if there are several networks of a model.
    """
    if len({(row["model"], row["layer"], row["row"], row["column"]) for row in rows}) < len(rows):
        raise ValueError("rows must be of one network of each model: choose those of one seed")
    layers, models = _distinct(rows, "layer"), _distinct(rows, "model")
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["layer"], row["model"]), []).append(row)
    attention = {key: _map(group, [row["attention"] for row in group]) for key, group in groups.items()}
    cost = {key: _map(group, [_cost(row) for row in group]) for key, group in groups.items()}
    scale = Scale.of(attention.values())
    costs = PowerNorm(0.5, 0, max(1e-9, *(values.max() for values in cost.values())), clip=True)
    columns = 2 * len(models)
    blocks = max(1, min(3 // len(models), -(-len(layers) // 4)))  # layers side by side
    lines, columns = -(-len(layers) // blocks), blocks * 2 * len(models)
    names = ROW_NAMES if blocks == 1 else 0.9
    side = min(1.25, (0.97 * WIDTH - blocks * names) / columns, max(0.8, 12 / lines))
    figure = canvas(ax, (min(WIDTH, columns * (side + 0.5) + 1.4), lines * (side + 0.1) + 2.1))
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for panels, layer in zip(grid.reshape(lines * blocks, -1), layers, strict=False):
        for pair, model in zip(panels.reshape(-1, 2), models, strict=True):
            if (key := (layer, model)) in groups:  # models may differ in their layers
                even = 1 / attention[key].size
                few = attention[key].size <= MOST_CELLS_WITH_NUMBERS
                draw_map(pair[0], attention[key], scale.norm(even), numbers=few)
                _draw_costs(pair[1], cost[key], costs)
        panels[0].set_ylabel(fit(layer, names), rotation=0, ha="right", va="center", fontsize="small")
    for pair, model in zip(grid[0].reshape(-1, 2), models * blocks, strict=True):
        name = fit(f"{model}\nmean attention", side + 0.3, "x-small")
        pair[0].set_title(name, fontsize="x-small", loc="center")
        cost_title = fit("cost of removal", side, "x-small")
        pair[1].set_title(cost_title, fontsize="x-small", fontweight="normal", loc="center")
    sizes = {values.size for values in attention.values()}
    attention_bar(
        figure,
        scale,
        sizes,
        dots=max(sizes) > MOST_CELLS_WITH_NUMBERS,
        ax=grid[:, : columns // 2],
        **below(figure, aspect=25, shrink=0.85),
    )
    place_of_costs = below(figure, aspect=25, shrink=0.85)
    bar = figure.colorbar(ScalarMappable(costs, SEQUENTIAL), ax=grid[:, columns // 2 :], **place_of_costs)
    bar.set_label("fall of the class's\nprobability (%)", fontsize="small")
    most = ends(costs)[1]
    bar.set_ticks([tick for tick in MaxNLocator(4).tick_values(0, most) if tick == 0 or 0.1 * most < tick <= most])
    bar.ax.tick_params(labelsize="small")
    figure_title(figure, "Which position is looked at, and which one would be missed")
    return attach_data(figure, _removal_frame(rows))


def plot_attention_and_cost(
    rows: "Sequence[RemovalRow]", correlations: "Sequence[CorrelationRow]", ax: Axes | None = None
) -> Figure | SubFigure:
    """Cost of a position's removal against its attention: a panel for each layer, a mark for each position.

    The attention is the mean over images and channels, the cost that of `plot_removals`.

    Args:
        rows: those of `kaconv.attention.effects.measure_removals`, each with its model and seed.
        correlations: those of `kaconv.attention.effects.attention_correlations`.
    """
    layers, models = _distinct(rows, "layer"), _distinct(rows, "model")
    several = any(row["correlation_interval"] for row in correlations)
    columns = min(_COLUMNS if several or len(layers) <= 2 * _COLUMNS else 6, len(layers))  # intervals take room
    lines = -(-len(layers) // columns)
    figure = canvas(ax, (WIDTH, (3.1 if lines == 1 else 2.3) * lines + 0.8))
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axes, layer in zip(grid.flat, layers, strict=False):
        here = [row for row in rows if row["layer"] == layer]
        for model in models:
            own = [row for row in here if row["model"] == model]
            points = ([100 * row["attention"] for row in own], [_cost(row) for row in own])
            axes.plot(*points, **_marker(model), alpha=0.7)
        positions = {(row["row"], row["column"]) for row in here}
        axes.axvline(100 / len(positions), color="0.5", linewidth=1, linestyle=":")
        axes.axhline(0, color="0.5", linewidth=1)
        texts = [_correlation_text(row) for row in correlations if row["layer"] == layer]
        axes.set_title(
            "\n".join([fit(layer, 0.78 * WIDTH / columns, "x-small"), *texts]), fontsize="x-small", linespacing=1.4
        )
        axes.set_yscale("symlog", linthresh=1)
        axes.yaxis.set_major_locator(FixedLocator([-100, -30, -10, -3, -1, 0, 1, 3, 10, 30, 100]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: signed(value, "g")))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
    finish_grid(grid, len(layers), "attention (%)")
    for axes in grid[:, 0]:
        axes.set_ylabel("fall of the class's\nprobability (%)", fontsize="small")
    handles = [Line2D([], [], **_marker(model), label=model) for model in models]
    handles.append(Line2D([], [], color="0.5", linewidth=1, linestyle=":", label="1/k²"))
    text = f"ρ: rank correlation{', mean over seeds [95% interval]' * several}"
    handles.append(Line2D([], [], linestyle="none", label=text))
    place_legend(figure, handles, "outside lower center", "x-small")
    figure_title(figure, "Does the attention that a position gets say what its removal costs?")
    return attach_data(figure, _removal_frame(rows))


def _measure(name: str) -> _Measure:
    if name not in _MEASURES:
        raise ValueError(f"there is no measure {name!r} to draw; there are {', '.join(_MEASURES)}")
    return _MEASURES[name]


def _draw_effect(axes: Axes, row: Row, measure: str, place: float, *, upright: bool) -> None:
    """The mean of a measure, its interval, and every seed: filled where its own interval leaves out 0."""
    values, intervals = row[f"{measure}_values"], row[f"{measure}_intervals"]
    color = _color(row)

    def draw(along: Sequence[float], across: Sequence[float], **style: Any) -> None:
        axes.plot(*((across, along) if upright else (along, across)), **{"color": color} | style)

    draw(row[f"{measure}_interval"], [place] * 2, linewidth=1.5, alpha=0.6, zorder=2)
    draw([row[measure]], [place], marker="_" if upright else "|", markersize=11, markeredgewidth=2.2, zorder=3)
    for value, (low, high) in zip(values, intervals, strict=True):
        fill = "white" if low <= 0 <= high else color
        draw([value], [place], **_marker(row["model"]), markerfacecolor=fill, markeredgewidth=0.8, zorder=4)


def _draw_costs(axes: Axes, values: np.ndarray, norm: PowerNorm) -> None:
    image = axes.imshow(values, norm=norm, cmap=SEQUENTIAL)
    if values.size <= MOST_CELLS_WITH_NUMBERS:
        write_numbers(axes, image, [_short(value) for value in values.flat])
    frame(axes)


def _legend(figure: Figure | SubFigure, rows: Sequence[Row]) -> None:
    handles = [Line2D([], [], **_marker(model), label=model) for model in _distinct(rows, "model")]
    several = len(rows[0]["seeds"]) > 1
    over = f"{len(rows[0]['seeds'])} seeds (Student's)" if several else "images"
    handles.append(Line2D([], [], color="0.4", marker="|", markersize=11, label=f"mean, 95% interval over {over}"))
    label = "hollow: 0 is in the 95% interval over images"
    handles.append(
        Line2D([], [], color="0.4", marker="o", markersize=4, markerfacecolor="white", ls="none", label=label)
    )
    place_legend(figure, handles, "outside lower center", "x-small")


def _effect_frame(rows: Sequence[Row], measure: str) -> pd.DataFrame:
    """A tidy table: a line for the mean over seeds (its seed is empty) and one for each seed."""
    drawn = []
    for row in rows:
        names = {key: row[key] for key in ("model", "intervention", "layer")} | {"quantity": measure}
        seeds = [None, *row["seeds"]]
        values = [row[measure], *row[f"{measure}_values"]]
        intervals = [row[f"{measure}_interval"], *row[f"{measure}_intervals"]]
        for seed, value, (low, high) in zip(seeds, values, intervals, strict=True):
            drawn.append(names | {"seed": seed, "value": value, "low": low, "high": high})
    return pd.DataFrame(drawn).astype({"seed": "Int64"})


def _removal_frame(rows: Sequence[Row]) -> pd.DataFrame:
    keys = [key for key in ("model", "seed", "layer", "row", "column", "attention") if key in rows[0]]
    return pd.DataFrame([{key: row[key] for key in keys} | {"cost (%)": _cost(row)} for row in rows])


def _map(rows: Sequence[Row], values: Sequence[float]) -> np.ndarray:
    """The values of positions at their places (kh, kw)."""
    places = np.array([(row["row"], row["column"]) for row in rows])
    grid = np.zeros(places.max(axis=0) + 1)
    grid[tuple(places.T)] = values
    return grid


def _cost(row: Row) -> float:
    """Fall of the class's probability in percent, its geometric mean over the images."""
    return 100 * (1 - float(np.exp(row["log_probability_change"])))


def _correlation_text(row: Row) -> str:
    text = f"{variant_of(row['model'])}: ρ = {signed(row['correlation'], '.2f')}"
    if row["correlation_interval"]:
        text += " [{}, {}]".format(*(signed(end, ".2f") for end in row["correlation_interval"]))
    return text


def _marker(model: str) -> dict[str, Any]:
    variant = variant_of(model)
    return {"color": VARIANT_COLORS[variant], "marker": VARIANT_MARKERS[variant], "linestyle": "none", "markersize": 4}


def _distinct(rows: Sequence[Row], key: str) -> list[str]:
    return list(dict.fromkeys(row[key] for row in rows))


def _offset(row: Row, models: Sequence[str], width: float) -> float:
    return width * (models.index(row["model"]) - (len(models) - 1) / 2)


def _color(row: Row) -> str:
    return VARIANT_COLORS[variant_of(row["model"])]


def _short(value: float) -> str:
    return signed(value, ".0f" if abs(value) >= 9.95 else ".1f")
