import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure, SubFigure

from kaconv import AttentionRecord
from kaviz import plots
from kaviz.figures import figure_data
from kaviz.style import VARIANT_COLORS

PICTURES = np.random.default_rng(0).random((2, 8, 8))
L, H = "ka_resnet11_cifar_l", "ka_resnet11_cifar_h"


def make_record(samples=6, seed=0, labels=True, sharpness=1.0, sizes=(3, 3), channels=4):
    rng = np.random.default_rng(seed)
    maps = {}
    for number, size in enumerate(sizes, 1):
        attention = np.exp(sharpness * rng.normal(size=(samples, size * size, channels)))
        attention /= attention.sum(axis=1, keepdims=True)
        maps[f"layer{number}"] = attention.reshape(samples, size, size, channels).astype(np.float32)
    return AttentionRecord(maps, np.arange(samples) % 3 if labels else None)


def maps_of(figure):
    return [axes for axes in figure.axes if axes.images and axes.images[0].get_cmap().name == "RdBu_r"]


def layer_difference(record, ax=None):
    return plots.plot_layer_difference(record, (4, 1), PICTURES, ("one", "two"), ax=ax)


def channel_difference(record, channels=(2, 0, 3), ax=None):
    return plots.plot_channel_difference(record, "layer2", channels, (4, 1), PICTURES, ("one", "two"), ax=ax)


def variants(record, ax=None):
    return plots.plot_variants({L: [record], H: [make_record(seed=1)]}, ax=ax)


def training_statistics(record, ax=None):
    return plots.plot_training_statistics({0: make_record(seed=1), 1: record}, {0: 90.0, 1: 5.0}, ax=ax)


def training_maps(record, ax=None):
    records = {1: record, 0: make_record(seed=1)}
    return plots.plot_training_maps(records, "layer2", [3, 1], [0, 2], PICTURES, ax=ax)


FIGURES = [layer_difference, channel_difference, variants, training_statistics, training_maps]


@pytest.mark.parametrize("draw", FIGURES)
def test_a_figure_is_drawn_in_the_place_that_it_is_given(draw):
    record = make_record()
    parent = Figure(figsize=(16, 8), layout="constrained")
    kept, given = parent.subplots(1, 2)
    part = draw(record, ax=given)
    assert isinstance(part, SubFigure)
    assert kept in parent.axes
    assert given not in parent.axes
    assert figure_data(part).equals(figure_data(draw(record)))


def test_two_pictures_and_their_difference_in_every_layer():
    record = make_record(sharpness=0.3)
    figure = layer_difference(record)
    figure.draw_without_rendering()
    a, b, difference, single_a, single_b, single_difference = [axes.images[0].get_array() for axes in maps_of(figure)][
        6:12
    ]
    maps = record.attention["layer2"]
    np.testing.assert_allclose(a, maps[4].mean(axis=-1), rtol=1e-6)
    np.testing.assert_allclose(b, maps[1].mean(axis=-1), rtol=1e-6)
    np.testing.assert_allclose(difference, a - b, atol=1e-7)
    channel = np.abs(maps[4] - maps[1]).sum(axis=(0, 1)).argmax()
    np.testing.assert_allclose(single_a, maps[4][..., channel])
    np.testing.assert_allclose(single_b, maps[1][..., channel])
    np.testing.assert_allclose(single_difference, single_a - single_b)
    distance = np.abs(single_difference).sum() / 2
    assert maps_of(figure)[11].get_xlabel() == f"distance {distance:.2f}"
    assert f"channel {channel}" in [axes.get_ylabel() for axes in figure.axes]


