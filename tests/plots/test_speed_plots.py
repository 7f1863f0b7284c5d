import re

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure

from kaviz import plots

RATIOS = {"plain": 1.0, "reference": 9.0, "eager": 4.0, "fused": 2.0, "SE": 1.1, "SK": 0.9, "CondConv": 1.3}


def measurement(ratio, floor):
    return {
        "ms": [10 * ratio],
        "median_ms": 10 * ratio,
        "ratios": [ratio],
        "ratio": ratio,
        "ratio_quartiles": [0.95 * ratio, 1.2 * ratio],
        "steps": 1,
        "peak_bytes": int(2**20 * ratio**0.5),
        "floor_ms": floor,
    }


@pytest.fixture
def rows():
    """Rows as of `kaconv.bench.benchmark.run_benchmark`: training takes twice as long relative to the plain model."""
    return [
        {
            "model": model,
            "plain": model[3:-2],
            "variant": variant,
            "name": variant,
            "error": None,
            "inference": measurement(ratio, None if variant in ("SE", "SK", "CondConv") else 2.5),
            "training": measurement(ratio if variant == "plain" else 2 * ratio, None),
        }
        for model in ("ka_resnet50_l", "ka_mobilenetv2_100_l")
        for variant, ratio in RATIOS.items()
    ]


def marks(axes):
    """(x, y) of what has a marker other than the floor's stroke."""
    lines = [line for line in axes.lines if line.get_marker() not in ("None", "|")]
    return {(line.get_xdata()[0], line.get_ydata()[0]) for line in lines}


def labels(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def test_figures_are_drawn_outside_pyplot(rows):
    before = plt.get_fignums()
    for plot in (plots.plot_time_ratios, plots.plot_peak_memory):
        figure = plot(rows)
        assert isinstance(figure, Figure)
        figure.canvas.draw()
    assert plt.get_fignums() == before


def test_each_variant_stands_at_its_ratio_on_its_own_line(rows):
    inference, training = plots.plot_time_ratios(rows).axes
    first = {(ratio, 1 + i) for i, ratio in enumerate(RATIOS.values())}
    assert marks(inference) == first | {(x, y + 8) for x, y in first}
    assert (18.0, 2) in marks(training)
    assert labels(inference)[:3] == ["ka_resnet50_l", "plain", "KAConv, reference"]
    assert labels(inference)[8] == "ka_mobilenetv2_100_l"
    assert len(labels(inference)) == 16


def test_inference_and_training_share_their_scale(rows):
    for figure in (plots.plot_time_ratios(rows), plots.plot_peak_memory(rows)):
        inference, training = figure.axes
        assert inference.get_xlim() == training.get_xlim()
        assert inference.get_ylim() == training.get_ylim()


def test_the_floor_is_relative_to_the_plain_models_time(rows):
    inference, training = plots.plot_time_ratios(rows).axes
    floors = [line.get_xdata()[0] for line in inference.lines if line.get_marker() == "|"]
    assert floors == [0.25] * 8  # plain and three backends of two models
    assert not [line for line in training.lines if line.get_marker() == "|"]


def test_numbers_stand_beside_the_marks(rows):
    time = [text.get_text() for text in plots.plot_time_ratios(rows).axes[0].texts]
    assert time[:3] == ["10 ms", "9.00×, 90 ms", "4.00×, 40 ms"]
    memory = [text.get_text() for text in plots.plot_peak_memory(rows).axes[0].texts]
    assert memory[:3] == ["1 MiB", "3.00×, 3 MiB", "2.00×, 2 MiB"]


@pytest.mark.parametrize("spread", [1, 30])
def test_nothing_is_written_beyond_the_panels(rows, spread):
    for row in rows:
        for mode in ("inference", "training"):
            if row["variant"] == "reference":
                row[mode] = measurement(9.0 * spread, 2.5)
    for figure in (plots.plot_time_ratios(rows), plots.plot_peak_memory(rows)):
        figure.canvas.draw()
        for axes in figure.axes:
            for text in axes.texts:
                assert text.get_window_extent().x1 <= axes.bbox.x1 + 1


def test_what_is_not_measured_is_said(rows):
    rows[1]["training"] = None
    for figure in (plots.plot_time_ratios(rows), plots.plot_peak_memory(rows)):
        inference, training = figure.axes
        assert training.texts[1].get_text() == "not measured"
        assert "not measured" not in [text.get_text() for text in inference.texts]


def test_without_the_plain_model_nothing_is_relative(rows):
    rows[0]["inference"] = None
    for row in rows[1:7]:
        row["inference"]["ratio"] = row["inference"]["ratio_quartiles"] = row["inference"]["ratios"] = None
    inference, _ = plots.plot_time_ratios(rows).axes
    assert [text.get_text() for text in inference.texts[:7]] == ["not measured"] * 7
    frame = plots.speed_frame(rows)
    assert frame["Inference", "× plain"].isna().sum() == 7
    assert frame["Inference", "ms"].isna().sum() == 1


def test_frame_has_distances_and_extra_memory(rows):
    frame = plots.speed_frame(rows)
    line = frame.loc[("ka_resnet50_l", "reference"), "Inference"]
    assert line.to_dict() == {"ms": 90, "× plain": 9, "× floor": 36, "MiB": 3, "extra MiB": 2}
    assert frame.loc[("ka_resnet50_l", "plain"), ("Inference", "extra MiB")] == 0
    assert frame["Inference", "× floor"].isna().sum() == 6


def test_styled_table_shows_what_is_missing_as_a_dash(rows):
    rows[1]["training"] = None
    html = plots.style_speed(rows).to_html()
    lines = [re.sub("<[^>]+>", " ", row).split() for row in re.findall("<tr>(.*?)</tr>", html, re.DOTALL)]
    assert lines[4] == ["reference", "90.0", "9.00", "36.0", "3.0", "+2.0", *"–––––"]


def test_compile_times_are_a_column_where_there_are_some(rows):
    assert "compile s" not in plots.speed_frame(rows).columns.get_level_values(1)
    compiled = {**rows[3], "variant": "fused-compiled", "training": None}
    compiled["inference"] = {**compiled["inference"], "compile_seconds": 12.5}
    frame = plots.speed_frame([*rows[:4], compiled])
    times = frame["Inference", "compile s"]
    assert times["ka_resnet50_l", "fused-compiled"] == 12.5
    assert times.drop("fused-compiled", level="variant").isna().all()
    assert frame["Training step", "compile s"].isna().all()
    html = plots.style_speed([*rows[:4], compiled]).to_html()
    assert "compile s" in html
