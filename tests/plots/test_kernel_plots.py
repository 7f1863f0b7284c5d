import numpy as np
import pytest
from matplotlib.figure import Figure

from kaconv.attention.kernels import PositionShares
from kaviz import plots
from kaviz.figures import figure_data

LAYERS = ["layer1.0.conv2", "layer2.0.conv2"]


pytestmark = pytest.mark.usefixtures("no_open_figures")


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=(1, 2), keepdims=True)


def make_shares(rng, kernel_size=(3, 3)):
    shapes = {layer: (10, *kernel_size, channels) for layer, channels in zip(LAYERS, (4, 8), strict=True)}
    attention = {layer: softmax(rng.normal(size=shape)).astype(np.float32) for layer, shape in shapes.items()}
    return PositionShares(attention, {layer: rng.random(shape).astype(np.float32) for layer, shape in shapes.items()})


def kernel_figure(rng, *, signed=True, **options):
    static, effective = rng.random((3, 3, 2)), rng.random((4, 3, 3, 2))
    if signed:
        static, effective = static - 0.5, effective - 0.5
    names = {"rows": ["a", "b"], "titles": list("wxyz"), "title": "Kernels"}
    pictures = rng.random((4, 8, 8, 3))
    return static, effective, plots.plot_effective_kernels(static, effective, pictures=pictures, **names, **options)


def contribution_figure(rng, **options):
    maps, attention = rng.random((3, 3, 8, 6)), rng.dirichlet(np.ones(9)).reshape(3, 3)
    figure = plots.plot_contributions(maps, attention, rng.random((8, 6)), title="Channel 3", **options)
    return maps, attention, figure


def images(figure):
    return [image for axes in figure.get_axes() for image in axes.images]


def titles(figure):
    return [axes.get_title(loc) for axes in figure.get_axes() for loc in ("left", "center", "right")]


@pytest.mark.parametrize("draw", ["kernels", "contributions", "shares"])
def test_figures_can_be_part_of_another(rng, draw):
    whole = Figure(figsize=(10, 8), layout="constrained")
    ax = whole.subplots(1, 2)[0]
    part = {
        "kernels": lambda: kernel_figure(rng, ax=ax)[-1],
        "contributions": lambda: contribution_figure(rng, ax=ax)[-1],
        "shares": lambda: plots.plot_position_shares(make_shares(rng), ax=ax),
    }[draw]()
    whole.draw_without_rendering()
    assert part in whole.subfigs
    assert len(figure_data(part))


@pytest.mark.parametrize("signed", [True, False])
def test_kernels_and_their_differences_each_share_one_scale(rng, signed):
    static, effective, figure = kernel_figure(rng, signed=signed)
    figure.draw_without_rendering()
    kernels, differences = images(figure)[4:14], images(figure)[14:]
    np.testing.assert_array_equal(kernels[0].get_array(), static[..., 0])
    np.testing.assert_array_equal(kernels[9].get_array(), effective[3, ..., 1])
    np.testing.assert_allclose(differences[0].get_array(), effective[0, ..., 0] - static[..., 0])
    assert len(differences) == 8
    for block in (kernels, differences):
        ((low, high),) = {image.get_clim() for image in block}
        assert low == (-high if signed or block is differences else 0)
    assert kernels[0].get_cmap().name == ("RdBu_r" if signed else "cividis")


def test_the_data_of_kernels_says_what_each_number_is(rng):
    static, effective, figure = kernel_figure(rng)
    data = figure_data(figure).set_index(["kernel", "row", "column", "name"])
    assert len(data) == 5 * 9 * 2
    row = data.loc[("y", 1, 2, "b")]
    assert row["value"] == effective[2, 1, 2, 1]
    assert row["sample"] == 2
    assert row["difference"] == pytest.approx(effective[2, 1, 2, 1] - static[1, 2, 1])
    assert data.loc[("static", 0, 1, "a"), "value"] == static[0, 1, 0]