@pytest.mark.parametrize("sharpness", [0.2, 2.0])
def test_maps_share_a_scale_and_differences_another_around_zero(sharpness):
    figure = layer_difference(make_record(sharpness=sharpness))
    images = [axes.images[0] for axes in maps_of(figure)]
    limits = [np.array(image.get_clim()) for image in images]
    attention, differences = [limits[i] for i in range(12) if i % 3 != 2], limits[2::3]
    assert len({tuple(found) for found in attention}) == len({tuple(found) for found in differences}) == 1
    assert images[0].norm(1 / 9) == pytest.approx(0.5)
    assert differences[0].sum() == pytest.approx(0)
    if sharpness < 1:  # a linear scale, and the difference on one as wide
        assert np.ptp(attention[0]) == pytest.approx(np.ptp(differences[0]))
    else:  # a logarithmic one, up to the strongest position; the difference as far as it goes
        assert attention[0].prod() == pytest.approx(1 / 81)
        assert attention[0].max() == pytest.approx(max(np.max(image.get_array()) for image in images))
        assert differences[0].max() == pytest.approx(max(np.abs(image.get_array()).max() for image in images[2::3]))
    for_attention, for_differences = figure.axes[-2:]
    assert "attention" in for_attention.get_xlabel()
    assert "difference" in for_differences.get_xlabel()
    assert any("1/9" in tick.get_text() for tick in for_attention.get_xticklabels())
    assert any(np.allclose(line.get_xdata(), 0) for line in for_differences.lines)


def test_where_kernels_differ_in_size_the_difference_is_scaled_along():
    figure = layer_difference(make_record(sizes=(3, 5)))
    limits = {axes.images[0].get_array().size: np.ptp(axes.images[0].get_clim()) for axes in maps_of(figure)[2::3]}
    assert 9 * limits[9] == pytest.approx(25 * limits[25])


@pytest.mark.parametrize("channels", [(2,), (2, 0), (2, 0, 3)])
def test_differences_of_some_channels(channels):
    record = make_record()
    figure = channel_difference(record, channels)
    figure.draw_without_rendering()
    differences = [axes.images[0].get_array() for axes in maps_of(figure)][2::3]
    maps = record.attention["layer2"]
    np.testing.assert_allclose(differences, [maps[4][..., channel] - maps[1][..., channel] for channel in channels])
    data = figure_data(figure)
    assert data["channel"].unique().tolist() == list(channels)
    assert set(data["shown"]) == {"A", "B", "A − B"}
    assert set(data["sample"].dropna()) == {4, 1}


def test_of_many_layers_those_are_shown_that_differ_most_or_those_that_are_named():
    record = make_record(sizes=(3,) * 12)
    record.attention["layer7"][:] = 1 / 9  # in which nothing differs
    layers = figure_data(layer_difference(record))["layer"].unique().tolist()
    assert len(layers) == 8
    assert layers == [layer for layer in record.layers if layer in layers]
    assert "layer7" not in layers
    named = plots.plot_layer_difference(record, (4, 1), PICTURES, layers=["layer7"])
    assert figure_data(named)["layer"].unique().tolist() == ["layer7"]


def test_without_titles_images_have_their_names_in_the_record():
    record = make_record()
    numbered = plots.plot_layer_difference(record, (4, 1), PICTURES)
    assert [axes.get_title() for axes in numbered.axes[:2]] == ["A: image 4", "B: image 1"]
    named = AttentionRecord(record.attention, record.labels, ids=np.array([f"{n}.png" for n in range(6)]))
    figure = plots.plot_layer_difference(named, (4, 1), PICTURES)
    assert [axes.get_title() for axes in figure.axes[:2]] == ["A: 4.png", "B: 1.png"]


def test_equal_pictures_have_no_difference():
    record = make_record()
    figure = plots.plot_layer_difference(record, (1, 1), PICTURES, ("one", "one"))
    assert {axes.get_xlabel() for axes in maps_of(figure)[2::3]} == {"distance 0.00"}


def test_variants_are_means_over_their_seeds_with_every_seed_beside():
    records = {L: [make_record(seed=0), make_record(seed=1)], H: [make_record(seed=2, sharpness=4.0)] * 2}
    figure = plots.plot_variants(records)
    figure.draw_without_rendering()
    entropy = figure.axes[2]
    expected = np.array([[np.median(record.entropy(layer)) for layer in record.layers] for record in records[L]])
    lines = {line.get_label(): line for line in entropy.lines}
    np.testing.assert_allclose(lines[L].get_ydata(), expected.mean(axis=0))
    assert lines[L].get_color() == VARIANT_COLORS["L"]
    marks = [line.get_ydata() for line in entropy.lines if line.get_linestyle() == "None"][:2]
    np.testing.assert_allclose(marks, expected)
    data = figure_data(figure)
    values = data[data["run"].notna()].set_index(["model", "run", "layer", "quantity"])["value"]
    assert len(values) == 2 * 2 * 2 * 3
    found = values[L, 1, "layer2", "share of the variance (%)"]
    assert found == pytest.approx(100 * records[L][1].class_share("layer2"))
    np.testing.assert_allclose(lines[H].get_ydata()[0], np.median(records[H][0].entropy("layer1")))
    mean = np.mean([record.attention["layer1"].mean(axis=(0, 3)) for record in records[L]], axis=0)
    np.testing.assert_allclose(maps_of(figure)[0].images[0].get_array(), mean, rtol=1e-5)


