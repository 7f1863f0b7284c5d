import re
from itertools import combinations

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure

from kaconv.paper.published import TABLE
from kaviz import plots


@pytest.fixture
def rows():
    """Rows as of `kaconv.paper.table.table_rows`, from the published figures, with one measurement."""
    unit = {"M": 10**6, "G": 10**9}
    rows = [
        {
            "name": row.name,
            "model": row.model,
            "params": round(float(row.params[:-1]) * unit[row.params[-1]]),
            "paper_flops": round(float(row.flops[:-1]) * unit[row.flops[-1]]),
            "macs": round(float(row.flops[:-1]) * unit[row.flops[-1]]),
            "published": {
                "params": row.params,
                "flops": row.flops,
                "top1_error": row.top1_error,
                "top5_error": row.top5_error,
            },
            "agrees": {"params": True, "flops": True},
            "measured": None,
        }
        for row in TABLE
    ]
    rows[1]["measured"] = {"top1_error": 22.5, "top5_error": 6.5, "n": 50_000, "provenance": {}, "file": "a.json"}
    return rows


def test_figures_are_drawn_outside_pyplot(rows):
    before = plt.get_fignums()
    figures = [
        plots.plot_error_against_cost(rows),
        plots.plot_error_against(rows, "params"),
        plots.plot_added_cost(rows),
    ]
    for figure in figures:
        assert isinstance(figure, Figure)
        figure.canvas.draw()
    assert plt.get_fignums() == before


@pytest.mark.parametrize("cost", ["paper_flops", "params"])
def test_every_model_is_drawn_at_its_cost_and_error(rows, cost):
    (axes,) = plots.plot_error_against(rows, cost).axes
    assert axes.get_xscale() == "log"
    marks = {(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if line.get_marker() != "None"}
    expected = {(row[cost], row["published"]["top1_error"]) for row in rows}
    assert marks == expected | {(rows[1][cost], 22.5)}


def test_a_measured_error_is_an_open_mark_with_a_legend_entry_of_its_own(rows):
    def open_marks(figure):
        return [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "none"]

    def legend(figure):
        return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]

    figure = plots.plot_error_against(rows, "params")
    assert [line.get_ydata()[0] for line in open_marks(figure)] == [22.5]
    assert "measured here" in legend(figure)
    rows[1]["measured"] = None
    figure = plots.plot_error_against(rows, "params")
    assert not open_marks(figure)
    assert "measured here" not in legend(figure)


def test_given_axes_are_drawn_into(rows):
    figure = Figure()
    first, second = figure.subplots(1, 2)
    assert plots.plot_error_against(rows, "params", ax=second) is figure
    assert second.lines
    assert not first.lines


def test_an_unknown_cost_is_refused(rows):
    with pytest.raises(ValueError, match="unknown cost 'time'; choose from paper_flops, params"):
        plots.plot_error_against(rows, "time")


def test_labels_overlap_neither_each_other_nor_marks(rows):
    figure = plots.plot_error_against_cost(rows)
    figure.canvas.draw()
    for axes in figure.axes:
        boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
        assert boxes
        for (name, box), (other, other_box) in combinations(boxes.items(), 2):
            assert not box.overlaps(other_box), (name, other)
        points = [axes.transData.transform(point) for line in axes.lines for point in line.get_xydata()]
        assert not [(name, point) for name, box in boxes.items() for point in points if box.contains(*point)]


def test_added_cost_is_relative_to_the_plain_model(rows):
    figure = plots.plot_added_cost(rows)
    flops, _, params, error = ([text.get_text() for text in axes.texts] for axes in figure.axes)
    # KAResNet50-L against ResNet50: 4.15G/4.11G, 27.83M/25.56M, 22.27 − 23.30
    assert (flops[0], params[0], error[0]) == ("+0.97%", "+8.9%", "−1.03")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [row["name"] for row in rows[::3]]
    assert len(flops) == len(params) == len(error) == 10


def test_styled_table_says_what_agrees_and_what_is_not_measured(rows):
    rows[2]["agrees"]["flops"] = False
    html = plots.style_table(rows).to_html()
    lines = [re.sub("<[^>]+>", "", row).split() for row in re.findall("<tr>(.*?)</tr>", html, re.DOTALL)[2:]]
    costs = "KAResNet50-L 27,830,000 27.83M ✓ 4,150,000,000 4.15G ✓ 4,150,000,000"
    assert " ".join(lines[1]) == f"{costs} 22.27 / 6.24 22.50 / 6.50"
    assert lines[2][3] == "✓"
    assert lines[2][6] == "✗"
    assert " ".join(lines[2]).endswith("21.92 / 6.08 not measured")
    assert html.count("✗") == 1
    assert "http" not in html
