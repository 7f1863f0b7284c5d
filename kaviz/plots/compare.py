"""Attention held against attention: two pictures and their difference, model variants, a training from its start.

Each function makes a figure of its own, or draws in the place of `ax`, and attaches its numbers as a table, which
`kaviz.figures.figure_data` gives back.
"""

from collections.abc import Mapping, Sequence

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
    Panel,
    Scale,
    attention_bar,
    check_layer,
    difference_bar,
    draw_map,
    draw_map_grid,
    draw_picture,
    draw_position_means,
    figure_title,
    grid_size,
    map_frame,
    position_means_height,
)
from kaviz.style import SEQUENTIAL, VARIANT_COLORS, VARIANT_LINES, VARIANT_MARKERS, WIDTH, canvas, variant_of

_TITLES = {  # of columns of `statistics_frame`
    "share of the variance (%)": "What the class explains",
    "input dependence": "How far the maps move",
    "entropy / log k²": "How even they are",
}
_ERROR = "test error (%)"

Triple = Mapping[str, Panel]  # "A", "B" and "A − B"


def plot_layer_difference(
    record: AttentionRecord,
    samples: tuple[int, int],
    pictures: np.ndarray,
    titles: tuple[str, str],
    ax: Axes | None = None,
) -> Figure | SubFigure:
    """The attention of two samples A and B and its difference A − B in every layer.

    On the left the mean over the channels, on the right the channel in which the two differ most. The number under a
    difference is the total variation distance of the two maps.

    Args:
        samples: the places of A and B in the record.
        pictures: of A and B, (2, H, W, 3) or (2, H, W), in [0, 1].
        titles: of A and B.
    """
    rows = []
    for layer in record.layers:
        maps = [record.attention[layer][sample] for sample in samples]
        channel = int(np.abs(maps[0] - maps[1]).sum(axis=(0, 1)).argmax())
        ids, of = record.ids[list(samples)], {"layer": layer}
        means = _triple([values.mean(axis=-1) for values in maps], ids, of | {"channel": "mean"})
        single = _triple([values[..., channel] for values in maps], ids, of | {"channel": channel})
        rows.append([(layer, means), (f"channel {channel}", single)])
    headings = ["mean over the channels", "the channel that differs most"]
    return _difference_figure(rows, headings, pictures, titles, "Two pictures, and the difference of their maps", ax)


def plot_channel_difference(
    record: AttentionRecord,
    layer: str,
    channels: Sequence[int],
    samples: tuple[int, int],
    pictures: np.ndarray,
    titles: tuple[str, str],
    ax: Axes | None = None,
) -> Figure | SubFigure:
    """The same in some channels of one layer, in two columns; arguments as in `plot_layer_difference`."""
    check_layer(record, layer)
    maps, ids = [record.attention[layer][sample] for sample in samples], record.ids[list(samples)]
    triples = [
        (
            f"channel {channel}",
            _triple([values[..., channel] for values in maps], ids, {"layer": layer, "channel": channel}),
        )
        for channel in channels
    ]
    rows = [triples[place : place + 2] for place in range(0, len(triples), 2)]
    title = f"Two pictures, and the difference of their maps in {layer}"
    return _difference_figure(rows, ["", ""][: len(triples)], pictures, titles, title, ax)


def plot_variants(records: Mapping[str, Sequence[AttentionRecord]], ax: Axes | None = None) -> Figure | SubFigure:
    """What the attention of several models comes to, layer by layer: statistics above, mean maps below.

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
    below = position_means_height(len(records), len(layers))
    figure = canvas(ax, (WIDTH, 3.9 + below))
    top, bottom = figure.subfigures(2, 1, height_ratios=[3.9, below])
    for axes, (name, title) in zip(top.subplots(1, len(_TITLES)), _TITLES.items(), strict=True):
        for model in records:
            variant = variant_of(model)
            values = table.loc[model, name].unstack("run").loc[layers]
            style = {"color": VARIANT_COLORS[variant], "marker": VARIANT_MARKERS[variant]}
            axes.plot(values.to_numpy(), linestyle="none", markerfacecolor="white", markersize=4, **style)
            axes.plot(values.mean(axis=1).to_numpy(), VARIANT_LINES[variant], linewidth=2, label=model, **style)
        slope = 30 if len(layers) <= FEW_LAYERS else 90
        tilted = {"rotation": slope, "ha": "right", "va": "center", "rotation_mode": "anchor"}
        axes.set_xticks(range(len(layers)), layers, fontsize="small", **tilted)
        axes.margins(x=0.1)
        _finish(axes, title, name)
    handles, _ = axes.get_legend_handles_labels()
    if len(every) > len(records):
        handles.append(Line2D([], [], color="0.4", marker="o", mfc="white", ms=4, ls="none", label="small: each seed"))
    top.legend(handles=handles, loc="outside upper center", ncols=len(handles))
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
    """How a network's attention changes while it learns: test error, and what `statistics_frame` gives, by epoch.

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
    figure = canvas(ax, (WIDTH, 5.6))
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
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=min(len(layers), 4))
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
                {"layer": layer, "channel": channel, "sample": records[epoch].ids[sample], "epoch": epoch},
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


def _triple(maps: Sequence[np.ndarray], ids: np.ndarray, of: Mapping) -> Triple:
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
    """Triples A, B, A − B in rows and columns, each with a title, below the two pictures."""
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
    for block, heading in enumerate(headings):
        first, second, third = grid[0, 4 * block : 4 * block + 3]
        for axes, picture, letter, name in zip((first, second), pictures, "AB", titles, strict=True):
            draw_picture(axes, picture)
            axes.set_xlabel(f"{letter}: {name}", fontsize="small", labelpad=2)
        third.text(0.5, 0, "A − B", transform=third.transAxes, fontsize="small", ha="center", va="bottom")
        second.set_title(heading, fontsize="small", loc="center")
    for line, row in zip(grid[1:], rows, strict=True):
        for block, (name, triple) in enumerate(row):
            for axes, (shown, panel) in zip(line[4 * block :], triple.items(), strict=False):
                even = 1 / panel.values.size
                draw_map(axes, panel.values, scale.around(0 if shown == "A − B" else even, even))
                axes.set_xlabel(panel.caption, fontsize="x-small", labelpad=2)
            line[4 * block].set_ylabel(name, rotation=0, ha="right", va="center", fontsize="small")
    sizes = {values.size for values in maps}
    clipped = any(np.abs(values).max() * values.size > scale.reach for values in differences)
    # Below the first and the last block, so that nothing of the width is lost.
    attention_bar(figure, scale, sizes, ax=grid[1:, :3], location="bottom")
    difference_bar(figure, Scale(scale.reach, clipped), sizes, ax=grid[1:, -3:], location="bottom")
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
