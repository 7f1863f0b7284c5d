import numpy as np
import pytest
import torch
from torch import nn

from kaconv import create_model
from kaviz.attribution import METHODS, NOISE_TUNNELS, attribute
from kaviz.attribution.pixels import superpixels


class Linear(nn.Module):
    """Logits that are linear in the pixels; its weights are the gradients."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        return torch.einsum("nchw,kchw->nk", x, self.weight)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return create_model("ka_resnet11_cifar_l", num_classes=4)


@pytest.fixture
def images():
    return torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def test_integrated_gradients_and_input_x_gradient_of_a_linear_model(images):
    model, target, baseline = Linear(), torch.tensor([2, 0, 3]), 0.25
    weights = model.weight.detach()[target]
    torch.testing.assert_close(
        attribute(model, images, target, "integrated_gradients", baselines=baseline), weights * (images - baseline)
    )
    torch.testing.assert_close(attribute(model, images, target, "input_x_gradient"), weights * images)
    torch.testing.assert_close(attribute(model, images, target, "saliency"), weights.abs())


def test_occlusion_of_single_values_of_a_linear_model(images):
    model = Linear()
    options = {"sliding_window_shapes": (1, 1, 1), "strides": (1, 1, 1)}
    expected = model.weight.detach()[1] * images
    torch.testing.assert_close(attribute(model, images, 1, "occlusion", **options), expected, atol=1e-4, rtol=1e-4)


def test_grad_cam_of_known_maps():
    # The maps are the input itself, the logit the mean over them times a weight per channel.
    model = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1, bias=False))
    model[3].weight.data = torch.tensor([[1.0, -2.0]])
    x = torch.randn(2, 2, 4, 4)
    expected = ((x[:, :1] - 2 * x[:, 1:]) / 16).expand_as(x)
    torch.testing.assert_close(attribute(model, x, 0, "grad_cam"), expected)
    torch.testing.assert_close(attribute(model, x, 0, "grad_cam", layer="0"), expected)


def test_integrated_gradients_are_complete(network):
    images = torch.randn(2, 3, 8, 8)
    network.double().eval()
    images = images.double()
    attributions = attribute(network, images, 1, n_steps=256)
    with torch.no_grad():
        difference = (network(images) - network(torch.zeros_like(images)))[:, 1]
    torch.testing.assert_close(attributions.sum((1, 2, 3)), difference, atol=0.02 * difference.abs().max(), rtol=0)


def _state(model):
    return [
        (name, module.training, len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
        for name, module in model.named_modules()
    ]


@pytest.mark.parametrize("method", METHODS)
def test_leaves_no_trace(network, method):
    network.train()
    network.layer2.eval()  # a mixed mode
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    before = _state(network)
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        attributions = attribute(network, images, torch.tensor([0, 3]), method)
    assert attributions.shape == images.shape
    assert not attributions.requires_grad
    assert attributions.abs().sum() > 0
    assert _state(network) == before
    assert not images.requires_grad
    assert images.grad is None
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in network.named_buffers())


def test_every_method_works_on_relu6_and_leaves_the_activations_where_they_were():
    model = relu6_network()
    before = list(model.modules())
    images = torch.randn(2, 3, 8, 8)
    for method in METHODS:
        assert torch.isfinite(attribute(model, images, 1, method)).all()
    assert len(before) == len(list(model.modules()))
    assert all(a is b for a, b in zip(before, model.modules(), strict=True))


def relu6_network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 8, 3), nn.ReLU6(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(32, 4)).eval()
    model[0].weight.data *= 8  # some values beyond 6
    return model


def test_deep_lift_is_complete_for_relu6():
    model, images = relu6_network().double(), torch.randn(2, 3, 8, 8).double()
    found, delta = attribute(model, images, 1, "deep_lift", return_convergence_delta=True)
    with torch.no_grad():
        change = (model(images) - model(torch.zeros_like(images)))[:, 1]
    torch.testing.assert_close(found.sum((1, 2, 3)), change)
    assert delta.abs().max() < 1e-6


def test_guided_backprop_of_relu6_lets_no_negative_gradient_pass():
    model = nn.Sequential(nn.Flatten(), nn.ReLU6(), nn.Linear(4, 1, bias=False)).eval()
    model[2].weight.data = torch.tensor([[1.0, -1.0, 2.0, 3.0]])
    x = torch.tensor([[[[1.0, 1.0], [-1.0, 7.0]]]])
    assert attribute(model, x, 0, "guided_backprop").flatten().tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("method", ["integrated_gradients", "grad_cam", "feature_ablation", "deep_lift"])
def test_a_pair_is_the_difference_of_two_classes(network, method):
    """These four are linear in the score."""
    images, this = torch.randn(2, 3, 8, 8), torch.tensor([0, 2])
    difference = attribute(network, images, this, method) - attribute(network, images, 3, method)
    torch.testing.assert_close(attribute(network, images, (this, 3), method), difference, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("noise_tunnel", NOISE_TUNNELS)
def test_noise_is_seeded_and_the_global_generators_go_on(network, noise_tunnel):
    images = torch.randn(2, 3, 8, 8)
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(5)
    np.random.seed(5)
    options = {"method": "saliency", "noise_tunnel": noise_tunnel, "nt_samples": 3}
    first, again, other = (attribute(network, images, 1, seed=seed, **options) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.rand(1), expected[0])
    assert np.random.rand() == expected[1]


def test_the_delta_of_gradient_shap_is_one_for_each_image():
    model, images = Linear(), torch.randn(3, 3, 6, 6)
    found, delta = attribute(model, images, 1, "gradient_shap", return_convergence_delta=True)
    assert delta.shape == (3,)
    expected = found.sum((1, 2, 3)) - (model(images) - model(torch.zeros_like(images)))[:, 1]
    torch.testing.assert_close(delta, expected.detach(), atol=1e-4, rtol=1e-3)


def test_memory_is_bounded_and_the_parts_make_the_whole(network, monkeypatch):
    images, labels = torch.randn(5, 3, 8, 8), torch.tensor([0, 1, 2, 3, 0])
    whole = attribute(network, images, labels, "integrated_gradients", n_steps=4)
    sizes = []
    handle = network.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    monkeypatch.setattr("kaviz.attribution.pixels.images_per_pass", lambda inputs: 4)
    parts = attribute(network, images, labels, "integrated_gradients", n_steps=4)
    handle.remove()
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-4)
    assert max(sizes) <= 4


@pytest.mark.parametrize("installed", [True, False])
def test_feature_ablation_covers_superpixels(monkeypatch, installed):
    if installed:
        pytest.importorskip("skimage")
    else:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    model, images = Linear(), torch.randn(2, 3, 6, 6)
    segments = superpixels(images, 9)
    found = attribute(model, images, 1, "feature_ablation", feature_mask=segments)
    effects = (model.weight.detach()[1] * images).sum(1)
    for image in range(2):
        assert segments[image].min() == 0
        for segment in segments[image].unique():
            here = segments[image, 0] == segment
            expected = effects[image][here].sum().expand(3, int(here.sum()))
            torch.testing.assert_close(found[image][:, here], expected, atol=1e-4, rtol=1e-4)
    if not installed:
        assert segments[0].unique().tolist() == list(range(9))


def test_restores_the_mode_on_error(network):
    network.train()
    before = _state(network)
    with pytest.raises(ValueError, match="classes must be from 0 to 3, got 99"):
        attribute(network, torch.randn(2, 3, 8, 8), 99, "grad_cam")
    assert _state(network) == before


def test_grad_cam_is_the_same_in_every_channel_and_follows_its_layer(network):
    images = torch.randn(2, 3, 8, 8)
    coarse, fine = (attribute(network, images, 0, "grad_cam", layer=layer) for layer in ("layer3", "layer1"))
    assert torch.equal(coarse, coarse[:, :1].expand_as(coarse))
    assert torch.equal(coarse, attribute(network, images, 0, "grad_cam"))
    assert not torch.allclose(coarse, fine)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "integrated_gradient"}, "did you mean 'integrated_gradients'"),
        ({"method": "tea leaves"}, "choose from integrated_gradients, grad_cam, occlusion"),
        ({"method": "grad_cam", "layer": "layer33"}, "no layer 'layer33'; did you mean layer3"),
        ({"method": "grad_cam", "layer": "fc"}, "'fc' does not"),
        ({"method": "lrp"}, "LRP has no rule for KAConv's product"),
        ({"method": "saliency", "layer": "layer3"}, "saliency takes no layer; grad_cam and guided_grad_cam do"),
        ({"method": "saliency", "return_convergence_delta": True}, "saliency has no convergence delta; integrated_"),
        ({"method": "occlusion", "noise_tunnel": "smoothgrad"}, "occlusion uses no gradients"),
        ({"method": "saliency", "noise_tunnel": "rain"}, "unknown noise tunnel 'rain'; choose from smoothgrad"),
        ({"noise_tunnel": "vargrad", "return_convergence_delta": True}, "no convergence delta"),
    ],
)
def test_bad_requests(network, arguments, message):
    with pytest.raises(ValueError, match=message):
        attribute(network, torch.randn(1, 3, 8, 8), 0, **arguments)
    with pytest.raises(ValueError, match="images"):
        attribute(network, torch.randn(3, 8, 8), 0)
    with pytest.raises(ValueError, match="a class for all 2 images, or one for each"):
        attribute(network, torch.randn(2, 3, 8, 8), torch.tensor([0, 1, 2]))
