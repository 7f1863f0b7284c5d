import numpy as np
import pytest
import torch

from kaconv import create_model
from kaviz.explorer.gallery import Gallery
from kaviz.explorer.views import Settings, view

LAYER = "layer2.0.conv2"


@pytest.fixture(scope="module")
def gallery():
    torch.manual_seed(0)
    model = create_model("ka_resnet11_cifar_l", num_classes=4)
    images = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return Gallery(model, images, labels=[0, 1, 2, 3] * 3)


def see(gallery, **settings):
    return view(gallery, Settings(**{"layer": LAYER} | settings))


def test_the_mean_over_the_channels(gallery):
    seen = see(gallery, a=3)
    np.testing.assert_allclose(seen.panels[0].maps[0], gallery.own().maps(LAYER, 3).mean(axis=-1), rtol=1e-6)
    assert seen.names == ["mean"]
    assert seen.distances is None


def test_channels_that_move_most(gallery):
    seen = see(gallery, channels="those that move most")
    dependence = gallery.own().record.input_dependence(LAYER)
    assert [int(name) for name in seen.names] == np.argsort(-dependence, kind="stable")[:8].tolist()
    expected = gallery.own().maps(LAYER, 0)[..., int(seen.names[2])]
    np.testing.assert_array_equal(seen.panels[0].maps[2], expected)


def test_means_of_classes(gallery):
    seen = see(gallery, a=1, b=5, maps_of="its class, mean")  # both of class 1
    expected = gallery.own().record.attention[LAYER][1::4].mean(axis=(0, -1))
    np.testing.assert_allclose(seen.panels[0].maps[0], expected, rtol=1e-5)
    assert set(seen.distances.values()) == {0.0}


def test_two_pictures_and_how_far_they_are_apart(gallery):
    seen = see(gallery, a=0, b=1)
    maps = gallery.own().record.attention[LAYER]
    expected = np.abs(maps[0] - maps[1]).sum(axis=(0, 1)).mean() / 2
    assert seen.distances[LAYER] == pytest.approx(float(expected), rel=1e-5)
    assert list(seen.distances) == gallery.layers
    assert f"{expected:.3f} apart" in " ".join(seen.caption)


def test_an_intervention_stands_beside_what_was_before(gallery):
    seen = see(gallery, intervention="uniform")
    assert [panel.name for panel in seen.panels] == ["A", "A before"]
    now, before = seen.panels
    np.testing.assert_allclose(now.maps, 1 / 9, rtol=1e-6)
    np.testing.assert_array_equal(now.before, before.probabilities)
    assert before.before is None
    alone = see(gallery, intervention="uniform", b=2)
    assert [panel.name for panel in alone.panels] == ["A", "B"]


def test_an_intervention_in_one_layer_leaves_the_layers_before_it(gallery):
    seen = see(gallery, intervention="uniform", where="this layer")
    assert seen.distances["layer1.0.conv2"] == pytest.approx(0, abs=1e-6)
    assert seen.distances[LAYER] > 0.01


def test_the_scale_fits_a_layer_or_all_and_stays_for_other_pictures(gallery):
    own = gallery.own().record
    reaches = {layer: np.abs(own.deviation(layer).mean(axis=-1)).max() for layer in gallery.layers}
    assert see(gallery).reach == see(gallery, a=7, intervention="uniform").reach == pytest.approx(reaches[LAYER])
    assert see(gallery, scale="all layers").reach == pytest.approx(max(reaches.values()))


def test_a_scale_ends_at_no_attention_and_the_caption_says_what_is_beyond(gallery):
    own = gallery.own().record.attention[LAYER].copy()
    gallery.own().record.attention[LAYER][0, ..., 3] = np.eye(9)[4].reshape(3, 3)
    try:
        seen = see(gallery, channels="one channel", channel=3)
        assert seen.reach == 1
        assert "reach up to 1.000, beyond the scale" in " ".join(seen.caption)
        seen.figure()
    finally:
        gallery.own().record.attention[LAYER][:] = own


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layer": "layer9"}, "no layer 'layer9'"),
        ({"a": 12}, "from 0 to 11"),
        ({"b": -1}, "from 0 to 11"),
        ({"channels": "one channel", "channel": 32}, "channels 0 to 31"),
        ({"maps_of": "x"}, "maps_of must be one of"),
        ({"where": "layer1"}, "where must be one of"),
    ],
)
def test_settings_that_cannot_be_are_named(gallery, wrong, message):
    with pytest.raises(ValueError, match=message):
        see(gallery, **wrong)


def test_a_mean_over_an_unlabelled_class_is_refused():
    torch.manual_seed(0)
    model = create_model("ka_resnet11_cifar_l", num_classes=4)
    gallery = Gallery(model, torch.zeros(2, 3, 16, 16))
    with pytest.raises(ValueError, match="no picture is labelled"):
        see(gallery, maps_of="its class, mean")
