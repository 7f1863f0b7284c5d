"""Statistics of a record of attention, layer by layer: how far the maps move with the input, how even they are, where
they lie, and how far apart those of the classes are.

Each function makes a figure of its own, or draws in the place of `ax`, and attaches its numbers as a table, which
`kaviz.figures.figure_data` gives back.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from kaconv.attention.record import AttentionRecord, map_distances
from kaviz.figures import attach_data
from kaviz.plots.attention_maps import check_classes, class_places
from kaviz.plots.map_grid import (
    FEW_LAYERS,
    below,
    choose_apart,
    draw_position_means,
    ends,
    figure_title,
    position_means_height,
    value_norm,
)
from kaviz.style import SEQUENTIAL, VARIANT_COLORS, WIDTH, canvas, fit, place_legend, split

_GROUP_COLORS = {"trained": VARIANT_COLORS["L"], "untrained": "#CCCCCC"}
_EVEN: dict[str, Any] = {"color": "black", "linewidth": 1, "linestyle": ":"}  # the line of uniform attention
_PERCENTILES = {"whislo": 5, "q1": 25, "med": 50, "q3": 75, "whishi": 95}
_MOST_CLASSES = 12  # whose names can be read along an axis of a small matrix

Groups = Mapping[str, Mapping[str, Any]]  # "trained" or "untrained", layer -> values or value


def plot_input_dependence(
    record: AttentionRecord, reference: AttentionRecord | None = None, ax: Axes | None = None
) -> Figure | SubFigure:
    """Input dependence of each channel's map, layer by layer, and how much of it the class explains.

    The second panel (see `AttentionRecord.class_share`) is there where the record has labels.

    Args:
        reference: an untrained model's record of the same layers and samples, to compare with.
    """
    panels = 1 if record.labels is None else 2
    figure = canvas(ax, (WIDTH, 3.6 if len(record.layers) <= FEW_LAYERS else 5.0))
    left, *right = figure.subplots(1, panels, squeeze=False)[0]
    frames = [_draw_boxes(left, _by_layer(AttentionRecord.input_dependence, record, reference), "input dependence")]
    left.set_ylim(bottom=0)
    left.set_ylabel("input dependence of a channel\n(total variation distance)")
    left.set_title("How far the maps move with the input")
    for axes in right:
        shares = _by_layer(AttentionRecord.class_share, record, reference)
        for (name, by_layer), offset in zip(shares.items(), _offsets(len(shares)), strict=True):
            percent = [100 * share for share in by_layer.values()]
            bars = axes.bar(np.arange(len(by_layer)) + offset, percent, 0.34, color=_GROUP_COLORS[name], edgecolor="k")
            if len(by_layer) <= FEW_LAYERS:
                axes.bar_label(bars, fmt="%.0f", padding=2, fontsize="small")
        chance = (len(np.unique(np.asarray(record.labels))) - 1) / (len(record) - 1)
        axes.axhline(100 * chance, color="black", linewidth=1, linestyle=":", label=f"by chance: {100 * chance:.1f}")
        axes.legend(loc="upper left", fontsize="small")
        axes.margins(y=0.2)
        axes.set_ylabel("share of the variance (%)")
        axes.set_title("How much of it the class explains")
        _name_layers(axes, record.layers)
        frames.append(_share_frame({**shares, "by chance": dict.fromkeys(record.layers, chance)}))
    _legend(figure, 1 if reference is None else 2)
    return attach_data(figure, pd.concat(frames, ignore_index=True))


def plot_entropy(
    record: AttentionRecord, reference: AttentionRecord | None = None, ax: Axes | None = None
) -> Figure | SubFigure:
    """Entropy of the attention over the kernel's positions, layer by layer, relative to the largest possible.

    Args:
        reference: as in `plot_input_dependence`.
    """
    figure = canvas(ax, (WIDTH, 3.4))
    frame = _draw_entropy(figure.subplots(), record, reference)
    _legend(figure, 1 if reference is None else 2, even=True)
    return attach_data(figure, frame)


def plot_deviation(
    record: AttentionRecord, reference: AttentionRecord | None = None, ax: Axes | None = None
) -> Figure | SubFigure:
    """Distance of the attention from 1/k², and the positions it favours, layer by layer.

    Above, on the left, the entropy of every map (sample and channel) as in `plot_entropy`; on the right, what its
    strongest position gets, in even shares of 1/k²: 1 is "no preference", k² is everything. Below, the mean map over
    samples and channels: does one position win everywhere?

    Args:
        reference: as in `plot_input_dependence`.
    """
    records = _named(record, reference)
    heights = [4.2, position_means_height(len(records), len(record.layers))]
    figure = canvas(ax, (WIDTH, sum(heights)))
    top, bottom = split(figure, 2, 1, height_ratios=heights)
    left, right = top.subplots(1, 2)
    frames = [_draw_entropy(left, record, reference)]
    frames.append(_draw_boxes(right, _by_layer(_strongest, record, reference), "strongest position × k²"))
    right.axhline(1, **_EVEN)
    right.set_ylim(bottom=0)
    right.set_ylabel("attention × k²")
    right.set_title("What the strongest position gets")
    _legend(top, len(records), even=True)
    means = {
        name: {layer: source.mean(layer).mean(axis=-1) for layer in record.layers} for name, source in records.items()
    }
    frames.append(draw_position_means(bottom, means))
    return attach_data(figure, pd.concat(frames, ignore_index=True).convert_dtypes())


def plot_class_distances(
    record: AttentionRecord, classes: Sequence[str], only: Sequence[str] | None = None, ax: Axes | None = None
) -> Figure | SubFigure:
    """Distances between the classes' mean maps, a matrix for each layer, all on one scale.

    Of more than twelve classes the twelve are shown whose maps are most different over all layers, by the rule of
    `kaviz.plots.map_grid.choose_apart`.

    Args:
        classes: names of the classes that the record has samples of, in the order of their labels.
        only: names of the classes to show; None: chosen as said above.

    Raises:
        ValueError: if the record has no labels, or not a class for each name, or for a name in `only` that is none.
    """
    means = [record.class_means(layer) for layer in record.layers]
    check_classes(classes, means[0])
    chosen = class_places(classes, only) if only else choose_apart(means, _MOST_CLASSES)
    named = [classes[place] for place in chosen]
    distances = {layer: map_distances(own[chosen]) for layer, own in zip(record.layers, means, strict=True)}
    columns = min(3 if len(distances) < 10 else 4, len(distances))
    rows = -(-len(distances) // columns)
    short = max(map(len, named)) <= 2
    figure = canvas(ax, (WIDTH, rows * (0.7 * WIDTH / columns + 0.3 + 0.35 * short) + 2.4 - 0.7 * short))
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    scale = value_norm(np.stack(list(distances.values())))
    for place, (axes, (layer, matrix)) in enumerate(zip(grid.flat, distances.items(), strict=False)):
        axes.imshow(matrix, norm=scale, cmap=SEQUENTIAL)
        axes.set_title(fit(layer, 0.7 * WIDTH / columns), fontsize="small")
        if short and len(named) > 2:
            axes.set_xlabel(_extreme_pairs(matrix, named), fontsize="x-small")
        lowest = place >= columns * (rows - 1)  # not below each column: names would push the last row away
        names = [fit(name, 1.1, "x-small", 2) for name in named] if lowest else []
        axes.set_xticks(range(len(named))[: len(names)], names, fontsize="x-small", rotation=0 if short else 90)
        axes.set_yticks(range(len(named)), [fit(name, 1.3, "x-small", 1) for name in named], fontsize="x-small")
        axes.tick_params(length=0)
    for axes in grid.flat[len(distances) :]:
        axes.set_axis_off()
    bar = figure.colorbar(ScalarMappable(scale, SEQUENTIAL), ax=grid, **below(figure, shrink=0.6, aspect=40))
    bar.set_label(f"total variation distance, 0 to {ends(scale)[1]:.2g}", fontsize="small")
    title = "Distance between the classes' mean maps, mean over the channels"
    if len(chosen) < len(classes) and not only:
        title += f": the {len(chosen)} most different of {len(classes)} classes"
    figure_title(figure, title)
    frame = pd.DataFrame(
        [
            {"layer": layer, "class": named[one], "other class": named[other], "distance": distance}
            for layer, matrix in distances.items()
            for (one, other), distance in np.ndenumerate(matrix)
        ]
    )
    return attach_data(figure, frame)


def statistics_frame(records: Mapping[Any, AttentionRecord]) -> pd.DataFrame:
    """Summary of the attention of some records: a row for each record, by its key, and layer.

    Columns: "input dependence", the median over channels; "share of the variance (%)", what the class explains, where
    there are labels; "entropy / log k²" and "strongest position × k²", medians over samples and channels; "centre
    × k²", the mean of the kernel's centre over both.
    """
    rows: list[dict[str, Any]] = []
    for name, record in records.items():
        for layer in record.layers:
            mean = record.mean(layer).mean(axis=-1)
            height, width = mean.shape
            share = {} if record.labels is None else {"share of the variance (%)": 100 * record.class_share(layer)}
            rows.append(
                {
                    "record": name,
                    "layer": layer,
                    "input dependence": np.median(record.input_dependence(layer)),
                    **share,
                    "entropy / log k²": np.median(record.entropy(layer)),
                    "strongest position × k²": np.median(_strongest(record, layer)),
                    "centre × k²": mean.size * mean[height // 2, width // 2],
                }
            )
    return pd.DataFrame(rows).set_index(["record", "layer"])


def _strongest(record: AttentionRecord, layer: str) -> np.ndarray:
    """Attention of the strongest position in even shares. (N, C)."""
    return 1 + record.deviation(layer).max(axis=(1, 2))


def _extreme_pairs(matrix: np.ndarray, classes: Sequence[str]) -> str:
    ones, others = np.triu_indices(len(matrix), k=1)
    distances = matrix[ones, others]
    nearest, farthest = (
        f"{classes[ones[place]]} and {classes[others[place]]} ({distances[place]:.2f})"
        for place in (distances.argmin(), distances.argmax())
    )
    return f"nearest: {nearest}\nfarthest: {farthest}"


def _named(record: AttentionRecord, reference: AttentionRecord | None) -> dict[str, AttentionRecord]:
    return {"trained": record} | ({"untrained": reference} if reference else {})


def _by_layer(
    statistic: Callable[[AttentionRecord, str], Any], record: AttentionRecord, reference: AttentionRecord | None
) -> Groups:
    return {
        name: {layer: statistic(source, layer) for layer in record.layers}
        for name, source in _named(record, reference).items()
    }


def _offsets(groups: int) -> list[float]:
    return [0.0] if groups == 1 else [-0.2, 0.2]


def _draw_entropy(axes: Axes, record: AttentionRecord, reference: AttentionRecord | None) -> pd.DataFrame:
    frame = _draw_boxes(axes, _by_layer(AttentionRecord.entropy, record, reference), "entropy / log k²")
    axes.axhline(1, **_EVEN)
    axes.set_ylim(top=1.04)
    axes.set_ylabel("entropy / log k²")
    axes.set_title("How even the maps are")
    return frame


def _draw_boxes(axes: Axes, groups: Groups, quantity: str) -> pd.DataFrame:
    """Box plots by layer: boxes are the middle half, whiskers the 5th to the 95th percentile, lines the median."""
    drawn = []
    for (name, by_layer), offset in zip(groups.items(), _offsets(len(groups)), strict=True):
        levels = list(_PERCENTILES.values())
        found = {layer: np.percentile(values, levels) for layer, values in by_layer.items()}
        boxes = axes.bxp(
            [dict(zip(_PERCENTILES, values, strict=True)) for values in found.values()],
            positions=np.arange(len(by_layer)) + offset,
            widths=0.34,
            showfliers=False,
            patch_artist=True,
            medianprops={"color": "black", "linewidth": 1.5},
        )
        for box in boxes["boxes"]:
            box.set(facecolor=_GROUP_COLORS[name])
        drawn += [
            {"layer": layer, "model": name, "quantity": quantity, "percentile": level, "value": value}
            for layer, values in found.items()
            for level, value in zip(levels, values, strict=True)
        ]
    _name_layers(axes, list(by_layer))
    return pd.DataFrame(drawn)


def _share_frame(shares: Groups) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"layer": layer, "model": name, "quantity": "share of the variance (%)", "value": 100 * share}
            for name, by_layer in shares.items()
            for layer, share in by_layer.items()
        ]
    )


def _name_layers(axes: Axes, layers: Sequence[str]) -> None:
    few = len(layers) <= 3
    axes.set_xticks(range(len(layers)), layers, fontsize="x-small" if few else "small", rotation=0 if few else 90)
    axes.set_xlabel("layer, from the input to the output")
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)


def _legend(figure: Figure | SubFigure, groups: int, even: bool = False) -> None:
    handles: list[Artist] = [
        Patch(facecolor=color, edgecolor="black", label=f"{name} model")
        for name, color in list(_GROUP_COLORS.items())[:groups]
    ]
    if even:
        handles.append(Line2D([], [], label="1/k² at every position", **_EVEN))
    handles.append(Line2D([], [], linestyle="none", label="box: middle half, whiskers: 5th to 95th percentile"))
    place_legend(figure, handles, "outside upper center")
