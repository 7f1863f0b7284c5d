"""One look for every figure: palette, colour maps, sizes."""

from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

# Okabe and Ito's colours, told apart by colour-blind readers; markers and line styles tell them apart in grey.
VARIANT_COLORS = {"plain": "#4D4D4D", "L": "#0072B2", "H": "#D55E00"}
VARIANT_MARKERS = {"plain": "o", "L": "s", "H": "^"}
VARIANT_LINES = {"plain": "-", "L": "--", "H": ":"}
VARIANT_LABELS = {"plain": "plain", "L": "KAConv-L", "H": "KAConv-H"}

SEQUENTIAL = "cividis"  # quantities that start at zero, or have no centre
DIVERGING = "RdBu_r"  # attention around 1/k², attributions around 0; always with a symmetric scale

_MOST_DESCRIBED = 6  # panels and labels of a figure in its description
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
