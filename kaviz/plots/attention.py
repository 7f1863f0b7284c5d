"""What a record of attention shows: the k×k maps themselves, how far they move with the input, how even they are.

All maps of a figure share one diverging scale, white at 1/k² ("no preference"), which its colour bar marks.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from kaconv.capture import AttentionRecord
from kaviz.style import DIVERGING, SEQUENTIAL, VARIANT_COLORS, WIDTH

_GROUP_COLORS = {"trained": VARIANT_COLORS["L"], "untrained": "#CCCCCC"}
_CELL = 0.85  # inches: largest side of a map


def most_dependent_channels(record: AttentionRecord, layer: str, count: int) -> np.ndarray:
    """The `count` channels of a layer whose maps move most with the input, most first."""
    return np.argsort(-record.input_dependence(layer), kind="stable")[:count]


def plot_layer_maps(
    record: AttentionRecord, samples: Sequence[int], pictures: np.ndarray, titles: Sequence[str]
) -> Figure:
    """The attention of a few samples in every layer, averaged over the channels.

    Args:
        samples: their places in the record.
        pictures: of these samples, (len(samples), H, W, 3) or (len(samples), H, W), in [0, 1].
        titles: of these samples.
    """
    maps = [[record.attention[layer][sample].mean(axis=-1) for sample in samples] for layer in record.layers]
    return _map_grid(maps, record.layers, titles, pictures, "Attention, mean over the channels")


def plot_channel_maps(
    record: AttentionRecord,
    layer: str,
    channels: Sequence[int],
    samples: Sequence[int],
    pictures: np.ndarray,
    titles: Sequence[str],
) -> Figure:
    """The attention of a few samples in some channels of one layer; arguments as in `plot_layer_maps`."""
    maps = [[record.attention[layer][sample, ..., channel] for sample in samples] for channel in channels]
    names = [f"channel {channel}" for channel in channels]
    return _map_grid(maps, names, titles, pictures, f"Attention in {layer}")


def plot_class_maps(
    record: AttentionRecord,
    layer: str,
    channels: Sequence[int],
    pictures: np.ndarray,
    classes: Sequence[str],
) -> Figure:
    """Mean attention of each class in some channels of one layer.

    Args:
        pictures: one for each class, such as its mean picture, (classes, H, W, 3) or (classes, H, W), in [0, 1].
        classes: their names.
    """
    means = record.class_means(layer)
    maps = [[mean[..., channel] for mean in means] for channel in channels]
    names = [f"channel {channel}" for channel in channels]
    return _map_grid(maps, names, classes, pictures, f"Mean attention of each class in {layer}")


def plot_channel_range(record: AttentionRecord, columns: int = 10) -> Figure:
    """Mean maps of channels of every layer, from the one that moves most with the input to the one that moves least.

    The number under a map is its channel's input dependence. Columns are evenly spaced ranks.
    """
    layers = record.layers
    maps, captions = [], []
    for layer in layers:
        dependence = record.input_dependence(layer)
        ranks = np.linspace(0, len(dependence) - 1, min(columns, len(dependence))).round().astype(int)
        chosen = np.argsort(-dependence, kind="stable")[ranks]
        maps.append([record.attention[layer][..., channel].mean(axis=0) for channel in chosen])
        captions.append([f"{dependence[channel]:.2f}" for channel in chosen])
    titles = ["moves most", *[""] * (len(maps[0]) - 2), "least"]
    return _map_grid(maps, layers, titles, None, "Mean maps of channels, and their input dependence", captions)


def plot_input_dependence(record: AttentionRecord, reference: AttentionRecord | None = None) -> Figure:
    """How far each channel's map moves with the input, layer by layer, and how much of that the class explains.

    The second panel (see `AttentionRecord.class_share`) is there where the record has labels.

    Args:
        reference: an untrained model's record of the same layers and samples, to compare with.
    """
    panels = 1 if record.labels is None else 2
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    left, *right = figure.subplots(1, panels, squeeze=False)[0]
    _draw_boxes(left, _by_layer(AttentionRecord.input_dependence, record, reference))
    left.set_ylim(bottom=0)
    left.set_ylabel("input dependence of a channel\n(total variation distance)")
    left.set_title("How far the maps move with the input")
    for axes in right:
        shares = _by_layer(AttentionRecord.class_share, record, reference)
        for (name, by_layer), offset in zip(shares.items(), _offsets(len(shares)), strict=True):
            places = np.arange(len(by_layer)) + offset
            percent = [100 * share for share in by_layer.values()]
            bars = axes.bar(places, percent, 0.34, color=_GROUP_COLORS[name], edgecolor="black")
            axes.bar_label(bars, fmt="%.0f", padding=2, fontsize="small")
        chance = 100 * (len(np.unique(record.labels)) - 1) / (len(record) - 1)
        axes.axhline(chance, color="black", linewidth=1, linestyle=":", label=f"by chance: {chance:.1f}")
        axes.legend(loc="upper left", fontsize="small")
        axes.margins(y=0.2)
        axes.set_ylabel("variance between classes (%)")
        axes.set_title("How much of it the class explains")
        _name_layers(axes, record.layers)
    return _with_legend(figure, 1 if reference is None else 2)


def plot_entropy(record: AttentionRecord, reference: AttentionRecord | None = None) -> Figure:
    """Entropy of the attention over the kernel's positions, layer by layer, relative to the largest possible.

    Args:
        reference: as in `plot_input_dependence`.
    """
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    _draw_boxes(axes, _by_layer(AttentionRecord.entropy, record, reference))
    axes.axhline(1, color="black", linewidth=1, linestyle=":")
    style = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right", "fontsize": "small"}
    axes.annotate("uniform: 1/k² at every position", (1, 1), (-2, 3), **style)
    axes.set_ylim(top=1.04)
    axes.set_ylabel("entropy / log k²")
    axes.set_title("How even the attention is, for every sample and channel")
    return _with_legend(figure, 1 if reference is None else 2)


def plot_class_distances(record: AttentionRecord, classes: Sequence[str]) -> Figure:
    """How far apart the classes' mean maps are, a matrix for each layer, all on one scale."""
    distances = {layer: record.class_distances(layer) for layer in record.layers}
    columns = min(3, len(distances))
    rows = -(-len(distances) // columns)
    figure = Figure(figsize=(WIDTH, rows * (0.86 * WIDTH / columns + 0.35) + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    scale = Normalize(0, max(matrix.max() for matrix in distances.values()) or 1)
    for axes, (layer, matrix) in zip(grid.flat, distances.items(), strict=False):
        image = axes.imshow(matrix, norm=scale, cmap=SEQUENTIAL)
        axes.set_title(layer, fontsize="small")
        axes.set_xticks(range(len(classes)), classes, fontsize="small", rotation=0 if _short(classes) else 90)
        axes.set_yticks(range(len(classes)), classes, fontsize="small")
        axes.tick_params(length=0)
    for axes in grid.flat[len(distances) :]:
        axes.remove()
    figure.colorbar(image, ax=grid, label="total variation distance", shrink=0.8)
    title = "Distance between the classes' mean maps, mean over the channels"
    figure.suptitle(title, x=0.01, ha="left", fontsize="medium", fontweight="bold")
    return figure


def _map_grid(
    maps: Sequence[Sequence[np.ndarray]],
    row_titles: Sequence[str],
    column_titles: Sequence[str],
    pictures: np.ndarray | None,
    title: str,
    captions: Sequence[Sequence[str]] | None = None,
) -> Figure:
    """Maps (kh, kw) in rows and columns on one scale, with a picture above each column where there are any."""
    kh, kw = maps[0][0].shape
    even = 1 / (kh * kw)
    reach, extend = _reach(np.concatenate([np.ravel(line) for line in maps]), even)
    columns = max(len(line) for line in maps)
    rows = len(maps) + (pictures is not None)
    side = min(_CELL, 0.72 * WIDTH / columns)
    height = rows * side * (1.05 if captions is None else 1.3) + 0.75
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    if pictures is not None:
        for axes, picture in zip(grid[0], pictures, strict=True):
            axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
    lines = grid[rows - len(maps) :]
    for row, line in enumerate(maps):
        for column, values in enumerate(line):
            axes = lines[row, column]
            image = _draw_map(axes, values, Normalize(even - reach, even + reach))
            if captions:
                axes.set_xlabel(captions[row][column], fontsize="x-small", labelpad=2)
        lines[row, 0].set_ylabel(row_titles[row], rotation=0, ha="right", va="center", fontsize="small")
    for axes, text in zip(grid[0], column_titles, strict=False):
        axes.set_title(text, fontsize="small", fontweight="normal", loc="center")
    _attention_bar(figure, image, lines, even, reach, f"1/{kh * kw}", extend)
    figure.suptitle(title, x=0.01, ha="left", fontsize="medium", fontweight="bold")
    return figure


def _draw_map(axes: Axes, values: np.ndarray, scale: Normalize) -> AxesImage:
    image = axes.imshow(values, norm=scale, cmap=DIVERGING)
    # The colours of both ends look alike in grey print: a dot marks the upper quarter of the scale.
    rows, columns = np.nonzero(values >= (3 * scale.vmax + scale.vmin) / 4)
    axes.plot(columns, rows, ".", color="black", markersize=3)
    axes.set_axis_on()
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color("0.7")
    return image


def _reach(values: np.ndarray, even: float) -> tuple[float, str]:
    """Half of the scale's width, and which ends of the colour bar are open.

    Never more than 1/k², so that the scale ends at no attention at all and at twice the even share.
    """
    deviation = np.abs(values - even)
    reach = min(float(deviation.max()), even) or 1e-12  # a map of nothing but the even share still has a scale
    return reach, "max" if deviation.max() > reach else "neither"


def _attention_bar(
    figure: Figure, image: AxesImage, axes: np.ndarray, even: float, reach: float, share: str, extend: str
) -> None:
    label = f"attention (dot: {even + reach / 2:.2f} or more)"
    bar = figure.colorbar(image, ax=axes, label=label, extend=extend, shrink=0.9, aspect=10 + 4 * len(axes))
    labels = [f"{even - reach:.3f}", f"{share}\n(even)", f"{even + reach:.3f}"]
    bar.set_ticks([even - reach, even, even + reach], labels=labels, fontsize="small")
    bar.ax.axhline(even, color="black", linewidth=1.5)


def _by_layer(
    statistic: Callable[[AttentionRecord, str], Any], record: AttentionRecord, reference: AttentionRecord | None
) -> dict[str, dict[str, Any]]:
    records = {"trained": record} | ({"untrained": reference} if reference else {})
    return {name: {layer: statistic(source, layer) for layer in record.layers} for name, source in records.items()}


def _offsets(groups: int) -> list[float]:
    return [0.0] if groups == 1 else [-0.2, 0.2]


def _draw_boxes(axes: Axes, groups: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Box plots by layer: boxes are the middle half, whiskers the 5th to the 95th percentile, lines the median."""
    for (name, by_layer), offset in zip(groups.items(), _offsets(len(groups)), strict=True):
        boxes = axes.boxplot(
            [np.ravel(values) for values in by_layer.values()],
            positions=np.arange(len(by_layer)) + offset,
            widths=0.34,
            whis=(5, 95),
            showfliers=False,
            patch_artist=True,
            medianprops={"color": "black", "linewidth": 1.5},
        )
        for box in boxes["boxes"]:
            box.set(facecolor=_GROUP_COLORS[name])
    _name_layers(axes, list(by_layer))


def _name_layers(axes: Axes, layers: Sequence[str]) -> None:
    few = len(layers) <= 3
    axes.set_xticks(range(len(layers)), layers, fontsize="x-small" if few else "small", rotation=0 if few else 90)
    axes.set_xlabel("layer, from the input to the output")
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)


def _with_legend(figure: Figure, groups: int) -> Figure:
    handles = [
        Patch(facecolor=color, edgecolor="black", label=f"{name} model")
        for name, color in list(_GROUP_COLORS.items())[:groups]
    ]
    handles.append(Line2D([], [], linestyle="none", label="box: middle half, whiskers: 5th to 95th percentile"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize="small")
    return figure


def _short(names: Sequence[str]) -> bool:
    return max(map(len, names)) <= 2
