"""`create_model` and `list_models`. A model's name is its family's, with `ka_` before and `_l` or `_h` behind."""

import difflib
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from typing import Any

import torchvision
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kaconv.layers import KAConv2d
from kaconv.models.mobilenetv2 import mobilenetv2
from kaconv.models.resnet import ResNet

# Builders take num_classes= and attention=, which is None for the plain model.
_FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "resnet50": partial(ResNet, (3, 4, 6, 3)),
    "resnet101": partial(ResNet, (3, 4, 23, 3)),
    # The paper's ResNeXts and MobileNetV2s have no bias on the attention logits.
    "resnext50_32x4d": partial(ResNet, (3, 4, 6, 3), groups=32, base_width=4, logit_bias=False),
    "mobilenetv2_050": partial(mobilenetv2, half_width=True, logit_bias=False),
    "mobilenetv2_100": partial(mobilenetv2, logit_bias=False),
    "resnet11_cifar": partial(ResNet, (1, 1, 1), planes=16, small_input=True),
    "resnet20_cifar": partial(ResNet, (2, 2, 2), planes=16, small_input=True),
    "resnet29_cifar": partial(ResNet, (3, 3, 3), planes=16, small_input=True),
}

# The plain twins are torchvision's own where it has them.
_PLAIN = _FAMILIES | {
    "resnet50": torchvision.models.resnet50,
    "resnet101": torchvision.models.resnet101,
    "resnext50_32x4d": torchvision.models.resnext50_32x4d,
}

_KACONV = {
    f"ka_{family}_{attention.lower()}": partial(builder, attention=attention)
    for family, builder in _FAMILIES.items()
    for attention in ("L", "H")
}
_BUILDERS = _PLAIN | _KACONV


def list_models(pattern: str = "*") -> list[str]:
    """The names that `create_model` takes, sorted, that match a shell pattern such as "ka_*"."""
    return sorted(name for name in _BUILDERS if fnmatch(name, pattern))


def create_model(name: str, num_classes: int = 1000, **kaconv_options: Any) -> nn.Module:
    """A model by name, initialised as in the paper's recipe: (N, 3, H, W) to (N, num_classes) logits.

    Convolutions and linear layers are Kaiming-normal (fan-in), norms 1, biases 0. No module works in place.

    Args:
        name: one of `list_models()`.
        kaconv_options: further arguments of `KAConv2d`, such as `reduction=8`, for every one in the model.

    Raises:
        ValueError: for an unknown name, less than one class, or options for a model without KAConv2d.

    Example:
        >>> model = create_model("ka_resnet50_l", num_classes=10)
    """
    if name not in _BUILDERS:
        close = difflib.get_close_matches(str(name), _BUILDERS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"choose from {', '.join(list_models())}"
        raise ValueError(f"unknown model {name!r}; {hint}")
    if not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"num_classes must be an integer of at least 1; got {num_classes!r}")
    if kaconv_options and name in _PLAIN:
        raise ValueError(f"{name} has no KAConv2d, so it takes no {', '.join(kaconv_options)}")
    model = _BUILDERS[name](num_classes=num_classes, **kaconv_options)
    _initialise(model)
    return model


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, KAConv2d | _BatchNorm):
            module.reset_parameters()
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if getattr(module, "inplace", False):
            module.inplace = False  # so that a hook's value stays what the hook has seen
