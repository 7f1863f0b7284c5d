"""What figures of k×k maps are made of: panels on one scale, grids of them, colour bars, titles.

The scale diverges, white at 1/k² ("no preference"), which its colour bar marks; where layers have kernels of different
sizes, equal colours are equal multiples of 1/k².
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure

from kaconv.attention.record import AttentionRecord
from kaviz.style import DIVERGING, WIDTH

_CELL = 0.85  # inches: largest side of a map
_TALLEST = 8.0  # inches: rows that would need more become smaller
FEW_LAYERS = 6  # their names fit above maps of a full-width figure, and numbers into the maps


@dataclass(frozen=True)
class Panel:
    """A map (kh, kw), what it is of (columns of the figure's data), and what stands below it."""

    values: np.ndarray
    of: Mapping[str, Any]
    caption: str = ""


@dataclass(frozen=True)
class Scale:
    """Colours from 1 - reach to 1 + reach times 1/k²; at the widest, 1, from no attention to twice the even share."""

    reach: float
    clipped: bool

    @classmethod
    def of(cls, maps: Iterable[np.ndarray]) -> "Scale":
        """The smallest scale for some maps."""
        deviation = max(float(np.abs(values * values.size - 1).max()) for values in maps)
        reach = min(deviation, 1) or 1e-9  # a map of nothing but the even share still has a scale
        return cls(reach, deviation > reach)

    def around(self, centre: float, even: float) -> Normalize:
        """The scale of maps with the even share `even`: around it, or, for differences, around 0."""
        return Normalize(centre - self.reach * even, centre + self.reach * even)


def most_dependent_channels(record: AttentionRecord, layer: str, count: int) -> np.ndarray:
    """The `count` channels of a layer whose maps move most with the input, most first.

    Raises:
        ValueError: if the record has no such layer; so do the figures of a single layer.
    """
    check_layer(record, layer)
    return np.argsort(-record.input_dependence(layer), kind="stable")[:count]


def check_layer(record: AttentionRecord, layer: str) -> None:
    """ValueError if the record has no such layer."""
    if layer not in record.attention:
        raise ValueError(f"the record has no layer {layer!r}; there are {', '.join(record.layers)}")


def draw_map_grid(
    figure: Figure | SubFigure,
    rows: Sequence[Sequence[Panel]],
    row_titles: Sequence[str],
    column_titles: Sequence[str],
    *,
    above: Sequence[np.ndarray] | None = None,
    before: Sequence[np.ndarray] | None = None,
    numbers: bool = False,
) -> np.ndarray:
    """Maps in rows and columns on one scale, with its colour bar; returns the axes.

    Args:
        above: a picture for each column.
        before: a picture for each row.
        numbers: write each share in percent into its cell.
    """
    columns = max(map(len, rows))
    first_row, first_column = int(above is not None), int(before is not None)
    grid = figure.subplots(len(rows) + first_row, columns + first_column, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    if above is not None:
        for axes, picture in zip(grid[0, first_column:], above, strict=True):
            draw_picture(axes, picture)
    if before is not None:
        for axes, picture in zip(grid[first_row:, 0], before, strict=True):
            draw_picture(axes, picture)
    scale = Scale.of(panel.values for row in rows for panel in row)
    for line, row, title in zip(grid[first_row:], rows, row_titles, strict=True):
        for axes, panel in zip(line[first_column:], row, strict=False):
            even = 1 / panel.values.size
            draw_map(axes, panel.values, scale.around(even, even), numbers=numbers)
            axes.set_xlabel(panel.caption, fontsize="x-small", labelpad=2)
        line[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize="small")
    for axes, text in zip(grid[0, first_column:], column_titles, strict=False):
        axes.set_title(text, fontsize="small", fontweight="normal", loc="center")
    sizes = {panel.values.size for row in rows for panel in row}
    place = {"ax": grid[first_row:], "shrink": 0.9, "aspect": 10 + 4 * len(rows)}
    attention_bar(figure, scale, sizes, dots=not numbers, **place)
    return grid


def draw_position_means(figure: Figure | SubFigure, means: Mapping[str, Mapping[str, np.ndarray]]) -> pd.DataFrame:
    """Mean maps (kh, kw) of whole layers: a row for each model, a column for each layer, and what they are as a table.

    Args:
        means: model name -> layer -> mean map over samples and channels.
    """
    rows = [
        [Panel(values, {"model": model, "layer": layer, "quantity": "mean attention"}) for layer, values in own.items()]
        for model, own in means.items()
    ]
    layers = list(next(iter(means.values())))
    numbers = len(layers) <= FEW_LAYERS and max(panel.values.size for panel in rows[0]) <= 9
    grid = draw_map_grid(figure, rows, list(means), layers, numbers=numbers)
    if len(layers) > FEW_LAYERS:
        for axes in grid[0]:
            axes.title.set_rotation(90)
    unit = " (%)" if numbers else ""
    figure_title(figure, f"Mean attention of each position, over all channels and samples{unit}")
    return map_frame(rows).rename(columns={"attention": "value"})


def position_means_height(models: int, layers: int) -> float:
    """Inches that `draw_position_means` needs."""
    return 0.35 + 1.1 * models if layers <= FEW_LAYERS else 1.4 + 0.5 * models


def draw_map(axes: Axes, values: np.ndarray, norm: Normalize, *, numbers: bool = False) -> None:
    """One map (kh, kw), with a dot in the upper quarter of the scale, or with its values in percent."""
    axes.imshow(values, norm=norm, cmap=DIVERGING)
    if numbers:
        for (row, column), value in np.ndenumerate(values):
            color = "white" if abs(2 * norm(value) - 1) > 0.6 else "black"
            axes.text(column, row, f"{100 * value:.0f}", color=color, fontsize=7, ha="center", va="center")
    else:  # the colours of both ends look alike in grey print
        rows, columns = np.nonzero(values >= (3 * norm.vmax + norm.vmin) / 4)
        axes.plot(columns, rows, ".", color="black", markersize=3)
    axes.set_axis_on()
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color("0.7")


def attention_bar(
    figure: Figure | SubFigure, scale: Scale, sizes: Iterable[int], *, dots: bool = True, **place: Any
) -> None:
    """The colour bar of maps, with 1/k² marked.

    Args:
        sizes: k² of the maps; if they differ, the bar counts in even shares.
        dots: say what the dots of `draw_map` mean.
        place: where it stands, as for `Figure.colorbar`: ax or cax.
    """
    even, times_k2 = _unit(sizes)
    label = f"attention{times_k2}" + f" (dot: {even * (1 + scale.reach / 2):.3f} or more)" * dots
    extend = "max" if scale.clipped else "neither"
    centre = "1" if times_k2 else f"1/{1 / even:.0f}"
    _bar(figure, scale.around(even, even), label, f"{centre}\n(even)", extend, place)


def difference_bar(figure: Figure | SubFigure, scale: Scale, sizes: Iterable[int], **place: Any) -> None:
    """The colour bar of differences of maps, around 0 and as wide as `attention_bar`'s; arguments as there."""
    even, times_k2 = _unit(sizes)
    label = f"difference A − B{times_k2} (dot: +{even * scale.reach / 2:.3f} or more),\non a scale of the same width"
    extend = "both" if scale.clipped else "neither"
    _bar(figure, scale.around(0, even), label, "0\n(equal)", extend, place)


def map_frame(rows: Iterable[Iterable[Panel]]) -> pd.DataFrame:
    """A tidy table of panels: what each is of, row, column, attention."""
    return pd.DataFrame(
        [
            {**panel.of, "row": row, "column": column, "attention": value}
            for line in rows
            for panel in line
            for (row, column), value in np.ndenumerate(panel.values)
        ]
    )


def draw_picture(axes: Axes, picture: np.ndarray) -> None:
    """A picture (H, W, 3) or (H, W), in [0, 1], without a frame."""
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
    axes.set_axis_on()
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def grid_size(rows: int, columns: int, captions: bool = False) -> tuple[float, float]:
    """Inches of a full-width figure of so many maps, with or without a line below each.

    Raises:
        ValueError: if there are none.
    """
    if rows * columns == 0:
        raise ValueError("there are no maps to draw: give at least one sample, class or channel")
    line = 1.3 if captions else 1.05
    side = min(_CELL, 0.72 * WIDTH / columns, _TALLEST / (rows * line))
    return WIDTH, rows * line * side + 0.75


def figure_title(figure: Figure | SubFigure, text: str) -> None:
    """A figure's headline, at the left."""
    figure.suptitle(text, x=0.01, ha="left", fontsize="medium", fontweight="bold")


def _unit(sizes: Iterable[int]) -> tuple[float, str]:
    """The even share in the unit of a colour bar, and what to say of that unit."""
    sizes = set(sizes)
    return (1 / sizes.pop(), "") if len(sizes) == 1 else (1.0, " × k²")


def _bar(
    figure: Figure | SubFigure, norm: Normalize, label: str, centre: str, extend: str, place: Mapping[str, Any]
) -> None:
    bar = figure.colorbar(ScalarMappable(norm, DIVERGING), extend=extend, **place)
    bar.set_label(label, fontsize="small")
    middle = (norm.vmin + norm.vmax) / 2
    ends = [f"{value:.3f}".replace("-", "−") for value in (norm.vmin, norm.vmax)]
    bar.set_ticks([norm.vmin, middle, norm.vmax], labels=[ends[0], centre, ends[1]], fontsize="small")
    mark = bar.ax.axhline if bar.orientation == "vertical" else bar.ax.axvline
    mark(middle, color="black", linewidth=1.5)
