"""kaconv's models under their names in timm and torchvision."""

import importlib.util
from collections.abc import Callable
from typing import Any, cast

from torch import nn
from torchvision.models import list_models as list_torchvision_models
from torchvision.models._api import register_model as register_in_torchvision  # it has no public name

from kaconv.models.classifier import Classifier
from kaconv.models.factory import create_model
from kaconv.models.registry import list_models


def register() -> list[str]:
    """Make the KAConv models known to `torchvision.models.get_model`, and to `timm.create_model` where timm is.

    They come without pretrained weights, and take `num_classes` and the options of `kaconv.create_model`; by timm also
    `features_only=True` with `out_indices`, counted from the highest resolution. The plain models are left out: both
    libraries have their own under these names. A second call changes nothing.

    Returns:
        The names, as of `kaconv.list_models("ka_*")`.

    Example:
        >>> kaconv.register()
        >>> model = timm.create_model("ka_resnet50_l", num_classes=10, in_chans=1)
        >>> levels = timm.create_model("ka_resnet50_l", features_only=True, out_indices=(1, 2, 3, 4))
        >>> levels.feature_info.channels(), levels.feature_info.reduction()
        ([256, 512, 1024, 2048], [4, 8, 16, 32])
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
        features_only: bool = False,
        out_indices: int | tuple[int, ...] | None = None,
        num_classes: int = 1000,
        **options: Any,
    ) -> nn.Module:
        from timm.models._features import FeatureGetterNet  # it has no public name

        _check_no_pretrained(name, pretrained)
        model = create_model(name, num_classes, **options)
        if not features_only:
            return model
        levels = cast(Classifier, model).feature_info
        return FeatureGetterNet(model, out_indices=len(levels) if out_indices is None else out_indices)

    build.__name__ = name  # which timm registers it by
    return build


def _check_no_pretrained(name: str, wanted: object) -> None:
    if wanted:
        raise ValueError(
            f"{name} has no pretrained weights in timm or torchvision; kaconv.create_model({name!r}, weights=PATH) "
            "loads a checkpoint"
        )
