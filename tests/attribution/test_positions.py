import copy

import numpy as np
import pytest
import torch
from torch import nn

from kaconv import KAConv2d, create_model
from kaviz.attribution import POSITION_METHODS, attribute, attribute_positions, explain, position_agreement


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = create_model("ka_resnet11_cifar_l", num_classes=4).double().train()
    model(3 * torch.randn(8, 3, 16, 16, dtype=torch.float64))
    for module in model.modules():
        if isinstance(module, KAConv2d):  # an attention that is far from even
            nn.init.normal_(module.attention_generator.excite.weight, std=0.5)
    return model.eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def one_position(position, kernel=3):
    """A network whose score is read from the map of one kernel position alone; the other positions' maps are 0."""
    torch.manual_seed(0)
    layer = KAConv2d(2, 4, kernel)
    nn.init.normal_(layer.attention_generator.excite.weight, std=0.5)
    positions = torch.arange(layer.kernel_size[0] * layer.kernel_size[1])
    with torch.no_grad():
        layer.weight.flatten(2)[:, :, positions != position] = 0
    return nn.Sequential(layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).double().eval()


@pytest.mark.parametrize(("kernel", "position"), [(3, 1), (3, 4), ((1, 5), 3)])
@pytest.mark.parametrize("method", POSITION_METHODS)
def test_finds_the_one_position_that_is_used(method, kernel, position):
    model = one_position(position, kernel)
    x = torch.randn(2, 2, 9, 9, dtype=torch.float64)
    found = attribute_positions(model, x, 1, method, n_steps=8)
    shares = np.abs(found.maps("0")).reshape(2, -1)
    assert (shares.argmax(axis=1) == position).all()
    assert np.delete(shares, position, axis=1).max() < 1e-9 * shares.max()
    if method == "ablation":  # nothing else is there: without this position, the score is the bias
        with torch.no_grad():
            expected = (model(x)[:, 1] - model[3].bias[1]).numpy()
        np.testing.assert_allclose(found.maps("0").reshape(2, -1)[:, position], expected)


@pytest.fixture
def smooth(network, monkeypatch):
    """The network with SiLU for ReLU: without kinks, Gauss and Legendre's rule is exact to rounding within few steps.

    With ReLU its error falls only as 1/n_steps, so that nothing but a loose bound could be held.
    """
    monkeypatch.setattr(nn.functional, "relu", nn.functional.silu)  # in the attention generators
    model = copy.deepcopy(network)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.SiLU())
    return model


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("target", [1, (torch.tensor([0, 1, 2]), 3)], ids=["class", "pair"])
def test_integrated_gradients_are_complete(smooth, images, together, target):
    found = attribute_positions(smooth, images, target, together=together, n_steps=8)
    keys = ["all layers"] if together else list(found.contributions)
    assert list(found.change) == keys
    assert max(found.completeness().values()) < 1e-9
    assert all(np.abs(change).max() > 1e-4 for change in found.change.values())


def test_completeness_is_a_check_that_can_fail(network, images):
    coarse, fine = (attribute_positions(network, images, 1, n_steps=n).completeness()["all layers"] for n in (1, 24))
    assert coarse > 2 * fine


def test_a_linear_score_by_hand(images):
    """One layer and a linear read-out: the gradient with respect to A is the pooled map times the weight."""
    torch.manual_seed(0)
    layer = KAConv2d(3, 4, 3)
    model = nn.Sequential(layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).double().eval()
    seen = {}
    handle = layer.attention_generator.register_forward_hook(
        lambda module, inputs, output: seen.update(q=inputs[0].detach(), a=output.detach())
    )
    model(images)
    handle.remove()
    found = attribute_positions(model, images, 1, n_steps=2)
    expected = (seen["a"] - 1 / 9) * seen["q"] * model[3].weight.detach()[1]
    np.testing.assert_allclose(found.contributions["0"], expected.unflatten(1, (3, 3)).numpy(), atol=1e-12)
    ablated = attribute_positions(model, images, 1, "ablation")
    expected = (seen["a"] * seen["q"] * model[3].weight.detach()[1]).sum(-1)
    np.testing.assert_allclose(ablated.maps("0"), expected.unflatten(1, (3, 3)).numpy(), atol=1e-12)


def test_leaves_no_trace(network, images):
    network.train()
    attribute_positions(network, images, 1, "ablation", layers="layer2*")
    assert all(module.training for module in network.modules())
    network.eval()
    assert not [module for module in network.modules() if module._forward_hooks]
    assert all(parameter.grad is None for parameter in network.parameters())


def test_bad_requests(network, images):
    with pytest.raises(ValueError, match="unknown method 'lime' for positions; choose from integrated_gradients"):
        attribute_positions(network, images, 1, "lime")
    with pytest.raises(ValueError, match="no KAConv2d layer matches"):
        attribute_positions(network, images, 1, layers="conv9")
    with pytest.raises(ValueError, match="n_steps must be at least 1, got 0"):
        attribute_positions(network, images, 1, n_steps=0)
    with pytest.raises(ValueError, match="classes must be from 0 to 3, got 4"):
        attribute_positions(network, images, 4)


def test_agreement_of_attention_and_use():
    attention = {"a": np.arange(18.0).reshape(2, 3, 3), "b": np.ones((2, 3, 3, 4))}
    uses = {"a": np.stack([attention["a"][0], -attention["a"][1]]), "b": np.arange(72.0).reshape(2, 3, 3, 4)}
    found = position_agreement(attention, uses)
    np.testing.assert_allclose(found["a"], [1, -1])
    assert np.isnan(found["b"]).all()


def test_an_explanation_is_plain_arrays(network, images):
    found = explain(network, images, 1, methods=["saliency", "grad_cam"], layers="layer[12]*", progress=False)
    assert list(found.pixels) == ["saliency", "grad_cam"]
    saliency = attribute(network, images, 1, "saliency").sum(1).numpy()
    np.testing.assert_allclose(found.pixels["saliency"], saliency, rtol=1e-6)
    assert {name: maps.shape for name, maps in found.positions.items()} == {
        name: maps.shape for name, maps in found.attention.items()
    }
    assert len(found.positions) == 2
    for maps in (*found.pixels.values(), *found.positions.values(), *found.attention.values()):
        assert maps.dtype == np.float32
    assert set(found.completeness) == {"all layers"}
