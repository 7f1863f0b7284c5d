import numpy as np
import pytest
import torch

from kaconv import AttentionCapture, KAConv2d, create_model
from kaconv.attention.interventions import intervene, uniform
from kaconv.attention.stability import (
    ANOTHER_OF_ITS_CLASS,
    ANOTHER_PICTURE,
    Change,
    attention_stability,
    blur,
    flip,
    noise,
    rotation,
    shift,
)
from kaconv.data.preprocessing import DIGITS

LAYERS = ["layer1.0.conv2", "layer2.0.conv2", "layer3.0.conv2"]
UNCHANGED = Change("nothing", "", "", (lambda images: images,))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = create_model("ka_resnet11_cifar_l", num_classes=4)
    model(torch.randn(16, 3, 16, 16))
    return model.eval()


@pytest.fixture(scope="module")
def pictures():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(12, 3, 16, 16, generator=generator) * torch.linspace(0.3, 1, 12).view(-1, 1, 1, 1)


@pytest.fixture(scope="module")
def images(pictures):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (DIGITS.mean, DIGITS.std))
    return (pictures - mean) / std


def of(rows, change):
    return [row for row in rows if row["change"] == change]


def test_shifts_move_whole_pixels_in_four_directions_and_repeat_the_border(pictures):
    right, left, down, up = (variant(pictures) for variant in shift(3).variants)
    assert torch.equal(right[..., 3:], pictures[..., :-3])
    assert torch.equal(right[..., :3], pictures[..., :1].expand(-1, -1, -1, 3))
    assert torch.equal(left[..., :-3], pictures[..., 3:])
    assert torch.equal(down[..., 3:, :], pictures[..., :-3, :])
    assert torch.equal(up[..., :-3, :], pictures[..., 3:, :])


def test_flips_and_quarter_turns_are_exact(pictures):
    assert torch.equal(flip("left-right").variants[0](pictures), pictures.flip(3))
    assert torch.equal(flip("top-bottom").variants[0](pictures), pictures.flip(2))
    assert torch.equal(rotation(90).variants[0](pictures), pictures.rot90(1, (2, 3)))
    assert torch.equal(rotation(90).variants[1](pictures), pictures.rot90(-1, (2, 3)))
    assert torch.equal(rotation(180).variants[0](pictures), pictures.flip(2, 3))


def test_a_small_turn_and_its_opposite_cancel_in_the_middle():
    y, x = torch.meshgrid(torch.linspace(0, 1, 32), torch.linspace(0, 1, 32), indexing="ij")
    smooth = (0.5 * x + 0.3 * y).expand(1, 3, 32, 32)
    there, back = rotation(10).variants
    assert (there(smooth) - smooth).abs().max() > 0.02
    middle = (..., slice(8, 24), slice(8, 24))
    torch.testing.assert_close(back(there(smooth))[middle], smooth[middle], atol=0.01, rtol=0)


@pytest.mark.parametrize(
    "change", [shift(2), rotation(20), blur(1), blur(9), noise(0.3)], ids=lambda change: change.name
)
@pytest.mark.parametrize("size", [(16, 16), (8, 12)])
def test_changed_pictures_keep_their_size_and_range(change, size):
    pictures = torch.rand(2, 3, *size)
    for variant in change.variants:
        changed = variant(pictures)
        assert changed.shape == pictures.shape
        assert changed.min() >= -1e-6
        assert changed.max() <= 1 + 1e-6
        assert not torch.allclose(changed, pictures, atol=1e-3)


def test_stronger_blur_leaves_less_and_noise_is_as_strong_as_it_says(pictures):
    spread = [blur(sigma).variants[0](pictures).std(dim=(2, 3)).mean() for sigma in (0.5, 1, 2)]
    assert spread == sorted(spread, reverse=True)
    grey = torch.full((1, 3, 64, 64), 0.5)
    assert float(noise(0.1).variants[0](grey).std()) == pytest.approx(0.1, rel=0.05)


def test_changes_have_names_and_unknown_flips_are_refused():
    names = [change.name for change in (shift(1), flip("left-right"), rotation(45), blur(0.5), noise(0.1))]
    assert names == ["shift 1 px", "flip left-right", "rotation 45 degrees", "blur 0.5 px", "noise 0.1 of the range"]
    with pytest.raises(ValueError, match="unknown flip 'sideways'; choose from left-right, top-bottom"):
        flip("sideways")


