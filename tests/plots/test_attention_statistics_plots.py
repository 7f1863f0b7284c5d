import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure, SubFigure

from kaconv import AttentionRecord
from kaviz import plots
from kaviz.figures import figure_data
from kaviz.plots.map_grid import choose_apart

CLASSES = ["a", "b", "c"]
PICTURES = np.random.default_rng(0).random((3, 8, 8, 3))


def make_record(samples=12, seed=0, labels=True, sizes=(3, 3), channels=4):
    rng = np.random.default_rng(seed)
    maps = {}
    for number, size in enumerate(sizes, 1):
        logits = rng.normal(size=(samples, size * size, channels))
        attention = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        maps[f"layer{number}"] = attention.reshape(samples, size, size, channels).astype(np.float32)
    return AttentionRecord(maps, np.arange(samples) % 3 if labels else None)


@pytest.fixture
def record():
    return make_record()


pytestmark = pytest.mark.usefixtures("no_open_figures")


MAPS = {
    "picture": lambda record, ax=None: plots.plot_picture_maps(record, 1, PICTURES[1], "b", columns=3, ax=ax),
    "layers": lambda record, ax=None: plots.plot_layer_maps(record, [0, 1, 2], PICTURES, CLASSES, ax=ax),
    "channels": lambda record, ax=None: plots.plot_channel_maps(
        record, "layer2", [3, 1], [0, 1, 2], PICTURES, CLASSES, ax=ax
    ),
    "classes": lambda record, ax=None: plots.plot_class_maps(
        record, "layer1", [0, 2], PICTURES[..., 0], CLASSES, ax=ax
    ),
    "range": lambda record, ax=None: plots.plot_channel_range(record, columns=3, ax=ax),
}
FIGURES = MAPS | {
    "dependence": lambda record, ax=None: plots.plot_input_dependence(record, record, ax=ax),
    "entropy": lambda record, ax=None: plots.plot_entropy(record, ax=ax),
    "deviation": lambda record, ax=None: plots.plot_deviation(record, record, ax=ax),
    "distances": lambda record, ax=None: plots.plot_class_distances(record, CLASSES, ax=ax),
}


def map_images(figure):
    return [image for axes in figure.axes for image in axes.images if image.get_cmap().name == "RdBu_r"]


@pytest.mark.parametrize("name", MAPS)
def test_maps_share_one_scale_centred_at_the_even_share_which_is_marked(record, name):
    figure = MAPS[name](record)
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    images = map_images(figure)
    assert len({image.get_clim() for image in images}) == 1
    assert images[0].norm(1 / 9) == pytest.approx(0.5)
    assert images[0].norm(max(image.get_array().max() for image in images)) == pytest.approx(1)
    bar = figure.axes[-1]
    assert any("1/9" in tick.get_text() for tick in [*bar.get_yticklabels(), *bar.get_xticklabels()])
    assert any(np.allclose(line.get_ydata(), 1 / 9) or np.allclose(line.get_xdata(), 1 / 9) for line in bar.lines)


def test_weak_attention_has_a_linear_scale_and_sharp_attention_a_logarithmic_one():
    even = np.full((1, 3, 3, 1), 1 / 9, np.float32)
    weak, sharp = even.copy(), np.zeros_like(even)
    weak[0, 0, 0], weak[0, 0, 1] = 0.15, 2 / 9 - 0.15
    sharp[0, 1, 1] = 1
    norms = [
        map_images(plots.plot_layer_maps(AttentionRecord({"layer": maps}), [0], PICTURES[:1], ["x"]))[0].norm
        for maps in (weak, sharp)
    ]
    assert norms[0](1 / 9 + 0.01) - 0.5 == pytest.approx(0.5 - norms[0](1 / 9 - 0.01))
    np.testing.assert_allclose(norms[1]([0, 1 / 81, 1 / 27, 1 / 9, 1 / 3, 1]), [0, 0, 0.25, 0.5, 0.75, 1], atol=1e-6)


