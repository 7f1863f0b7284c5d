"""A figure's numbers go with it: attached when it is drawn, written beside it when it is saved."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar
from weakref import WeakKeyDictionary

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure, FigureBase

from kaconv.utils.files import replacing

AnyFigure = TypeVar("AnyFigure", bound=FigureBase)
FORMATS = ("png", "svg", "pdf")
_DATA: WeakKeyDictionary[FigureBase, pd.DataFrame] = WeakKeyDictionary()


def attach_data(figure: AnyFigure, data: pd.DataFrame) -> AnyFigure:
    """Keep with a figure, or a part of one, the tidy table of what it shows; returns the figure."""
    _DATA[figure] = data
    return figure


def figure_data(figure: FigureBase) -> pd.DataFrame:
    """The table of what a figure of `kaviz.plots` shows.

    Raises:
        ValueError: if it has none; of a figure that was put together from several, ask the parts.
    """
    if figure not in _DATA:
        raise ValueError("the figure has no data attached; figures of kaviz.plots about attention have")
    return _DATA[figure]


def save_figure(figure: Figure, path: str | Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write a figure and, where it has any, its data.

    Args:
        path: where to, without a suffix: `maps/layer3` gives maps/layer3.png, .svg, .pdf and .csv.
        formats: some of `FORMATS`.

    Returns:
        The files that were written.

    Raises:
        ValueError: for an unknown format; nothing is written.
    """
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ValueError(f"unknown figure format {unknown[0]!r}; choose from {', '.join(FORMATS)}")
    path = Path(path)
    files = [path.with_name(f"{path.name}.{name}") for name in formats]
    for file, name in zip(files, formats, strict=True):
        # Text stays text in SVG; without dates and random ids the same figure gives the same file.
        with replacing(file) as temporary, mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.name}):
            dated = {"pdf": "CreationDate", "svg": "Date"}
            metadata = {dated[name]: None} if name in dated else None
            figure.savefig(temporary, format=name, dpi=200, bbox_inches="tight", metadata=metadata)
    if figure in _DATA:
        files.append(path.with_name(f"{path.name}.csv"))
        with replacing(files[-1]) as temporary:
            _DATA[figure].to_csv(temporary, index=False)
    return files
