"""Maps of attention: the k×k maps themselves, by sample, channel and class.

All maps of a figure share one diverging scale, white at 1/k² ("no preference"). Each function makes a figure of its
own, or draws in the place of `ax`, and attaches its maps as a table, which `kaviz.figures.figure_data` gives back.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from kaconv.attention.record import AttentionRecord
from kaviz.figures import attach_data
from kaviz.plots.map_grid import (
    Panel,
    check_layer,
    choose_apart,
    draw_map_grid,
    draw_picture,
    figure_title,
    grid_size,
    map_frame,
    sample_id,
    sample_names,
)
from kaviz.style import canvas, fit, split

MOST_CLASSES = 8  # that are shown, where none are named


def plot_picture_maps(
    record: AttentionRecord,
    sample: int,
    picture: np.ndarray,
    title: str | None = None,
    columns: int = 6,
    ax: Axes | None = None,
) -> Figure | SubFigure:
    """Attention of one sample in every layer: the mean over the channels, and some channels from sharp to even.

    The number under a map is the share of its strongest position. Columns are evenly spaced ranks of that share.

    Args:
        sample: its place in the record.
        picture: (H, W, 3) or (H, W), in [0, 1].
        title: above the image; None: its name in the record.
        columns: how many channels.
    """
    rows = []
    for layer in record.layers:
        maps = record.attention[layer][sample]
        of = {"sample": sample_id(record, sample), "layer": layer}
        chosen = _spread_ranks(maps.max(axis=(0, 1)), columns)
        shown = {"mean": maps.mean(axis=-1)} | {channel: maps[..., channel] for channel in chosen}
        rows.append(
            [
                Panel(values, of | {"channel": channel}, f"{100 * values.max():.0f} %")
                for channel, values in shown.items()
            ]
        )
    figure = canvas(ax, grid_size(len(rows), columns + 3, captions=True))
    left, right = split(figure, 1, 2, width_ratios=[1, 5.5])
    axes = left.subplots()
    draw_picture(axes, picture)
    name = sample_names(record, [sample])[0] if title is None else title
    axes.set_title(fit(name, 1.05), fontsize="small", fontweight="normal", loc="center")
    titles = ["mean", "sharpest", *[""] * (max(map(len, rows)) - 3), "most even"]
    draw_map_grid(right, rows, record.layers, titles)
    figure_title(figure, "Attention for one image, and what the strongest position of each map gets")
    return attach_data(figure, map_frame(rows))


def plot_layer_maps(
    record: AttentionRecord,
    samples: Sequence[int],
    pictures: np.ndarray,
    titles: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Figure | SubFigure:
    """The attention of a few samples in every layer, averaged over the channels.

    Args:
        samples: their places in the record.
        pictures: of these samples, (len(samples), H, W, 3) or (len(samples), H, W), in [0, 1].
        titles: of these samples; None: their names in the record.
    """
    rows = [
        [
            Panel(record.attention[layer][sample].mean(axis=-1), {"layer": layer, "sample": sample_id(record, sample)})
            for sample in samples
        ]
        for layer in record.layers
    ]
    return _map_figure(
        rows, record.layers, titles or sample_names(record, samples), "Attention, mean over the channels", ax, pictures
    )


def plot_channel_maps(
    record: AttentionRecord,
    layer: str,
    channels: Sequence[int],
    samples: Sequence[int],
    pictures: np.ndarray,
    titles: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Figure | SubFigure:
    """The attention of a few samples in some channels of one layer; arguments as in `plot_layer_maps`."""
    check_layer(record, layer)
    attention = record.attention[layer]
    rows = [
        [
            Panel(
                attention[sample, ..., channel],
                {"layer": layer, "channel": channel, "sample": sample_id(record, sample)},
            )
            for sample in samples
        ]
        for channel in channels
    ]
    names = [f"channel {channel}" for channel in channels]
    titles = titles or sample_names(record, samples)
    return _map_figure(rows, names, titles, f"Attention in {layer}", ax, pictures)


def plot_class_maps(
    record: AttentionRecord,
    layer: str,
    channels: Sequence[int],
    pictures: np.ndarray,
    classes: Sequence[str],
    only: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Figure | SubFigure:
    """Mean attention of some classes in some channels of one layer.

    Of more than eight classes the eight are shown whose maps in these channels are most different, by the rule of
    `kaviz.plots.map_grid.choose_apart`.

    Args:
        pictures: one for each class, such as its mean image, (classes, H, W, 3) or (classes, H, W), in [0, 1].
        classes: their names.
        only: names of the classes to show; None: chosen as said above.

    Raises:
        ValueError: if the record has no labels, or not a class for each name, or for a name in `only` that is none.
    """
    check_layer(record, layer)
    means = record.class_means(layer)
    check_classes(classes, means)
    chosen = class_places(classes, only) if only else choose_apart([means[..., list(channels)]], MOST_CLASSES)
    rows = [
        [
            Panel(means[place, ..., channel], {"layer": layer, "channel": channel, "class": classes[place]})
            for place in chosen
        ]
        for channel in channels
    ]
    title = f"Mean attention of each class in {layer}"
    if len(chosen) < len(classes) and not only:
        title = f"Mean attention of {len(chosen)} of {len(classes)} classes, the most different ones, in {layer}"
    names = [f"channel {channel}" for channel in channels]
    return _map_figure(rows, names, [classes[place] for place in chosen], title, ax, pictures[list(chosen)])


def check_classes(classes: Sequence[str], means: np.ndarray) -> None:
    """ValueError if there is not a name for each class."""
    if len(classes) != len(means):
        raise ValueError(f"the record has samples of {len(means)} classes, but {len(classes)} names were given")


def class_places(classes: Sequence[str], only: Sequence[str]) -> np.ndarray:
    """Places of some classes among all; ValueError for a name that is none of them."""
    if unknown := [name for name in only if name not in classes]:
        raise ValueError(f"there is no class {unknown[0]!r} in the record; there are {', '.join(classes[:20])}")
    return np.array([list(classes).index(name) for name in only])


def plot_channel_range(record: AttentionRecord, columns: int = 10, ax: Axes | None = None) -> Figure | SubFigure:
    """Mean maps of channels of every layer, from the one that moves most with the input to the one that moves least.

    The number under a map is its channel's input dependence. Columns are evenly spaced ranks.
    """
    rows = []
    for layer in record.layers:
        dependence, mean = record.input_dependence(layer), record.mean(layer)
        rows.append(
            [
                Panel(
                    mean[..., channel],
                    {"layer": layer, "channel": channel, "input dependence": dependence[channel]},
                    f"{dependence[channel]:.2f}",
                )
                for channel in _spread_ranks(dependence, columns)
            ]
        )
    titles = ["moves most", *[""] * (max(map(len, rows)) - 2), "least"]
    return _map_figure(rows, record.layers, titles, "Mean maps of channels, and their input dependence", ax)


def _map_figure(
    rows: Sequence[Sequence[Panel]],
    row_titles: Sequence[str],
    column_titles: Sequence[str],
    title: str,
    ax: Axes | None,
    pictures: np.ndarray | None = None,
) -> Figure | SubFigure:
    lines, columns = len(rows) + (pictures is not None), max(map(len, rows), default=0)
    captions = any(panel.caption for row in rows for panel in row)
    figure = canvas(ax, grid_size(lines, columns, captions))
    draw_map_grid(figure, rows, row_titles, column_titles, above=None if pictures is None else list(pictures))
    figure_title(figure, title)
    return attach_data(figure, map_frame(rows))


def _spread_ranks(values: np.ndarray, count: int) -> np.ndarray:
    """Places of `count` values from the largest to the smallest, in evenly spaced ranks."""
    ranks = np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int)
    return np.argsort(-values, kind="stable")[ranks]
