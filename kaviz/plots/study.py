"""Results of `kaconv study`: test errors by seed and their paired differences, as a figure and as a table."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from kaconv.paper.published import TABLE
from kaviz.style import VARIANT_COLORS, VARIANT_MARKERS, WIDTH, fit, place_legend, variant_of

if TYPE_CHECKING:  # it imports what trains
    from kaconv.training.study_results import DifferenceRow, StudyResults

Row = Mapping[str, Any]

PLAIN_VARIANT = "plain"
NOT_RUN = "not run"


def study_frame(results: "StudyResults") -> pd.DataFrame:
    """A line per model and variant of a study: its test errors beside those that the paper gives for ImageNet.

    Args:
        results: what `kaconv.training.read_study_results` returns.

    Returns:
        Text columns, indexed by model and variant: seeds (finished of planned); top-1 error (mean over seeds and, for
        several, ± half its 95 % interval) and, as published, that on ImageNet; the difference from the study's first
        model, in percentage points; top-5 error, and top-1 error with fresh batch-norm statistics; parameters; FLOPs of
        one image in the paper's count; and images that a second of training took, as the machine was then. Errors in
        percent.
    """
    differences = {_place(row): row for row in results["differences"]}
    summary = {_place(row): row for row in results["summary"]}
    published = {row.model: f"{row.top1_error:.2f}" for row in TABLE}
    lines = {}
    for place in dict.fromkeys(_place(row) for row in results["runs"]):
        runs = [row for row in results["runs"] if _place(row) == place]
        done = [row["last"] for row in runs if row["state"] != NOT_RUN]
        row, difference = summary.get(place), differences.get(place)
        flops = row.get("paper_flops") if row else None
        lines[_title(*place)] = {
            "seeds": f"{len(done)} of {len(runs)}",
            "top-1 error (%)": _with_interval(row["test_error"], row["test_error_interval"]) if row else NOT_RUN,
            "ImageNet, paper (%)": published.get(place[0], ""),
            "difference (points)": _with_interval(difference["difference"], difference["difference_interval"], "+")
            if difference
            else "",
            "top-5 error (%)": _mean(done, "test_top5_error"),
            "fresh statistics (%)": _mean(done, "test_error_fresh_statistics"),
            "params (M)": f"{row['params'] / 1e6:.2f}" if row else "",
            "FLOPs (M)": f"{flops / 1e6:.1f}" if flops else "",
            "images/s": f"{row['images_per_second']:.0f}" if row else "",
        }
    return pd.DataFrame.from_dict(lines, orient="index")


def study_findings(results: "StudyResults") -> list[str]:
    """A sentence for each comparison of a study, negative results included, and one for what has not been run."""
    baseline = results["study"]["models"][0]
    notes = [_finding(row, baseline) for row in results["differences"]]
    missing = sum(row["state"] == NOT_RUN for row in results["runs"])
    if missing:
        notes.append(f"{missing} of {len(results['runs'])} trainings have not been run.")
    return notes


def study_order(results: "StudyResults") -> str:
    """A sentence on whether the study's models, without variants, have the order of the paper's errors on ImageNet.

    Args:
        results: what `kaconv.training.read_study_results` returns.
    """
    published = {row.model: row.top1_error for row in TABLE}
    found = {row["model"]: row["test_error"] for row in results["summary"] if row["variant"] == PLAIN_VARIANT}
    models = [model for model in found if model in published]
    if len(models) < 2:
        return "Too few of the paper's models have been trained in this study to compare their order."
    theirs, ours = (sorted(models, key=errors.__getitem__) for errors in (published, found))
    orders = f"the paper's, least error first: {', '.join(theirs)}; this study's: {', '.join(ours)}"
    return f"The order is {'the same' if theirs == ours else 'not the same'}: {orders}."


def _finding(row: "DifferenceRow", baseline: str) -> str:
    name, difference, interval = _title(*_place(row)), row["difference"], row["difference_interval"]
    size = f"{abs(difference):.1f} points {'lower' if difference < 0 else 'higher'}"
    if interval is None:
        return f"{name} has an error {size} than {baseline}, from a single seed, which tells nothing about others."
    spread = f"95 % interval {interval[0]:+.1f} to {interval[1]:+.1f} over {len(row['seeds'])} seeds"
    if interval[0] <= 0 <= interval[1]:
        detectable = row["detectable_difference"]
        return (
            f"{name} and {baseline} cannot be told apart ({difference:+.1f} points; {spread}); "
            f"a difference of {detectable:.1f} would have been seen with a power of 80 %."
        )
    return f"{name} has an error {size} than {baseline} ({spread})."


def plot_study(results: "StudyResults") -> Figure:
    """Test errors of a study's models, a mark per seed, and their differences from the first model, paired by seed.

    In both panels a thick bar is the 95 % interval over seeds, absent for a single seed. The hatched band on the right
    is what these seeds could not have shown: a true difference as large as its edge would have been found four times
    in five.

    Args:
        results: what `kaconv.training.read_study_results` returns.

    Raises:
        ValueError: if no training has finished.
    """
    rows = sorted(results["summary"], key=lambda row: _order(results, row))
    if not rows:
        raise ValueError("no training of the study has finished, so there is nothing to draw")
    figure = Figure(figsize=(WIDTH, 0.55 * len(rows) + 1.7), layout="constrained")
    errors, differences = figure.subplots(1, 2, sharey=True)
    found = {_place(row): row for row in results["differences"]}
    for place, row in enumerate(rows):
        color, marker = _look(row)
        _draw(errors, place, row["test_errors"], row["test_error"], row["test_error_interval"], color, marker)
        if difference := found.get(_place(row)):
            values, interval = difference["differences"], difference["difference_interval"]
            if detectable := difference["detectable_difference"]:
                band = {"facecolor": "none", "edgecolor": "0.75", "hatch": "////", "linewidth": 0}
                differences.barh(place, 2 * detectable, 0.7, -detectable, **band)
            _draw(differences, place, values, difference["difference"], interval, color, marker)
    names = [fit(_title(*_place(row)), 0.25 * WIDTH) for row in rows]
    errors.set_yticks(range(len(rows)), names, fontsize="small")
    errors.set_ylim(len(rows) - 0.5, -0.5)
    errors.set_xlabel("top-1 test error (%)")
    errors.set_title("Test error")
    baseline = results["study"]["models"][0]
    differences.axvline(0, color="0.4", linewidth=1)
    label = fit(f"minus {baseline}\n(percentage points,\nnegative is better)", 0.31 * WIDTH, "medium")
    differences.set_xlabel(label)
    differences.set_title(fit("Difference, paired by seed", 0.28 * WIDTH, "medium"))
    differences.tick_params(left=False)
    for axes in (errors, differences):
        axes.grid(axis="x", color="0.92")
        axes.set_axisbelow(True)
        axes.margins(x=0.12)
    _add_legend(figure, results)
    return figure


def _draw(
    axes: Axes,
    place: int,
    values: Sequence[float],
    centre: float,
    interval: Sequence[float] | None,
    color: str,
    marker: str,
) -> None:
    if interval is not None:
        axes.plot(interval, [place] * 2, color=color, linewidth=8, alpha=0.3, solid_capstyle="butt")
    apart = 0.1 * (np.arange(len(values)) - (len(values) - 1) / 2)  # seeds with the same value show as several
    axes.plot(values, place + apart, marker, color=color, markersize=6, markerfacecolor="white")
    axes.plot([centre], [place], "|", color=color, markersize=18, markeredgewidth=2.5)


def _add_legend(figure: Figure, results: "StudyResults") -> None:
    handles: list[Artist] = [
        Line2D([], [], linestyle="none", marker="o", color="0.35", markerfacecolor="white", label="one seed"),
        Line2D([], [], linestyle="none", marker="|", color="0.35", markersize=12, markeredgewidth=2.5, label="mean"),
    ]
    if any(row["test_error_interval"] for row in results["summary"]):
        handles.append(Line2D([], [], color="0.35", linewidth=8, alpha=0.3, label="95 % interval over seeds"))
    if any(row["detectable_difference"] for row in results["differences"]):
        label = "too small for these seeds (80 % power)"
        handles.append(Patch(facecolor="none", edgecolor="0.75", hatch="////", linewidth=0, label=label))
    place_legend(figure, handles, "outside lower center")


def _order(results: "StudyResults", row: Row) -> tuple[int, int]:
    study = results["study"]
    return study["models"].index(row["model"]), list(study["variants"]).index(row["variant"])


def _look(row: Row) -> tuple[str, str]:
    variant = variant_of(row["model"])
    return VARIANT_COLORS[variant], VARIANT_MARKERS[variant]


def _place(row: Row) -> tuple[str, str]:
    return row["model"], row["variant"]


def _title(model: str, variant: str) -> str:
    name = model.rpartition(":")[2]  # of a builder such as my_package.nets:wide, its own
    return name if variant == PLAIN_VARIANT else f"{name}, {variant}"


def _mean(runs: Sequence[Row], name: str) -> str:
    values = [run[name] for run in runs if run.get(name) is not None]
    return f"{mean(values):.1f}" if values else NOT_RUN


def _with_interval(value: float, interval: Sequence[float] | None, sign: str = "") -> str:
    text = f"{round(value, 1) + 0:{sign}.1f}"  # no minus before a 0.0
    if interval is not None:
        low, high = interval
        text += f"\u00a0±\u00a0{(high - low) / 2:.1f}"  # in one line of a narrow table
    return text.replace("-", "−")