def test_contributions_are_laid_out_as_the_kernel_with_their_shares(rng):
    maps, attention, figure = contribution_figure(rng)
    figure.draw_without_rendering()
    panels = images(figure)[2:]
    assert len(panels) == 9
    assert {panel.get_clim() for panel in panels} == {(0, maps.max())}
    np.testing.assert_array_equal(panels[5].get_array(), maps[1, 2])
    np.testing.assert_allclose(images(figure)[1].get_array(), maps.sum(axis=(0, 1)))
    share = maps[1, 2].sum() / maps.sum()
    assert f"{share:.0%} of the output\n(attention {attention[1, 2]:.0%})" in titles(figure)
    data = figure_data(figure)
    assert len(data) == maps.size
    assert data.groupby(["row", "column"])["share"].first().sum() == pytest.approx(1)


def test_a_channel_that_gives_nothing_is_drawn_too(rng):
    figure = plots.plot_contributions(np.zeros((3, 3, 4, 4)), np.full((3, 3), 1 / 9), np.zeros((4, 4)), title="dead")
    figure.draw_without_rendering()
    assert titles(figure).count("no output\n(attention 11%)") == 9


def test_contributions_below_zero_take_a_diverging_scale(rng):
    figure = plots.plot_contributions(rng.normal(size=(3, 3, 4, 4)), np.full((3, 3), 1 / 9), np.ones((4, 4)), title="x")
    low, high = images(figure)[2].get_clim()
    assert low == -high
    assert images(figure)[2].get_cmap().name == "RdBu_r"


@pytest.mark.parametrize("kernel_size", [(3, 3), (5, 5), (2, 3)])
def test_shares_are_drawn_as_means_around_the_even_share(rng, kernel_size):
    shares = make_shares(rng, kernel_size)
    figure = plots.plot_position_shares(shares)
    figure.draw_without_rendering()
    panels = images(figure)
    assert len(panels) == 6
    np.testing.assert_allclose(panels[0].get_array(), shares.attention[LAYERS[0]].mean(axis=(0, 3)), rtol=1e-5)
    assert len({panel.get_clim() for panel in panels}) == 1
    assert panels[0].norm(1 / np.prod(kernel_size)) == pytest.approx(0.5)
    numbers = [text for axes in figure.get_axes() for text in axes.texts if not text.get_text().startswith("r =")]
    assert len(numbers) == (6 * np.prod(kernel_size) if np.prod(kernel_size) <= 9 else 0)


def test_shares_are_set_against_the_attention(rng):
    shares = make_shares(rng)
    data = figure_data(plots.plot_position_shares(shares))
    assert len(data) == 2 * 3 * 9
    for layer, own in data.groupby("layer"):
        assert own["r"].iloc[0] == pytest.approx(np.median(shares.correlation(layer, "attention", "share")))
    means = data[(data["layer"] == LAYERS[1]) & (data["map"] == "share")].sort_values(["row", "column"])["mean"]
    np.testing.assert_allclose(means, shares.maps(LAYERS[1])["share"].mean(axis=(0, 3)).ravel(), rtol=1e-5)


def test_some_of_the_layers_can_be_chosen(rng):
    figure = plots.plot_position_shares(make_shares(rng), LAYERS[1:])
    assert set(figure_data(figure)["layer"]) == {LAYERS[1]}
    assert len(images(figure)) == 3


def test_dead_channels_and_even_attention_are_drawn(rng):
    shares = make_shares(rng)
    shares.pooled[LAYERS[0]][..., 0] = 0
    shares.attention[LAYERS[1]][:] = 1 / 9
    figure = plots.plot_position_shares(shares)
    figure.draw_without_rendering()
    assert np.isfinite(figure_data(figure)["mean"]).all()


def test_a_layer_without_any_output_is_refused(rng):
    shares = make_shares(rng)
    shares.pooled[LAYERS[1]][:] = 0
    with pytest.raises(ValueError, match=r"layer2\.0\.conv2 gives no output at all"):
        plots.plot_position_shares(shares)