@pytest.mark.parametrize("name", ["picture", "layers", "range", "deviation"])
def test_where_kernels_differ_in_size_equal_colours_are_equal_multiples_of_the_even_share(name):
    figure = FIGURES[name](make_record(sizes=(3, 5)))
    images = {image.get_array().size: image for image in map_images(figure)}
    assert set(images) == {9, 25}
    np.testing.assert_allclose(9 * np.array(images[9].get_clim()), 25 * np.array(images[25].get_clim()))
    assert images[25].norm(1 / 25) == pytest.approx(0.5)
    assert "k²" in figure.axes[-1].get_ylabel() + figure.axes[-1].get_xlabel()


def test_the_right_maps_are_drawn(record):
    first = map_images(MAPS["layers"](record))[1]  # layer1, sample 1
    np.testing.assert_allclose(first.get_array(), record.attention["layer1"][1].mean(axis=-1), rtol=1e-6)
    last = map_images(MAPS["channels"](record))[-1]  # channel 1, sample 2
    np.testing.assert_allclose(last.get_array(), record.attention["layer2"][2, ..., 1], rtol=1e-6)
    second = map_images(MAPS["classes"](record))[1]  # channel 0, class 1
    np.testing.assert_allclose(second.get_array(), record.attention["layer1"][1::3, ..., 0].mean(axis=0), rtol=1e-5)


def test_a_pictures_maps_run_from_the_mean_over_the_sharpest_to_the_most_even(record):
    figure = plots.plot_picture_maps(record, 1, PICTURES[1], "b", columns=4)
    mean, *single = map_images(figure)[:5]
    maps = record.attention["layer1"][1]
    np.testing.assert_allclose(mean.get_array(), maps.mean(axis=-1), rtol=1e-6)
    strongest = [image.get_array().max() for image in single]
    np.testing.assert_allclose(strongest, np.sort(maps.max(axis=(0, 1)))[::-1])
    captions = [axes.get_xlabel() for axes in figure.axes if axes.get_xlabel()]
    assert captions[1] == f"{100 * strongest[0]:.0f} %"


@pytest.mark.parametrize("name", MAPS)
def test_the_data_of_maps_is_what_is_drawn(record, name):
    figure = MAPS[name](record)
    data = figure_data(figure)
    drawn = np.concatenate([image.get_array().ravel() for image in map_images(figure)])
    np.testing.assert_allclose(data["attention"], drawn)
    assert not data.isna().any().any()
    keys = [column for column in data if column != "attention"]
    assert not data.duplicated(keys).any()


def test_the_data_says_which_sample_it_is_by_its_id(record):
    record = AttentionRecord(record.attention, record.labels, ids=np.array([f"{n}.png" for n in range(len(record))]))
    data = figure_data(plots.plot_channel_maps(record, "layer2", [3], [5, 2], PICTURES[:2], CLASSES[:2]))
    value = data.set_index(["sample", "channel", "row", "column"])["attention"].loc["5.png", 3, 1, 2]
    assert value == record.attention["layer2"][5, 1, 2, 3]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_drawn_in_the_place_that_it_is_given(record, name):
    parent = Figure(figsize=(16, 8), layout="constrained")
    kept, given = parent.subplots(1, 2)
    part = FIGURES[name](record, ax=given)
    assert isinstance(part, SubFigure)
    assert kept in parent.axes
    assert given not in parent.axes
    box = part.bbox.transformed(parent.transSubfigure.inverted())
    assert box.x0 > 0.4
    assert figure_data(part).equals(figure_data(FIGURES[name](record)))


