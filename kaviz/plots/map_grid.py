"""Parts of figures of k×k maps: panels on one scale, grids of them, frames, numbers in cells, colour bars, titles.

The scale diverges, white at 1/k² ("no preference"), which its colour bar marks; where layers have kernels of different
sizes, equal colours are equal multiples of 1/k².
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, FuncNorm, Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage

from kaconv.attention.record import AttentionRecord
from kaviz.style import DIVERGING, SEQUENTIAL, WIDTH, fit, inches_high, inches_wide, signed

_CELL = 0.85  # inches: largest side of a map
_TALLEST = 8.0  # inches: rows that would need more become smaller
FEW_LAYERS = 6  # their names fit above maps of a full-width figure, and numbers into the maps
MOST_CELLS_WITH_NUMBERS = 9
ROW_NAMES = 1.35  # inches for a row's name, before it is broken into lines
_BAR_GAP = 0.15  # inches
_EPSILON = 1e-12  # half the width of a scale of values that are all the same


@dataclass(frozen=True)
class Panel:
    """A map (kh, kw), what it is of (columns of the figure's data), and what stands below it."""

    values: np.ndarray
    of: Mapping[str, Any]
    caption: str = ""


@dataclass(frozen=True)
class Scale:
    """Colours for attention up to 1 + reach times 1/k², the strongest there is.

    Up to twice the even share, a reach of 1, the scale is linear, from 1 - reach to 1 + reach. Sharper attention would
    show in two colours there: its scale is logarithmic, from 1/(1 + reach) to 1 + reach.
    """

    reach: float

    @classmethod
    def of(cls, maps: Iterable[np.ndarray]) -> "Scale":
        """The smallest scale for some maps."""
        return cls(max(float(np.abs(values * values.size - 1).max()) for values in maps) or 1e-9)

    @property
    def logarithmic(self) -> bool:
        """True if equal steps of colour are equal factors."""
        return self.reach > 1 + 1e-6

    def norm(self, even: float) -> Normalize:
        """The scale of maps with the even share `even`, which is in its middle."""
        if not self.logarithmic:
            return Normalize(even * (1 - self.reach), even * (1 + self.reach))
        low, high = even / (1 + self.reach), even * (1 + self.reach)
        # Not LogNorm, which leaves out zeros: they have the colour of the lowest value.
        return FuncNorm((lambda share: np.log(np.maximum(share, low)), np.exp), low, high)

    def of_differences(self, differences: Iterable[np.ndarray]) -> "DifferenceScale":
        """The linear scale of differences A − B: as wide as this one, or, where this is logarithmic, as they are."""
        widest = max(float(np.abs(values).max()) * values.size for values in differences)
        reach = max(widest, 1e-9) if self.logarithmic else self.reach
        return DifferenceScale(reach, widest > reach)


@dataclass(frozen=True)
class DifferenceScale:
    """Colours from -reach to +reach times 1/k²."""

    reach: float
    clipped: bool

    def norm(self, even: float) -> Normalize:
        """The scale of differences of maps with the even share `even`."""
        return Normalize(-self.reach * even, self.reach * even)


def value_norm(values: np.ndarray, centre: float | None = None) -> Normalize:
    """The scale of values that are not attention: symmetric around a centre, or, without one, from zero."""
    if centre is None:
        return Normalize(0, float(values.max()) or _EPSILON)
    reach = float(np.abs(values - centre).max()) or _EPSILON
    return Normalize(centre - reach, centre + reach)


def ends(norm: Normalize) -> tuple[float, float]:
    """The lowest and the highest value of a scale."""
    low, high = norm.vmin, norm.vmax
    assert low is not None
    assert high is not None
    return low, high


def frame(axes: Axes) -> None:
    """A thin grey frame, and no ticks."""
    axes.set_axis_on()
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color("0.7")


def write_numbers(axes: Axes, image: AxesImage, texts: Iterable[str], size: float = 7) -> None:
    """A text in each cell of a map, row by row, black or white, whichever stands out from the cell's colour."""
    values = np.asarray(image.get_array())
    places = np.asarray(image.norm(values))
    for ((row, column), place), text in zip(np.ndenumerate(places), texts, strict=True):
        ink = _ink(image.cmap, float(place))
        axes.text(column, row, text, color=ink, fontsize=size, ha="center", va="center")


def _ink(colormap: Colormap, place: float) -> str:
    red, green, blue, _ = colormap(place)
    return "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"


def most_dependent_channels(record: AttentionRecord, layer: str, count: int) -> np.ndarray:
    """The `count` channels of a layer whose maps move most with the input, most first.

    Raises:
        ValueError: if the record has no such layer; so do the figures of a single layer.
    """
    check_layer(record, layer)
    return np.argsort(-record.input_dependence(layer), kind="stable")[:count]


def check_layer(record: AttentionRecord, layer: str) -> None:
    """ValueError if the record has no such layer."""
    if layer not in record.attention:
        raise ValueError(f"the record has no layer {layer!r}; there are {', '.join(record.layers)}")


def sample_id(record: AttentionRecord, sample: int) -> Any:
    """A sample's name or number."""
    return sample if record.ids is None else record.ids[sample]


def sample_names(record: AttentionRecord, samples: Iterable[int]) -> list[str]:
    """Names of samples for a reader: the record's, such as file names, or "image 3" where it has numbers only."""
    ids = [sample_id(record, sample) for sample in samples]
    return [str(name) if isinstance(name, str) else f"image {name}" for name in ids]


def choose_apart(means: Sequence[np.ndarray], count: int) -> np.ndarray:
    """The `count` classes whose mean maps are most different, in their own order.

    First is the class farthest from the mean over all classes; each next one is the farthest from those chosen so far,
    in total variation distance, summed over the layers.

    Args:
        means: for each layer the classes' mean maps (classes, kh, kw, C).
    """

    def distances(ones: Sequence[np.ndarray]) -> np.ndarray:
        """Of all classes to one map of each layer."""
        return sum(
            (np.abs(own - one).sum(axis=(1, 2)).mean(axis=-1) for own, one in zip(means, ones, strict=True)),
            start=np.zeros(len(means[0])),
        )

    if len(means[0]) <= count:
        return np.arange(len(means[0]))
    nearest = distances([own.mean(axis=0) for own in means])
    chosen: list[int] = []
    for _ in range(count):
        chosen.append(int(nearest.argmax()))
        apart = distances([own[chosen[-1]] for own in means])
        nearest = apart if len(chosen) == 1 else np.minimum(nearest, apart)
    return np.sort(chosen)


def draw_map_grid(
    figure: Figure | SubFigure,
    rows: Sequence[Sequence[Panel]],
    row_titles: Sequence[str],
    column_titles: Sequence[str],
    *,
    above: Sequence[np.ndarray] | None = None,
    before: Sequence[np.ndarray] | None = None,
    numbers: bool = False,
) -> np.ndarray:
    """Maps in rows and columns on one scale, with its colour bar; returns the axes.

    Args:
        above: an image for each column.
        before: an image for each row.
        numbers: write each share in percent into its cell.
    """
    columns = max(map(len, rows))
    first_row, first_column = int(above is not None), int(before is not None)
    grid = figure.subplots(len(rows) + first_row, columns + first_column, squeeze=False)
    wide = column_width(figure, columns + first_column)
    for axes in grid.flat:
        axes.set_axis_off()
    if above is not None:
        for axes, picture in zip(grid[0, first_column:], above, strict=True):
            draw_picture(axes, picture)
    if before is not None:
        for axes, picture in zip(grid[first_row:, 0], before, strict=True):
            draw_picture(axes, picture)
    scale = Scale.of(panel.values for row in rows for panel in row)
    for line, row, title in zip(grid[first_row:], rows, row_titles, strict=True):
        for axes, panel in zip(line[first_column:], row, strict=False):
            even = 1 / panel.values.size
            draw_map(axes, panel.values, scale.norm(even), numbers=numbers)
            axes.set_xlabel(panel.caption, fontsize="x-small", labelpad=2)
        line[0].set_ylabel(fit(title, ROW_NAMES), rotation=0, ha="right", va="center", fontsize="small")
    for axes, text in zip(grid[0, first_column:], column_titles, strict=False):
        axes.set_title(fit(text, wide, "x-small", 4), fontsize="x-small", fontweight="normal", loc="center")
    sizes = {panel.values.size for row in rows for panel in row}
    place: dict[str, Any] = {"ax": grid[first_row:], "shrink": 0.9, "aspect": 10 + 4 * len(rows)}
    if len(rows) < 3:  # too low for what stands beside a bar
        place = {"ax": grid[first_row:], "location": "bottom", "shrink": 0.6, "aspect": 40}
    attention_bar(figure, scale, sizes, dots=not numbers, **place)
    return grid


def draw_position_means(figure: Figure | SubFigure, means: Mapping[str, Mapping[str, np.ndarray]]) -> pd.DataFrame:
    """Mean maps (kh, kw) of whole layers: a row for each model, a column for each layer, and what they are as a table.

    Args:
        means: model name -> layer -> mean map over samples and channels.
    """
    rows = [
        [Panel(values, {"model": model, "layer": layer, "quantity": "mean attention"}) for layer, values in own.items()]
        for model, own in means.items()
    ]
    layers = list(next(iter(means.values())))
    numbers = len(layers) <= FEW_LAYERS and max(panel.values.size for panel in rows[0]) <= MOST_CELLS_WITH_NUMBERS
    few = len(layers) <= FEW_LAYERS
    grid = draw_map_grid(figure, rows, list(means), layers if few else [], numbers=numbers)
    if not few:
        for axes, layer in zip(grid[-1], layers, strict=True):
            axes.set_xlabel(layer, fontsize="x-small", rotation=90)
    unit = " (%)" if numbers else ""
    figure_title(figure, f"Mean attention of each position, over all channels and samples{unit}")
    return map_frame(rows).rename(columns={"attention": "value"})


def position_means_height(models: int, layers: int) -> float:
    """Inches that `draw_position_means` needs."""
    return 1.3 + 1.1 * models if layers <= FEW_LAYERS else 2.7 + 0.5 * models


def draw_map(axes: Axes, values: np.ndarray, norm: Normalize, *, numbers: bool = False) -> None:
    """One map (kh, kw), with a dot in the upper quarter of the scale, or with its values in percent."""
    image = axes.imshow(values, norm=norm, cmap=DIVERGING)
    if numbers:
        write_numbers(axes, image, [f"{100 * value:.0f}" for value in values.flat])
    else:  # the colours of both ends look alike in grey print
        rows, columns = np.nonzero(values >= _dotted(norm))
        rim: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.4}  # seen on the darkest red
        axes.plot(columns, rows, "o", color="black", markersize=2.5, **rim)
    frame(axes)


