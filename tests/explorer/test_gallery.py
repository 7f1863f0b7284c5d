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


def test_a_class_may_be_unknown(model, images):
    gallery = Gallery(model, images[:2], labels=[-1, 3])
    assert gallery.label(0) is None
    assert gallery.label(1) == 3
    assert gallery.describe(0).startswith("image 0, taken for ")
    with pytest.raises(ValueError, match=r"from 0 to 3, or -1 where the class is not known; got \[-1, 4\]"):
        Gallery(model, images[:2], labels=[-1, 4])


def test_interventions_are_those_of_the_library(gallery, model, images):
    with torch.no_grad(), intervene(model, uniform(), "layer2.*"):
        expected = model(images).softmax(1).numpy()
    outcome = gallery.under("uniform", "layer2.*")
    np.testing.assert_allclose(outcome.probabilities, expected, atol=1e-6)
    np.testing.assert_allclose(outcome.record.attention["layer2.0.conv2"], 1 / 9, rtol=1e-6)


def test_the_attention_of_b_is_b_s(gallery):
    outcome = gallery.under("attention of B", donor=8)
    own = gallery.own()
    maps, theirs = (one.record.attention["layer3.0.conv2"] for one in (outcome, own))
    np.testing.assert_allclose(maps[0], theirs[8], atol=1e-6)
    np.testing.assert_allclose(outcome.probabilities[8], own.probabilities[8], atol=1e-5)


def test_its_own_outcome_and_the_last_one_are_kept(gallery):
    own, last = gallery.own(), gallery.under("uniform")
    assert gallery.own() is own
    assert gallery.under("uniform") is last
    assert gallery.under("frozen to the mean") is not last
    assert gallery.under("uniform") is not last


@pytest.mark.parametrize("kind", [kind for kind in INTERVENTIONS if kind != "none"])
def test_progress_is_told_and_can_end_the_work(gallery, model, kind):
    which = {"position": 2 if kind == "one position removed" else None, "donor": 8 if "B" in kind else None}
    told = []
    gallery.under(kind, **which, watch=lambda done, of: told.append((done, of)))
    assert told[0] == (0, 70)
    assert told == sorted(set(told))

    def stop(done, of):
        raise InterruptedError

    hooks = [len(module._forward_hooks) for module in model.modules()]
    with pytest.raises(InterruptedError):
        gallery.under(kind, "layer1.*", **which, watch=stop)
    assert [len(module._forward_hooks) for module in model.modules()] == hooks


def test_shares_of_the_output_are_those_of_the_layers(gallery, model, images):
    kept = []
    handle = model.layer2[0].conv2.register_forward_hook(lambda module, inputs, output: kept.append(output))
    with torch.no_grad():
        model(images[:2])
    handle.remove()
    size = kept[0].abs().mean((2, 3))
    expected = (size / size.sum(1, keepdim=True)).numpy()
    np.testing.assert_allclose(gallery.own().shares["layer2.0.conv2"][:2], expected, atol=1e-6)


def test_a_model_that_gives_maps_is_refused_in_a_sentence(model, images):
    class Maps(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(x)[..., None, None]

    with pytest.raises(ValueError, match=r"class scores \(N, classes\); this one gives a tensor \(2, 4, 1, 1\)"):
        Gallery(Maps(), images[:2])


def test_what_cannot_be_done_is_named(gallery):
    for wrong, message in [
        ({"intervention": "magic"}, "no intervention 'magic'"),
        ({"intervention": "attention of B"}, "needs an image B"),
        ({"intervention": "uniform", "layers": "layer9.*"}, "no KAConv2d layer matches"),
        ({"intervention": "one position removed", "position": 9}, "from 0 to 8"),
    ]:
        with pytest.raises(ValueError, match=message):
            gallery.under(**wrong)


def test_outputs_that_are_not_finite_are_refused(model, images):
    with pytest.raises(ValueError, match="not finite"):
        Gallery(model, images[:2] * float("nan"))


def test_images_have_names_classes_and_mistakes(gallery, model, images):
    predicted = gallery.own().probabilities[1].argmax()
    expected = "image 1, a “1”" if predicted == 1 else f"image 1, a “1”, taken for “{predicted}”"
    assert gallery.describe(1) == expected
    assert Gallery(model, images[:2], ids=["IMG_0003.jpg", 4]).ids == ["IMG_0003.jpg", "4"]


def test_an_added_picture_is_prepared_like_the_others_and_upright(gallery):
    picture = Image.new("RGBA", (20, 20), (0, 0, 255, 255))
    picture.paste((255, 255, 255, 0), (0, 0, 20, 10))  # its upper half is transparent
    content = io.BytesIO()
    picture.save(content, "PNG")
    before = gallery.own()
    refused = gallery.add([("bad.png", b"text"), ("half.png", content.getvalue()), ("again.png", content.getvalue())])
    assert [line.partition(":")[0] for line in refused] == ["cannot read the image bad.png"]
    assert len(gallery) == 72
    assert gallery.ids[70:] == ["half.png", "again.png"]
    shown = gallery.picture(70)
    np.testing.assert_allclose(shown[[2, -3], 8], [[1, 1, 1], [0, 0, 1]], atol=0.02)
    assert gallery.label(70) is None
    own = gallery.own()
    assert len(own.record) == len(own.probabilities) == len(own.shares["layer2.0.conv2"]) == 72
    np.testing.assert_array_equal(own.probabilities[:70], before.probabilities)
    np.testing.assert_allclose(own.probabilities[70], own.probabilities[71], atol=1e-6)


def test_of_an_animation_the_first_frame_is_taken(gallery):
    content = io.BytesIO()
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    frames[0].save(content, "GIF", save_all=True, append_images=frames[1:])
    assert gallery.add([("a.gif", content.getvalue())]) == []
    np.testing.assert_allclose(gallery.picture(70)[8, 8], [1, 0, 0], atol=0.02)


def test_a_picture_that_would_become_a_long_strip_is_refused(model):
    wide = Preprocessing(160, 160, "bilinear", mean=(0.5,) * 3, std=(0.5,) * 3)
    gallery = Gallery(model, torch.zeros(1, 3, 160, 160), preprocessing=wide)
    content = io.BytesIO()
    Image.new("L", (9_999, 1)).save(content, "PNG")
    (refused,) = gallery.add([("line.png", content.getvalue())])
    assert "too long a strip" in refused
    assert len(gallery) == 1


def test_pictures_of_unknown_preprocessing_are_shown_in_their_own_range(model, images):
    gallery = Gallery(model, images * 7)
    assert (gallery.picture(0).min(), gallery.picture(0).max()) == pytest.approx((0, 1))
    with pytest.raises(ValueError, match="preprocessed"):
        gallery.add([("a.png", b"")])


def test_positions_have_names(model, images, gallery):
    assert gallery.positions("layer1.0.conv2")[4] == "centre"
    gallery.kernels["other"] = ((5, 5), 3)
    assert gallery.positions("other")[7] == "row 2, column 3"