@pytest.mark.parametrize("name", ["layers", "dependence", "deviation", "distances"])
def test_many_layers_are_drawn_in_a_figure_that_fits_a_page(name):
    figure = FIGURES[name](make_record(sizes=(3,) * 16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as: the layout does not fit
        figure.draw_without_rendering()
    assert figure.get_figheight() < 10


def test_uniform_attention_is_drawn_too():
    record = AttentionRecord({"layer": np.full((6, 3, 3, 2), 1 / 9, np.float32)}, np.arange(6) % 3)
    figures = [
        plots.plot_channel_range(record),
        plots.plot_input_dependence(record),
        plots.plot_entropy(record),
        plots.plot_deviation(record),
        plots.plot_class_distances(record, CLASSES),
    ]
    for figure in figures:
        figure.draw_without_rendering()


def test_channel_range_runs_from_the_most_to_the_least_dependent(record):
    figure = plots.plot_channel_range(record, columns=4)
    numbers = [float(axes.get_xlabel()) for axes in figure.axes if axes.images and axes.get_xlabel()]
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


def test_the_data_of_boxes_are_their_percentiles_and_the_shares(record):
    data = figure_data(FIGURES["dependence"](record))
    boxes = data[(data["quantity"] == "input dependence") & (data["model"] == "trained") & (data["layer"] == "layer2")]
    assert boxes["percentile"].tolist() == [5, 25, 50, 75, 95]
    expected = np.percentile(record.input_dependence("layer2"), [5, 25, 50, 75, 95])
    np.testing.assert_allclose(boxes["value"], expected)
    shares = data[data["quantity"] == "share of the variance (%)"].set_index(["model", "layer"])["value"]
    assert shares["trained", "layer1"] == pytest.approx(100 * record.class_share("layer1"))
    assert shares["by chance", "layer1"] == pytest.approx(100 * 2 / 11)


def test_deviation_shows_the_strongest_positions_and_the_mean_of_each_position(record):
    figure = plots.plot_deviation(record, make_record(seed=1))
    data = figure_data(figure)
    strongest = data[(data["quantity"] == "strongest position × k²") & (data["percentile"] == 50)]
    value = strongest.set_index(["model", "layer"])["value"]["trained", "layer2"]
    assert value == pytest.approx(np.median(9 * record.attention["layer2"].max(axis=(1, 2))), rel=1e-6)
    trained, *_ = map_images(figure)
    mean = record.attention["layer1"].mean(axis=(0, 3))
    np.testing.assert_allclose(trained.get_array(), mean, rtol=1e-5)
    means = data[data["quantity"] == "mean attention"]
    assert len(means) == 2 * 2 * 9
    np.testing.assert_allclose(means["value"][:9].astype(float), mean.ravel(), rtol=1e-5)


def test_statistics_frame_of_known_maps():
    # One position gets everything, always the centre; and a layer that turns to another corner for each class.
    centre, corners = np.zeros((4, 3, 3, 1), np.float32), np.zeros((4, 3, 3, 1), np.float32)
    centre[:, 1, 1] = 1
    corners[:2, 0, 0] = corners[2:, 2, 2] = 1
    record = AttentionRecord({"static": centre, "moving": corners}, np.array([0, 0, 1, 1]))
    frame = plots.statistics_frame({"x": record})
    assert frame.loc[("x", "static")].tolist() == [0, 0, 0, 9, 9]
    assert frame.loc[("x", "moving")].tolist() == [0.5, 100, 0, 9, 0]
    assert list(frame) == [
        "input dependence",
        "share of the variance (%)",
        "entropy / log k²",
        "strongest position × k²",
        "centre × k²",
    ]
    unlabelled = plots.statistics_frame({"x": AttentionRecord(record.attention)})
    assert "share of the variance (%)" not in unlabelled


def test_class_distances_name_the_nearest_and_the_farthest_pair():
    maps = np.zeros((3, 3, 3, 1), np.float32)
    maps[0, 0, 0] = 1
    maps[1, 0, 0], maps[1, 0, 1] = 0.75, 0.25
    maps[2, 2, 2] = 1
    figure = plots.plot_class_distances(AttentionRecord({"layer": maps}, np.arange(3)), CLASSES)
    assert figure.axes[0].get_xlabel() == "nearest: a and b (0.25)\nfarthest: a and c (1.00)"
    data = figure_data(figure).set_index(["layer", "class", "other class"])["distance"]
    assert data["layer", "b", "a"] == pytest.approx(0.25)
    assert len(data) == 9


@pytest.mark.parametrize("layers", [1, 2, 4, 5])
def test_class_distances_of_any_number_of_layers(layers):
    figure = plots.plot_class_distances(make_record(sizes=(3,) * layers), CLASSES)
    figure.draw_without_rendering()
    assert sum(bool(axes.images) for axes in figure.axes) == layers


@pytest.fixture(scope="module")
def many():
    """40 classes, of which the maps of number 23 are unlike all others."""
    record = AttentionRecord(make_record(samples=40).attention, np.arange(40))
    for maps in record.attention.values():
        maps[:] = 0.9 / 9 + 0.1 * maps
        maps[23] = 0
        maps[23, 0, 0] = 1
    return record, [f"class {number}" for number in range(40)]


def draw_classes(drawing, record, names, **options):
    if drawing == "distances":
        return plots.plot_class_distances(record, names, **options)
    return plots.plot_class_maps(record, "layer1", [0, 2], np.zeros((len(names), 8, 8)), names, **options)


@pytest.mark.parametrize(("drawing", "count"), [("distances", 12), ("maps", 8)])
def test_of_many_classes_the_most_different_are_shown(many, drawing, count):
    record, names = many
    figure = draw_classes(drawing, record, names)
    shown = figure_data(figure)["class"].unique().tolist()
    assert len(shown) == count
    assert "class 23" in shown
    assert shown == [name for name in names if name in shown]
    title = " ".join(figure.get_suptitle().split())  # where its lines break, depends on its length
    assert f"{count} of 40" in title or f"{count} most different of 40" in title


@pytest.mark.parametrize("drawing", ["distances", "maps"])
def test_classes_can_be_named(many, drawing):
    record, names = many
    figure = draw_classes(drawing, record, names, only=["class 3", "class 1"])
    assert figure_data(figure)["class"].unique().tolist() == ["class 3", "class 1"]
    if drawing == "maps":
        maps = map_images(figure)
        np.testing.assert_allclose(maps[0].get_array(), record.attention["layer1"][3, ..., 0])
    with pytest.raises(ValueError, match="no class 'cat'"):
        draw_classes(drawing, record, names, only=["cat"])
    with pytest.raises(ValueError, match="40 classes, but 3 names"):
        draw_classes(drawing, record, names[:3])


def test_classes_are_chosen_farthest_first():
    # Four classes on a line, two of them alike: the three chosen are all different.
    means = np.zeros((4, 1, 2, 1))
    means[:, 0, 0, 0] = [0, 0.01, 0.5, 1]
    means[:, 0, 1, 0] = 1 - means[:, 0, 0, 0]
    assert choose_apart([means], 3).tolist() in ([0, 2, 3], [1, 2, 3])
    assert choose_apart([means], 4).tolist() == [0, 1, 2, 3]


def test_without_labels_the_class_is_left_out_or_asked_for():
    record = make_record(labels=False)
    assert len(plots.plot_input_dependence(record).axes) == 1
    with pytest.raises(ValueError, match="no labels"):
        plots.plot_class_distances(record, CLASSES)


@pytest.mark.parametrize(
    "draw",
    [
        lambda record: plots.most_dependent_channels(record, "layer9", 2),
        lambda record: plots.plot_channel_maps(record, "layer9", [0], [0], PICTURES[:1], ["a"]),
        lambda record: plots.plot_class_maps(record, "layer9", [0], PICTURES, CLASSES),
    ],
)
def test_an_unknown_layer_is_named_beside_those_that_there_are(record, draw):
    with pytest.raises(ValueError, match=r"'layer9'.*layer1, layer2"):
        draw(record)


def test_no_maps_are_an_error(record):
    with pytest.raises(ValueError, match="no maps to draw"):
        plots.plot_channel_maps(record, "layer1", [], [0], PICTURES[:1], ["a"])
    with pytest.raises(ValueError, match="no maps to draw"):
        plots.plot_layer_maps(record, [], PICTURES[:0], [])
