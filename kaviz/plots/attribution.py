"""Attributions beside the images they explain, and the checks of what they claim."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from kaviz.style import DIVERGING, WIDTH

# Okabe and Ito's colours that no variant of a model has; line styles and markers tell them apart in grey.
_COLORS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", "--", "-.", (0, (4, 1, 1, 1, 1, 1)), (0, (8, 2)))  # dotted is the random order's
_MARKERS = ("o", "s", "^", "D", "v")
_OUTLIERS = 0.5  # percent of a map's values that may lie beyond its scale
_COLUMNS = 7  # images side by side


def plot_attributions(
    pictures: np.ndarray,
    attributions: Mapping[str, np.ndarray],
    titles: Sequence[str],
    *,
    title: str,
    outline: bool = False,
) -> Figure:
    """Images, each with its attributions below it, a row for each method; seven images side by side at most.

    Red speaks for the class, blue against it. Methods differ in scale and images in how much there is to see, so each
    map has a scale of its own, symmetric around 0, whose end is written below it; 0.5 % of its values may lie beyond.

    Args:
        pictures: (N, H, W, 3) or (N, H, W), in [0, 1].
        attributions: for each method its name and its maps (N, H, W).
        titles: of the N images; long ones are broken into lines.
        outline: draw the contour of the image's bright parts over its maps; good for line drawings.
    """
    for name, maps in attributions.items():
        if maps.shape != pictures.shape[:3]:
            raise ValueError(f"{name}: maps {maps.shape} do not fit images {pictures.shape[:3]}")
    count, (height, width) = len(pictures), pictures.shape[1:3]
    blocks, rows = -(-count // _COLUMNS), 1 + len(attributions)
    columns = -(-count // blocks)
    side = min(1.6, (WIDTH - 1) / columns)
    letters = max(8, int(side / 0.07))
    broken = [_broken(text, letters) for text in titles]
    lines = max(text.count("\n") + 1 for text in broken)
    deep = rows * (side * height / width + 0.16) + 0.14 * lines
    figure = Figure(figsize=(columns * side + 1, blocks * deep + 0.9), layout="constrained")
    if isinstance(engine := figure.get_layout_engine(), ConstrainedLayoutEngine):
        engine.set(w_pad=0.02, h_pad=0.01, wspace=0.01, hspace=0.01)
    whole = figure.subplots(blocks * rows, columns, squeeze=False)
    luminance = pictures.mean(axis=-1) if pictures.ndim == 4 else pictures
    image = None
    for block in range(blocks):
        grid = whole[block * rows : (block + 1) * rows]
        for axes in grid.flat:
            _bare(axes)
        for column in range(columns):
            number = block * columns + column
            if number >= count:
                for axes in grid[:, column]:
                    axes.set_visible(False)
                continue
            grid[0, column].imshow(pictures[number], cmap="gray", vmin=0, vmax=1)
            grid[0, column].set_title(broken[number], fontsize="xx-small", fontweight="normal", loc="center")
            for axes, maps in zip(grid[1:, column], attributions.values(), strict=True):
                values = maps[number]
                reach = float(np.percentile(np.abs(values), 100 - _OUTLIERS)) or float(np.abs(values).max()) or 1e-12
                image = axes.imshow(values / reach, norm=Normalize(-1, 1), cmap=DIVERGING)
                axes.set_xlabel(f"±{reach:.2g}", fontsize="xx-small", labelpad=1)
                if outline:
                    axes.contour(luminance[number], levels=[0.5], colors="0.25", linewidths=0.8)
        for axes, name in zip(grid[:, 0], ("image", *attributions), strict=True):
            axes.set_ylabel(name.replace(" ", "\n"), rotation=0, ha="right", va="center", fontsize="x-small")
    if image is not None:
        bar = figure.colorbar(
            image,
            ax=whole,
            location="bottom",
            extend="both",
            shrink=min(1, 2.8 / (columns * side)),
            aspect=25,
            pad=0.01,
        )
        bar.set_ticks([-1, 0, 1], labels=["against the class", "0", "for it"], fontsize="x-small")
    across = int((columns * side + 1) / 0.11)
    figure.suptitle(textwrap.fill(title, across), x=0.01, ha="left", fontsize="medium", fontweight="bold")
    return figure


def _broken(text: str, letters: int) -> str:
    """A title in lines of so many letters; a longer word is cut."""
    return "\n".join(
        part for line in text.split("\n") for part in textwrap.wrap(line.replace("_", " "), letters) or [""]
    )


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color("0.7")


def plot_perturbation_curves(
    fractions: Sequence[float],
    deletion: Mapping[str, np.ndarray],
    insertion: Mapping[str, np.ndarray],
    random: tuple[np.ndarray, np.ndarray],
) -> Figure:
    """The class's probability as pixels go or come in the order of their attribution, beside a random order.

    Lines are means over images, bands their 95 % intervals (1.96 standard errors). The legend gives the mean height
    of each curve: a faithful method has a low one where pixels go, and a high one where they come.

    Args:
        fractions: shares of the pixels (F,).
        deletion, insertion: for each method its name and its curves (N, F), as `kaviz.attribution.perturbation_curve`
            gives them.
        random: the same for a random order, deletion and insertion.
    """
    figure = Figure(figsize=(WIDTH, 3.7), layout="constrained")
    grid = figure.subplots(1, 2, sharey=True)
    panels = {"Deletion: the lower the better": deletion, "Insertion: the higher the better": insertion}
    for axes, (title, curves), reference in zip(grid, panels.items(), random, strict=True):
        _draw_curve(axes, fractions, reference, "random order", color="0.45", linestyle=(0, (1, 1.5)), marker=None)
        for number, (name, values) in enumerate(curves.items()):
            style = _style(number)
            _draw_curve(axes, fractions, values, name, **style)
        axes.set_title(title)
        axes.set_ylim(0, 1.02)
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        axes.legend(fontsize="x-small", title="mean height", title_fontsize="x-small", loc="best")
    grid[0].set_xlabel("pixels replaced by the mean colour (%)")
    grid[1].set_xlabel("pixels brought in (%)")
    grid[0].set_ylabel("mean probability of the class")
    return figure


def _style(number: int) -> dict[str, Any]:
    """A colour, a line and a marker for a method; beyond five colours, another marker tells them apart."""
    turn = number // len(_COLORS)
    return {
        "color": _COLORS[number % len(_COLORS)],
        "linestyle": _LINES[(number + turn) % len(_LINES)],
        "marker": _MARKERS[(number + turn) % len(_MARKERS)],
    }


def _draw_curve(axes: Axes, fractions: Sequence[float], values: np.ndarray, name: str, **style: Any) -> None:
    percent = 100 * np.asarray(fractions)
    mean, error = values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0
    height = np.trapezoid(mean, fractions) / (fractions[-1] - fractions[0])
    axes.fill_between(percent, mean - 1.96 * error, mean + 1.96 * error, color=style["color"], alpha=0.1, linewidth=0)
    axes.plot(percent, mean, **style, markersize=4, label=f"{name}: {height:.2f}")
