import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from kaconv import AttentionRecord
from kaviz import plots

CLASSES = ["a", "b", "c"]


def make_record(samples=12, seed=0, labels=True):
    logits = np.random.default_rng(seed).normal(size=(2, samples, 9, 4))
    attention = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    maps = {f"layer{i + 1}": a.reshape(samples, 3, 3, 4).astype(np.float32) for i, a in enumerate(attention)}
    return AttentionRecord(maps, np.arange(samples) % 3 if labels else None)


@pytest.fixture
def record():
    return make_record()


@pytest.fixture(autouse=True)
def no_open_figures():
    yield
    assert not plt.get_fignums()


def all_figures(record):
    pictures = np.random.default_rng(0).random((3, 8, 8, 3))
    return {
        "layers": plots.plot_layer_maps(record, [0, 1, 2], pictures, CLASSES),
        "channels": plots.plot_channel_maps(record, "layer2", [3, 1], [0, 1, 2], pictures, CLASSES),
        "classes": plots.plot_class_maps(record, "layer1", [0, 2], pictures[..., 0], CLASSES),
        "range": plots.plot_channel_range(record, columns=3),
    }


def map_images(figure):
    return [image for axes in figure.axes for image in axes.images if image.get_cmap().name == "RdBu_r"]


@pytest.mark.parametrize("name", ["layers", "channels", "classes", "range"])
def test_maps_share_one_scale_centred_at_the_even_share_which_is_marked(record, name):
    figure = all_figures(record)[name]
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    limits = {image.get_clim() for image in map_images(figure)}
    assert len(limits) == 1
    low, high = limits.pop()
    assert (low + high) / 2 == pytest.approx(1 / 9)
    assert 0 <= low < high <= 2 / 9 + 1e-9
    bar = figure.axes[-1]
    assert any("1/9" in tick.get_text() for tick in bar.get_yticklabels())
    assert any(np.allclose(line.get_ydata(), 1 / 9) for line in bar.lines)


def test_the_right_maps_are_drawn(record):
    figures = all_figures(record)
    first = map_images(figures["layers"])[1]  # layer1, sample 1
    np.testing.assert_allclose(first.get_array(), record.attention["layer1"][1].mean(axis=-1), rtol=1e-6)
    last = map_images(figures["channels"])[-1]  # channel 1, sample 2
    np.testing.assert_allclose(last.get_array(), record.attention["layer2"][2, ..., 1], rtol=1e-6)
    second = map_images(figures["classes"])[1]  # channel 0, class 1
    np.testing.assert_allclose(second.get_array(), record.attention["layer1"][1::3, ..., 0].mean(axis=0), rtol=1e-5)


def test_uniform_attention_is_drawn_too():
    record = AttentionRecord({"layer": np.full((6, 3, 3, 2), 1 / 9, np.float32)}, np.arange(6) % 3)
    figures = [
        plots.plot_channel_range(record),
        plots.plot_input_dependence(record),
        plots.plot_entropy(record),
        plots.plot_class_distances(record, CLASSES),
    ]
    for figure in figures:
        figure.draw_without_rendering()


def test_channel_range_runs_from_the_most_to_the_least_dependent(record):
    figure = plots.plot_channel_range(record, columns=4)
    numbers = [float(axes.get_xlabel()) for axes in figure.axes if axes.get_xlabel()]
    assert len(numbers) == 8
    dependence = np.sort(record.input_dependence("layer1"))[::-1]
    np.testing.assert_allclose(numbers[:4], dependence, atol=0.0051)
    assert (
        plots.most_dependent_channels(record, "layer1", 2).tolist()
        == np.argsort(-record.input_dependence("layer1"))[:2].tolist()
    )


def test_class_statistics_of_known_maps():
    # Two classes, each with one map of its own: all variance is the class's, and the distance is that of the maps.
    one, other = np.zeros((3, 3, 1), np.float32), np.zeros((3, 3, 1), np.float32)
    one[0, 0], other[0, 0], other[2, 2] = 1, 0.5, 0.5
    record = AttentionRecord({"layer": np.stack([one, one, other, other])}, np.array([0, 0, 1, 1]))
    assert record.class_share("layer") == pytest.approx(1)
    np.testing.assert_allclose(record.class_distances("layer"), [[0, 0.5], [0.5, 0]])
    mixed = AttentionRecord(record.attention, np.array([0, 1, 0, 1]))
    assert mixed.class_share("layer") == pytest.approx(0)
    np.testing.assert_allclose(mixed.class_means("layer")[0], (one + other) / 2)


def test_class_share_of_noise_is_that_of_chance():
    record = make_record(samples=3000)
    assert record.class_share("layer1") == pytest.approx(2 / 2999, rel=0.5)


def test_statistics_are_drawn_beside_the_reference(record):
    reference = make_record(seed=1)
    left, right = plots.plot_input_dependence(record, reference).axes
    assert len(left.patches) == 4  # boxes: two layers, trained and untrained
    heights = [bar.get_height() for bar in right.patches]
    expected = [100 * source.class_share(layer) for source in (record, reference) for layer in record.layers]
    np.testing.assert_allclose(heights, expected)
    axes = plots.plot_entropy(record).axes[0]
    assert len(axes.patches) == 2
    median = np.median(record.entropy("layer1"))
    assert any(np.allclose(line.get_ydata(), median) for line in axes.lines)
    assert any(np.allclose(line.get_ydata(), 1) for line in axes.lines)


def test_without_labels_the_class_is_left_out_or_asked_for():
    record = make_record(labels=False)
    assert len(plots.plot_input_dependence(record).axes) == 1
    with pytest.raises(ValueError, match="no labels"):
        plots.plot_class_distances(record, CLASSES)
