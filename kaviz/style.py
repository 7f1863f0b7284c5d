"""One look for every figure: palette, colour maps, sizes."""

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

WIDTH = 8.0  # inches: a full-width figure, as wide as a report's text column


def set_style() -> None:
    """Set matplotlib's defaults for the session; notebooks call it once."""
    import seaborn as sns  # it takes a second, which `kaviz --help` need not wait for

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
