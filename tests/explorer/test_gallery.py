import io

import numpy as np
import pytest
import torch
from PIL import Image

from kaconv import create_model
from kaconv.attention.interventions import intervene, uniform
from kaconv.data.preprocessing import Preprocessing
from kaviz.explorer.gallery import INTERVENTIONS, Gallery

PREPROCESSING = Preprocessing(16, 16, "bilinear", mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("ka_resnet11_cifar_l", num_classes=4).eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(70, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def gallery(model, images):
    return Gallery(model, images, labels=[index % 4 for index in range(70)], preprocessing=PREPROCESSING)


def test_probabilities_are_the_models_own(gallery, model, images):
    with torch.no_grad():
        expected = model(images).softmax(1).numpy()
    np.testing.assert_allclose(gallery.own().probabilities, expected, atol=1e-6)


def test_interventions_are_those_of_the_library(gallery, model, images):
    with torch.no_grad(), intervene(model, uniform(), "layer2.*"):
        expected = model(images).softmax(1).numpy()
    outcome = gallery.under("uniform", "layer2.*")
    np.testing.assert_allclose(outcome.probabilities, expected, atol=1e-6)
    np.testing.assert_allclose(outcome.maps("layer2.0.conv2", 3), 1 / 9, rtol=1e-6)


@pytest.mark.parametrize("kind", INTERVENTIONS)
def test_some_pictures_fare_as_among_all(gallery, kind):
    which = {"position": 2 if kind == "one position removed" else None, "donor": 8 if "B" in kind else None}
    some, whole = gallery.under(kind, samples=[5, 66], **which), gallery.under(kind, **which)
    for index in (5, 66):
        np.testing.assert_allclose(some.prediction(index), whole.prediction(index), atol=1e-5)
        for layer in gallery.layers:
            np.testing.assert_allclose(some.maps(layer, index), whole.maps(layer, index), atol=1e-5)


def test_the_attention_of_b_is_b_s(gallery):
    outcome = gallery.under("attention of B", donor=8)
    own = gallery.own()
    np.testing.assert_allclose(outcome.maps("layer3.0.conv2", 0), own.maps("layer3.0.conv2", 8), atol=1e-6)
    np.testing.assert_allclose(outcome.prediction(8), own.prediction(8), atol=1e-5)


def test_only_its_own_outcome_and_the_last_one_are_kept(gallery):
    own = gallery.own()
    for kind in ("uniform", "shuffled", "frozen to the mean"):
        gallery.under(kind)
    assert gallery.own() is own
    assert len(gallery._kept) == 2


def test_what_cannot_be_done_is_named(gallery):
    for wrong, message in [
        ({"intervention": "magic"}, "no intervention 'magic'"),
        ({"intervention": "attention of B"}, "needs a picture B"),
        ({"intervention": "uniform", "layers": "layer9.*"}, "no KAConv2d layer matches"),
        ({"intervention": "one position removed", "position": 9}, "from 0 to 8"),
    ]:
        with pytest.raises(ValueError, match=message):
            gallery.under(**wrong)


def test_outputs_that_are_not_finite_are_refused(model, images):
    with pytest.raises(ValueError, match="not finite"):
        Gallery(model, images[:2] * float("nan"))


def test_pictures_have_names_classes_and_mistakes(gallery):
    predicted = gallery.own().prediction(1).argmax()
    assert gallery.name(1) == "picture 1, a “1”"
    expected = "picture 1, a “1”" if predicted == 1 else f"picture 1, a “1”, taken for “{predicted}”"
    assert gallery.describe(1) == expected
    label, members = gallery.class_members(2)
    assert label == 2
    assert np.flatnonzero(members)[:3].tolist() == [2, 6, 10]


def test_an_added_picture_is_prepared_like_the_others_and_upright(gallery):
    picture = Image.new("RGBA", (20, 20), (0, 0, 255, 255))
    picture.paste((255, 255, 255, 0), (0, 0, 20, 10))  # its upper half is transparent
    content = io.BytesIO()
    picture.save(content, "PNG")
    before = gallery.own()
    index = gallery.add(content.getvalue(), "half.png")
    assert index == len(gallery) - 1 == 70
    shown = gallery.picture(index)
    np.testing.assert_allclose(shown[[2, -3], 8], [[1, 1, 1], [0, 0, 1]], atol=0.02)
    assert gallery.label(index) is None
    assert len(gallery.own().record) == 71
    np.testing.assert_allclose(gallery.own().prediction(0), before.prediction(0), atol=1e-5)


def test_of_an_animation_the_first_frame_is_taken(gallery):
    content = io.BytesIO()
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    frames[0].save(content, "GIF", save_all=True, append_images=frames[1:])
    index = gallery.add(content.getvalue(), "a.gif")
    np.testing.assert_allclose(gallery.picture(index)[8, 8], [1, 0, 0], atol=0.02)


def test_a_picture_that_would_become_a_long_strip_is_refused(model):
    wide = Preprocessing(160, 160, "bilinear", mean=(0.5,) * 3, std=(0.5,) * 3)
    gallery = Gallery(model, torch.zeros(1, 3, 160, 160), preprocessing=wide)
    content = io.BytesIO()
    Image.new("L", (9_999, 1)).save(content, "PNG")
    with pytest.raises(ValueError, match="too long a strip"):
        gallery.add(content.getvalue(), "line.png")


def test_pictures_of_unknown_preprocessing_are_shown_in_their_own_range(model, images):
    gallery = Gallery(model, images * 7)
    assert (gallery.picture(0).min(), gallery.picture(0).max()) == pytest.approx((0, 1))
    with pytest.raises(ValueError, match="preprocessed"):
        gallery.add(b"", "a.png")


def test_positions_have_names(model, images, gallery):
    assert gallery.positions("layer1.0.conv2")[4] == "centre"
    gallery.kernels["other"] = ((5, 5), 3)
    assert gallery.positions("other")[7] == "row 2, column 3"
