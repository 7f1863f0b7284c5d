"""Effective kernels of an image, and the contribution of each position to the output."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from kaconv.attention.kernels import PositionShares
from kaviz.figures import attach_data
from kaviz.plots.map_grid import (
    MOST_CELLS_WITH_NUMBERS,
    ROW_NAMES,
    Scale,
    below,
    column_width,
    draw_map,
    draw_picture,
    draw_values,
    ends,
    figure_title,
    frame,
    value_norm,
)
from kaviz.style import DIVERGING, SEQUENTIAL, VARIANT_COLORS, WIDTH, canvas, fit, split

_MAPS = {"attention": "attention", "response": "response", "share": "share of the output"}
_LEAST_SHARE = 1 / 64  # of even shares: where the logarithmic scales begin


def plot_effective_kernels(
    static: np.ndarray,
    effective: np.ndarray,
    rows: Sequence[str],
    pictures: np.ndarray,
    titles: Sequence[str],
    *,
    title: str,
    label: str = "weight",
    ax: Axes | None = None,
) -> Figure | SubFigure:
    """Kernels under the attention of a few images beside the static ones, and below what the attention changes.

    Args:
        static: kernels under even attention, (kh, kw, R): of R output channels, or of one output channel, from R
            input channels; see `kaconv.attention.kernels.kernel_pictures`.
        effective: the same under the attention of each image, (samples, kh, kw, R).
        rows: names of the R.
        pictures: (samples, H, W, 3) or (samples, H, W), in [0, 1].
        titles: of the images, such as their file names.
        label: of the values, such as "weight" or, where they are all positive, "size of the weights".
    """
    kernels = np.concatenate([static[None], effective])
    differences = kernels - kernels[:1]
    count, columns = len(rows), len(kernels)
    side = min(0.85, 0.7 * WIDTH / columns)
    figure = canvas(ax, (WIDTH, (2 * count + 1) * side * 1.06 + 1.4))
    grid = figure.subplots(2 * count + 1, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, picture, text in zip(grid[0, 1:], pictures, titles, strict=True):
        draw_picture(axes, picture)
        name = fit(text, column_width(figure, columns), "x-small", 4)
        axes.set_title(name, fontsize="x-small", fontweight="normal", loc="center")
    upper, lower = grid[1 : count + 1], grid[count + 1 :]
    _draw_block(figure, upper, kernels, label)
    _draw_block(figure, lower[:, 1:], differences[1:], f"difference of\nthe {label}")
    for line, name in zip(upper, rows, strict=True):
        line[0].set_ylabel(fit(name, ROW_NAMES), rotation=0, ha="right", va="center", fontsize="small")
    for line, name in zip(lower, rows, strict=True):
        line[0].text(
            1,
            0.5,
            fit(name, column_width(figure, columns)),
            ha="right",
            va="center",
            fontsize="small",
            transform=line[0].transAxes,
        )
    upper[0, 0].set_title("static", fontsize="small", fontweight="normal", loc="center")
    lower[0, 0].set_title("minus\nstatic", fontsize="small", fontweight="normal", loc="right")
    figure_title(figure, title)
    table = _table(kernels, ("kernel", "row", "column", "name"), "value")
    table["difference"] = differences.ravel()
    table["sample"] = table["kernel"] - 1  # -1: the static kernel; titles alone may be the same for two images
    table["kernel"] = np.take(["static", *titles], table["kernel"])
    table["name"] = np.take(rows, table["name"])
    return attach_data(figure, table)


def plot_contributions(
    maps: np.ndarray, attention: np.ndarray, picture: np.ndarray, *, title: str, ax: Axes | None = None
) -> Figure | SubFigure:
    """Contribution of each kernel position to one channel's output, laid out as the kernel is, on one scale.

    Args:
        maps: A_p ⊙ Y_p of one image and channel, (kh, kw, h, w), from `kaconv.attention.kernels`.
        attention: A_p, (kh, kw).
        picture: (H, W, 3) or (H, W), in [0, 1].
    """
    kh, kw, height, width = maps.shape
    output = maps.sum(axis=(0, 1))
    total = float(output.sum())
    shares = maps.sum(axis=(2, 3)) / total if total else np.full((kh, kw), np.nan)
    panel = 0.6 * WIDTH / kw
    figure = canvas(ax, (WIDTH, max(kh * (panel * height / width + 0.45), 3.6) + 0.6))
    left, right = split(figure, 1, 2, width_ratios=(1, 3))
    seen, summed = left.subplots(2, 1)
    draw_picture(seen, picture)
    seen.set_title("the image", fontsize="small", fontweight="normal")
    image = summed.imshow(output, norm=_scale(output), cmap=_colormap(_scale(output)))
    summed.set_title("the output:\nsum over positions", fontsize="small", fontweight="normal")
    left.colorbar(image, ax=summed, location="bottom", shrink=0.8, aspect=18)
    scale = _scale(maps)
    grid = right.subplots(kh, kw, squeeze=False)
    for place, axes in np.ndenumerate(grid):
        image = axes.imshow(maps[place], norm=scale, cmap=_colormap(scale))
        share = f"{shares[place]:.0%}{' of the output' * (kw <= 3)}" if total else "no output"
        text = f"{share}\n({'attention ' * (kw <= 3)}{attention[place]:.0%})"
        axes.set_title(text, fontsize="small" if kw <= 3 else "x-small", fontweight="normal")
    right.colorbar(image, ax=grid, label="attention × response, $A_p Y_p$", shrink=0.7, aspect=28)
    for axes in (summed, *grid.flat):
        frame(axes)
    figure_title(figure, title if kw <= 3 else f"{title}: share of the output (and attention)")
    table = _table(maps, ("row", "column", "y", "x"), "contribution")
    for name, values in (("attention", attention), ("share", shares)):
        table[name] = np.repeat(values.ravel(), height * width)
    return attach_data(figure, table)


def plot_position_shares(
    shares: PositionShares, layers: Sequence[str] | None = None, ax: Axes | None = None
) -> Figure | SubFigure:
    """Attention, response and contribution of each kernel position; a row for each layer.

    The maps are means over images and channels, on one scale with the even share in its middle. Beside them are all
    images, channels and positions: on the diagonal a position contributes what its attention says.

    Args:
        layers: which to show; None: all.

    Raises:
        ValueError: for a layer whose output is zero everywhere.
    """
    layers = shares.layers if layers is None else layers
    maps = {layer: shares.maps(layer) for layer in layers}
    for layer in layers:
        if np.isnan(maps[layer]["share"]).all():
            raise ValueError(f"{layer} gives no output at all for these images, so no position has a share of it")
    means = {layer: {kind: np.nanmean(own[kind], axis=(0, 3)) for kind in _MAPS} for layer, own in maps.items()}
    scale = Scale.of(values for own in means.values() for values in own.values())
    figure = canvas(ax, (WIDTH, 1.75 * len(layers) + 1.3))
    # One grid for both, so that a layer's maps and its scatter stay in one row.
    every = figure.subplots(len(layers), len(_MAPS) + 1, squeeze=False, width_ratios=(1, 1, 1, 1.25))
    grid, scatters = every[:, : len(_MAPS)], every[:, len(_MAPS)]
    for line, (layer, own) in zip(grid, means.items(), strict=True):
        for axes, values in zip(line, own.values(), strict=True):
            even = 1 / values.size
            draw_map(axes, values, scale.norm(even), numbers=values.size <= MOST_CELLS_WITH_NUMBERS)
        line[0].set_ylabel(fit(layer, 1.2, "x-small"), fontsize="x-small")
    for axes, name in zip(grid[0], _MAPS.values(), strict=True):
        axes.set_title(name, fontsize="small", fontweight="normal", loc="center")
    norm = scale.norm(1)
    bar = figure.colorbar(ScalarMappable(norm, DIVERGING), ax=grid, **below(figure, shrink=0.6, aspect=35))
    bar.ax.axvline(1, color="black", linewidth=1.5)
    bar.set_ticks([ends(norm)[0], 1, ends(norm)[1]], labels=[f"{ends(norm)[0]:.2g}", "1", f"{ends(norm)[1]:.2g}"])
    bar.minorticks_off()
    label = "share × k², mean over images and channels\n(1: even; numbers: share in %)"
    bar.set_label(label + ", log" * scale.logarithmic, fontsize="small")
    correlations = {layer: _median(shares.correlation(layer, "attention", "share")) for layer in layers}
    most = max(values.size for own in means.values() for values in own.values())  # a position that gets everything
    _draw_scatters(scatters, {layer: _in_even_shares(maps[layer]) for layer in layers}, correlations, most)
    figure_title(figure, "Does a position contribute what its attention says?")
    table = pd.DataFrame(
        [
            {"layer": layer, "map": kind, "row": row, "column": column, "mean": value, "r": correlations[layer]}
            for layer, own in means.items()
            for kind, values in own.items()
            for (row, column), value in np.ndenumerate(values)
        ]
    )
    return attach_data(figure, table)


def _median(values: np.ndarray) -> float:
    """NaN where there is none; numpy would warn."""
    known = values[~np.isnan(values)]
    return float(np.median(known)) if known.size else np.nan


def _in_even_shares(maps: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Attention and share of the output of every position that contributes at all, times k²."""
    attention, share = (np.ravel(maps[kind]) * maps[kind][0, ..., 0].size for kind in ("attention", "share"))
    positive = share > 0  # a position that no pixel passes is nowhere on a logarithmic scale; nor is NaN
    return attention[positive], share[positive]