def test_records_that_cannot_be_compared():
    with pytest.raises(ValueError, match="same layers"):
        plots.plot_variants({L: [make_record()], H: [make_record(sizes=(3,))]})
    with pytest.raises(ValueError, match="at least"):
        plots.plot_variants({})
    with pytest.raises(ValueError, match="no labels"):
        plots.plot_variants({L: [make_record(labels=False)]})
    with pytest.raises(ValueError, match="no labels"):
        plots.plot_training_statistics({0: make_record(labels=False)}, {0: 90.0})


def test_statistics_over_a_training():
    records = {2: make_record(seed=2), 0: make_record(seed=0), 10: make_record(seed=1)}  # in whatever order
    figure = plots.plot_training_statistics(records, {10: 3.0, 0: 90.0, 2: 20.0})
    error, share = figure.axes[:2]
    assert error.lines[0].get_xdata().tolist() == [0, 2, 10]
    assert error.lines[0].get_ydata().tolist() == [90, 20, 3]
    lines = {line.get_label(): line.get_ydata() for line in share.lines}
    np.testing.assert_allclose(lines["layer2"], [100 * records[epoch].class_share("layer2") for epoch in (0, 2, 10)])
    data = figure_data(figure).set_index(["quantity", "epoch"])["value"]
    assert data["test error (%)", 2] == 20
    np.testing.assert_allclose(
        data["input dependence", 10], [np.median(records[10].input_dependence(layer)) for layer in ("layer1", "layer2")]
    )


def test_maps_over_a_training():
    record = make_record()
    figure = training_maps(record)
    figure.draw_without_rendering()
    drawn = [axes.images[0].get_array() for axes in maps_of(figure)]
    assert len(drawn) == 2 * 2 * 2
    np.testing.assert_allclose(drawn[-1], record.attention["layer2"][2, ..., 1])  # channel 1, sample 2, epoch 1
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["epoch 0", "epoch 1"]
    assert len(figure_data(figure)) == 8 * 9


def test_of_a_long_training_some_epochs_are_shown_the_first_and_the_last_among_them():
    records = dict.fromkeys(range(91), make_record())
    figure = plots.plot_training_maps(records, "layer1", [0], [0], PICTURES[:1], columns=4)
    assert figure_data(figure)["epoch"].unique().tolist() == [0, 30, 60, 90]


def test_bad_choices_are_named():
    record = make_record()
    with pytest.raises(ValueError, match=r"'layer9'.*layer1, layer2"):
        plots.plot_channel_difference(record, "layer9", [0], (0, 1), PICTURES, ("one", "two"))
    with pytest.raises(ValueError, match=r"'layer9'.*layer1, layer2"):
        plots.plot_training_maps({0: record}, "layer9", [0], [0], PICTURES[:1])
    with pytest.raises(ValueError, match="no maps to draw"):
        channel_difference(record, ())
    with pytest.raises(ValueError, match="no maps to draw"):
        plots.plot_training_maps({0: record}, "layer1", [], [0], PICTURES[:1])


def test_attention_that_never_moves_is_drawn_too():
    record = AttentionRecord({"layer": np.full((6, 3, 3, 2), 1 / 9, np.float32)}, np.arange(6) % 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.plot_variants({L: [record]})
        plots.plot_training_statistics({0: record}, {0: 0.0})
        plots.plot_layer_difference(record, (0, 1), PICTURES, ("one", "two")).draw_without_rendering()
