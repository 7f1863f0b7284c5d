"""The figure of the explorer: a picture, what the model makes of it, and its maps; or two of them and the difference.

It is drawn anew at every click, so it is one pair of axes, in inches from the top left: a pair for each part, and
a layout that is worked out, would take five times as long.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure

from kaviz.figures import attach_data
from kaviz.style import DIVERGING, VARIANT_COLORS, WIDTH, canvas

_HEIGHT = 4.9  # inches
_COLUMN = 2.5  # inches: a picture's part, of two
_CLASSES = 4  # that are shown
_LONGEST = {"title": 34, "class": 15}  # letters
_FINEST = 0.01  # of an even share: what differs by less is the same, and gets no scale of its own
_BAR = VARIANT_COLORS["L"]


@dataclass(frozen=True)
class Panel:
    """A picture, its maps and its prediction.

    Args:
        name: such as "A".
        title: what the picture is.
        picture: (H, W, 3) in [0, 1].
        maps: attention (M, kh, kw).
        probabilities: of the classes (classes,).
        before: the same without the intervention; None where there is none.
        label: the true class, where known.
    """

    name: str
    title: str
    picture: np.ndarray
    maps: np.ndarray
    probabilities: np.ndarray
    before: np.ndarray | None = None
    label: int | None = None


def plot_explorer(
    panels: Sequence[Panel],
    names: Sequence[str],
    classes: Sequence[str],
    *,
    title: str,
    reach: float,
    distances: Mapping[str, float] | None = None,
    layer: str | None = None,
    ax: Axes | None = None,
) -> Figure | SubFigure:
    """One picture beside its maps; or two side by side, and how their maps differ.

    Args:
        panels: one or two.
        names: of the channels that the maps are of (M,), the same in both panels; of a single map it is not shown.
        classes: names of all classes.
        title: of the figure, such as layer, channels and intervention.
        reach: half of the colour scale's width in even shares: it goes from (1 - reach)/K to (1 + reach)/K, K = kh·kw.
        distances: how far the maps of two panels are apart in each layer.
        layer: the one of them that is shown.
        ax: the place to draw in; None: a figure of its own.

    Returns:
        The figure. Its data: panel, quantity, layer, channel, row, column, class, value; a row for each number of the
        maps, the probabilities and the distances.
    """
    figure = canvas(ax, (WIDTH, _HEIGHT))
    if ax is None:
        figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.1, WIDTH - 0.1), ylim=(_HEIGHT, 0), aspect="equal", autoscale_on=False)
    axes.set_axis_off()
    axes.text(0, 0.08, title, fontsize="medium", fontweight="bold", va="top")
    if len(panels) == 1:
        _draw_one(axes, panels[0], names, classes, reach)
    else:
        _draw_two(axes, panels, names, classes, reach)
        if distances:
            _draw_distances(axes, distances, layer, panels)
    return attach_data(figure, _frame(panels, names, classes, distances, layer))


def _draw_one(axes: Axes, panel: Panel, names: Sequence[str], classes: Sequence[str], reach: float) -> None:
    _draw_picture(axes, panel, 0, 0.85, 2.2)
    _draw_probabilities(axes, panel, classes, 0, 3.2, 2.2)
    scale = _around_even(panel.maps, reach)
    _draw_maps(axes, panel.maps, names, scale, 2.7, 0.85, 5.1, 3.1)
    _attention_bar(axes, panel.maps, scale, 3.4, 4.3, 3.7)


def _draw_two(axes: Axes, panels: Sequence[Panel], names: Sequence[str], classes: Sequence[str], reach: float) -> None:
    both = np.concatenate([panel.maps for panel in panels])
    scale = _around_even(both, reach)
    for left, panel in zip(_lefts(), panels, strict=False):
        _draw_picture(axes, panel, left, 0.85, 1.2)
        _draw_probabilities(axes, panel, classes, left + 1.3, 0.85, 1.2)
        _draw_maps(axes, panel.maps, names, scale, left, 2.25, _COLUMN, 1.85)
    _attention_bar(axes, both, scale, 0.5, 4.3, 4.1)
    difference = panels[0].maps - panels[1].maps
    most = max(float(np.abs(difference).max()), _FINEST * _even(difference))
    left = _lefts()[2]
    _draw_maps(axes, difference, names, (-most, most), left, 2.25, _COLUMN, 1.85)
    label = f"{panels[0].name} − {panels[1].name}, on a scale of its own"
    ticks = (_signed(-most), "0", _signed(most))
    _color_bar(axes, ticks, label, left + 0.25, 4.3, _COLUMN - 0.5)


def _draw_picture(axes: Axes, panel: Panel, left: float, top: float, side: float) -> None:
    height, width = panel.picture.shape[:2]
    scale = side / max(height, width)
    axes.text(left, top - 0.06, _short(f"{panel.name}: {panel.title}", "title"), fontsize="small", fontweight="bold")
    _image(axes, panel.picture, left, top, width * scale, height * scale)


def _draw_probabilities(
    axes: Axes, panel: Panel, classes: Sequence[str], left: float, top: float, width: float
) -> None:
    """Bars of some classes; a stroke is the probability without the intervention."""
    chosen = _classes_to_show(panel)
    lines = top + 0.12 + 0.3 * np.arange(len(chosen))
    for y, index in zip(lines, chosen, strict=True):
        name = _short(str(classes[index]), "class") + (" (true)" if index == panel.label else "")
        axes.text(left, y, f"{panel.probabilities[index]:.2f}  {name}", fontsize="x-small")
    _boxes(axes, [(left, y + 0.03, width, 0.1) for y in lines], "0.93")
    _boxes(
        axes, [(left, y + 0.03, width * panel.probabilities[i], 0.1) for y, i in zip(lines, chosen, strict=True)], _BAR
    )
    if panel.before is not None:
        strokes = [
            (left + width * panel.before[i] - 0.015, y + 0.01, 0.03, 0.14) for y, i in zip(lines, chosen, strict=True)
        ]
        _boxes(axes, strokes, "black")
    note = "probability" if panel.before is None else "stroke: before"
    axes.text(left, lines[-1] + 0.3, note, fontsize="x-small", color="0.35")


def _classes_to_show(panel: Panel) -> np.ndarray:
    """The most probable classes, among them the true one and the one that was predicted without the intervention."""
    score = panel.probabilities.copy()
    score[[index for index in (panel.label, _best(panel.before), _best(panel.probabilities)) if index is not None]] += 1
    chosen = np.argsort(-score, kind="stable")[:_CLASSES]
    return chosen[np.argsort(-panel.probabilities[chosen], kind="stable")]


def _best(probabilities: np.ndarray | None) -> int | None:
    return None if probabilities is None else int(probabilities.argmax())


def _draw_maps(
    axes: Axes,
    maps: np.ndarray,
    names: Sequence[str],
    scale: tuple[float, float],
    left: float,
    top: float,
    width: float,
    height: float,
) -> None:
    """Maps in rows and columns, each below its name; a single one with its numbers."""
    kh, kw = maps.shape[1:]
    columns = min(4, len(maps))
    rows = -(-len(maps) // columns)
    head = 0.16 if len(maps) > 1 else 0
    cell = min((width / columns - 0.1) / kw, (height / rows - head - 0.06) / kh)
    right, down = kw * cell + 0.1, kh * cell + head + 0.06
    left, top = left + (width - columns * right + 0.1) / 2, top + (height - rows * down) / 2
    corners = [(left + index % columns * right, top + index // columns * down + head) for index in range(len(maps))]
    cells, dots = [], []
    for values, name, (x, y) in zip(maps, names, corners, strict=True):
        if len(maps) > 1:
            axes.text(x + kw * cell / 2, y - 0.03, name, ha="center", fontsize="x-small")
        cells += [(x + j * cell, y + i * cell, cell, cell) for i, j in np.ndindex(values.shape)]
        dots += [(x + (j + 0.5) * cell, y + (i + 0.5) * cell) for i, j in np.argwhere(values >= _upper(scale))]
    _boxes(axes, cells, colormaps[DIVERGING](Normalize(*scale)(maps.ravel())))
    _boxes(axes, [(*corner, kw * cell, kh * cell) for corner in corners], "none", edgecolor="0.7")
    if len(maps) == 1 and cell >= 0.35:
        _write_numbers(axes, maps[0], scale, *corners[0], cell)
    elif dots:  # the colours of both ends look alike in grey print: a dot marks the upper quarter of the scale
        axes.plot(*zip(*dots, strict=True), ".", color="black", markersize=3)


def _upper(scale: tuple[float, float]) -> float:
    return (3 * scale[1] + scale[0]) / 4


def _write_numbers(
    axes: Axes, values: np.ndarray, scale: tuple[float, float], left: float, top: float, cell: float
) -> None:
    low, high = scale
    for (row, column), value in np.ndenumerate(values):
        text = f"{value:.3f}" if low >= 0 else _signed(value)
        pale = abs(value - (low + high) / 2) < 0.3 * (high - low)
        place = left + (column + 0.5) * cell, top + (row + 0.5) * cell
        color = "black" if pale else "white"
        axes.text(*place, text, ha="center", va="center", fontsize="small", color=color)


def _draw_distances(axes: Axes, distances: Mapping[str, float], layer: str | None, panels: Sequence[Panel]) -> None:
    left, top, height = _lefts()[2], 0.85, 1.0
    title = f"{panels[0].name} against {panels[1].name}, layer by layer"
    axes.text(left, top - 0.06, title, fontsize="small", fontweight="bold")
    bottom = top + height
    step = min(0.5, _COLUMN / len(distances))
    sizes = 0.8 * height * np.array(list(distances.values())) / max(*distances.values(), 1e-3)
    bars = [(left + place * step, bottom - size, 0.8 * step, size) for place, size in enumerate(sizes)]
    _boxes(axes, bars, [_BAR if name == layer else "0.75" for name in distances])
    _boxes(axes, [(left, bottom, _COLUMN, 0.01)], "black")
    if layer in distances:
        x, y, *_ = bars[list(distances).index(layer)]
        axes.text(x + 0.4 * step, y - 0.03, f"{distances[layer]:.3f}", ha="center", fontsize="x-small")
    note = "distance of the maps (blue: this layer)"
    axes.text(left, bottom + 0.05, note, fontsize="x-small", va="top", color="0.35")


def _attention_bar(
    axes: Axes, maps: np.ndarray, scale: tuple[float, float], left: float, top: float, width: float
) -> None:
    low, high = scale
    even = _even(maps)
    ticks = (f"{low:.3f}", f"1/{round(1 / even)} (even)", f"{high:.3f}")
    _color_bar(axes, ticks, "attention", left, top, width)
    ends = [(maps.min() < low - 1e-6, left, -0.12), (maps.max() > high + 1e-6, left + width, 0.12)]
    for beyond, x, tip in ends:
        if beyond:  # an open end: there is more than the scale shows
            corners = [(x, top), (x + tip, top + 0.06), (x, top + 0.12)]
            axes.add_collection(
                PolyCollection([corners], facecolors=colormaps[DIVERGING](float(tip > 0))), autolim=False
            )


def _color_bar(axes: Axes, ticks: tuple[str, str, str], label: str, left: float, top: float, width: float) -> None:
    """A bar with its middle marked, and what to write at its beginning, middle and end."""
    _image(axes, np.linspace(0, 1, 256)[None], left, top, width, 0.12, cmap=DIVERGING, vmin=0, vmax=1)
    _boxes(axes, [(left + width / 2 - 0.01, top, 0.02, 0.12)], "black")
    for place, (text, align) in enumerate(zip(ticks, ("left", "center", "right"), strict=True)):
        axes.text(left + place * width / 2, top + 0.16, text, ha=align, va="top", fontsize="x-small")
    axes.text(left + width / 2, top + 0.32, label, ha="center", va="top", fontsize="small")


def _boxes(
    axes: Axes,
    boxes: Sequence[tuple[float, float, float, float]],
    color: str | list[str] | np.ndarray,
    edgecolor: str = "none",
) -> None:
    """Rectangles (left, top, width, height)."""
    corners = [[(x, y), (x + w, y), (x + w, y + h), (x, y + h)] for x, y, w, h in boxes]
    axes.add_collection(
        PolyCollection(corners, facecolors=color, edgecolors=edgecolor, antialiaseds=False), autolim=False
    )


def _image(axes: Axes, values: np.ndarray, left: float, top: float, width: float, height: float, **options) -> None:
    extent = (left, left + width, top + height, top)
    axes.imshow(values, extent=extent, interpolation="nearest", origin="upper", **options)


def _lefts() -> tuple[float, float, float]:
    return 0.0, _COLUMN + 0.15, 2 * (_COLUMN + 0.15)


def _around_even(maps: np.ndarray, reach: float) -> tuple[float, float]:
    even = _even(maps)
    return even * (1 - reach), even * (1 + reach)


def _even(maps: np.ndarray) -> float:
    return 1 / (maps.shape[1] * maps.shape[2])


def _signed(value: float) -> str:
    value = round(float(value), 3)
    return f"{value:+.3f}".replace("-", "−") if value else "0.000"


def _short(name: str, kind: str) -> str:
    longest = _LONGEST[kind]
    return name if len(name) <= longest else name[: longest - 1] + "…"


def _frame(
    panels: Sequence[Panel],
    names: Sequence[str],
    classes: Sequence[str],
    distances: Mapping[str, float] | None,
    layer: str | None,
) -> pd.DataFrame:
    rows = []
    for panel in panels:
        for (index, row, column), value in np.ndenumerate(panel.maps):
            rows.append((panel.name, "attention", layer, names[index], row, column, None, value))
        for quantity, values in {"probability": panel.probabilities, "probability without": panel.before}.items():
            if values is not None:
                rows += [
                    (panel.name, quantity, None, None, None, None, name, value)
                    for name, value in zip(classes, values, strict=True)
                ]
    both = ", ".join(panel.name for panel in panels)
    rows += [(both, "distance", name, None, None, None, None, value) for name, value in (distances or {}).items()]
    columns = ["panel", "quantity", "layer", "channel", "row", "column", "class", "value"]
    return pd.DataFrame(rows, columns=columns).astype({"row": "Int64", "column": "Int64"})