def _draw_scatters(
    grid: np.ndarray, points: dict[str, tuple[np.ndarray, np.ndarray]], correlations: dict[str, float], high: float
) -> None:
    low = _LEAST_SHARE
    for axes, (layer, (attention, share)) in zip(grid, points.items(), strict=True):
        extent = (np.log10(low), np.log10(high)) * 2
        axes.hexbin(
            attention,
            share,
            xscale="log",
            yscale="log",
            gridsize=32,
            extent=extent,
            norm=LogNorm(),
            cmap="Greys",
            mincnt=1,
            linewidths=0,
        )
        axes.plot([low, high], [low, high], color=VARIANT_COLORS["H"], linewidth=1.5, linestyle="--")
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.set_aspect("equal")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(8, numticks=9))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value >= 1 else f"1/{1 / value:g}"))
            axis.set_minor_locator(NullLocator())
        axes.tick_params(labelsize="x-small", labelbottom=axes is grid[-1])
        if not np.isnan(correlations[layer]):
            text = f"r = {correlations[layer]:.2f}"
            axes.text(0.04, 0.95, text, transform=axes.transAxes, va="top", fontsize="small")
        axes.set_ylabel("share × k²", fontsize="x-small")
    grid[0].set_title("every image, channel", fontsize="small", fontweight="normal", loc="center")
    grid[-1].set_xlabel("attention × k²", fontsize="small")


def _draw_block(figure: Figure | SubFigure, grid: np.ndarray, kernels: np.ndarray, label: str) -> None:
    """Kernels (columns, kh, kw, rows) on one scale, symmetric around zero where there are negative values."""
    scale = _scale(kernels)
    for (row, column), axes in np.ndenumerate(grid):
        draw_values(axes, kernels[column, ..., row], scale)
    colors = ScalarMappable(scale, _colormap(scale))
    bar = figure.colorbar(colors, ax=grid, shrink=0.9, aspect=5 + 4 * len(grid))
    bar.set_label(label, fontsize="small")


def _scale(values: np.ndarray) -> Normalize:
    """Around zero where there are negative values, else from it."""
    return value_norm(values, 0 if values.min() < 0 else None)


def _colormap(scale: Normalize) -> str:
    return DIVERGING if ends(scale)[0] < 0 else SEQUENTIAL


def _table(values: np.ndarray, dims: Sequence[str], name: str) -> pd.DataFrame:
    places = pd.MultiIndex.from_product([range(size) for size in values.shape], names=dims)
    return pd.DataFrame({name: values.ravel()}, places).reset_index()
