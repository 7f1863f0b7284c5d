"""A study of several models and seeds: learning curves, test errors with their intervals, cost beside benefit."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from kaviz.style import (
    VARIANT_COLORS,
    VARIANT_LABELS,
    VARIANT_LINES,
    VARIANT_MARKERS,
    WIDTH,
    fit,
    place_legend,
    variant_of,
)

if TYPE_CHECKING:  # they import what trains
    from kaconv.training.study import ComparisonRow, LearningCurveRow, StudyRow

Row = Mapping[str, Any]

_COSTS: dict[Literal["params_ratio", "paper_flops_ratio", "train_seconds_ratio"], str] = {
    "params_ratio": "Parameters",
    "paper_flops_ratio": "FLOPs, paper's count",
    "train_seconds_ratio": "Training time",
}


def plot_learning_curves(rows: "Sequence[LearningCurveRow]") -> Figure:
    """Training loss and test error by epoch, on log scales: each model's mean over seeds, every seed as a thin line.

    Args:
        rows: those of `kaconv.training.learning_curves`.
    """
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    panels = {"train_loss": "Training loss", "test_error": "Test error (%)"}
    labels = _labels(rows)
    for axes, (key, title) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for model, label in labels.items():
            _draw_curves(axes, [row for row in rows if row["model"] == model], key, label)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(FixedLocator(_log_ticks(*axes.get_ylim())))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(f"{title}, log scale")
        axes.set_xlabel("epoch")
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
    seeds = len({row["seed"] for row in rows})
    handles, _ = axes.get_legend_handles_labels()
    if seeds > 1:
        handles.append(Line2D([], [], color="0.6", linewidth=0.8, label="thin: each seed"))
    place_legend(figure, handles, "outside upper center")
    return figure


def plot_test_errors(rows: "Sequence[StudyRow]", ax: Axes | None = None) -> Figure | SubFigure:
    """Each model's test errors: a mark per seed, the mean, and two intervals that answer different questions.

    The thick bar is the 95 % interval of the mean over seeds (absent for a single seed), the thin one that of one model
    over the drawing of its test images.

    Args:
        rows: those of `kaconv.training.summarise`.
        ax: drawn into where given.
    """
    if ax is None:
        ax = Figure(figsize=(WIDTH, 0.75 * len(rows) + 1.5), layout="constrained").add_subplot()
    labels = _labels(rows)
    for place, row in enumerate(rows):
        variant = variant_of(row["model"])
        color = VARIANT_COLORS[variant]
        ax.plot(row["picture_interval"], [place + 0.2] * 2, color="0.45", linewidth=1, marker="|", markersize=7)
        if row["seed_interval"]:
            ax.plot(row["seed_interval"], [place] * 2, color=color, linewidth=7, alpha=0.3, solid_capstyle="butt")
        errors = row["test_errors"]
        style: dict[str, Any] = {"marker": VARIANT_MARKERS[variant], "linestyle": "none", "color": color}
        apart = 0.08 * (np.arange(len(errors)) - (len(errors) - 1) / 2)  # seeds with the same error show as several
        ax.plot(errors, place + apart, **style, markersize=6, markerfacecolor="white")
        ax.plot(row["test_error"], place, color=color, marker="|", markersize=20, markeredgewidth=2.5)
        text = f"mean {row['test_error']:.2f}"
        ax.annotate(text, (row["test_error"], place), (0, 13), textcoords="offset points", ha="center", color=color)
    ax.set_yticks(range(len(rows)), labels.values())
    ax.set_ylim(len(rows) - 0.5, -0.6)
    ax.set_xlim(left=0)  # of few seeds the interval may reach below, where no error can be
    ax.set_xlabel("test error after the last epoch (%)")
    seeds, pictures = len(rows[0]["test_errors"]), rows[0]["test_pictures"]
    ax.legend(handles=_interval_legend(seeds, pictures), loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
    ax.grid(axis="x", color="0.92")
    ax.set_axisbelow(True)
    return ax.figure


def plot_cost_and_benefit(rows: "Sequence[ComparisonRow]", baseline: str = "plain") -> Figure:
    """Costs of each model against a baseline, in three currencies, and the difference of its test error.

    Args:
        rows: those of `kaconv.training.compare`.
        baseline: name for the model that was compared with.
    """
    figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
    labels = _labels(rows)
    grid = figure.subplots(1, len(_COSTS), sharey=True)
    for axes, (cost, title) in zip(grid, _COSTS.items(), strict=True):
        axes.axhline(0, color="0.7", linewidth=1, zorder=0)
        axes.plot(1, 0, color=VARIANT_COLORS["plain"], marker=VARIANT_MARKERS["plain"], markersize=7)
        axes.annotate(baseline, (1, 0), (0, -14), textcoords="offset points", ha="center", fontsize="small")
        cheapest = min(rows, key=lambda row: row[cost])
        for row in rows:
            variant = variant_of(row["model"])
            style: dict[str, Any] = {"color": VARIANT_COLORS[variant], "marker": VARIANT_MARKERS[variant]}
            if row["difference_interval"]:
                axes.plot([row[cost]] * 2, row["difference_interval"], color=style["color"], linewidth=2, alpha=0.5)
            axes.plot(row[cost], row["difference"], **style, linestyle="none", markersize=8, label=labels[row["model"]])
            # Away from the other models, which may be close.
            offset, side = ((-8, 0), "right") if row is cheapest and len(rows) > 1 else ((8, 0), "left")
            note: dict[str, Any] = {"textcoords": "offset points", "ha": side, "va": "center", "fontsize": "small"}
            place = (row[cost], row["difference"])
            axes.annotate(f"×{row[cost]:.2f}", place, offset, **note, color=style["color"])
        axes.margins(x=0.45, y=0.2)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"×{value:g}"))
        axes.set_title(title)
        axes.set_xlabel(fit(f"times the {baseline} model's", 0.22 * WIDTH, "medium"))
        axes.grid(color="0.94")
        axes.set_axisbelow(True)
    grid[0].set_ylabel(fit(f"test error minus {baseline}'s\n(percentage points)", 2, "medium"))
    handles, _ = grid[0].get_legend_handles_labels()
    if any(row["difference_interval"] for row in rows):
        handles.append(Line2D([], [], color="0.5", linewidth=2, label="95% interval over seeds (Welch)"))
    place_legend(figure, handles, "outside upper center")
    return figure


def _draw_curves(axes: Axes, rows: Sequence[Row], key: str, label: str) -> None:
    variant = variant_of(rows[0]["model"])
    color = VARIANT_COLORS[variant]
    seeds = sorted({row["seed"] for row in rows})
    epochs = sorted({row["epoch"] for row in rows})
    # A training that still runs has fewer epochs: its line ends there, and with it the mean over seeds.
    found = {(row["seed"], row["epoch"]): row[key] for row in rows}
    values = np.array([[found.get((seed, epoch), np.nan) for epoch in epochs] for seed in seeds])
    # A test without errors has no place on a log scale: it is drawn at the bottom as half an error would be.
    values = np.maximum(values, values[values > 0].min() / 2 if (values > 0).any() else 1e-3)
    if len(seeds) > 1:
        axes.plot(epochs, values.T, color=color, linewidth=0.8, alpha=0.35)
    style: dict[str, Any] = {"linestyle": VARIANT_LINES[variant], "marker": VARIANT_MARKERS[variant], "markersize": 4}
    axes.plot(epochs, values.mean(0), color=color, linewidth=2, label=label, **style)


def _labels(rows: Sequence[Row]) -> dict[str, str]:
    """Model name to legend entry: the variant where that is enough to tell the models apart, else the name."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    variants = [variant_of(model) for model in models]
    if len(set(variants)) < len(variants):
        return {model: model for model in models}
    return {model: VARIANT_LABELS[variant] for model, variant in zip(models, variants, strict=True)}


def _log_ticks(low: float, high: float) -> list[float]:
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    return [tick for decade in decades for tick in (decade, 2 * decade, 5 * decade) if low <= tick <= high]


def _interval_legend(seeds: int, pictures: int) -> list[Line2D]:
    handles = [Line2D([], [], color="0.3", marker="o", linestyle="none", markerfacecolor="white", label="one seed")]
    if seeds > 1:
        label = f"95% interval of the mean\nover {seeds} seeds (Student's t)"
        handles.append(Line2D([], [], color="0.5", alpha=0.5, linewidth=7, label=label))
    label = f"95% interval over the drawing\nof {pictures} test images (Wilson)"
    handles.append(Line2D([], [], color="0.45", linewidth=1, marker="|", markersize=7, label=label))
    return handles
