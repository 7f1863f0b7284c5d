"""Comparisons of attention: two images and their difference, model variants, a training from its start.

Each function makes a figure of its own, or draws in the place of `ax`, and attaches its numbers as a table, which
`kaviz.figures.figure_data` gives back.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from kaconv.attention.record import AttentionRecord
from kaviz.figures import attach_data
from kaviz.plots.attention_statistics import statistics_frame
from kaviz.plots.map_grid import (
    FEW_LAYERS,
    ROW_NAMES,
    Panel,
    Scale,
    attention_bar,
    below,
    check_layer,
    column_width,
    difference_bar,
    draw_map,
    draw_map_grid,
    draw_picture,
    draw_position_means,
    figure_title,
    grid_size,
    map_frame,
    position_means_height,
    sample_id,
    sample_names,
)
from kaviz.style import (
    SEQUENTIAL,
    VARIANT_COLORS,
    VARIANT_LINES,
    VARIANT_MARKERS,
    WIDTH,
    canvas,
    fit,
    place_legend,
    split,
    variant_of,
)

_TITLES = {  # of columns of `statistics_frame`
    "share of the variance (%)": "What the class explains",
    "input dependence": "How far the maps move",
    "entropy / log k²": "How even they are",
}
_ERROR = "test error (%)"
_MOST_LAYERS = 8  # of a difference, where none are named
_SHORT_NAME = 12  # letters of a name that can lean below its panel

Triple = Mapping[str, Panel]  # "A", "B" and "A − B"


def plot_layer_difference(
    record: AttentionRecord,
    samples: tuple[int, int],
    pictures: np.ndarray,
    titles: tuple[str, str] | None = None,
    layers: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Figure | SubFigure:
    """The attention of two samples A and B and its difference A − B, layer by layer.

    Of more than eight layers the eight are shown in which the two differ most in the mean over the channels. On the
    left is this mean, on the right the channel in which the two differ most. The number under a difference is the total
    variation distance of the two maps.

    Args:
        samples: the places of A and B in the record.
        pictures: of A and B, (2, H, W, 3) or (2, H, W), in [0, 1].
        titles: of A and B; None: their names in the record.
        layers: which to show; None: chosen as said above.
    """
    chosen = _most_different(record, samples) if layers is None else list(layers)
    rows = []
    for layer in chosen:
        check_layer(record, layer)
        maps = [record.attention[layer][sample] for sample in samples]
        channel = int(np.abs(maps[0] - maps[1]).sum(axis=(0, 1)).argmax())
        ids, of = [sample_id(record, sample) for sample in samples], {"layer": layer}
        means = _triple([values.mean(axis=-1) for values in maps], ids, of | {"channel": "mean"})
        single = _triple([values[..., channel] for values in maps], ids, of | {"channel": channel})
        rows.append([(layer, means), (f"channel {channel}", single)])
    headings = ["mean over the channels", "the channel that differs most"]
    title = "Two images, and the difference of their maps"
    if layers is None and len(chosen) < len(record.layers):
        title += f": the {len(chosen)} of {len(record.layers)} layers that differ most"
    return _difference_figure(rows, headings, pictures, titles or _pair(record, samples), title, ax)


def plot_channel_difference(
    record: AttentionRecord,
    layer: str,
    channels: Sequence[int],
    samples: tuple[int, int],
    pictures: np.ndarray,
    titles: tuple[str, str] | None = None,
    ax: Axes | None = None,
) -> Figure | SubFigure:
    """The same in some channels of one layer, in two columns; arguments as in `plot_layer_difference`."""
    check_layer(record, layer)
    maps = [record.attention[layer][sample] for sample in samples]
    ids = [sample_id(record, sample) for sample in samples]
    triples = [
        (
            f"channel {channel}",
            _triple([values[..., channel] for values in maps], ids, {"layer": layer, "channel": channel}),
        )
        for channel in channels
    ]
    rows = [triples[place : place + 2] for place in range(0, len(triples), 2)]
    title = f"Two images, and the difference of their maps in {layer}"
    titles = titles or _pair(record, samples)
    return _difference_figure(rows, ["", ""][: len(triples)], pictures, titles, title, ax)


def plot_variants(records: Mapping[str, Sequence[AttentionRecord]], ax: Axes | None = None) -> Figure | SubFigure:
    """Comparison of the attention of several models, layer by layer: statistics above, mean maps below.

    Lines are means over the seeds, marks the single seeds, of what `statistics_frame` gives. Maps are means over
    samples, channels and seeds.

    Args:
        records: for each model, by its registered name, a record for every seed: of the same labelled samples, with
            the same layer names.

    Raises:
        ValueError: if there are no records, of different layers, or without labels.
    """
    every = [record for own in records.values() for record in own]
    if not every or any(record.layers != every[0].layers for record in every):
        raise ValueError("records to compare must be of the same layers, and there must be one at least")
    layers = every[0].layers
    frames = {model: _statistics(dict(enumerate(own))) for model, own in records.items()}
    table = pd.concat(frames, names=["model", "run", "layer"])
    heights = [4.4, position_means_height(len(records), len(layers))]
    figure = canvas(ax, (WIDTH, sum(heights)))
    top, bottom = split(figure, 2, 1, height_ratios=heights)
    style: dict[str, Any]
    for axes, (name, title) in zip(top.subplots(1, len(_TITLES)), _TITLES.items(), strict=True):
        for model in records:
            variant = variant_of(model)
            values = table.loc[model, name].unstack("run").loc[layers]
            style = {"color": VARIANT_COLORS[variant], "marker": VARIANT_MARKERS[variant]}
            axes.plot(values.to_numpy(), linestyle="none", markerfacecolor="white", markersize=4, **style)
            axes.plot(values.mean(axis=1).to_numpy(), VARIANT_LINES[variant], linewidth=2, label=model, **style)
        slope = 30 if len(layers) <= FEW_LAYERS and max(map(len, layers)) <= _SHORT_NAME else 90
        tilted: dict[str, Any] = {"rotation": slope, "ha": "right", "va": "center", "rotation_mode": "anchor"}
        axes.set_xticks(range(len(layers)), layers, fontsize="small", **tilted)
        axes.margins(x=0.1)
        _finish(axes, fit(title, 0.25 * WIDTH, "medium"), name)
    handles, _ = axes.get_legend_handles_labels()
    if len(every) > len(records):
        handles.append(Line2D([], [], color="0.4", marker="o", mfc="white", ms=4, ls="none", label="small: each seed"))
    place_legend(top, handles, "outside upper center")
    means = {
        model: {layer: np.mean([record.mean(layer).mean(axis=-1) for record in own], axis=0) for layer in layers}
        for model, own in records.items()
    }
    maps = draw_position_means(bottom, means)
    drawn = table.melt(var_name="quantity", ignore_index=False).reset_index()
    return attach_data(figure, pd.concat([drawn, maps], ignore_index=True).convert_dtypes())


def plot_training_statistics(
    records: Mapping[int, AttentionRecord], errors: Mapping[int, float], ax: Axes | None = None
) -> Figure | SubFigure:
    """Changes of a network's attention while it learns: test error, and what `statistics_frame` gives, by epoch.

    Args:
        records: by epoch, 0 before training; of the same labelled samples.
        errors: test error in percent, by epoch.

    Raises:
        ValueError: if the records have no labels.
    """
    epochs = sorted(records)
    layers = records[epochs[0]].layers
    table = _statistics({epoch: records[epoch] for epoch in epochs}).rename_axis(["epoch", "layer"])
    colors = mpl.colormaps[SEQUENTIAL](np.linspace(0, 0.85, len(layers)))
    figure = canvas(ax, (WIDTH, 5.4 + 0.06 * len(layers)))
    first, *others = figure.subplots(2, 2, sharex=True).flat
    tested = pd.DataFrame({"epoch": epochs, "quantity": _ERROR, "value": [errors[epoch] for epoch in epochs]})
    first.plot(epochs, tested["value"], "o-", color="black", markersize=4)
    _finish(first, "Test error", _ERROR)
    for axes, (name, title) in zip(others, _TITLES.items(), strict=True):
        for layer, color in zip(layers, colors, strict=True):
            axes.plot(epochs, table[name].xs(layer, level="layer"), "o-", color=color, markersize=4, label=layer)
        _finish(axes, title, name)
    for axes in figure.axes[-2:]:
        axes.set_xlabel("epoch (0: before training)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    place_legend(figure, axes.get_legend_handles_labels()[0], "outside upper center", "x-small")
    drawn = table.melt(var_name="quantity", ignore_index=False).reset_index()
    return attach_data(figure, pd.concat([tested, drawn], ignore_index=True))


def plot_training_maps(
    records: Mapping[int, AttentionRecord],
    layer: str,
    channels: Sequence[int],
    samples: Sequence[int],
    pictures: np.ndarray,
    columns: int = 10,
    ax: Axes | None = None,
) -> Figure | SubFigure:
    """The maps of a few channels for a few samples while the network learns, a column for each epoch.

    Args:
        records: by epoch, 0 before training; of the same samples and layers.
        samples: their places in the records.
        pictures: of these samples, (len(samples), H, W, 3) or (len(samples), H, W), in [0, 1].
        columns: of more epochs, so many are shown, evenly spaced.
    """
    check_layer(next(iter(records.values())), layer)
    epochs = np.array(sorted(records))
    epochs = epochs[np.linspace(0, len(epochs) - 1, min(columns, len(epochs))).round().astype(int)]
    rows = [
        [
            Panel(
                records[epoch].attention[layer][sample, ..., channel],
                {"layer": layer, "channel": channel, "sample": sample_id(records[epoch], sample), "epoch": epoch},
            )
            for epoch in epochs
        ]
        for channel in channels
        for sample in samples
    ]
    figure = canvas(ax, grid_size(len(rows), len(epochs) + 1))
    names = [name for channel in channels for name in (f"channel {channel}", *[""] * (len(samples) - 1))]
    draw_map_grid(figure, rows, names, [f"epoch {epoch}" for epoch in epochs], before=[*pictures] * len(channels))
    figure_title(figure, f"Attention in {layer} during training")
    return attach_data(figure, map_frame(rows))


def _most_different(record: AttentionRecord, samples: tuple[int, int]) -> list[str]:
    """The layers to show, in the model's order."""
    one, other = samples
    apart = [np.abs((maps[one] - maps[other]).mean(axis=-1)).sum() for maps in record.attention.values()]
    chosen = np.sort(np.argsort(-np.array(apart), kind="stable")[:_MOST_LAYERS])
    return [record.layers[place] for place in chosen]


