"""The models by name: a family's name, with `ka_` before and `_l` or `_h` behind it."""

import difflib
import importlib
import os
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial

from torch import nn

from kaconv.models.classifier import Classifier
from kaconv.models.mobilenetv2 import MobileNetV2
from kaconv.models.resnet import PlainResNet, ResNet
from kaconv.utils.text import short_repr

# Builders take num_classes= and attention=, which is None for the plain model.
_FAMILIES: dict[str, Callable[..., Classifier]] = {
    "resnet50": partial(ResNet, (3, 4, 6, 3)),
    "resnet101": partial(ResNet, (3, 4, 23, 3)),
    "resnext50_32x4d": partial(ResNet, (3, 4, 6, 3), groups=32, base_width=4),
    "mobilenetv2_050": partial(MobileNetV2, half_width=True),
    "mobilenetv2_100": MobileNetV2,
    "resnet11_cifar": partial(ResNet, (1, 1, 1), planes=16, small_input=True),
    "resnet20_cifar": partial(ResNet, (2, 2, 2), planes=16, small_input=True),
    "resnet29_cifar": partial(ResNet, (3, 3, 3), planes=16, small_input=True),
}

# The plain twins are torchvision's own where it has them.
PLAIN: dict[str, Callable[..., Classifier]] = _FAMILIES | {
    "resnet50": partial(PlainResNet, [3, 4, 6, 3]),
    "resnet101": partial(PlainResNet, [3, 4, 23, 3]),
    "resnext50_32x4d": partial(PlainResNet, [3, 4, 6, 3], groups=32, base_width=4),
}

# The paper's ResNeXts and MobileNetV2s have no bias on the attention logits.
_NO_LOGIT_BIAS = ("resnext50_32x4d", "mobilenetv2_050", "mobilenetv2_100")
_KACONV = {
    f"ka_{family}_{attention.lower()}": partial(builder, attention=attention, logit_bias=family not in _NO_LOGIT_BIAS)
    for family, builder in _FAMILIES.items()
    for attention in ("L", "H")
}
BUILDERS = PLAIN | _KACONV
BUILDERS_VARIABLE = "KACONV_BUILDERS"  # of the environment: builders, with commas between, to be imported where named
OWN_BUILDERS: dict[str, Callable[..., nn.Module]] = {}  # of `register_builder`


def list_models(pattern: str = "*") -> list[str]:
    """The names that `create_model` takes, sorted, that match a shell pattern such as "ka_*"."""
    return sorted(name for name in BUILDERS if fnmatch(name, pattern))


def register_builder(path: str) -> Callable[..., nn.Module]:
    """Import a builder of your own and take "package.module:function" as a model's name from then on, in this process.

    The name then stands wherever a model's does: in `create_model`, a training's config, a checkpoint. Nothing that a
    file names is ever imported unless it was registered before.

    Args:
        path: where the builder is. It is called as `function(num_classes=..., **options)` and returns a new model,
            (N, 3, H, W) to (N, num_classes).

    Raises:
        ValueError: if there is no such module or function, or it cannot be called.

    Example:
        >>> builder = register_builder("my_package.nets:ka_resnet18")
        >>> model = create_model("my_package.nets:ka_resnet18", num_classes=10)
    """
    module, colon, function = str(path).partition(":")
    if not (colon and module and function):
        raise ValueError(f"a builder is given as package.module:function, got {path!r}")
    try:
        builder = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot import the builder {path}: {error}") from None
    if not callable(builder):
        raise ValueError(f"the builder {path} cannot be called: it is a {type(builder).__name__}")
    OWN_BUILDERS[path] = builder
    return builder


def register_builders(paths: list[str]) -> None:
    """Register builders that a command names; as for `python -m`, the folder where one is counts for the import."""
    sys.path.insert(0, "")
    for path in paths:
        register_builder(path)


def check_name(name: str) -> None:
    """Check that there is a model of this name; ValueError, with close matches, if there is none.

    A builder that the environment's `KACONV_BUILDERS` has is imported: so reports pass them on to their notebooks.
    """
    if not isinstance(name, str):
        raise ValueError(f"a model's name must be text, got {short_repr(name)}")
    if name in BUILDERS or name in OWN_BUILDERS:
        return
    if name in os.environ.get(BUILDERS_VARIABLE, "").split(","):
        register_builder(name)
        return
    if ":" in name:
        raise ValueError(
            f"{name} is a builder outside of kaconv, which runs when the model is built; if you trust it, call "
            f"kaconv.register_builder({name!r}) first, or give the command line --builder {name}"
        )
    close = difflib.get_close_matches(name, BUILDERS, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"choose from {', '.join(list_models())}"
    raise ValueError(f"unknown model {name!r}; {hint}")
