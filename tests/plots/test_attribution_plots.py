import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from kaviz.plots import plot_attention_and_use, plot_attributions, plot_faithfulness, plot_perturbation_curves

pytestmark = pytest.mark.usefixtures("no_open_figures")


@pytest.fixture
def maps():
    rng = np.random.default_rng(0)
    return {"Occlusion": rng.normal(size=(2, 8, 8)), "Grad-CAM": 100 * rng.normal(size=(2, 8, 8))}


@pytest.mark.parametrize("outline", [False, True])
def test_each_map_has_a_symmetric_scale_whose_end_is_written(maps, outline):
    pictures = np.random.default_rng(1).random((2, 8, 8, 3))
    figure = plot_attributions(pictures, maps, ["one", "two"], title="Evidence", outline=outline)
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    panels = [axes for axes in figure.axes if axes.images]
    np.testing.assert_array_equal(panels[0].images[0].get_array(), pictures[0])
    for row, values in zip((panels[2:4], panels[4:6]), maps.values(), strict=True):
        for axes, expected in zip(row, values, strict=True):
            reach = np.percentile(np.abs(expected), 99.5)
            assert axes.images[0].get_clim() == (-1, 1)
            assert axes.get_xlabel() == f"±{reach:.2g}"
            np.testing.assert_allclose(axes.images[0].get_array(), expected / reach)
    assert [axes.get_title(loc="center") for axes in panels[:2]] == ["one", "two"]


def test_many_images_with_long_names_are_all_shown_and_no_titles_overlap():
    count = 9
    titles = [f"“black-footed_ferret_cat{number}” (predicted)\np = 0.98" for number in range(count)]
    pictures, maps = np.ones((count, 8, 8)), {"Guided Grad-CAM": np.ones((count, 8, 8))}
    figure = plot_attributions(pictures, maps, titles, title="Evidence for the predicted class and for the true one")
    figure.draw_without_rendering()
    shown = [axes for axes in figure.axes if axes.get_visible() and axes.get_title(loc="center")]
    assert len(shown) == count
    boxes = [axes.title.get_window_extent() for axes in shown]
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :] if a.overlaps(b)]
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_more_methods_than_colours_can_be_told_apart():
    curves = {f"method {number}": np.array([[1, 0.5], [1, 0.2]]) for number in range(10)}
    figure = plot_perturbation_curves([0, 1], curves, curves, (np.ones((2, 2)), np.ones((2, 2))))
    looks = {(line.get_color(), str(line.get_linestyle()), line.get_marker()) for line in figure.axes[0].lines}
    assert len(looks) == 11


@pytest.mark.parametrize("count", [1, 3, 17])
def test_attention_and_use_share_one_scale(count):
    rng, layers = np.random.default_rng(0), [f"features.{number}.conv.1" for number in range(count)]
    attention = {layer: rng.dirichlet(np.ones(9), 4).reshape(4, 3, 3) for layer in layers}
    contributions = {layer: rng.normal(size=(4, 3, 3, 2)) for layer in layers}
    agreement = {layer: np.array([0.5, -0.5, np.nan, 0.3]) for layer in layers}
    figure = plot_attention_and_use(attention, contributions, agreement)
    figure.draw_without_rendering()
    images = [axes.images[0] for axes in figure.axes if axes.images]
    assert len(images) == 2 * count
    assert len({image.get_clim() for image in images}) == 1
    expected = contributions[layers[0]].sum(-1).mean(0)
    np.testing.assert_allclose(images[count].get_array(), 100 * expected / np.abs(expected).sum())
    np.testing.assert_allclose(np.abs(images[0].get_array()).sum(), 100)
    below = figure.axes[-1]
    assert [label.get_text() for label in below.get_xticklabels()] == layers


def test_the_checks_have_a_panel_each_with_means_and_intervals():
    rows = [
        {"model": model, "method": method, "measure": measure, "mean": 0.4, "low": 0.3, "high": 0.6, "images": 5}
        for model in ("plain", "L", "H")
        for method in ("grad_cam", "saliency")
        for measure in ("deletion", "infidelity", "randomisation")
    ]
    figure = plot_faithfulness(pd.DataFrame(rows), {"grad_cam": "Grad-CAM"})
    figure.draw_without_rendering()
    assert len(figure.axes) == 3
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["Grad-CAM", "saliency"]
    bars = figure.axes[1].containers
    assert len(bars) == 3
    np.testing.assert_allclose(bars[0].lines[2][0].get_segments()[0][:, 0], [0.3, 0.6])


def test_attributions_of_nothing_and_grey_pictures_are_drawn():
    figure = plot_attributions(np.ones((1, 4, 4)), {"Occlusion": np.zeros((1, 4, 4))}, ["one"], title="Nothing")
    figure.draw_without_rendering()


def test_maps_must_fit_the_pictures(maps):
    with pytest.raises(ValueError, match=r"Occlusion: maps \(2, 8, 8\) do not fit images \(2, 9, 9\)"):
        plot_attributions(np.ones((2, 9, 9)), maps, ["one", "two"], title="Evidence")


def test_perturbation_curves_give_the_mean_and_its_height():
    fractions = [0, 0.5, 1]
    falling, rising = np.array([[1, 0, 0], [1, 0.2, 0]]), np.array([[0, 0.8, 1], [0, 1, 1]])
    straight = np.array([[1, 0.5, 0]] * 2)
    figure = plot_perturbation_curves(
        fractions, {"Occlusion": falling}, {"Occlusion": rising}, (straight, straight[:, ::-1])
    )
    figure.draw_without_rendering()
    deletion, insertion = figure.axes
    np.testing.assert_allclose(deletion.lines[1].get_ydata(), [1, 0.1, 0])
    np.testing.assert_allclose(deletion.lines[1].get_xdata(), [0, 50, 100])
    assert [text.get_text() for text in deletion.get_legend().get_texts()] == ["random order: 0.50", "Occlusion: 0.30"]
    assert insertion.get_legend().get_texts()[1].get_text() == "Occlusion: 0.70"
    assert deletion.get_ylim() == insertion.get_ylim()


def test_a_single_picture_has_no_band():
    curves = np.array([[1, 0.5, 0.1]])
    plot_perturbation_curves([0, 0.5, 1], {"a": curves}, {"a": curves}, (curves, curves)).draw_without_rendering()