def draw_values(axes: Axes, values: np.ndarray, norm: Normalize) -> None:
    """One map (kh, kw) of what is not attention, diverging around 0 where its scale goes below."""
    if ends(norm)[0] < 0:
        draw_map(axes, values, norm)
    else:
        axes.imshow(values, norm=norm, cmap=SEQUENTIAL)
        frame(axes)


def _dotted(norm: Normalize) -> float:
    """The value at three quarters of a scale, from which on cells have a dot."""
    return float(norm.inverse(0.75))


def attention_bar(
    figure: Figure | SubFigure, scale: Scale, sizes: Iterable[int], *, dots: bool = True, **place: Any
) -> None:
    """The colour bar of maps, with 1/k² marked.

    Args:
        sizes: k² of the maps; if they differ, the bar counts in even shares.
        dots: say what the dots of `draw_map` mean.
        place: where it stands, as for `Figure.colorbar`: ax or cax.
    """
    even, times_k2 = _unit(sizes)
    norm = scale.norm(even)
    label = f"attention{times_k2}{', log' * scale.logarithmic}"
    if dots:
        label += f"\n(dot: {_dotted(norm):.3f} or more)"
    centre = "1" if times_k2 else f"1/{1 / even:.0f}"
    _bar(figure, norm, label, f"{centre}\n(even)", "min" if scale.logarithmic else "neither", place)


