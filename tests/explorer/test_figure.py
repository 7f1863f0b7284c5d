import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from kaviz.explorer.figure import Panel, plot_explorer
from kaviz.figures import figure_data

CLASSES = ["cat", "dog", "cow", "hen", "a class with a very long name", "owl"]


def make_panel(name="A", seed=0, maps=1, before=False, k=3, label=1):
    random = np.random.default_rng(seed)
    attention = random.dirichlet(np.ones(k * k), maps).reshape(maps, k, k)
    probabilities = random.dirichlet(np.ones(6))
    picture = random.random((8, 12, 3))
    return Panel(name, "picture 3", picture, attention, probabilities, probabilities[::-1] if before else None, label)


def draw(*panels, maps=1, **options):
    distances = {"layer1": 0.1, "layer2": 0.3} if len(panels) == 2 else None
    given = {"title": "A title\nand more", "reach": 0.5, "distances": distances, "layer": "layer2"} | options
    return plot_explorer(panels, [str(5 * index) for index in range(maps)], CLASSES, **given)


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


@pytest.fixture(autouse=True)
def no_open_figures():
    yield
    assert not plt.get_fignums()


@pytest.mark.parametrize("k", [1, 3, 5, 7])
@pytest.mark.parametrize("maps", [1, 3, 8])
@pytest.mark.parametrize("count", [1, 2])
def test_it_draws_any_number_of_maps_of_any_size(count, maps, k):
    panels = [make_panel(name, seed, maps, bool(seed), k) for seed, name in enumerate("AB"[:count])]
    figure = draw(*panels, maps=maps)
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    whole = figure.bbox
    for text in figure.axes[0].texts:
        box = text.get_window_extent()
        assert box.x0 >= whole.x0 - 1, text
        assert box.x1 <= whole.x1 + 1, text


def test_one_map_has_its_numbers_and_the_scale_its_ends():
    panel = make_panel()
    shown = texts(draw(panel))
    for value in panel.maps.ravel():
        assert f"{value:.3f}" in shown
    assert {"0.056", "1/9 (even)", "0.167"} <= set(shown)


def test_colours_are_those_of_the_values():
    panel = make_panel(maps=2)
    cells = [c for c in draw(panel, maps=2).axes[0].collections if len(c.get_paths()) == 18]
    norm = np.clip((panel.maps.ravel() - 1 / 18) / (1 / 9), 0, 1)
    np.testing.assert_allclose(cells[0].get_facecolor(), plt.get_cmap("RdBu_r")(norm), atol=0.02)


def test_two_panels_have_their_difference_on_a_symmetric_scale_of_its_own():
    a, b = make_panel("A"), make_panel("B", seed=1)
    shown = texts(draw(a, b))
    most = np.abs(a.maps - b.maps).max()
    assert {f"−{most:.3f}", "0", f"+{most:.3f}"} <= set(shown)
    assert "A − B, on a scale of its own" in shown
    assert "0.300" in shown  # the distance in this layer


def test_equal_maps_differ_by_nothing():
    a = make_panel("A")
    shown = texts(draw(a, make_panel("B"), distances={"layer2": 0.0}))
    assert shown.count("0.000") >= 9  # noise gets no colours
    assert "+0.001" in shown


def test_the_classes_shown_are_the_likeliest_the_true_one_and_the_one_before():
    panel = make_panel()
    probabilities, before = np.array([0.5, 0.01, 0.2, 0.15, 0.13, 0.01]), np.array([0, 0, 0, 0, 0, 1.0])
    figure = draw(Panel("A", "x", panel.picture, panel.maps, probabilities, before, 1))
    shown = [text for text in texts(figure) if text[:2] == "0." and " " in text]
    assert shown == ["0.50  cat", "0.20  cow", "0.01  dog (true)", "0.01  owl"]


def test_probabilities_are_bars_and_strokes_what_they_were():
    panel = make_panel(before=True)
    boxes = [c for c in draw(panel).axes[0].collections if isinstance(c, PolyCollection) and len(c.get_paths()) == 4]
    widths = [np.ptp([path.vertices[:, 0] for path in c.get_paths()], axis=1) for c in boxes]
    shown = np.sort(panel.probabilities)[::-1]
    bars, strokes = widths[1] / widths[0], boxes[2]
    assert all(np.isclose(shown, value, atol=1e-6).any() for value in bars)
    middles = [path.vertices[:4, 0].mean() / widths[0][0] for path in strokes.get_paths()]
    assert all(np.isclose(panel.before, value, atol=1e-6).any() for value in middles)


def test_more_than_the_scale_shows_opens_its_end():
    panel = make_panel()
    closed = len(draw(panel, reach=10.0).axes[0].collections)
    assert len(draw(panel, reach=0.01).axes[0].collections) == closed + 2


def test_data_holds_all_numbers():
    a, b = make_panel("A", maps=2, before=True), make_panel("B", seed=1, maps=2)
    data = figure_data(draw(a, b, maps=2))
    attention = data.query("quantity == 'attention' and panel == 'B'")
    np.testing.assert_array_equal(attention["value"], b.maps.ravel())
    assert attention.iloc[10][["layer", "channel", "row", "column"]].tolist() == ["layer2", "5", 0, 1]
    assert data["quantity"].value_counts().to_dict() == {
        "attention": 36,
        "probability": 12,
        "probability without": 6,
        "distance": 2,
    }


def test_long_names_are_cut():
    figure = draw(make_panel("A" * 50, label=4))
    assert any(text.endswith("…") for text in texts(figure))


def test_it_draws_into_a_place_of_another_figure():
    figure = Figure(figsize=(16, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    part = plot_explorer([make_panel()], ["mean"], CLASSES, title="here", reach=0.5, ax=left)
    figure.draw_without_rendering()
    assert part in figure.subfigs
    assert right in figure.axes
    assert len(figure_data(part)) == 9 + 6