def _pair(record: AttentionRecord, samples: tuple[int, int]) -> tuple[str, str]:
    first, second = sample_names(record, samples)
    return first, second


def _triple(maps: Sequence[np.ndarray], ids: Sequence[Any], of: dict[str, Any]) -> Triple:
    a, b = maps
    distance = np.abs(a - b).sum() / 2
    return {
        "A": Panel(a, of | {"shown": "A", "sample": ids[0]}),
        "B": Panel(b, of | {"shown": "B", "sample": ids[1]}),
        "A − B": Panel(a - b, of | {"shown": "A − B"}, f"distance {distance:.2f}"),
    }


def _difference_figure(
    rows: Sequence[Sequence[tuple[str, Triple]]],
    headings: Sequence[str],
    pictures: np.ndarray,
    titles: tuple[str, str],
    title: str,
    ax: Axes | None,
) -> Figure | SubFigure:
    """Triples A, B, A − B in rows and columns, each with a title, below the two images."""
    blocks = len(headings)
    width, height = grid_size(len(rows) + 1, 4 * blocks, captions=True)
    figure = canvas(ax, (width if blocks > 1 else 0.6 * width, height + 1.1))
    widths = [1, 1, 1, 0.1] * blocks  # the fourth stays empty
    grid = figure.subplots(len(rows) + 1, 4 * blocks - 1, squeeze=False, width_ratios=widths[:-1])
    for axes in grid.flat:
        axes.set_axis_off()
    panels = [[panel for _, triple in row for panel in triple.values()] for row in rows]
    maps, differences = (
        [panel.values for row in panels for panel in row if (panel.of["shown"] == "A − B") is difference]
        for difference in (False, True)
    )
    scale = Scale.of(maps)
    apart = scale.of_differences(differences)
    wide = column_width(figure, 4 * blocks - 1)
    for block, heading in enumerate(headings):
        first, second, third = grid[0, 4 * block : 4 * block + 3]
        for axes, picture, letter, name in zip((first, second), pictures, "AB", titles, strict=True):
            draw_picture(axes, picture)
            text = fit(f"{letter}: {name}", wide, "x-small", 4)
            axes.set_title(text, fontsize="x-small", fontweight="normal", loc="center")
        third.set_title("A − B", fontsize="x-small", fontweight="normal", loc="center")
        place: dict[str, Any] = {"transform": third.transAxes, "ha": "center", "va": "center"}
        third.text(0.5, 0.5, fit(heading, wide, "x-small", 5), fontsize="x-small", **place)
    for line, row in zip(grid[1:], rows, strict=True):
        for block, (name, triple) in enumerate(row):
            for axes, (shown, panel) in zip(line[4 * block :], triple.items(), strict=False):
                even = 1 / panel.values.size
                draw_map(axes, panel.values, (apart if shown == "A − B" else scale).norm(even))
                axes.set_xlabel(panel.caption, fontsize="x-small", labelpad=2)
            line[4 * block].set_ylabel(fit(name, ROW_NAMES), rotation=0, ha="right", va="center", fontsize="small")
    sizes = {values.size for values in maps}
    # Below the first and the last block, so that nothing of the width is lost.
    attention_bar(figure, scale, sizes, ax=grid[1:, :3], **below(figure))
    difference_bar(figure, apart, sizes, ax=grid[1:, -3:], **below(figure))
    figure_title(figure, title)
    return attach_data(figure, map_frame(panels))


def _statistics(records: Mapping[int, AttentionRecord]) -> pd.DataFrame:
    if any(record.labels is None for record in records.values()):
        raise ValueError("a record has no labels; give them to AttentionCapture.record(labels=...)")
    return statistics_frame(records)[[*_TITLES]]


def _finish(axes: Axes, title: str, label: str) -> None:
    axes.set_title(title)
    axes.set_ylabel(label)
    if label.startswith("entropy"):
        axes.axhline(1, color="black", linewidth=1, linestyle=":")
    axes.set_ylim(0, 1.08 * axes.dataLim.y1 or 1)  # 1: where nothing moves at all
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
