from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kaconv import AttentionCapture, attention_statistics, create_model, intervene
from kaconv.attention.hooks import kaconv_layers, watching
from kaconv.attention.interventions import uniform
from kaconv.attention.kernels import linear_agreement, position_contributions, position_shares

NAME = "ka_resnet11_cifar_l"


class Broken(Exception):
    pass


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = create_model(NAME, num_classes=4)
    model.layer2.eval()  # a part in another mode, to be left in it
    return model


def capture(model: nn.Module, images: Tensor) -> None:
    with AttentionCapture(model):
        model(images)


def change(model: nn.Module, images: Tensor) -> None:
    with intervene(model, uniform()):
        model(images)


def watch(model: nn.Module, images: Tensor) -> None:
    with watching(model, "*", lambda name, layer: lambda q, attention: None):
        model(images)


USERS: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "watching": watch,
    "AttentionCapture": capture,
    "intervene": change,
    "attention_statistics": lambda model, images: attention_statistics(model, [images]),
    "position_contributions": position_contributions,
    "linear_agreement": linear_agreement,
    "position_shares": lambda model, images: position_shares(model, [images]),
}


def traces(model: nn.Module) -> tuple:
    modules = list(model.modules())
    hooks = [
        [len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks)] for module in modules
    ]
    return hooks, [module.training for module in modules], torch.is_grad_enabled()


@pytest.mark.parametrize("ends", ["well", "in an error"])
@pytest.mark.parametrize("user", USERS)
def test_nothing_is_left_behind(model, user, ends):
    before, images = traces(model), torch.randn(2, 3, 16, 16)
    if ends == "well":
        USERS[user](model, images)
    else:
        handle = model.layer3.register_forward_hook(fail)
        with pytest.raises(Broken):
            USERS[user](model, images)
        handle.remove()
    assert traces(model) == before


def fail(*arguments: object) -> None:
    raise Broken


def test_a_hook_sees_pooled_maps_and_attention_and_may_replace_it(model):
    seen = []

    def make_hook(name: str, layer: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
        def hook(q: Tensor, attention: Tensor) -> Tensor:
            seen.append((name, q.shape, attention.shape))
            return torch.full_like(attention, 1 / 9)

        return hook

    images = torch.randn(2, 3, 16, 16)
    with watching(model, "layer1.*", make_hook) as layers, AttentionCapture(model) as after:
        model(images)
    assert list(layers) == list(kaconv_layers(model, "layer1.*"))
    assert seen == [(name, (2, 9, layer.out_channels), (2, 9, layer.out_channels)) for name, layer in layers.items()]
    assert np.allclose(after.record().attention[next(iter(layers))], 1 / 9)


def test_a_pattern_that_matches_nothing_is_refused(model):
    with pytest.raises(ValueError, match=r"no KAConv2d layer matches 'layer9.\*'"), watching(model, "layer9.*", watch):
        pass
