"""Attention beside its use, and checks of attributions, with intervals over images."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from kaconv.utils.intervals import t_interval
from kaviz.plots.map_grid import frame
from kaviz.style import DIVERGING, VARIANT_COLORS, VARIANT_LABELS, VARIANT_MARKERS, WIDTH

_OTHERS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_BOUNDED = {"deletion": (0, 1), "insertion": (0, 1), "road": (0, 1), "randomisation": (-1, 1)}
_TITLES = {
    "deletion": "deletion: low is good\n(mean probability)",
    "insertion": "insertion: high is good\n(mean probability)",
    "infidelity": "infidelity: low is good\n(squared error of the logit)",
    "sensitivity": "sensitivity: low is good\n(relative change)",
    "road": "ROAD: low is good\n(share of decisions kept)",
    "randomisation": "randomised weights: 0 is good\n(rank correlation)",
}


def plot_attention_and_use(
    attention: Mapping[str, np.ndarray],
    contributions: Mapping[str, np.ndarray],
    agreement: Mapping[str, np.ndarray],
    *,
    title: str = "What is attended, and what is used",
) -> Figure:
    """The attention of each layer, the use that the score makes of it, and how far the two agree.

    Two maps of the kernel's positions for each layer, means over images: how far the attention departs from 1/k², and
    the contribution. Both are shares of the sum of absolute values over the positions, in percent, on one scale. Below
    them the rank correlation of the two, a dot for each image, and its mean with a 95 % interval (Student's).

    Args:
        attention, contributions: for each layer (N, kh, kw) or (N, kh, kw, C), as
            `kaviz.attribution.PositionAttribution` has them.
        agreement: for each layer (N,), as `kaviz.attribution.position_agreement` gives it.
    """
    layers = list(contributions)
    rows = {
        "attention\nminus 1/k²": {layer: _share(_deviation(attention[layer])) for layer in layers},
        "contribution\nto the score": {layer: _share(_summed(contributions[layer])) for layer in layers},
    }
    reach = max(float(np.abs(shares).max()) for maps in rows.values() for shares in maps.values()) or 1e-12
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    ratios = [1, 1, 2.6] if len(layers) > 5 else [1.7, 1.7, 2.6]
    spec = figure.add_gridspec(3, len(layers), height_ratios=ratios)
    image, top = None, []
    for row, (name, maps) in enumerate(rows.items()):
        for column, layer in enumerate(layers):
            axes = figure.add_subplot(spec[row, column])
            image = axes.imshow(maps[layer], norm=Normalize(-reach, reach), cmap=DIVERGING)
            frame(axes)
            if column == 0:
                axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize="x-small")
            top.append(axes)
    if image is not None:
        bar = figure.colorbar(image, ax=top, aspect=12, pad=0.01)
        bar.ax.set_ylabel("share of the layer (%)", fontsize="x-small")
        bar.ax.tick_params(labelsize="x-small")
    below = figure.add_subplot(spec[2, :])
    _draw_agreement(below, [agreement[layer] for layer in layers])
    below.set_xticks(range(len(layers)), layers, rotation=45 if len(layers) > 5 else 0, fontsize="x-small")
    if len(layers) > 5:
        for label in below.get_xticklabels():
            label.set_horizontalalignment("right")
    figure.suptitle(title, x=0.01, ha="left", fontsize="medium", fontweight="bold")
    return figure


def plot_faithfulness(
    table: pd.DataFrame, labels: Mapping[str, str] | None = None, *, title: str = "Can the attributions be believed?"
) -> Figure:
    """The checks of attributions, a panel for each, with means and 95 % intervals over images.

    Args:
        table: as `kaviz.attribution.faithfulness_table` gives it: model, method, measure, mean, low, high.
        labels: names of the methods to show.
        title: above the panels.
    """
    measures, models = list(dict.fromkeys(table.measure)), list(dict.fromkeys(table.model))
    methods = list(dict.fromkeys(table.method))
    columns = min(3, len(measures))
    rows = -(-len(measures) // columns)
    height = 0.24 * len(methods) * max(1, 0.6 * len(models)) + 0.85
    figure = Figure(figsize=(WIDTH, rows * height + 0.8), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(measures) :]:
        axes.set_visible(False)
    for axes, measure in zip(grid.flat, measures, strict=False):
        for number, model in enumerate(models):
            here = table[(table.measure == measure) & (table.model == model)]
            offset = (number - (len(models) - 1) / 2) * 0.7 / len(models)
            places = [methods.index(method) + offset for method in here.method]
            ends = np.abs(np.stack([here["mean"] - here.low, here.high - here["mean"]]))
            axes.errorbar(
                here["mean"],
                places,
                xerr=np.nan_to_num(ends),
                fmt=VARIANT_MARKERS.get(model, "sD^v<"[number % 5]),
                color=VARIANT_COLORS.get(model, _OTHERS[number % len(_OTHERS)]),
                markersize=4,
                linewidth=1.2,
                label=VARIANT_LABELS.get(model, model),
            )
        axes.set_title(_TITLES.get(measure, measure), fontsize="x-small")
        _set_limits(axes, measure, table[table.measure == measure])
        axes.tick_params(labelsize="x-small")
        axes.grid(axis="x", color="0.92")
        axes.set_axisbelow(True)
    names = [(labels or {}).get(method, method) for method in methods]
    grid[0, 0].set_yticks(range(len(methods)), names)
    grid[0, 0].set_ylim(len(methods) - 0.5, -0.5)
    if len(models) > 1:
        handles, texts = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside lower center", ncols=len(models), fontsize="x-small")
    figure.suptitle(title, x=0.01, ha="left", fontsize="medium", fontweight="bold")
    return figure


def _set_limits(axes: Axes, measure: str, rows: pd.DataFrame) -> None:
    """The measure's whole range where it has one; otherwise from 0, since a distance from it is what counts."""
    if measure in _BOUNDED:
        low, high = _BOUNDED[measure]
        axes.set_xlim(low - 0.02 * (high - low), high + 0.02 * (high - low))
    else:
        axes.set_xlim(0, 1.05 * float(np.nanmax([*rows.high, *rows["mean"], 1e-12])))
    if measure == "randomisation":
        axes.axvline(0, color="0.5", linewidth=0.8)


def _deviation(attention: np.ndarray) -> np.ndarray:
    maps = attention if attention.ndim == 3 else attention.mean(axis=-1)
    return maps.mean(axis=0) - 1 / maps[0].size


def _summed(contributions: np.ndarray) -> np.ndarray:
    return (contributions if contributions.ndim == 3 else contributions.sum(axis=-1)).mean(axis=0)


def _share(maps: np.ndarray) -> np.ndarray:
    """In percent of the sum of absolute values."""
    total = np.abs(maps).sum()
    return 100 * maps / total if total else maps


def _draw_agreement(axes: Axes, values: Sequence[np.ndarray]) -> None:
    rng = np.random.default_rng(0)  # sideways, so that dots of the same height can be told apart
    for place, found in enumerate(values):
        finite = found[np.isfinite(found)]
        axes.plot(place + rng.uniform(-0.16, 0.16, len(finite)), finite, "o", color="0.6", markersize=2.5, alpha=0.6)
        if not len(finite):
            continue
        low, high = t_interval(list(finite)) or (finite[0], finite[0])
        mean = finite.mean()
        axes.errorbar(
            place, mean, yerr=[[mean - low], [high - mean]], fmt="D", color="#0072B2", markersize=4, capsize=3
        )
    axes.axhline(0, color="0.5", linewidth=0.8)
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.set_ylim(-1.05, 1.05)
    axes.set_ylabel("rank correlation", fontsize="small")
    axes.set_title("1: the more attended, the more used; −1: the contrary", fontsize="x-small", fontweight="normal")
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
