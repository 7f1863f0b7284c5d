"""Errors of models under common corruptions of the images, from `kaconv.inference.robustness`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D

from kaviz.figures import attach_data
from kaviz.plots.map_grid import figure_title
from kaviz.style import (
    VARIANT_COLORS,
    VARIANT_LINES,
    VARIANT_MARKERS,
    WIDTH,
    canvas,
    finish_grid,
    place_legend,
    variant_of,
)

if TYPE_CHECKING:  # it imports what evaluates
    from kaconv.inference.robustness import CorruptionRow

_COLUMNS = 3  # panels in a line
_APART = 0.12  # of the models' marks, where a severity is 1


def plot_corruptions(models: "Mapping[str, Sequence[CorruptionRow]]", ax: Axes | None = None) -> Figure | SubFigure:
    """Top-1 error by severity, a panel for each corruption, all on one axis; severity 0 is the images as they are.

    Bars are 95 % intervals over the drawing of the images.

    Args:
        models: by a model's name, its rows of `kaconv.inference.corruption_errors`.
    """
    frame = pd.concat([pd.DataFrame(rows).assign(model=model) for model, rows in models.items()], ignore_index=True)
    clean = frame["severity"] == 0
    corruptions = list(frame.loc[~clean, "corruption"].unique())
    lines = -(-len(corruptions) // _COLUMNS)
    figure = canvas(ax, (WIDTH, 2.3 * lines + 0.9))
    grid = figure.subplots(lines, min(_COLUMNS, len(corruptions)), sharex=True, sharey=True, squeeze=False)
    offsets = _APART * (np.arange(len(models)) - (len(models) - 1) / 2)
    for axes, corruption in zip(grid.flat, corruptions, strict=False):
        for model, offset in zip(models, offsets, strict=True):
            rows = frame[(frame["model"] == model) & (clean | (frame["corruption"] == corruption))]
            errors = rows["top1_error"].to_numpy()
            bars = np.abs(np.stack(rows["top1_error_interval"].tolist(), axis=1) - errors)
            axes.errorbar(rows["severity"] + offset, errors, bars, **_look(model), elinewidth=1, markersize=4)
        axes.set_title(corruption, fontsize="small")
        axes.set_xticks(sorted(frame["severity"].unique()))
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
    finish_grid(grid, len(corruptions), "severity")
    grid[0, 0].set_ylim(0, 100)
    for axes in grid[:, 0]:
        axes.set_ylabel("top-1 error (%)")
    place_legend(figure, [Line2D([], [], **_look(model), label=model) for model in models], "outside lower center")
    figure_title(figure, "Errors under corruptions of the images, by severity")
    return attach_data(figure, frame)


def _look(model: str) -> dict[str, Any]:
    variant = variant_of(model)
    return {
        "color": VARIANT_COLORS[variant],
        "marker": VARIANT_MARKERS[variant],
        "linestyle": VARIANT_LINES[variant],
    }
