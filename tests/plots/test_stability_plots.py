import numpy as np
import pytest
from matplotlib.figure import Figure

from kaconv.attention.stability import ANOTHER_OF_ITS_CLASS, ANOTHER_PICTURE, blur, flip, noise, shift
from kaviz import plots
from kaviz.figures import figure_data

CHANGES = [shift(1), shift(2), shift(3), flip("left-right"), blur(0.5), blur(1), noise(0.1)]


pytestmark = pytest.mark.usefixtures("no_open_figures")


def make_rows(seed=0, layers=3, labels=True):
    rng = np.random.default_rng(seed)
    references = [(ANOTHER_PICTURE, ANOTHER_PICTURE, "", "")]
    references += [(ANOTHER_OF_ITS_CLASS, ANOTHER_OF_ITS_CLASS, "", "")] * labels
    named = references + [(change.name, change.kind, change.strength, change.unit) for change in CHANGES]
    return [
        {
            **dict(zip(("change", "kind", "strength", "unit"), names, strict=True)),
            "layer": f"layer{i}.conv2",
            "distance": 0.3 * relative,
            "relative": relative,
            "pixels": 0.1 * place,
            "kept": 0.5,
        }
        for place, names in enumerate(named)
        for i, relative in enumerate([1.0] * layers if names[0] == ANOTHER_PICTURE else rng.random(layers))
    ]


def looks():
    return {change.name: np.full((8, 8), place / 10) for place, change in enumerate(CHANGES)}


def figures(ax=None):
    return {
        "pictures": lambda: plots.plot_changed_pictures(np.ones((8, 8)), looks(), make_rows(), ax=ax),
        "curves": lambda: plots.plot_stability(make_rows(), make_rows(seed=1), ax=ax),
        "pixels": lambda: plots.plot_attention_against_pixels({"trained": make_rows(), "fresh": make_rows(1)}, ax=ax),
    }


@pytest.mark.parametrize("name", figures())
def test_figures_can_be_part_of_another(name):
    whole = Figure(figsize=(12, 8), layout="constrained")
    part = figures(whole.subplots(1, 2)[0])[name]()
    whole.draw_without_rendering()
    assert part in whole.subfigs
    assert len(figure_data(part))


def test_changed_images_come_in_the_order_of_their_attention():
    figure = plots.plot_changed_pictures(np.ones((8, 8)), looks(), make_rows())
    panels = [axes for axes in figure.axes if axes.images]
    assert panels[0].get_title("left") == "the image" or panels[0].get_title() == "the image"
    texts = [panel.get_title("left") or panel.get_title() for panel in panels[1:]]
    assert sorted(text.split("\n")[0] for text in texts) == sorted(change.name for change in CHANGES)
    numbers = [float(text.split("attention ")[1].split("\n")[0]) for text in texts]
    assert numbers == sorted(numbers)
    shift_two = next(i for i, text in enumerate(texts) if text.startswith("shift 2 px"))
    assert panels[shift_two + 1].images[0].get_array()[0, 0] == 0.1
    of_layers = [row["relative"] for row in make_rows() if row["change"] == "shift 2 px"]
    assert f"attention {np.mean(of_layers):.2f}" in texts[shift_two]


def lines(axes):
    """The curves, without the reference lines, which cross the whole panel."""
    return [line for line in axes.lines if list(line.get_xdata()) != [0, 1] or line.get_marker() != "None"]


@pytest.mark.parametrize("reference", [None, make_rows(seed=1)])
def test_curves_have_a_panel_for_each_kind_and_a_line_for_each_layer(reference):
    rows = make_rows()
    figure = plots.plot_stability(rows, reference)
    figure.draw_without_rendering()
    assert [axes.get_title("left") or axes.get_title() for axes in figure.axes] == ["shift", "flip", "blur", "noise"]
    curves = lines(figure.axes[0])
    assert len(curves) == 3 + (reference is not None)
    expected = [row["relative"] for row in rows if row["kind"] == "shift" and row["layer"] == "layer2.conv2"]
    np.testing.assert_allclose(curves[-1].get_ydata(), expected)
    if reference:
        of_shift = [row["relative"] for row in reference if row["kind"] == "shift"]
        np.testing.assert_allclose(curves[0].get_ydata(), np.reshape(of_shift, (3, 3)).mean(axis=1))
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["1", "2", "3"]
    assert figure.axes[0].get_xlabel() == "px"


def test_curves_mark_another_picture_and_its_class_where_it_is_known():
    levels = {}
    for labels in (True, False):
        axes = plots.plot_stability(make_rows(labels=labels)).axes[0]
        levels[labels] = [line.get_ydata()[0] for line in axes.lines if line.get_marker() == "None"]
    of_class = [row["relative"] for row in make_rows() if row["kind"] == ANOTHER_OF_ITS_CLASS]
    np.testing.assert_allclose(levels[True], [1, np.mean(of_class)])
    assert levels[False] == [1]


def test_many_layers_are_drawn_but_not_all_named():
    figure = plots.plot_stability(make_rows(layers=16))
    figure.draw_without_rendering()
    assert len(lines(figure.axes[0])) == 16
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[:2] == ["layer0.conv2", "layer15.conv2"]
    assert len(names) == 4


def test_attention_stands_against_the_pixels():
    figure = plots.plot_attention_against_pixels({"trained": make_rows(), "fresh": make_rows(1)})
    figure.draw_without_rendering()
    assert [axes.get_title("left") or axes.get_title() for axes in figure.axes] == ["trained", "fresh"]
    rows = [row for row in make_rows(1) if row["kind"] == "blur"]
    (blur_line,) = (line for line in figure.axes[1].lines if line.get_label() == "blur (px)")
    np.testing.assert_allclose(blur_line.get_xdata(), [row["pixels"] for row in rows[::3]])
    np.testing.assert_allclose(
        blur_line.get_ydata(), np.reshape([row["relative"] for row in rows], (2, 3)).mean(axis=1)
    )
    assert figure.axes[0].get_xlim() == figure.axes[0].get_ylim()
    data = figure_data(figure)
    assert set(data["model"]) == {"trained", "fresh"}
    assert len(data) == 2 * (len(CHANGES) + 2)


def test_kinds_of_ones_own_are_drawn_too():
    rows = make_rows()
    for row in rows:
        if row["kind"] == "noise":
            row |= {"kind": "fog", "change": "fog", "strength": "", "unit": ""}
    figure = plots.plot_attention_against_pixels({"trained": rows})
    figure.draw_without_rendering()
    assert "fog" in [text.get_text() for text in figure.legends[0].get_texts()]