def below(figure: Figure | SubFigure, **place: Any) -> dict[str, Any]:
    """The place of a colour bar below its axes, for `Figure.colorbar`: near them, however tall they are."""
    return {"location": "bottom", "pad": _BAR_GAP / inches_high(figure)} | place


def difference_bar(figure: Figure | SubFigure, scale: DifferenceScale, sizes: Iterable[int], **place: Any) -> None:
    """The colour bar of differences of maps, around 0; arguments as of `attention_bar`."""
    even, times_k2 = _unit(sizes)
    norm = scale.norm(even)
    label = f"difference A − B{times_k2}\n(dot: +{_dotted(norm):.3f} or more)"
    _bar(figure, norm, label, "0\n(equal)", "both" if scale.clipped else "neither", place)


def map_frame(rows: Iterable[Iterable[Panel]]) -> pd.DataFrame:
    """A tidy table of panels: what each is of, row, column, attention."""
    return pd.DataFrame(
        [
            {**panel.of, "row": row, "column": column, "attention": value}
            for line in rows
            for panel in line
            for (row, column), value in np.ndenumerate(panel.values)
        ]
    )


def draw_picture(axes: Axes, picture: np.ndarray) -> None:
    """An image (H, W, 3) or (H, W), in [0, 1], without a frame."""
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
    axes.set_axis_on()
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def column_width(figure: Figure | SubFigure, columns: int) -> float:
    """Inches for the name of a column of maps: what the rows' names and the colour bar leave, less a margin."""
    return max(0.35, 0.92 * (inches_wide(figure) - ROW_NAMES - 1) / columns)


