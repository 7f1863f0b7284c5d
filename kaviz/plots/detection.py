"""Detections on their images, and the attention inside of objects and outside."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from kaconv.attention.record import AttentionRecord
from kaconv.utils.intervals import t_interval
from kaviz.figures import attach_data
from kaviz.plots.map_grid import FEW_LAYERS, draw_picture, draw_position_means, position_means_height
from kaviz.style import VARIANT_COLORS, WIDTH, canvas, fit, place_legend, split

_COLUMNS = 4
_TRUE: dict[str, Any] = {"edgecolor": "#F0E442", "linewidth": 2.2, "linestyle": "--"}
_FOUND: dict[str, Any] = {"edgecolor": VARIANT_COLORS["L"], "linewidth": 1.6}
_OUTLINE: dict[str, Any] = {"edgecolor": "black", "linewidth": 3.4}  # under both, so that they show on any ground


def plot_detections(
    images: Sequence[np.ndarray],
    targets: Sequence[Mapping[str, np.ndarray]],
    detections: Sequence[Mapping[str, np.ndarray]],
    classes: Sequence[str],
    least: float = 0.3,
    ax: Axes | None = None,
) -> Figure | SubFigure:
    """Images with the boxes of their objects (dashed) and the detections (solid), each with class and score.

    Args:
        images: (H, W, 3) each, in [0, 1].
        targets: `boxes` (objects, 4) of each image, in pixels.
        detections: `boxes`, `labels` (from 1) and `scores` of each image.
        classes: names of the labels.
        least: score of the detections that are drawn.
    """
    columns = min(_COLUMNS, len(images))
    rows = -(-len(images) // columns)
    panel = WIDTH / columns
    figure = canvas(ax, (WIDTH, rows * (panel + 0.35) + 0.7))
    grid = figure.subplots(rows, columns, squeeze=False)
    data = []
    for axes in grid.flat[len(images) :]:
        axes.set_axis_off()
    for number, (axes, image, own, found) in enumerate(zip(grid.flat, images, targets, detections, strict=False)):
        draw_picture(axes, image)
        kept = np.asarray(found["scores"]) >= least
        for box in np.asarray(own["boxes"]):
            _draw_box(axes, box, _TRUE)
            data.append({"image": number, "kind": "object", **_corners(box)})
        texts = []
        parts = (np.asarray(found[key])[kept] for key in ("boxes", "labels", "scores"))
        for box, label, score in zip(*parts, strict=True):
            _draw_box(axes, box, _FOUND)
            texts.append(f"{classes[int(label) - 1]} {score:.2f}")
            row = {"image": number, "kind": "detection", **_corners(box)}
            data.append(row | {"class": classes[int(label) - 1], "score": float(score)})
        said = ", ".join(texts) or f"nothing above {least:g}"
        axes.set_title(fit(said, 0.92 * panel, "x-small", lines=2), fontsize="x-small", fontweight="normal")
    place_legend(
        figure,
        [Rectangle((0, 0), 1, 1, fill=False, label=name, **style) for name, style in _BOXES.items()],
        "outside lower center",
    )
    return attach_data(figure, pd.DataFrame(data))


_BOXES = {"object": _TRUE | {"edgecolor": "#B8A800"}, "detection": _FOUND}


def _draw_box(axes: Axes, box: np.ndarray, style: Mapping[str, Any]) -> None:
    x, y, x2, y2 = (float(value) for value in box)
    for one in (_OUTLINE, style):
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), x2 - x, y2 - y, fill=False, **one))


def _corners(box: np.ndarray) -> dict[str, float]:
    return {name: float(value) for name, value in zip(("x1", "y1", "x2", "y2"), box, strict=True)}


def plot_inside_and_outside(
    inside: AttentionRecord, outside: AttentionRecord, other: AttentionRecord, ax: Axes | None = None
) -> Figure | SubFigure:
    """Attention for squares from inside of objects and from outside, layer by layer.

    Above, how far a map inside is from one outside of the same image, beside how far two maps outside are from each
    other: means over the images with 95 % intervals. Where the two agree, the attention does not tell an object from
    its ground. Below, the mean maps over images and channels.

    Args:
        inside, outside, other: records of the squares of `kaconv.data.detection.crop_inside_and_outside`.
    """
    layers = inside.layers
    heights = [3.4 if len(layers) <= FEW_LAYERS else 4.2, position_means_height(2, len(layers))]
    figure = canvas(ax, (WIDTH, sum(heights)))
    top, bottom = split(figure, 2, 1, height_ratios=heights)
    axes = top.subplots()
    pairs = {"inside and outside": (inside, outside, "s", -0.12), "outside and outside": (other, outside, "o", 0.12)}
    rows, handles = [], []
    for (name, (one, two, marker, shift)), color in zip(pairs.items(), (VARIANT_COLORS["L"], "0.45"), strict=True):
        for place, layer in enumerate(layers):
            distances = one.distances_to(two, layer).tolist()
            mean = float(np.mean(distances))
            low, high = t_interval(distances) or (mean, mean)
            axes.plot([place + shift] * 2, [low, high], color=color, linewidth=2, solid_capstyle="butt")
            axes.plot(place + shift, mean, marker, color=color, markersize=6)
            rows.append({"layer": layer, "pair": name, "distance": mean, "low": low, "high": high})
        handles.append(Line2D([], [], color=color, marker=marker, linewidth=2, label=f"{name}, same image"))
    axes.set_ylim(bottom=0)
    axes.set_xlim(-0.6, len(layers) - 0.4)
    axes.set_ylabel("total variation distance")
    few = len(layers) <= FEW_LAYERS
    axes.set_xticks(range(len(layers)), layers, rotation=0 if few else 90, fontsize="small" if few else "x-small")
    axes.set_title(f"How far apart two maps are (mean of channels), {len(inside)} images")
    place_legend(top, handles, "outside lower center")
    named = {"inside": inside, "outside": outside}
    means = {name: {layer: record.mean(layer).mean(axis=-1) for layer in layers} for name, record in named.items()}
    maps = draw_position_means(bottom, means)
    return attach_data(figure, pd.concat([pd.DataFrame(rows), maps], ignore_index=True).convert_dtypes())
