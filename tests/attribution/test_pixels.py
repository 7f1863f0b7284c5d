import pytest
import torch
from torch import nn

from kaconv import create_model
from kaviz.attribution import METHODS, attribute, perturbation_curve


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


def test_restores_the_mode_on_error(network):
    network.train()
    before = _state(network)
    with pytest.raises((AssertionError, IndexError, RuntimeError)):
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
    ],
)
def test_bad_requests(network, arguments, message):
    with pytest.raises(ValueError, match=message):
        attribute(network, torch.randn(1, 3, 8, 8), 0, **arguments)
    with pytest.raises(ValueError, match="pictures"):
        attribute(network, torch.randn(3, 8, 8), 0)


def test_perturbation_curves_of_a_linear_model(images):
    model, fractions = Linear(), [0, 0.25, 0.5, 1]
    attributions = attribute(model, images, 1, "input_x_gradient")
    deletion = perturbation_curve(model, images, 1, attributions, fractions)
    insertion = perturbation_curve(model, images, 1, attributions, fractions, insertion=True)
    with torch.no_grad():
        whole, empty = model(images).softmax(1)[:, 1], torch.full((3,), 0.25)
    torch.testing.assert_close(deletion[:, 0], whole)
    torch.testing.assert_close(deletion[:, -1], empty)
    torch.testing.assert_close(insertion[:, 0], empty)
    torch.testing.assert_close(insertion[:, -1], whole)
    # Half of the pixels, by hand.
    contributions = attributions.sum(1).flatten(1)
    for image, contribution, probability in zip(images, contributions, deletion[:, 2], strict=True):
        rest = image.flatten(1).clone()
        rest[:, contribution.topk(18).indices] = 0
        expected = model(rest.view(1, 3, 6, 6)).softmax(1)[0, 1]
        torch.testing.assert_close(probability, expected.detach())


def test_perturbation_curve_refuses_what_does_not_fit(images):
    with pytest.raises(ValueError, match="must have the inputs' shape"):
        perturbation_curve(Linear(), images, 0, images[:, :1], [0.5])
    with pytest.raises(ValueError, match=r"\[0, 1\], got \[1.5\]"):
        perturbation_curve(Linear(), images, 0, images, [1.5])