def grid_size(rows: int, columns: int, captions: bool = False) -> tuple[float, float]:
    """Inches of a full-width figure of so many maps, with or without a line below each.

    Raises:
        ValueError: if there are none.
    """
    if rows * columns == 0:
        raise ValueError("there are no maps to draw: give at least one sample, class or channel")
    line = 1.3 if captions else 1.05
    side = min(_CELL, 0.72 * WIDTH / columns, _TALLEST / (rows * line))
    return WIDTH, rows * line * side + 1.2


def figure_title(figure: Figure | SubFigure, text: str) -> None:
    """A figure's headline, at the left."""
    text = fit(text, 0.82 * inches_wide(figure), "medium")  # bold letters are wider
    figure.suptitle(text, x=0.01, ha="left", fontsize="medium", fontweight="bold")


def _unit(sizes: Iterable[int]) -> tuple[float, str]:
    """The even share in the unit of a colour bar, and what to say of that unit."""
    sizes = set(sizes)
    return (1 / sizes.pop(), "") if len(sizes) == 1 else (1.0, " × k²")


def _bar(
    figure: Figure | SubFigure, norm: Normalize, label: str, centre: str, extend: str, place: Mapping[str, Any]
) -> None:
    bar = figure.colorbar(ScalarMappable(norm, DIVERGING), extend=extend, **place)
    bar.set_label(label, fontsize="small")
    (low, high), middle = ends(norm), float(norm.inverse(0.5))
    bar.set_ticks([low, middle, high], labels=[signed(low, ".3f"), centre, signed(high, ".3f")], fontsize="small")
    bar.minorticks_off()
    mark = bar.ax.axhline if bar.orientation == "vertical" else bar.ax.axvline
    mark(middle, color="black", linewidth=1.5)
