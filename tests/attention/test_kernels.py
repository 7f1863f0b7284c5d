import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kaconv import AttentionCapture, KAConv2d, create_model, use_backend
from kaconv.attention.interventions import frozen, intervene
from kaconv.attention.kernels import (
    effective_kernel,
    kernel_pictures,
    linear_agreement,
    position_contributions,
    position_shares,
)


def lived_in(layer):
    """A layer whose norm has scales, shifts and statistics like those of a trained one."""
    with torch.no_grad():
        for parameter in (layer.norm.weight, layer.norm.bias, layer.norm.running_mean, layer.norm.running_var):
            parameter.uniform_(0.5, 2)
    return layer.eval()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def model():
    model = create_model("ka_resnet11_cifar_l", num_classes=4)
    model(torch.randn(16, 3, 16, 16))  # statistics for the norms
    return model.eval()


@pytest.fixture
def images():
    return torch.randn(5, 3, 16, 16)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kernel_size", [3, (2, 3)])
@torch.no_grad()
def test_without_activation_a_layer_is_the_convolution_with_its_effective_kernel(groups, kernel_size):
    options = {"stride": 2, "padding": 1, "groups": groups, "act_layer": nn.Identity}
    layer = lived_in(KAConv2d(4, 8, kernel_size, **options))
    x = torch.randn(3, 4, 9, 10)
    with AttentionCapture(layer) as capture:
        output = layer(x)
    attention = capture.record().attention[""]
    kernels = effective_kernel(layer, attention)
    assert kernels.shape == (3, 8, 4 // groups, *layer.kernel_size)
    for sample, kernel in enumerate(kernels):
        convolved = F.conv2d(x[[sample]], torch.from_numpy(kernel), stride=2, padding=1, groups=groups)
        constant = output[[sample]] - convolved
        torch.testing.assert_close(constant, constant[..., :1, :1].expand_as(constant), rtol=0, atol=1e-4)


def test_even_attention_gives_the_static_kernel():
    layer = lived_in(KAConv2d(4, 8, 3))
    even = np.full((3, 3, 8), 1 / 9)
    np.testing.assert_allclose(effective_kernel(layer, even, folded=False), layer.weight.detach() / 9, rtol=1e-6)
    layer.weight.data[:, :, 0, 0] *= 10  # and its norm has learned of it: nothing changes for the image
    layer.norm.running_var[:8] *= 100
    changed = effective_kernel(layer, even)
    layer.weight.data[:, :, 0, 0] /= 10
    layer.norm.running_var[:8] /= 100
    np.testing.assert_allclose(changed, effective_kernel(layer, even), rtol=1e-4)


def test_what_does_not_fit_a_layer_is_refused():
    layer = KAConv2d(4, 8, 3, norm_layer=lambda channels: nn.GroupNorm(2, channels))
    with pytest.raises(ValueError, match=r"shape \(\.\.\., 3, 3, 8\); got \(8, 3, 3\)"):
        effective_kernel(layer, np.ones((8, 3, 3)))
    with pytest.raises(ValueError, match="not PerPositionNorm: use folded=False"):
        effective_kernel(layer, np.ones((3, 3, 8)))
    assert effective_kernel(layer, np.ones((3, 3, 8)), folded=False).shape == (8, 4, 3, 3)


def test_kernel_pictures_are_weights_where_there_is_one_and_sizes_where_there_are_more():
    kernel = np.random.default_rng(0).normal(size=(5, 8, 4, 3, 2))
    sizes = kernel_pictures(kernel)
    assert sizes.shape == (5, 3, 2, 8)
    assert sizes[1, 2, 0, 7] == pytest.approx(np.sqrt((kernel[1, 7, :, 2, 0] ** 2).sum()))
    weights = kernel_pictures(kernel[:, :, :1])
    assert weights[1, 2, 0, 7] == kernel[1, 7, 0, 2, 0]


@pytest.mark.parametrize("backend", ["reference", "eager", "auto"])
@torch.no_grad()
def test_contributions_sum_to_the_layers_output(model, images, backend):
    outputs = {}
    layer = model.layer2[0].conv2
    layer.register_forward_hook(lambda module, inputs, output: outputs.update(conv=output))
    with use_backend(backend):
        contributions = position_contributions(model, images, "layer2.*")
    assert list(contributions) == ["layer2.0.conv2"]
    maps = contributions["layer2.0.conv2"]
    assert maps.shape == (5, 3, 3, 32, 8, 8)
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), outputs["conv"], atol=1e-4)


