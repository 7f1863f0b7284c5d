import numpy as np
import pytest
from matplotlib.figure import Figure

from kaviz.plots import plot_attributions, plot_perturbation_curves

pytestmark = pytest.mark.usefixtures("no_open_figures")


@pytest.fixture
def maps():
    rng = np.random.default_rng(0)
    return {"Occlusion": rng.normal(size=(2, 8, 8)), "Grad-CAM": 100 * rng.normal(size=(2, 8, 8))}


@pytest.mark.parametrize("outline", [False, True])
def test_each_method_has_one_symmetric_scale(maps, outline):
    pictures = np.random.default_rng(1).random((2, 8, 8, 3))
    figure = plot_attributions(pictures, maps, ["one", "two"], title="Evidence", outline=outline)
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    images = [axes.images[0] for axes in figure.axes if axes.images][:6]
    np.testing.assert_array_equal(images[0].get_array(), pictures[0])
    for row, values in zip((images[2:4], images[4:6]), maps.values(), strict=True):
        reach = np.percentile(np.abs(values), 99.5)
        assert {image.get_clim() for image in row} == {(-reach, reach)}
        for image, expected in zip(row, values, strict=True):
            np.testing.assert_array_equal(image.get_array(), expected)
    assert [axes.get_title(loc="center") for axes in figure.axes[:2]] == ["one", "two"]


def test_attributions_of_nothing_and_grey_pictures_are_drawn():
    figure = plot_attributions(np.ones((1, 4, 4)), {"Occlusion": np.zeros((1, 4, 4))}, ["one"], title="Nothing")
    figure.draw_without_rendering()


def test_maps_must_fit_the_pictures(maps):
    with pytest.raises(ValueError, match=r"Occlusion: maps \(2, 8, 8\) do not fit pictures \(2, 9, 9\)"):
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
