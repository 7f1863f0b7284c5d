"""One look for every figure: palette, colour maps, sizes."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

# Okabe and Ito's colours, told apart by colour-blind readers; markers and line styles tell them apart in grey.
VARIANT_COLORS = {"plain": "#4D4D4D", "L": "#0072B2", "H": "#D55E00"}
VARIANT_MARKERS = {"plain": "o", "L": "s", "H": "^"}
VARIANT_LINES = {"plain": "-", "L": "--", "H": ":"}
VARIANT_LABELS = {"plain": "plain", "L": "KAConv-L", "H": "KAConv-H"}

SEQUENTIAL = "cividis"  # quantities that start at zero, or have no centre
DIVERGING = "RdBu_r"  # attention around 1/k², attributions around 0; always with a symmetric scale

_MOST_DESCRIBED = 6  # panels and labels of a figure in its description
_LONGEST = 200  # letters of a name of which all are looked at
_HINTED = 1.07  # by how much letters on a screen, moved to whole pixels, are wider than their outlines

WIDTH = 8.0  # inches: a full-width figure, as wide as a report's text column


def set_style() -> None:
    """Set matplotlib's defaults for the session, and let notebooks keep a figure's description; they call it once."""
    import seaborn as sns  # it takes a second, which `kaviz --help` need not wait for
    from IPython import get_ipython

    sns.set_theme(context="notebook", style="ticks", font_scale=0.9)
    matplotlib.rcParams.update(
        {
            "figure.dpi": 110,
            "savefig.dpi": 200,
            "savefig.bbox": "tight",
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": "medium",
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "legend.frameon": False,
            "image.interpolation": "nearest",
        }
    )
    if (shell := get_ipython()) is not None:  # what stands for a figure where there is no image: a page's alt text
        shell.display_formatter.formatters["text/plain"].for_type(Figure, _print_description)


def describe(figure: Figure) -> str:
    """A figure in words, for those who do not see it: its titles, and what its axes and colour bars show.

    Empty where none of them has a text.
    """
    title = figure.get_suptitle()
    panels, labels = [], []
    for axes in figure.get_axes():
        panels += [text for place in ("left", "center", "right") if (text := axes.get_title(loc=place))]
        labels += [axes.get_xlabel(), axes.get_ylabel()]
    parts = {"": [title], "panels: ": panels, "axes and scales: ": labels}
    said = [
        name + ", ".join(some) + (", …" if len(found) > len(some) else "")
        for name, texts in parts.items()
        if (found := [" ".join(text.split()) for text in dict.fromkeys(texts) if text.strip()])
        and (some := found[:_MOST_DESCRIBED])
    ]
    return "; ".join(said).replace("$", "")


def _print_description(figure: Figure, printer: Any, cycle: bool) -> None:
    printer.text(describe(figure) or repr(figure))


def variant_of(model_name: str) -> str:
    """ "plain", "L" or "H": which form of a model a name of `kaconv.list_models()` stands for."""
    return model_name[-1].upper() if model_name.startswith("ka_") else "plain"


def signed(value: float, form: str = "+g") -> str:
    """A number with a true minus sign; what rounds to zero has no sign. `form` is a format such as "+.1f" or ".2f"."""
    text = f"{value:{form}}"
    if not re.search("[1-9]", text):
        text = text.lstrip("+-")
    return text.replace("-", "−")


def fit(text: str, inches: float, size: str = "small", lines: int = 3) -> str:
    """A name broken into lines that are as wide as its place; what is too long is cut, at "…".

    Lines break after spaces, hyphens, dots and underscores, where they can. Dollars stay dollars.
    """
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]}…{text[-_LONGEST // 2 :]}"
    broken = [_broken(line, round(inches, 3), _points(size), lines) for line in text.split("\n")]
    return "\n".join(broken).replace("$", r"\$")


def split(figure: Figure | SubFigure, rows: int, columns: int, **ratios: Any) -> list[SubFigure]:
    """The parts of a figure, row by row; `ratios` are those of `Figure.subfigures`."""
    return list(np.ravel(np.asarray(figure.subfigures(rows, columns, squeeze=False, **ratios))))


def finish_grid(grid: np.ndarray, panels: int, xlabel: str) -> None:
    """Remove what is left over of a grid of panels with one x axis, and label that below the lowest of each column.

    Args:
        grid: axes, (rows, columns), filled row by row.
        panels: how many of them are in use.
    """
    for axes in grid.flat[panels:]:
        axes.remove()
    columns = grid.shape[1]
    for axes in grid.flat[max(0, panels - columns) : panels]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(xlabel, fontsize="small")


def inches_wide(figure: Figure | SubFigure) -> float:
    """Width of a figure, or of a part of one."""
    return figure.bbox.width / figure.figure.dpi


def inches_high(figure: Figure | SubFigure) -> float:
    """Height of a figure, or of a part of one."""
    return figure.bbox.height / figure.figure.dpi


def place_legend(
    figure: Figure | SubFigure,
    handles: Iterable[Artist],
    where: Literal["outside upper center", "outside lower center"],
    size: str = "small",
) -> None:
    """A legend above or below all panels, in as many columns as there is room for."""
    handles = list(handles)
    columns = max(1, legend_columns([str(handle.get_label()) for handle in handles], inches_wide(figure), size))
    figure.legend(handles=handles, loc=where, ncols=columns, fontsize=size, columnspacing=1)


def legend_columns(labels: Sequence[str], inches: float, size: str) -> int:
    """The most columns of a legend, filled from above, that fit into a width; 1 where not even these do."""
    widths = [max(_width(line, _points(size)) for line in label.split("\n")) for label in labels]
    for columns in range(len(labels), 1, -1):
        full = sum(max(part) for part in np.array_split(widths, columns))  # the first are the taller ones
        if full + columns * 5 * _points(size) / 72 <= inches:  # 5: handle, its padding and the gap, in letters
            return columns
    return 1


def _points(size: str) -> float:
    return FontProperties(size=size).get_size_in_points()


def _width(text: str, points: float) -> float:
    """Inches that a line of text takes, at most."""
    return _HINTED * sum(_advance(letter) for letter in text) * points / 72


@lru_cache(maxsize=4096)
def _advance(letter: str) -> float:
    """Width of a letter, with the space around it, in sizes of the font."""

    def wide(text: str) -> float:
        return float(TextPath((0, 0), text.replace("$", r"\$"), size=100).get_extents().width) / 100

    return wide(f"x{letter}x") - wide("xx")


@lru_cache(maxsize=4096)
def _broken(text: str, inches: float, points: float, lines: int) -> str:
    pieces: list[str] = []
    for piece in re.findall(r"[^\s\-_./]*[\s\-_./]+|[^\s\-_./]+", text):
        while _width(piece, points) > inches and len(piece) > 1:  # wider than the place by itself
            end = next((n for n in range(len(piece) - 1, 1, -1) if _width(piece[:n], points) <= inches), 1)
            pieces.append(piece[:end])
            piece = piece[end:]
        pieces.append(piece)
    found = [""]
    for piece in pieces:
        if found[-1] and _width((found[-1] + piece).rstrip(), points) > inches:
            found.append("")
        found[-1] += piece
    found = [line.strip() for line in found if line.strip()]
    if len(found) > lines == 1:  # of a single line the beginning says more
        return _longest([text[:end].rstrip() + "…" for end in range(len(text), 0, -1)], inches, points)
    if len(found) > lines:
        found = [*found[: lines - 1], _longest(["…" + text[start:] for start in range(len(text))], inches, points)]
    return "\n".join(found)


def _longest(candidates: Sequence[str], inches: float, points: float) -> str:
    """The first that fits."""
    return next((text for text in candidates if _width(text, points) <= inches), candidates[-1])


def canvas(ax: Axes | None, size: tuple[float, float]) -> Figure | SubFigure:
    """Where to draw: a new figure of this size in inches, or, in place of `ax`, that part of its figure.

    Raises:
        ValueError: for axes that are not in a grid, as those of `Figure.subplots` are.
    """
    if ax is None:
        return Figure(figsize=size, layout="constrained")
    place = ax.get_subplotspec()
    if place is None:
        raise ValueError("ax must be one of a grid of axes, as Figure.subplots gives them")
    figure = ax.figure
    ax.remove()
    return figure.add_subfigure(place)
