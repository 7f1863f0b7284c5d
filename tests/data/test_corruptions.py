import pytest
import torch
from torch.nn import functional as F

from kaconv.data.corruptions import CORRUPTIONS, SEVERITIES, corrupted
from kaconv.data.datasets import load_data
from kaconv.inference import evaluate
from kaconv.models import create_model

FIRST = 3


@pytest.fixture(scope="module")
def data():
    return load_data("photos", image_size=96)


def pixels(bundle, number=FIRST):
    return bundle.preprocessing.denormalise(bundle.test[number][0])


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_each_severity_moves_the_image_further_and_leaves_size_label_and_range(corruption, data):
    clean, distances = pixels(data), [0.0]
    for severity in SEVERITIES:
        bundle = corrupted(data, corruption, severity)
        image, label = bundle.test[FIRST]
        assert image.shape == (3, 96, 96)
        assert label == data.test[FIRST][1]
        shown = image * torch.tensor(data.preprocessing.std).view(3, 1, 1) + torch.tensor(data.preprocessing.mean).view(
            3, 1, 1
        )
        assert shown.min() > -1e-6
        assert shown.max() < 1 + 1e-6
        distances.append((shown - clean).square().mean().item())
    assert distances == sorted(distances)
    assert distances[1] > 5e-5


def test_what_each_corruption_does(data):
    clean = pixels(data)
    torch.testing.assert_close(pixels(corrupted(data, "brightness", 2)), (clean + 0.2).clamp(0, 1), atol=1e-5, rtol=0)
    middle = clean.mean((1, 2), keepdim=True)
    torch.testing.assert_close(
        pixels(corrupted(data, "contrast", 1)), (middle + 0.4 * (clean - middle)).clamp(0, 1), atol=1e-5, rtol=0
    )
    noise = pixels(corrupted(data, "noise", 1)) - clean
    inside = (clean > 0.4) & (clean < 0.6)
    assert noise[inside].std().item() == pytest.approx(0.08, rel=0.15)
    coarse = pixels(corrupted(data, "pixelate", 5))  # a quarter of 96 pixels: blocks of 4
    torch.testing.assert_close(coarse, F.interpolate(coarse[None, :, ::4, ::4], scale_factor=4)[0], atol=1e-6, rtol=0)


def test_the_noise_is_the_same_every_time_and_another_for_each_image(data):
    noisy = corrupted(data, "noise", 3)
    assert torch.equal(noisy.test[0][0], noisy.test[0][0])
    grey = [torch.zeros(3, 96, 96), torch.zeros(3, 96, 96)]
    flat = corrupted(
        type(data)("grey", None, list(zip(grey, [0, 0], strict=True)), ["x"], data.preprocessing), "noise", 1
    )
    assert not torch.equal(flat.test[0][0], flat.test[1][0])


def test_a_model_is_evaluated_on_them(data):
    torch.manual_seed(0)
    model = create_model("mobilenetv2_050", len(data.classes))
    assert evaluate(model, corrupted(data, "jpeg", 5).test).n == len(data.test)


def test_mistyped(data):
    with pytest.raises(ValueError, match="unknown corruption 'fog'; choose from noise, blur, brightness"):
        corrupted(data, "fog", 1)
    with pytest.raises(ValueError, match="severity must be a whole number from 1 to 5, got 6"):
        corrupted(data, "noise", 6)
