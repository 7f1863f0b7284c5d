"""Building a model with new weights."""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kaconv.layers import KAConv2d
from kaconv.models.registry import BUILDERS, PLAIN, check_name


def build_model(name: str, num_classes: int | None = None, **kaconv_options: Any) -> nn.Module:
    """A model by name, initialised, in training mode; see `kaconv.create_model`, which can load weights, too."""
    check_name(name)
    if num_classes is not None and (not isinstance(num_classes, int) or num_classes < 1):
        raise ValueError(f"num_classes must be an integer of at least 1; got {num_classes!r}")
    if kaconv_options and name in PLAIN:
        raise ValueError(f"{name} has no KAConv2d, so it takes no {', '.join(kaconv_options)}")
    model = BUILDERS[name](num_classes=num_classes or 1000, **kaconv_options)
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
