"""Building a model with new weights."""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kaconv.data.preprocessing import IMAGENET, Preprocessing
from kaconv.layers import KAConv2d
from kaconv.models.classifier import Classifier, initialise_linear
from kaconv.models.registry import BUILDERS, OWN_BUILDERS, PLAIN, check_name

NETWORK_OPTIONS = {"in_chans", "global_pool", "drop_rate", "norm_layer", "replace_stride_with_dilation"}  # of all
OPTIONS = "build_options"  # the attribute of a model that `save_checkpoint` reads


def build_model(name: str, num_classes: int | None = None, **options: Any) -> nn.Module:
    """A model by name, new, in training mode; see `kaconv.create_model`, which can load weights, too.

    Kaconv's own models are initialised as in the paper's recipe; the others are as their builder gives them. No module
    works in place. What it was built with, but for `backend`, goes with the model as `build_options`.
    """
    check_name(name)
    if num_classes is not None and (not isinstance(num_classes, int) or num_classes < 0):
        raise ValueError(f"num_classes must be an integer of at least 0; got {num_classes!r}")
    num_classes = 1000 if num_classes is None else num_classes
    if name in PLAIN and (foreign := options.keys() - NETWORK_OPTIONS):
        raise ValueError(f"{name} has no KAConv2d, so it takes no {', '.join(sorted(foreign))}")
    if name in OWN_BUILDERS:
        model: nn.Module = OWN_BUILDERS[name](num_classes=num_classes, **options)
        if not isinstance(model, nn.Module):
            raise ValueError(f"the builder {name} gave no nn.Module but a {type(model).__name__}")
    else:
        model = _build_own(name, num_classes, options)
    for module in model.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]  # so that a hook's value stays what the hook has seen
    model.build_options = {key: value for key, value in options.items() if key != "backend"}  # type: ignore[assignment]
    return model


def _build_own(name: str, num_classes: int, options: dict[str, Any]) -> Classifier:
    model = BUILDERS[name](num_classes=num_classes, **options)
    _initialise(model)
    describe_data(model, name, IMAGENET.at(32 if "_cifar" in name else None))
    return model


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, KAConv2d | _BatchNorm):
            module.reset_parameters()
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.Linear):
            initialise_linear(module)


def describe_data(model: Classifier, name: str, preprocessing: Preprocessing) -> None:
    """Say in a model what timm asks it for: its preprocessing, and where the input and the classes are."""
    side = preprocessing.image_size
    model.default_cfg = model.pretrained_cfg = {
        "architecture": name,
        "num_classes": model.num_classes,
        "input_size": (3, side, side),
        "pool_size": (side // model.feature_info[-1]["reduction"],) * 2,
        "interpolation": preprocessing.interpolation,
        "crop_pct": side / preprocessing.resize,
        "mean": tuple(preprocessing.mean),
        "std": tuple(preprocessing.std),
        "first_conv": model.first_conv,
        "classifier": model.head,
    }
