"""The inside of one KAConv layer: its maps, one for each kernel position, and its attention."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from kaviz.plots.map_grid import (
    MOST_CELLS_WITH_NUMBERS,
    Scale,
    ends,
    figure_title,
    frame,
    value_norm,
    write_numbers,
)
from kaviz.style import (
    DIVERGING,
    SEQUENTIAL,
    VARIANT_COLORS,
    VARIANT_LABELS,
    VARIANT_MARKERS,
    WIDTH,
    fit,
    signed,
    split,
)


def plot_photo_and_kernels(photo: np.ndarray, kernels: np.ndarray, names: Sequence[str]) -> Figure:
    """A photo beside the kernels that it will go through, these on one scale around zero.

    Args:
        photo: (H, W, 3), in [0, 1].
        kernels: (C, kh, kw).
        names: of the C kernels.
    """
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    left, right = split(figure, 1, 2)
    axes = left.subplots()
    axes.imshow(photo, interpolation="auto")
    axes.set_title("The photo", fontsize="medium")
    frame(axes)
    columns = -(-len(kernels) // 2)
    grid = right.subplots(2, columns, squeeze=False)
    scale = value_norm(kernels, 0)
    for axes, kernel, name in zip(grid.flat, kernels, names, strict=False):
        image = _draw_kernel_map(axes, kernel, scale, DIVERGING, numbers=columns <= 3)  # else cells are too small
        axes.set_title(fit(name, 3.0 / columns, "x-small"), fontsize="x-small", fontweight="normal", loc="center")
    for axes in grid.flat[len(kernels) :]:
        axes.remove()
    right.colorbar(image, ax=right.axes, label="kernel weight", shrink=0.8, aspect=25)
    return figure


def plot_position_maps(
    maps: np.ndarray,
    kernel_size: tuple[int, int],
    *,
    title: str,
    label: str,
    center: float | None = None,
    notes: Sequence[str] | None = None,
) -> Figure:
    """One channel's maps of all kernel positions, laid out as the kernel is, on one scale.

    Args:
        maps: (K, H, W), row-major over the kernel.
        kernel_size: (kh, kw), with kh·kw = K.
        label: what the colours stand for, with its unit.
        center: the value in the middle of a symmetric diverging scale; None for a sequential scale from zero.
        notes: a short text for each position, beside its number.
    """
    rows, columns = kernel_size
    _check(len(maps) == rows * columns, f"{len(maps)} maps do not fill a kernel of {rows}×{columns}")
    height, width = maps.shape[1:]
    panel = 0.88 * WIDTH / columns
    figure = Figure(
        figsize=(WIDTH, rows * (panel * height / width + 0.25 + 0.15 * (columns > 3)) + 0.4), layout="constrained"
    )
    grid = figure.subplots(rows, columns, squeeze=False)
    scale = value_norm(maps, center)
    size = "small" if columns <= 3 else "x-small"
    for position, (axes, values) in enumerate(zip(grid.flat, maps, strict=True)):
        image = axes.imshow(values, norm=scale, cmap=_colormap(center), interpolation="auto")
        note = f": {notes[position]}" if notes else ""
        axes.set_title(fit(f"p = {position}{note}", 0.95 * panel, size), fontsize=size, fontweight="normal")
        frame(axes)
    figure.colorbar(image, ax=grid, label=label, shrink=0.6, aspect=28)
    figure_title(figure, title)
    return figure


def plot_identity(summed: np.ndarray, convolved: np.ndarray) -> Figure:
    """The sum of a kernel's maps, the ordinary convolution, and the difference on a scale of its own.

    Args:
        summed, convolved: (H, W).
    """
    height, width = summed.shape
    figure = Figure(figsize=(WIDTH, WIDTH / 3 * height / width + 0.9), layout="constrained")
    grid = figure.subplots(1, 3)
    scale = value_norm(np.stack([summed, convolved]), 0)
    for axes, values, title in zip(grid, (summed, convolved), ("Σ$_p$ Z$_p$", "conv2d"), strict=False):
        image = axes.imshow(values, norm=scale, cmap=DIVERGING, interpolation="auto")
        axes.set_title(title)
    figure.colorbar(image, ax=grid[:2], location="bottom", label="value", shrink=0.6, aspect=35)
    difference = summed.astype(np.float64) - convolved
    image = grid[2].imshow(difference, norm=value_norm(difference, 0), cmap=DIVERGING)
    grid[2].set_title(f"Difference, at most {np.abs(difference).max():.1e}".replace("-", "−"), fontsize="small")
    bar = figure.colorbar(image, ax=grid[2], location="bottom", label="difference", shrink=0.8, aspect=23)
    bar.ax.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
    for axes in grid:
        frame(axes)
    return figure


def plot_kernel_maps(
    maps: Mapping[str, np.ndarray],
    channels: Sequence[str],
    *,
    title: str,
    label: str,
    center: float | None = None,
) -> Figure:
    """Kernel-shaped maps, a row for each kind and a column for each channel, all on one scale.

    Args:
        maps: for each row its name and its values (kh, kw, C).
        channels: names of the C channels.
        label, center: as in `plot_position_maps`.
    """
    norm = value_norm(np.stack(list(maps.values())), center)
    figure, bar = _kernel_maps(maps, channels, title, label, norm, _colormap(center))
    if all((values >= 0).all() for values in maps.values()):
        low, high = ends(norm)
        bar.ax.set_ylim(max(low, 0), high)  # the colours may be symmetric, but there is nothing below zero
    return figure


def plot_attention_by_channel(attention: Mapping[str, np.ndarray], channels: Sequence[str], *, title: str) -> Figure:
    """Attention over the kernel's positions: white is 1/(kh·kw), "no preference", marked on the colour bar.

    The scale is that of all maps, `kaviz.plots.map_grid.Scale`: logarithmic where a position has more than twice this.

    Args:
        attention: for each row its name and one sample's attention (kh, kw, C).
        channels: names of the C channels.
    """
    kh, kw = next(iter(attention.values())).shape[:2]
    even = 1 / (kh * kw)
    scale = Scale.of(values[..., channel] for values in attention.values() for channel in range(len(channels)))
    norm, label = scale.norm(even), "attention $A_p$" + ", log" * scale.logarithmic
    figure, bar = _kernel_maps(attention, channels, title, label, norm, DIVERGING)
    bar.ax.axhline(even, color="black", linewidth=1.5)
    low, high = ends(norm)
    bar.set_ticks([low, even, high], labels=[f"{low:.3f}", f"1/{kh * kw}", f"{high:.3f}"])
    bar.minorticks_off()
    return figure


def plot_aggregation(
    even: np.ndarray, attended: Mapping[str, np.ndarray], replaced: np.ndarray, *, title: str
) -> Figure:
    """Sums of a channel's maps under several attentions, their differences to the even sum, and the ordinary triple.

    Args:
        even: the sum with every attention 1/(kh·kw), (H, W).
        attended: for each attention its name and the sum, (H, W).
        replaced: output of the convolution, norm, activation triple that KAConv replaces, (H, W); on a scale of its
            own, which leaves out the largest 0.5% of the values.
    """
    height, width = even.shape
    columns = 1 + len(attended)
    figure = Figure(figsize=(WIDTH, 2 * (0.8 * WIDTH / columns * height / width + 0.35) + 0.3), layout="constrained")
    grid = figure.subplots(2, columns, squeeze=False)
    differences = {f"{name}, minus even": values - even for name, values in attended.items()}
    value_scale = value_norm(np.stack([even, *attended.values()]))
    difference_scale = value_norm(np.stack(list(differences.values())), 0)
    for axes, (name, values) in zip(grid[0], ({"Even, 1/k²": even} | dict(attended)).items(), strict=True):
        value_image = axes.imshow(values, norm=value_scale, cmap=SEQUENTIAL, interpolation="auto")
        axes.set_title(name, fontsize="small")
    for axes, (name, values) in zip(grid[1, 1:], differences.items(), strict=True):
        difference_image = axes.imshow(values, norm=difference_scale, cmap=DIVERGING, interpolation="auto")
        axes.set_title(name, fontsize="small")
    limit = Normalize(0, float(np.quantile(replaced, 0.995)))
    replaced_image = grid[1, 0].imshow(replaced, norm=limit, cmap=SEQUENTIAL, interpolation="auto")
    grid[1, 0].set_title("Ordinary triple", fontsize="small")
    for axes in grid.flat:
        frame(axes)
    figure.colorbar(value_image, ax=grid[0], label="output", aspect=12)
    figure.colorbar(difference_image, ax=grid[1], label="difference", aspect=12)
    figure.colorbar(replaced_image, ax=grid[1, 0], label="output", location="left", aspect=12, extend="max")
    figure_title(figure, title)
    return figure


def plot_attention_shift(shifts: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]) -> Figure:
    """Movement of the attention when the input is changed: every draw as a small mark, the median as a large one.

    Args:
        shifts: for each panel its title; for "L" and "H"; for each change of the input the total variation distances
            (draws,) between the attention before and after: 0 is the same attention, 1 is no overlap.
    """
    changes = list(next(iter(next(iter(shifts.values())).values())))
    figure = Figure(figsize=(WIDTH, 0.42 * len(changes) + 1.3), layout="constrained")
    grid = figure.subplots(1, len(shifts), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (title, by_variant) in zip(grid, shifts.items(), strict=True):
        for offset, (variant, by_change) in zip((-0.16, 0.16), by_variant.items(), strict=True):
            _draw_shifts(axes, variant, [by_change[change] for change in changes], offset)
        axes.set_title(title)
        axes.set_xscale("log")
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
    grid[0].set_yticks(range(len(changes)), changes)
    grid[0].set_ylim(len(changes) - 0.5, -0.5)
    grid[0].legend(loc="upper right")
    figure.supxlabel("total variation distance to the photo's attention (0: the same, 1: no overlap)", fontsize="small")
    return figure


def _draw_shifts(axes: Axes, variant: str, rows: Sequence[np.ndarray], offset: float) -> None:
    style: dict[str, Any] = {"color": VARIANT_COLORS[variant], "marker": VARIANT_MARKERS[variant], "linestyle": "none"}
    for row, draws in enumerate(rows):
        axes.plot(draws, np.full(len(draws), row + offset), **style, markersize=3, alpha=0.35)
    medians = [np.median(draws) for draws in rows]
    places = np.arange(len(rows)) + offset
    axes.plot(medians, places, **style, markersize=8, markeredgecolor="white", label=VARIANT_LABELS[variant])


def _kernel_maps(
    maps: Mapping[str, np.ndarray], channels: Sequence[str], title: str, label: str, norm: Normalize, colormap: str
) -> tuple[Figure, Colorbar]:
    kh, kw = next(iter(maps.values())).shape[:2]
    cell = 0.76 * WIDTH / len(channels)
    figure = Figure(figsize=(WIDTH, max(len(maps) * cell * kh / kw, 1.1) + 0.9), layout="constrained")
    grid = figure.subplots(len(maps), len(channels), squeeze=False)
    for line, (name, values) in zip(grid, maps.items(), strict=True):
        for place, axes in enumerate(line):
            image = _draw_kernel_map(axes, values[:, :, place], norm, colormap)
        line[0].set_ylabel(name)
    for axes, channel in zip(grid[0], channels, strict=True):
        axes.set_title(fit(channel, 0.95 * cell, "x-small"), fontsize="x-small", fontweight="normal", loc="center")
    bar = figure.colorbar(image, ax=grid, label=label, aspect=10 + 8 * len(maps))
    figure_title(figure, title)
    return figure, bar


def _draw_kernel_map(
    axes: Axes, values: np.ndarray, scale: Normalize, colormap: str, numbers: bool = True
) -> AxesImage:
    image = axes.imshow(values, norm=scale, cmap=colormap)
    if numbers and values.size <= MOST_CELLS_WITH_NUMBERS:
        write_numbers(axes, image, [signed(value, ".2f") for value in values.flat], size=6.5)
    frame(axes)
    return image


def _colormap(center: float | None) -> str:
    return SEQUENTIAL if center is None else DIVERGING


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
