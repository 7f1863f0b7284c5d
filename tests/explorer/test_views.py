import base64
import io

import numpy as np
import pytest
from PIL import Image
from records import photographs, record_of

from kaconv.attention.record import AttentionRecord
from kaviz.explorer.views import attribution_pack, outcome_pack, position_pack, unpack, view_pack


def record(samples=5, kernel=(3, 3), channels=7, **more):
    random = np.random.default_rng(0)
    maps = random.dirichlet(np.ones(kernel[0] * kernel[1]), (samples, channels))
    attention = maps.reshape(samples, channels, *kernel).transpose(0, 2, 3, 1).astype(np.float32)
    return AttentionRecord({"a.conv": attention, "b": attention[..., :2]}, **more)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 7)])
def test_attention_comes_back_within_half_a_step(kernel):
    given = record(kernel=kernel)
    header, arrays = unpack(view_pack(given))
    assert [layer["name"] for layer in header["layers"]] == ["a.conv", "b"]
    assert header["layers"][0]["kernel"] == list(kernel)
    for layer, maps in given.attention.items():
        error = np.abs(arrays[f"attention/{layer}"] - maps).max()
        assert error <= header["arrays"][f"attention/{layer}"]["step"] / 2 + 1e-7
        np.testing.assert_allclose(arrays[f"dependence/{layer}"], given.input_dependence(layer), rtol=1e-6)
    assert header["arrays"]["attention/a.conv"]["step"] <= 1 / 4095


def test_names_labels_and_predictions_stand_in_the_header():
    given = record(labels=np.arange(5), ids=np.array([f"IMG_{n}.jpg" for n in range(5)]))
    probabilities = np.random.default_rng(0).dirichlet(np.ones(6), 5)
    header, arrays = unpack(view_pack(given, probabilities=probabilities, classes=list("uvwxyz"), title="T"))
    assert header["names"][3] == "IMG_3.jpg"
    assert header["predictions"] == probabilities.argmax(axis=1).tolist()
    assert (header["labels"], header["classes"], header["title"]) == ([0, 1, 2, 3, 4], list("uvwxyz"), "T")
    np.testing.assert_allclose(arrays["probabilities"], probabilities, rtol=1e-6)
    guesses = probabilities.argmax(axis=1)
    assert header["right"] == (guesses == np.arange(5)).tolist()
    wrong = int(np.flatnonzero(guesses != np.arange(5))[0])
    assert header["about"][wrong] == f"IMG_{wrong}.jpg, {'uvwxyz'[wrong]}, taken for {'uvwxyz'[guesses[wrong]]}"


def test_what_is_not_known_is_said_as_such():
    header, _ = unpack(view_pack(record()))
    assert header["names"][2] == header["about"][2] == "image 2"
    assert (header["labels"], header["right"], header["pictures"]) == ([-1] * 5, [None] * 5, [])
    header, _ = unpack(view_pack(record(predictions=np.array([3, 0, 0, 0, 0]))))
    assert header["about"][0] == "image 0, taken for class 3"


@pytest.mark.parametrize(("side", "kind", "size"), [(32, "image/png", (32, 32)), (300, "image/jpeg", (224, 224))])
def test_small_images_are_exact_and_large_ones_made_smaller(side, kind, size):
    header, _ = unpack(view_pack(record(2), images=photographs(2, side)))
    start, content = header["pictures"][1].split(",")
    assert start == f"data:{kind};base64"
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == size


def test_maps_that_are_alike_are_kept_once():
    given = record()
    even = {layer: np.full_like(maps, 1 / 9) for layer, maps in given.attention.items()}
    _, arrays = unpack(outcome_pack("uniform", AttentionRecord(even), np.ones((5, 2)) / 2))
    assert arrays["attention/b"].shape == (1, 3, 3, 2)
    np.testing.assert_allclose(arrays["attention/b"], 1 / 9, rtol=1e-6)
    _, arrays = unpack(outcome_pack("shuffled", given, np.ones((5, 2)) / 2))
    np.testing.assert_allclose(arrays["attention/b"], given.attention["b"], atol=1 / 510 + 1e-6)


def test_attributions_are_in_per_cent_of_the_strongest():
    maps = np.random.default_rng(0).normal(size=(3, 20, 30)) * np.array([1, 10, 0])[:, None, None]
    header, arrays = unpack(attribution_pack("Some method", maps))
    strongest = np.abs(maps).max(axis=(1, 2))
    np.testing.assert_allclose(arrays["scale"], strongest, rtol=1e-6)
    shown = (arrays["percent"].astype(float) - 100) / 100 * strongest[:, None, None]
    assert np.abs(shown - maps).max() <= 0.0051 * strongest.max()
    assert (arrays["percent"][2] == 100).all()
    assert header["method"] == "Some method"
    assert unpack(attribution_pack("m", np.ones((1, 224, 112))))[1]["percent"].shape == (1, 64, 32)


def test_position_attributions_are_summed_over_the_channels():
    values = np.random.default_rng(0).normal(size=(3, 5, 7, 4))
    header, arrays = unpack(position_pack("ablation", {"a": values, "b": values[..., 0]}, note="Complete."))
    np.testing.assert_allclose(arrays["values/a"], values.sum(-1), rtol=1e-5)
    np.testing.assert_allclose(arrays["values/b"], values[..., 0], rtol=1e-6)
    assert header["note"] == "Complete."


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: view_pack(record(), images=photographs(2, 8)), "5 samples, but there are 2 images"),
        (lambda: view_pack(record(), probabilities=np.ones((5, 2)), classes=["a"]), "2 classes, but 1 names"),
        (lambda: attribution_pack("m", np.ones((3, 4))), r"finite maps \(N, h, w\)"),
        (lambda: attribution_pack("m", np.full((1, 4, 4), np.nan)), "finite"),
        (lambda: position_pack("m", {"a": np.ones((3, 9))}), r"of a must be finite \(N, kh, kw\)"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_same_view_gives_the_same_bytes():
    assert view_pack(record()) == view_pack(record())


def test_64_images_of_a_resnet50_stay_below_8_megabytes():
    content = view_pack(record_of("ka_resnet50_l", 64), images=photographs(64))
    assert len(content) * 4 / 3 < 7.5e6  # as base64; the module and the rest are 0.1 MB