@torch.no_grad()
def test_shares_are_those_of_the_contributions(model, images):
    contributions = position_contributions(model, images)
    shares = position_shares(model, [(images[:3], torch.zeros(3)), images[3:]])
    assert shares.layers == list(contributions)
    for layer, maps in contributions.items():
        sums = maps.sum(axis=(4, 5))
        total = sums.sum(axis=(1, 2), keepdims=True)
        alive = np.broadcast_to(total > 1e-3, sums.shape)
        np.testing.assert_allclose(shares.maps(layer)["share"][alive], (sums / total)[alive], rtol=1e-3, atol=1e-5)


def test_maps_and_their_correlations(model, images):
    shares = position_shares(model, [images])
    layer = shares.layers[0]
    maps = shares.maps(layer)
    for values in maps.values():
        assert values.shape == (5, 3, 3, 16)
        np.testing.assert_allclose(np.nan_to_num(values.sum(axis=(1, 2)), nan=1), 1, rtol=1e-5)
    correlation = shares.correlation(layer, "attention", "share")
    flat = (maps[name][2, ..., 7].ravel() for name in ("attention", "share"))
    assert correlation[2, 7] == pytest.approx(np.corrcoef(*flat)[0, 1])
    with pytest.raises(ValueError, match="unknown map 'weight'; choose from attention, response, share"):
        shares.correlation(layer, "attention", "weight")


def test_even_attention_correlates_with_nothing_and_leaves_the_response(model, images):
    with intervene(model, frozen({"layer1.0.conv2": np.full((3, 3, 16), 1 / 9)}), "layer1.*"):
        shares = position_shares(model, [images], "layer1.*")
    maps = shares.maps("layer1.0.conv2")
    np.testing.assert_allclose(maps["share"], maps["response"], rtol=1e-5)
    assert np.isnan(shares.correlation("layer1.0.conv2", "attention", "share")).all()


def test_dead_channels_have_no_shares(model, images):
    model.layer1[0].conv2.norm.weight.data.zero_()
    model.layer1[0].conv2.norm.bias.data.fill_(-1)
    shares = position_shares(model, [images], "layer1.*")
    assert np.isnan(shares.maps("layer1.0.conv2")["share"]).all()
    assert np.isnan(shares.correlation("layer1.0.conv2", "attention", "share")).all()


@torch.no_grad()
def test_linear_agreement_is_one_where_the_activation_does_nothing(model, images):
    agreement = linear_agreement(model, images)
    assert {name: values.shape for name, values in agreement.items()} == {
        "layer1.0.conv2": (5, 16),
        "layer2.0.conv2": (5, 32),
        "layer3.0.conv2": (5, 64),
    }
    assert np.nanmax(agreement["layer1.0.conv2"]) < 1 - 1e-6
    model.layer1[0].conv2.norm.bias.data.fill_(100)  # nothing is below zero any more
    np.testing.assert_allclose(linear_agreement(model, images, "layer1.*")["layer1.0.conv2"], 1, atol=1e-3)


def test_the_model_is_left_as_it_was(model, images):
    model.train()
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    statistics = {name: value.clone() for name, value in model.state_dict().items()}
    position_contributions(model, images)
    position_shares(model, [images])
    with pytest.raises(RuntimeError):
        linear_agreement(model, images[:, :2])
    assert [module.training for module in model.modules()] == modes
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert all(torch.equal(value, statistics[name]) for name, value in model.state_dict().items())


def test_no_pictures_are_an_error(model):
    with pytest.raises(ValueError, match="no images"):
        position_shares(model, [])
    with pytest.raises(ValueError, match="no KAConv2d layer matches 'nothing'"):
        position_contributions(model, torch.zeros(1, 3, 16, 16), "nothing")
