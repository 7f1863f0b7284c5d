"""Effects of interventions on the attention on a model's decisions: the rows of `kaconv.attention.effects`, drawn.

Each function makes a figure of its own, or draws in the place of `ax`, and attaches its numbers as a table, which
`kaviz.figures.figure_data` gives back.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

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
_COST = "fall of the true class's probability (%)"


def plot_effects(rows: "Sequence[PooledEffectRow]", ax: Axes | None = None) -> Figure | SubFigure:
    """Change of the test error by each intervention, a panel for each layer, all on one axis.

    Args:
        rows: those of `kaconv.attention.effects.pool_effects`.
    """
    layers, models, interventions = (_distinct(rows, key) for key in ("layer", "model", "intervention"))
    lines = -(-len(layers) // _COLUMNS)
    figure = canvas(ax, (WIDTH, lines * (0.6 + 0.19 * len(interventions) * (len(models) + 0.5)) + 1.3))
    grid = figure.subplots(lines, min(_COLUMNS, len(layers)), sharex=True, sharey=True, squeeze=False)
    for axes, layer in zip(grid.flat, layers, strict=False):
        axes.axvline(0, color="black", linewidth=1, zorder=1)
        for row in (row for row in rows if row["layer"] == layer):
            place = interventions.index(row["intervention"]) + _offset(row, models, 0.3)
            _draw_effect(axes, row, "error_change", place, upright=False)
            end = max(row["error_change_interval"][1], *row["error_change_values"])
            style: dict[str, Any] = {
                "textcoords": "offset points",
                "va": "center",
                "fontsize": "x-small",
                "color": _color(row),
            }
            axes.annotate(signed(row["error_change"], "+.1f"), (end, place), (5, 0), **style)
        axes.set_title(fit(layer, 0.18 * WIDTH, "x-small"), fontsize="x-small")
        axes.tick_params(labelsize="small")
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.15)  # for the numbers
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: signed(value)))
        axes.grid(axis="x", color="0.92")
        axes.set_axisbelow(True)
    finish_grid(grid, len(layers), "percentage points")
    grid[0, 0].set_yticks(range(len(interventions)), interventions)
    grid[0, 0].set_ylim(len(interventions) - 0.5, -0.5)
    _legend(figure, rows)
    figure_title(
        figure, "Change of the test error where the attention is replaced, by layer and by what takes its place"
    )
    return attach_data(figure, _effect_frame(rows, "error_change"))


def plot_transplants(rows: "Sequence[PooledEffectRow]", ax: Axes | None = None) -> Figure | SubFigure:
    """Effects of another image's attention, and the part that its class has in them, layer by layer.

    On the left the test error with the attention of an image of the same class and of another; on the right, how
    often another class's attention leads to a decision for that class.

    Args:
        rows: those of `kaconv.attention.effects.pool_effects`, with both transplants.

    Raises:
        ValueError: if a transplant was not measured.
    """
    from kaconv.attention.effects import (  # whose imports take seconds; who has rows has it already
        OTHER_CLASS,
        SAME_CLASS,
    )

    same, other = ([row for row in rows if row["intervention"] == name] for name in (SAME_CLASS, OTHER_CLASS))
    if not same or len(same) != len(other):
        raise ValueError(f"rows must have the interventions {SAME_CLASS!r} and {OTHER_CLASS!r} of the same layers")
    layers, models = _distinct(same, "layer"), _distinct(same, "model")
    figure = canvas(ax, (WIDTH, 4.2))
    left, right = figure.subplots(1, 2)
    left.axhline(0, color="black", linewidth=1, zorder=1)
    for near, far in zip(same, other, strict=True):
        place = layers.index(near["layer"]) + _offset(near, models, 0.4)
        for values in zip(near["error_change_values"], far["error_change_values"], strict=True):
            left.plot([place - 0.08, place + 0.08], values, color=_color(near), linewidth=1, alpha=0.5)
        _draw_effect(left, near, "error_change", place - 0.08, upright=True)
        _draw_effect(left, far, "error_change", place + 0.08, upright=True)
        _draw_effect(right, far, "donors_class", place, upright=True)
    left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: signed(value)))
    left.set_ylabel("change of the test error\n(percentage points)")
    left.set_title("Test error:\nsame class → another class", fontsize="small")
    right.set_ylim(bottom=0)
    right.set_ylabel("decisions for the donor's class (%)")
    right.set_title("Another class's attention:\nwhose class wins?", fontsize="small")
    for axes in (left, right):
        axes.set_xticks(range(len(layers)), layers, fontsize="x-small", rotation=20 if len(layers) <= 4 else 90)
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
    _legend(figure, same)
    figure_title(figure, "Decisions with the attention of another image")
    frames = [_effect_frame([*same, *other], "error_change"), _effect_frame(other, "donors_class")]
    return attach_data(figure, pd.concat(frames, ignore_index=True))


def plot_removals(rows: "Sequence[RemovalRow]", ax: Axes | None = None) -> Figure | SubFigure:
    """Mean attention of each kernel position and the cost of its removal, layer by layer; numbers in percent.

    The cost is by how much the true class's probability falls, as a geometric mean over the images. All costs share
    one scale, which a square root stretches near 0.

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
    side = min(1.25, 0.8 * WIDTH / columns, max(0.8, 12 / len(layers)))
    figure = canvas(ax, (min(WIDTH, columns * (side + 0.5) + 1.4), len(layers) * (side + 0.1) + 2.1))
    grid = figure.subplots(len(layers), columns, squeeze=False)
    for line, layer in zip(grid, layers, strict=True):
        for axes in line:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        for place, key in enumerate((layer, model) for model in models):
            if key in groups:  # models may differ in their layers
                even = 1 / attention[key].size
                few = attention[key].size <= MOST_CELLS_WITH_NUMBERS
                draw_map(line[2 * place], attention[key], scale.norm(even), numbers=few)
                _draw_costs(line[2 * place + 1], cost[key], costs)
        line[0].set_ylabel(fit(layer, ROW_NAMES), rotation=0, ha="right", va="center", fontsize="small")
    for place, model in enumerate(models):
        name = fit(f"{model}\nmean attention", side + 0.3, "x-small")
        grid[0, 2 * place].set_title(name, fontsize="x-small", loc="center")
        cost_title = fit("cost of removal", side, "x-small")
        grid[0, 2 * place + 1].set_title(cost_title, fontsize="x-small", fontweight="normal", loc="center")
    sizes = {values.size for values in attention.values()}
    attention_bar(
        figure,
        scale,
        sizes,
        dots=max(sizes) > MOST_CELLS_WITH_NUMBERS,
        ax=grid[:, : len(models)],
        **below(figure, aspect=25),
    )
    place_of_costs = below(figure, aspect=25)
    bar = figure.colorbar(ScalarMappable(costs, SEQUENTIAL), ax=grid[:, len(models) :], **place_of_costs)
    bar.set_label("fall of the true class's\nprobability (%)", fontsize="small")
    most = ends(costs)[1]
    bar.set_ticks([tick for tick in MaxNLocator(4).tick_values(0, most) if tick == 0 or 0.1 * most < tick <= most])
    bar.ax.tick_params(labelsize="small")
    figure_title(figure, "Which position is looked at, and which one would be missed")
    return attach_data(figure, _removal_frame(rows))


