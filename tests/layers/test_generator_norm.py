import re

import pytest
import torch
from torch import nn

from kaconv import KAConv2d, create_model
from kaconv.ops import fused

GENERATORS = [(attention, norm) for attention in ("L", "H") for norm in ("layer", "group", "none")]


@pytest.mark.parametrize(("attention", "norm"), GENERATORS)
def test_equals_the_formulas(attention, norm):
    torch.manual_seed(0)
    generator = KAConv2d(2, 6, 2, attention=attention, min_hidden=8, generator_norm=norm).double().attention_generator
    q = torch.randn(3, 4, 6, dtype=torch.float64)
    function = {
        "layer": lambda u: nn.functional.layer_norm(u, u.shape[-1:]),
        # two groups of four channels, each sample and position by itself
        "group": lambda u: nn.functional.layer_norm(u.unflatten(-1, (2, 4)), (4,)).flatten(-2),
        "none": lambda u: u,
    }[norm]
    squeeze, excite = generator.squeeze.weight, generator.excite.weight
    if attention == "L":
        hidden = torch.einsum("nkc,dkc->nd", q, squeeze.unflatten(1, (4, 6)))
    else:
        hidden = torch.einsum("nkc,dc->nkd", q, squeeze)
    logits = function(hidden).relu().flatten(1) @ excite.T
    torch.testing.assert_close(generator(q), logits.unflatten(1, (4, 6)).softmax(1))


@pytest.mark.parametrize("backend", ["eager", "fused"])
@pytest.mark.parametrize(("attention", "norm"), GENERATORS)
def test_a_batch_of_one_trains_on_every_backend(attention, norm, backend, monkeypatch):
    torch.manual_seed(0)
    calls = []
    forward = fused.kaconv2d
    monkeypatch.setattr(fused, "kaconv2d", lambda *arguments: calls.append(1) or forward(*arguments))
    layer = KAConv2d(4, 8, 3, groups=4, attention=attention, generator_norm=norm).double()
    x = torch.randn(1, 4, 7, 6, dtype=torch.float64, requires_grad=True)
    results = []
    for name in ("reference", backend):
        layer.backend = name
        output = layer(x)
        results.append((output, *torch.autograd.grad(output.square().sum(), (x, *layer.parameters()))))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)
    assert len(calls) == (backend == "fused")


def test_the_default_keeps_its_state_and_says_what_else_there_is():
    layer = KAConv2d(4, 8, 3)
    assert isinstance(layer.attention_generator.norm, nn.BatchNorm1d)
    with pytest.raises(ValueError, match=re.escape("got 1. Drop the last")) as caught:
        layer(torch.randn(1, 4, 6, 6))
    assert "generator_norm='layer'" in str(caught.value)
    with pytest.raises(ValueError, match="unknown generator_norm 'instance'; choose from batch, layer, group, none"):
        KAConv2d(4, 8, 3, generator_norm="instance")


@pytest.mark.parametrize("hidden", [1, 5, 6, 8, 32, 100])
def test_a_group_has_at_least_four_values(hidden):
    norm = KAConv2d(2, 4, 1, min_hidden=hidden, generator_norm="group").attention_generator.norm
    assert norm.num_groups == 1 or hidden // norm.num_groups >= 4
    assert hidden % norm.num_groups == 0


def test_a_whole_model_trains_on_one_sample():
    model = create_model("ka_resnet11_cifar_l", num_classes=3, generator_norm="group")
    model(torch.randn(1, 3, 16, 16)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
