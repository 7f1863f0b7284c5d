import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from kaviz import plots

CHANNELS = ["first", "second", "third"]


def attention(rng, kernel_size, concentration=1.0):
    logits = concentration * rng.normal(size=(*kernel_size, len(CHANNELS)))
    return np.exp(logits) / np.exp(logits).sum(axis=(0, 1))


def images(figure):
    """The pictures of a figure's panels; a colour bar has its colours as a mesh, not as an image."""
    return [image for axes in figure.axes for image in axes.images]


def every_figure(rng):
    maps = rng.normal(size=(9, 8, 12))
    shares = attention(rng, (3, 3))
    yield plots.plot_photo_and_kernels(rng.random((8, 12, 3)), rng.normal(size=(5, 3, 3)), list("abcde"))
    yield plots.plot_position_maps(maps, (3, 3), title="Z", label="value", center=0)
    yield plots.plot_identity(maps[0], maps[0] + 1e-7)
    yield plots.plot_kernel_maps({"Q": shares}, CHANNELS, title="Q", label="mean")
    yield plots.plot_attention_by_channel({"AG-L": shares, "AG-H": shares}, CHANNELS, title="A")
    yield plots.plot_aggregation(maps[0], {"L": maps[1], "H": maps[2]}, maps[3], title="Output")
    yield plots.plot_attention_shift({"pixels": {v: {"mirrored": rng.random(4)} for v in "LH"}})


def test_figures_are_drawn_outside_pyplot(rng):
    before = plt.get_fignums()
    for figure in every_figure(rng):
        assert isinstance(figure, Figure)
        figure.canvas.draw()
    assert plt.get_fignums() == before


@pytest.mark.parametrize(("center", "low"), [(0, -3.0), (None, 0.0)])
def test_position_maps_share_one_scale_in_kernel_order(center, low):
    maps = np.stack([np.full((4, 6), value) for value in np.linspace(0.5, 3, 6)])
    figure = plots.plot_position_maps(maps, (2, 3), title="Z", label="value", center=center)
    panels = images(figure)
    assert [panel.get_array()[0, 0] for panel in panels] == list(maps[:, 0, 0])
    assert {panel.get_clim() for panel in panels} == {(low, 3.0)}
    places = [panel.axes.get_subplotspec() for panel in panels]
    assert [(p.rowspan.start, p.colspan.start) for p in places] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


def test_position_maps_must_fill_the_kernel():
    with pytest.raises(ValueError, match="8 maps do not fill a kernel of 3×3"):
        plots.plot_position_maps(np.zeros((8, 4, 4)), (3, 3), title="Z", label="value")


@pytest.mark.parametrize("kernel_size", [(3, 3), (5, 5), (2, 3)])
@pytest.mark.parametrize("concentration", [0.01, 1.0, 5.0])
def test_attention_is_centred_on_the_even_share_and_the_bar_marks_it(rng, kernel_size, concentration):
    even = 1 / np.prod(kernel_size)
    maps = {"AG-L": attention(rng, kernel_size, concentration), "AG-H": attention(rng, kernel_size, concentration)}
    figure = plots.plot_attention_by_channel(maps, CHANNELS, title="A")
    figure.canvas.draw()
    panels = images(figure)
    assert len(panels) == 2 * len(CHANNELS)
    np.testing.assert_array_equal(panels[1].get_array(), maps["AG-L"][:, :, 1])
    ((low, high),) = {panel.get_clim() for panel in panels}
    assert panels[0].norm(even) == pytest.approx(0.5)
    assert low >= 0
    assert high * (1 + 1e-9) >= max(values.max() for values in maps.values())
    bar = next(axes for axes in figure.axes if axes.get_ylabel().startswith("attention"))
    ticks = dict(zip([label.get_text() for label in bar.get_yticklabels()], bar.get_yticks(), strict=True))
    assert ticks[f"1/{np.prod(kernel_size)}"] == pytest.approx(even)
    assert bar.get_ylim()[0] >= 0
    assert even in [line.get_ydata()[0] for line in bar.lines]


def test_even_attention_has_a_scale(rng):
    figure = plots.plot_attention_by_channel({"A": np.full((3, 3, 3), 1 / 9)}, CHANNELS, title="A")
    figure.canvas.draw()
    assert images(figure)[0].get_clim()[0] < images(figure)[0].get_clim()[1]


def test_kernel_maps_carry_their_values_where_there_is_room(rng):
    small = plots.plot_kernel_maps({"W": np.full((3, 3, 1), -0.25)}, ["c"], title="W", label="weight", center=0)
    assert [text.get_text() for text in small.axes[0].texts] == ["−0.25"] * 9
    large = plots.plot_kernel_maps({"W": np.ones((5, 5, 1))}, ["c"], title="W", label="weight", center=0)
    assert not large.axes[0].texts


def test_identity_draws_the_difference_on_its_own_scale():
    convolved = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    figure = plots.plot_identity(convolved + np.float32(1e-6), convolved)
    summed, plain, difference = images(figure)
    assert summed.get_clim() == plain.get_clim()
    assert difference.get_clim()[1] == pytest.approx(1e-6, rel=0.1)
    assert "1.0e−06" in difference.axes.get_title(loc="left") + difference.axes.get_title()


def test_aggregation_compares_with_the_even_sum(rng):
    even, light, heavy, replaced = rng.random((4, 6, 8))
    figure = plots.plot_aggregation(even, {"AG-L": light, "AG-H": heavy}, replaced, title="Output")
    by_title = {axes.get_title(loc="left") or axes.get_title(): axes.images[0] for axes in figure.axes if axes.images}
    np.testing.assert_allclose(by_title["AG-L, minus even"].get_array(), light - even)
    assert by_title["AG-L"].get_clim() == by_title["AG-H"].get_clim() == by_title["Even, 1/k²"].get_clim()
    assert by_title["AG-L, minus even"].get_clim() == by_title["AG-H, minus even"].get_clim()


def test_attention_shift_draws_each_draw_and_the_median():
    draws = np.array([0.1, 0.2, 0.9])
    figure = plots.plot_attention_shift({"pixels": {"L": {"mirrored": draws}, "H": {"mirrored": draws / 2}}})
    (axes,) = figure.axes
    drawn = [list(line.get_xdata()) for line in axes.lines]
    assert drawn == [[0.1, 0.2, 0.9], [0.2], [0.05, 0.1, 0.45], [0.1]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["mirrored"]