def plot_attention_and_cost(
    rows: "Sequence[RemovalRow]", correlations: "Sequence[CorrelationRow]", ax: Axes | None = None
) -> Figure | SubFigure:
    """Cost of a position's removal against its mean attention: a panel for each layer, a mark for each position.

    Args:
        rows: those of `kaconv.attention.effects.measure_removals`, each with its model and seed.
        correlations: those of `kaconv.attention.effects.attention_correlations`.
    """
    layers, models = _distinct(rows, "layer"), _distinct(rows, "model")
    lines = -(-len(layers) // _COLUMNS)
    figure = canvas(ax, (WIDTH, 3.1 * lines + 0.8))
    grid = figure.subplots(lines, min(_COLUMNS, len(layers)), sharex=True, sharey=True, squeeze=False)
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
        axes.set_title("\n".join([fit(layer, 0.18 * WIDTH, "x-small"), *texts]), fontsize="x-small", linespacing=1.4)
        axes.set_yscale("symlog", linthresh=1)
        axes.yaxis.set_major_locator(FixedLocator([-100, -30, -10, -3, -1, 0, 1, 3, 10, 30, 100]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: signed(value, "g")))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
    finish_grid(grid, len(layers), "mean attention (%)")
    for axes in grid[:, 0]:
        axes.set_ylabel(_COST, fontsize="small")
    handles = [Line2D([], [], **_marker(model), label=model) for model in models]
    handles.append(Line2D([], [], color="0.5", linewidth=1, linestyle=":", label="1/k²"))
    text = "ρ: rank correlation, mean over seeds [95% interval]"
    handles.append(Line2D([], [], linestyle="none", label=text))
    place_legend(figure, handles, "outside lower center", "x-small")
    figure_title(figure, "Does the attention that a position gets say what its removal costs?")
    return attach_data(figure, _removal_frame(rows))


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
    """Fall of the true class's probability in percent, its geometric mean over the images."""
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
