"""Figures of the distances by which the attention moves with the image, from `kaconv.attention.stability`.

Distances are in proportion to that between two random images, which is 1 and marked.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D

from kaconv.attention.stability import ANOTHER_OF_ITS_CLASS, ANOTHER_PICTURE, StabilityRow
from kaviz.figures import attach_data
from kaviz.plots.map_grid import draw_picture, figure_title
from kaviz.style import SEQUENTIAL, WIDTH, canvas, fit, place_legend

# Okabe and Ito's colours, told apart by their markers, too; a kind that is none of these takes the last.
_KINDS = {
    "shift": ("#0072B2", "o"),
    "flip": ("#CC79A7", "s"),
    "rotation": ("#009E73", "^"),
    "blur": ("#D55E00", "D"),
    "noise": ("#E69F00", "v"),
    ANOTHER_PICTURE: ("black", "*"),
    ANOTHER_OF_ITS_CLASS: ("black", "x"),
}
_OTHER = ("#4D4D4D", "P")
_REFERENCES: dict[str, Literal["-", ":"]] = {ANOTHER_PICTURE: "-", ANOTHER_OF_ITS_CLASS: ":"}
_MARKERS = "os^Dv"  # of layers
_UNTRAINED: dict[str, Any] = {"color": "0.6", "marker": "x"}
_MOST_NAMED = 6  # layers in a legend; of more, only the first and the last
_MOST_COLUMNS = 6  # changed images in a row
_FARTHEST = 2.0  # where the axes end: an untrained network, whose distances are noise, must not set them


def plot_changed_pictures(
    original: np.ndarray, changed: Mapping[str, np.ndarray], rows: Sequence[StabilityRow], ax: Axes | None = None
) -> Figure | SubFigure:
    """An image under some changes, from the one that moves the attention least to the one that moves it most.

    The numbers are of all images, means over the layers.

    Args:
        original: (H, W, 3) or (H, W), in [0, 1].
        changed: for the name of each change the same.
        rows: those of `kaconv.attention.stability.attention_stability`.
    """
    means = _by_change(rows).loc[list(changed)].sort_values("relative", kind="stable")
    lines = -(-(len(means) + 1) // _MOST_COLUMNS)
    columns = -(-(len(means) + 1) // lines)
    texts = [
        fit(f"{change}\nattention {row['relative']:.2f}\npixels {row['pixels']:.2f}", 0.87 * WIDTH / columns, "x-small")
        for change, row in means.iterrows()
    ]
    panel = 0.9 * WIDTH / columns * original.shape[0] / original.shape[1]
    figure = canvas(ax, (WIDTH, lines * (panel + 0.7) + 0.35))
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    pictures = [original, *(changed[change] for change in means.index)]
    for axes, picture, text in zip(grid.flat, pictures, ["the image", *texts], strict=False):
        draw_picture(axes, picture)
        axes.set_title(text, fontsize="x-small", fontweight="normal")
    figure_title(figure, "What moves the attention least, and what most (1: as far as another image)")
    return attach_data(figure, means.reset_index())


def plot_stability(
    rows: Sequence[StabilityRow], reference: Sequence[StabilityRow] | None = None, ax: Axes | None = None
) -> Figure | SubFigure:
    """Distance by which each kind of change moves the attention, by its strength and layer by layer.

    An untrained model widens the axis to twice the distance between two random images at most; the legend says how far
    it goes beyond.

    Args:
        rows: those of `kaconv.attention.stability.attention_stability`.
        reference: those of an untrained model, to compare with: the mean over its layers is drawn.
    """
    frame = pd.DataFrame(rows)
    layers = list(frame["layer"].unique())
    levels = frame[frame["kind"].isin(_REFERENCES)].groupby("kind")["relative"].mean()
    changes = frame[~frame["kind"].isin(_REFERENCES)]
    kinds = list(changes["kind"].unique())
    columns = min(3, len(kinds))
    lines = -(-len(kinds) // columns)
    figure = canvas(ax, (WIDTH, 2.3 * lines + 1))
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
    table = None if reference is None else _by_change(reference)
    farthest = 0.0 if table is None else float(table.loc[changes["change"].unique(), "relative"].max())
    top = 1.08 * max(changes["relative"].max(), *levels, min(farthest, _FARTHEST))
    colors = dict(zip(layers, mpl.colormaps[SEQUENTIAL](np.linspace(0, 0.85, len(layers))), strict=True))
    styles: dict[str, dict[str, Any]] = {
        layer: {"color": colors[layer], "marker": marker} for layer, marker in zip(layers, cycle(_MARKERS))
    }
    for axes, kind in zip(grid.flat, kinds, strict=False):
        own = changes[changes["kind"] == kind]
        strengths = list(own["strength"].unique())
        # There is nothing between left-right and top-bottom.
        line: Literal["none", "-"] = "none" if isinstance(strengths[0], str) else "-"
        if table is not None:
            untrained = table.loc[own["change"].unique(), "relative"]
            axes.plot(range(len(strengths)), untrained, **_UNTRAINED, linestyle="--" if line == "-" else "none")
        for layer, style in styles.items():
            axes.plot(range(len(strengths)), own.loc[own["layer"] == layer, "relative"], **style, linestyle=line)
        for reference_kind, line_style in _REFERENCES.items():
            for level in levels[levels.index == reference_kind]:
                axes.axhline(level, color="black", linewidth=1, linestyle=line_style, zorder=0)
        axes.set_xticks(range(len(strengths)), [_short(strength) for strength in strengths])
        axes.margins(x=0.12 if line == "-" else 0.5)
        axes.set_xlabel(own["unit"].iloc[0])
        axes.set_title(kind)
    for axes in grid.flat[len(kinds) :]:
        axes.remove()
    grid[0, 0].set_ylim(0, top)
    for axes in grid[:, 0]:
        axes.set_ylabel("distance of the attention")
    handles = [Line2D([], [], **style, label=layer) for layer, style in styles.items()]
    if len(handles) > _MOST_NAMED:
        handles = [handles[0], handles[-1]]
    if reference is not None:
        beyond = f" (up to {farthest:.3g})" if farthest > top else ""
        handles.append(Line2D([], [], **_UNTRAINED, linestyle="--", label=f"untrained, mean over layers{beyond}"))
    for kind in levels.index:
        handles.append(Line2D([], [], color="black", linewidth=1, linestyle=_REFERENCES[kind], label=kind))
    place_legend(figure, handles, "outside lower center")
    figure_title(figure, "Distance of a changed image's attention from its own (1: as far as another image's)")
    frames = [frame.assign(model="trained")] + (
        [pd.DataFrame(reference).assign(model="untrained")] if reference else []
    )
    return attach_data(figure, pd.concat(frames, ignore_index=True))


def plot_attention_against_pixels(
    models: Mapping[str, Sequence[StabilityRow]], ax: Axes | None = None
) -> Figure | SubFigure:
    """Distance of the attention against that of the pixels: a panel for each model; means over its layers.

    The axes end at about twice the distance between two random images: marks at the upper edge lie beyond, as the title
    says. The strongest change of each kind is named.

    Args:
        models: for each model its name and the rows of `kaconv.attention.stability.attention_stability`.
    """
    tables = {name: _by_change(rows) for name, rows in models.items()}
    pixels, attention = (max(table[name].max() for table in tables.values()) for name in ("pixels", "relative"))
    limit = 1.08 * max(pixels, min(attention, _FARTHEST))
    figure = canvas(ax, (WIDTH, WIDTH / len(models) + 1.9))
    grid = figure.subplots(1, len(models), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (name, table) in zip(grid, tables.items(), strict=True):
        axes.plot([0, limit], [0, limit], color="0.6", linewidth=1, linestyle="--")
        for kind, own in table.groupby("kind", sort=False):
            _draw_kind(axes, str(kind), own, limit)
        note: dict[str, Any] = {"color": "0.45", "fontsize": "x-small", "rotation": 45, "ha": "center", "va": "center"}
        axes.text(0.83 * limit, 0.88 * limit, "the attention moves more", **note)
        axes.text(0.88 * limit, 0.83 * limit, "the pixels move more", **note)
        beyond = int((table["relative"] > limit).sum())
        note_beyond = f"\n{beyond} of {len(table)} beyond, up to {table['relative'].max():.3g}" if beyond else ""
        axes.set_title(fit(name + note_beyond, 0.8 * WIDTH / len(models), "medium"))
        axes.set_xlabel("distance of the pixels")
        axes.set_aspect("equal")
    grid[0].set_xlim(0, limit)
    grid[0].set_ylim(0, limit)
    grid[0].set_ylabel("distance of the attention")
    place_legend(figure, grid[0].get_legend_handles_labels()[0], "outside lower center")
    figure_title(figure, "Does the attention move as far as the image does?")
    frames = [table.reset_index().assign(model=name) for name, table in tables.items()]
    return attach_data(figure, pd.concat(frames, ignore_index=True))


def _draw_kind(axes: Axes, kind: str, changes: pd.DataFrame, limit: float) -> None:
    color, marker = _KINDS.get(kind, _OTHER)
    named = isinstance(changes["strength"].iloc[0], str)
    unit = changes["unit"].iloc[0]
    label = f"{kind} ({unit})" if unit else kind
    line = "none" if named else "-"
    heights = changes["relative"].clip(upper=limit)
    axes.plot(changes["pixels"], heights, marker, clip_on=False, color=color, linestyle=line, linewidth=1, label=label)
    if not named and heights.iloc[-1] < limit:
        place, text = (changes["pixels"].iloc[-1], heights.iloc[-1]), _short(changes["strength"].iloc[-1])
        axes.annotate(text, place, (5, 2), textcoords="offset points", fontsize="x-small")


def _by_change(rows: Sequence[StabilityRow]) -> pd.DataFrame:
    """Means over the layers, by the name of the change, in the order of the rows."""
    groups = pd.DataFrame(rows).groupby("change", sort=False)
    first = groups[["kind", "strength", "unit", "pixels", "kept"]].first()
    return first.join(groups[["distance", "relative"]].mean())


def _short(strength: float | str) -> str:
    return strength if isinstance(strength, str) else f"{strength:g}"