def test_the_rows_are_what_capturing_by_hand_gives(model, images):
    rows = attention_stability(model, images, DIGITS, [flip("left-right")], batch_size=5)
    assert [row["layer"] for row in rows] == LAYERS * 2
    with torch.no_grad(), AttentionCapture(model) as capture:
        model(images)
        model(images.flip(3))
    for row in of(rows, "flip left-right"):
        before, after = np.split(capture.record().attention[row["layer"]], 2)
        assert row["distance"] == pytest.approx(np.abs(before - after).sum(axis=(1, 2)).mean() / 2, rel=1e-3)
        predictions = np.split(capture.record().predictions, 2)
        assert row["kept"] == pytest.approx((predictions[0] == predictions[1]).mean())
        (reference,) = (r for r in of(rows, ANOTHER_PICTURE) if r["layer"] == row["layer"])
        assert row["relative"] == pytest.approx(row["distance"] / reference["distance"])


def test_nothing_is_no_distance_and_another_picture_is_one(model, images):
    rows = attention_stability(model, images, DIGITS, [UNCHANGED])
    for row in of(rows, "nothing"):
        assert (row["distance"], row["pixels"], row["kept"]) == (0, 0, 1)
    for row in of(rows, ANOTHER_PICTURE):
        assert row["relative"] == row["pixels"] == 1
        assert row["distance"] > 0.01


def test_the_distance_over_variants_is_their_mean(model, images):
    one = Change("half", "", "", (lambda images: images.flip(3), lambda images: images))
    rows = attention_stability(model, images, DIGITS, [one, flip("left-right")])
    halves, wholes = of(rows, "half"), of(rows, "flip left-right")
    np.testing.assert_allclose([2 * row["relative"] for row in halves], [row["relative"] for row in wholes])


def test_pictures_of_a_class_are_compared_with_each_other(model, images):
    # Every image is there twice, and has a class with its double: another of its class is the same image.
    twice, labels = torch.cat([images, images]), np.tile(np.arange(12), 2)
    rows = attention_stability(model, twice, DIGITS, [], labels)
    assert all(row["distance"] < 1e-6 for row in of(rows, ANOTHER_OF_ITS_CLASS))
    assert all(row["distance"] > 0.01 for row in of(rows, ANOTHER_PICTURE))


def test_a_class_of_one_picture_does_not_count(model, images):
    rows = attention_stability(model, images, DIGITS, [], np.array([0, 0, *range(1, 11)]))
    alone = attention_stability(model, images[:2], DIGITS, [])
    for row, expected in zip(of(rows, ANOTHER_OF_ITS_CLASS), alone, strict=True):
        assert row["distance"] == pytest.approx(expected["distance"], rel=1e-4)
    assert not of(attention_stability(model, images, DIGITS, [], np.arange(12)), ANOTHER_OF_ITS_CLASS)


def test_static_attention_has_no_scale(model, images):
    with intervene(model, uniform()):
        rows = attention_stability(model, images, DIGITS, [shift(1)])
    assert all(row["distance"] == 0 and np.isnan(row["relative"]) for row in rows)
    assert of(rows, "shift 1 px")[0]["pixels"] > 0


def test_it_is_repeatable_and_leaves_the_random_numbers_and_the_model_alone(model, images):
    def measure(global_seed, seed):
        torch.manual_seed(global_seed)
        rows = attention_stability(model, images, DIGITS, [noise(0.2)], seed=seed)
        assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(global_seed)))
        return [row["distance"] for row in of(rows, "noise 0.2 of the range")]

    in_eval, statistics = measure(1, seed=3), {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    assert in_eval == measure(2, seed=3) != measure(1, seed=4)
    assert all(module.training for module in model.modules())
    model.eval()
    assert all(torch.equal(value, statistics[name]) for name, value in model.state_dict().items())
    assert not [module for module in model.modules() if module._forward_hooks]


def test_a_model_that_is_no_classifier_keeps_no_class(images):
    layer = KAConv2d(3, 8, 3)
    layer(images)
    (row,) = attention_stability(layer, images, DIGITS, [])
    assert np.isnan(row["kept"])
    assert row["distance"] > 0


def test_bad_input_is_refused(model, images):
    with pytest.raises(ValueError, match=r"at least 2 images are needed.*got 1"):
        attention_stability(model, images[:1], DIGITS, [])
    with pytest.raises(ValueError, match="there are 12 images, but 3 labels"):
        attention_stability(model, images, DIGITS, [], np.zeros(3))
    with pytest.raises(ValueError, match="no KAConv2d layer matches 'nothing'"):
        attention_stability(model, images, DIGITS, [], layers="nothing")
