"""kaconv's models under their names in timm and torchvision."""

import importlib.util
from collections.abc import Callable
from typing import Any

from torch import nn
from torchvision.models import list_models as list_torchvision_models
from torchvision.models._api import register_model as register_in_torchvision  # it has no public name

from kaconv.data.preprocessing import IMAGENET
from kaconv.models.factory import create_model
from kaconv.models.registry import list_models


def register() -> list[str]:
    """Make the KAConv models known to `torchvision.models.get_model`, and to `timm.create_model` where timm is.

    They come without pretrained weights, and take `num_classes` and `KAConv2d`'s options. The plain models are left
    out: both libraries have their own under these names. A second call changes nothing.

    Returns:
        The names, as of `kaconv.list_models("ka_*")`.

    Example:
        >>> names = kaconv.register()
        >>> model = timm.create_model("ka_resnet50_l", num_classes=10)
    """
    names = list_models("ka_*")
    known = set(list_torchvision_models())
    for name in names:
        if name not in known:
            register_in_torchvision(name)(_torchvision_builder(name))
    if importlib.util.find_spec("timm") is not None:
        import timm

        for name in names:
            if not timm.is_model(name):
                timm.models.register_model(_timm_builder(name))
    return names


def _torchvision_builder(name: str) -> Callable[..., nn.Module]:
    def build(*, weights: object = None, progress: bool = True, num_classes: int = 1000, **options: Any) -> nn.Module:
        _check_no_pretrained(name, weights)
        return create_model(name, num_classes, **options)

    return build


def _timm_builder(name: str) -> Callable[..., nn.Module]:
    def build(
        pretrained: bool = False,
        pretrained_cfg: object = None,
        pretrained_cfg_overlay: object = None,
        cache_dir: object = None,
        num_classes: int = 1000,
        **options: Any,
    ) -> nn.Module:
        _check_no_pretrained(name, pretrained)
        model = create_model(name, num_classes, **options)
        cfg = _data_config(name, num_classes)
        model.pretrained_cfg = model.default_cfg = cfg  # type: ignore[assignment]
        return model

    build.__name__ = name  # which timm registers it by
    return build


def _check_no_pretrained(name: str, wanted: object) -> None:
    if wanted:
        raise ValueError(
            f"{name} has no pretrained weights in timm or torchvision; kaconv.create_model({name!r}, weights=PATH) "
            "loads a checkpoint"
        )


def _data_config(name: str, num_classes: int) -> dict[str, Any]:
    """What `timm.data.resolve_data_config` asks a model for: the paper's preprocessing."""
    side = 32 if name.endswith(("_cifar_l", "_cifar_h")) else IMAGENET.image_size
    return {
        "architecture": name,
        "num_classes": num_classes,
        "input_size": (3, side, side),
        "interpolation": "bicubic",
        "crop_pct": 224 / 256,
        "mean": tuple(IMAGENET.mean),
        "std": tuple(IMAGENET.std),
    }
