"""Attributions beside the pictures they explain, and the check of what they claim."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from kaviz.style import DIVERGING, WIDTH

# Okabe and Ito's colours that no variant of a model has; line styles and markers tell them apart in grey.
_COLORS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", "--", "-.", (0, (4, 1, 1, 1, 1, 1)), ":")
_MARKERS = ("o", "s", "^", "D", "v")
_OUTLIERS = 0.5  # percent of a method's values that may lie beyond its scale


def plot_attributions(
    pictures: np.ndarray,
    attributions: Mapping[str, np.ndarray],
    titles: Sequence[str],
    *,
    title: str,
    outline: bool = False,
) -> Figure:
    """Pictures in a row, and below each its attributions, a row for each method.

    Red speaks for the class, blue against it. Methods differ in scale, so each has its own, symmetric around 0 and the
    same for all pictures, with a colour bar; 0.5 % of its values may lie beyond it.

    Args:
        pictures: (N, H, W, 3) or (N, H, W), in [0, 1].
        attributions: for each method its name and its maps (N, H, W).
        titles: of the N pictures.
        outline: draw the contour of the picture's bright parts over its maps; good for line drawings.
    """
    for name, maps in attributions.items():
        if maps.shape != pictures.shape[:3]:
            raise ValueError(f"{name}: maps {maps.shape} do not fit pictures {pictures.shape[:3]}")
    count, (height, width) = len(pictures), pictures.shape[1:3]
    side = min(1.5, 0.8 * WIDTH / count)
    rows = 1 + len(attributions)
    figure = Figure(figsize=(WIDTH, rows * 1.06 * side * height / width + 0.75), layout="constrained")
    grid = figure.subplots(rows, count, squeeze=False)
    for axes, picture, text in zip(grid[0], pictures, titles, strict=True):
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
        axes.set_title(text, fontsize="x-small", fontweight="normal", loc="center")
    grid[0, 0].set_ylabel("picture", rotation=0, ha="right", va="center", fontsize="small")
    luminance = pictures.mean(axis=-1) if pictures.ndim == 4 else pictures
    for line, (name, maps) in zip(grid[1:], attributions.items(), strict=True):
        reach = float(np.percentile(np.abs(maps), 100 - _OUTLIERS)) or 1e-12
        for axes, values, brightness in zip(line, maps, luminance, strict=True):
            image = axes.imshow(values, norm=Normalize(-reach, reach), cmap=DIVERGING)
            if outline:
                axes.contour(brightness, levels=[0.5], colors="0.25", linewidths=0.8)
        line[0].set_ylabel(name.replace(" ", "\n"), rotation=0, ha="right", va="center", fontsize="small")
        bar = figure.colorbar(image, ax=line, extend="both", aspect=10, ticks=[-reach, 0, reach])
        bar.ax.set_yticklabels([f"−{reach:.2g}", "0", f"{reach:.2g}"], fontsize="x-small")
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(True)
            spine.set_color("0.7")
    figure.suptitle(title, x=0.01, ha="left", fontsize="medium", fontweight="bold")
    return figure


def plot_perturbation_curves(
    fractions: Sequence[float],
    deletion: Mapping[str, np.ndarray],
    insertion: Mapping[str, np.ndarray],
    random: tuple[np.ndarray, np.ndarray],
) -> Figure:
    """The class's probability as pixels go or come in the order of their attribution, beside a random order.

    Lines are means over pictures, bands their 95 % intervals (1.96 standard errors). The legend gives the mean height
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
            style = {"color": _COLORS[number], "linestyle": _LINES[number], "marker": _MARKERS[number]}
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


def _draw_curve(axes: Axes, fractions: Sequence[float], values: np.ndarray, name: str, **style: object) -> None:
    percent = 100 * np.asarray(fractions)
    mean, error = values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0
    height = np.trapezoid(mean, fractions) / (fractions[-1] - fractions[0])
    axes.fill_between(percent, mean - 1.96 * error, mean + 1.96 * error, color=style["color"], alpha=0.15, linewidth=0)
    axes.plot(percent, mean, **style, markersize=4, label=f"{name}: {height:.2f}")
