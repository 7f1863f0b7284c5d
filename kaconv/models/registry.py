"""`create_model` and `list_models`. A model's name is its family's, with `ka_` before and `_l` or `_h` behind."""

import contextlib
import difflib
import http.client
import pickle
import socket
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import torch
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

_TORCHVISION_WEIGHTS = {
    "resnet50": torchvision.models.ResNet50_Weights.IMAGENET1K_V1,
    "resnet101": torchvision.models.ResNet101_Weights.IMAGENET1K_V1,
    "resnext50_32x4d": torchvision.models.ResNeXt50_32X4D_Weights.IMAGENET1K_V1,
    "mobilenetv2_100": torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1,
}
_DOWNLOAD_TIMEOUT = 20  # seconds without an answer


def list_models(pattern: str = "*") -> list[str]:
    """The names that `create_model` takes, sorted, that match a shell pattern such as "ka_*"."""
    return sorted(name for name in _BUILDERS if fnmatch(name, pattern))


def create_model(
    name: str, num_classes: int | None = None, *, weights: str | Path | None = None, **kaconv_options: Any
) -> nn.Module:
    """A model by name, in training mode: (N, 3, H, W) to (N, num_classes) logits. No module works in place.

    Without `weights` it is initialised as in the paper's recipe: convolutions and linear layers are Kaiming-normal
    (fan-in), norms 1, biases 0.

    Args:
        name: one of `list_models()`.
        num_classes: if not given, that of the weights, else 1000.
        weights: the path of a kaconv checkpoint of this model; or "torchvision" for the plain ImageNet models that
            torchvision has weights of. These are its IMAGENET1K_V1 ones: they come from the classic recipe (random
            crops and flips), as the paper's baselines do, while V2's is longer and stronger, and its ResNets' errors
            are about 4 percentage points lower. They are downloaded to PyTorch's cache the first time.
        kaconv_options: further arguments of `KAConv2d`, such as `reduction=8`, for every one in the model.

    Raises:
        ValueError: for an unknown name, less than one class, options for a model without KAConv2d, or weights that
            are not of this model and number of classes.
        FileNotFoundError: if there is no such checkpoint, or torchvision's weights cannot be downloaded.

    Example:
        >>> model = create_model("ka_resnet50_l", num_classes=10)
    """
    check_name(name)
    if num_classes is not None and (not isinstance(num_classes, int) or num_classes < 1):
        raise ValueError(f"num_classes must be an integer of at least 1; got {num_classes!r}")
    if kaconv_options and name in _PLAIN:
        raise ValueError(f"{name} has no KAConv2d, so it takes no {', '.join(kaconv_options)}")
    if not (weights is None or isinstance(weights, str | Path)):
        raise ValueError(f"weights must be a path or 'torchvision'; got {weights!r}")
    if weights is not None and weights != "torchvision":
        from kaconv.checkpoints import load_weights  # which imports this module

        return load_weights(weights, name, num_classes, **kaconv_options)
    if weights == "torchvision":
        _check_torchvision_has(name, num_classes)
    model = _BUILDERS[name](num_classes=num_classes or 1000, **kaconv_options)
    _initialise(model)
    if weights == "torchvision":
        _load_torchvision_weights(model, name)
    return model


def check_name(name: str) -> None:
    """ValueError, with close matches, if there is no model of this name."""
    if name not in _BUILDERS:
        close = difflib.get_close_matches(str(name), _BUILDERS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"choose from {', '.join(list_models())}"
        raise ValueError(f"unknown model {name!r}; {hint}")


def _check_torchvision_has(name: str, num_classes: int | None) -> None:
    if name not in _TORCHVISION_WEIGHTS:
        raise ValueError(f"torchvision has no weights of {name}; it has them of {', '.join(_TORCHVISION_WEIGHTS)}")
    if num_classes not in (None, 1000):
        raise ValueError(f"torchvision's weights of {name} are for 1000 classes, not {num_classes}")


def _load_torchvision_weights(model: nn.Module, name: str) -> None:
    weights = _TORCHVISION_WEIGHTS[name]
    file = Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # it says that it downloads
            state = weights.get_state_dict(check_hash=True, weights_only=True, map_location="cpu")
        model.load_state_dict(state)
    except (OSError, http.client.HTTPException, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, pickle.UnpicklingError):
            reason = "it holds more than weights, or none"  # torch's own text advises to load it unsafely
        elif "state_dict" in reason:
            reason = "its weights do not fit"
        advice = "remove it" if file.exists() else f"without a network, put {weights.url} there"
        raise FileNotFoundError(f"cannot get torchvision's weights of {name} as {file}: {reason}; {advice}") from None
    finally:
        socket.setdefaulttimeout(timeout)


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
