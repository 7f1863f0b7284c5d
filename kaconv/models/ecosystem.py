"""kaconv's models under their names in timm and torchvision."""

import importlib.util
from collections.abc import Callable
from typing import Any, cast

from torch import nn
from torchvision.models import list_models as list_torchvision_models
from torchvision.models._api import Weights, WeightsEnum  # they and the next have no public names
from torchvision.models._api import register_model as register_in_torchvision

from kaconv.models.checkpoints import load_checkpoint
from kaconv.models.classifier import Classifier
from kaconv.models.factory import create_model
from kaconv.models.registry import list_models
from kaconv.models.weights import list_weights, weights_path

default_cfgs: dict[str, Any] = {}  # where timm looks, in a builder's module, for what weights there are


def register() -> list[str]:
    """Make the KAConv models known to `torchvision.models.get_model`, and to `timm.create_model` where timm is.

    They take `num_classes` and the options of `kaconv.create_model`; by timm also `features_only=True` with
    `out_indices`, counted from the highest resolution. Weights that come with the package (see `list_weights`) are
    given in the libraries' own ways: by `pretrained=True`, where `num_classes` is that of the weights unless another
    one asks for a new last layer, and by `weights="DEFAULT"` or a member of `get_model_weights(name)`. The plain models
    are left out: both libraries have their own under these names. A second call changes nothing.

    Returns:
        The names, as of `kaconv.list_models("ka_*")`.

    Example:
        >>> names = kaconv.register()
        >>> model = timm.create_model("ka_resnet50_l", num_classes=10, in_chans=1)
        >>> model = timm.create_model("ka_mobilenetv2_050_l.imagenette", pretrained=True)
        >>> model = torchvision.models.get_model("ka_mobilenetv2_050_l", weights="IMAGENETTE")
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

        new = [name for name in names if not timm.is_model(name)]
        default_cfgs.update(_timm_configs(new))
        for name in new:
            timm.models.register_model(_timm_builder(name))
    return names


def _tags(name: str) -> list[str]:
    """Tags of the weights of a model that come with the package."""
    return [found.removeprefix(f"{name}.") for found in list_weights(f"{name}.*")]


def _check_tag(name: str, tag: object) -> None:
    if tag not in (tags := _tags(name)):
        there = f"of that tag, only {', '.join(tags)}" if tags else "in timm or torchvision"
        raise ValueError(
            f"{name} has no pretrained weights {there}; kaconv.create_model({name!r}, weights=PATH) loads a checkpoint"
        )


# torchvision ----------------------------------------------------------------------------------------------------------


class PackagedWeights(WeightsEnum):
    """Weights of a model that come with the package, in torchvision's form: `transforms()`, `meta["categories"]`."""

    def get_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The weights by name; torchvision's arguments, which are about a download, change nothing."""
        return load_checkpoint(self.meta["name"]).model.state_dict()


def _torchvision_builder(name: str) -> Callable[..., nn.Module]:
    def build(
        *, weights: object = None, progress: bool = True, num_classes: int | None = None, **options: Any
    ) -> nn.Module:
        if not weights:
            return create_model(name, num_classes, **options)
        _check_tag(name, tag := _tag_of(weights, _tags(name)))
        return create_model(name, num_classes, weights=tag, **options)

    if tags := _tags(name):
        members = {tag.upper(): _torchvision_weights(f"{name}.{tag}") for tag in tags}
        enum = PackagedWeights(f"{name}_Weights", members | {"DEFAULT": members[tags[0].upper()]})
        build.__annotations__["weights"] = enum | None  # where torchvision's get_model_weights looks
    return build


def _torchvision_weights(name: str) -> Weights:
    checkpoint = load_checkpoint(name)
    parameters = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    meta = {"categories": checkpoint.classes, "num_params": parameters, "name": name}
    return Weights(weights_path(name).as_uri(), checkpoint.preprocessing.eval_transform, meta)


def _tag_of(weights: object, tags: list[str]) -> str:
    """The tag that is meant by a member of `PackagedWeights` or by its name."""
    if isinstance(weights, PackagedWeights):
        return str(weights.meta["name"]).partition(".")[2]
    named = str(weights).rpartition(".")[2]
    return tags[0] if named == "DEFAULT" and tags else named.lower()


# timm -----------------------------------------------------------------------------------------------------------------


def _timm_builder(name: str) -> Callable[..., nn.Module]:
    def build(
        pretrained: bool = False,
        pretrained_cfg: object = None,
        pretrained_cfg_overlay: object = None,
        cache_dir: object = None,
        features_only: bool = False,
        out_indices: int | tuple[int, ...] | None = None,
        num_classes: int | None = None,
        **options: Any,
    ) -> nn.Module:
        from timm.models._features import FeatureGetterNet  # it has no public name

        if pretrained:
            model = _pretrained(name, pretrained_cfg or next(iter(_tags(name)), None), num_classes, options)
        else:
            model = create_model(name, num_classes, **options)
        if not features_only:
            return model
        levels = cast(Classifier, model).feature_info
        return FeatureGetterNet(model, out_indices=len(levels) if out_indices is None else out_indices)

    build.__name__ = name  # which timm registers it by
    return build


def _pretrained(name: str, tag: object, num_classes: int | None, options: dict[str, Any]) -> nn.Module:
    """With the packaged weights, and as in timm a new last layer where another number of classes is asked for."""
    _check_tag(name, tag)
    if num_classes == 0:
        return create_model(name, 0, weights=cast(str, tag), **options)
    model = cast(Classifier, create_model(name, weights=cast(str, tag), **options))
    if num_classes not in (None, model.num_classes):
        model.reset_classifier(num_classes)
    return model


def _timm_configs(names: list[str]) -> dict[str, Any]:
    """timm's descriptions of the packaged weights, by model."""
    from timm.models import generate_default_cfgs

    configs: dict[str, Any] = {}
    for weights in (found for name in names for found in list_weights(f"{name}.*")):
        model = cast(Classifier, load_checkpoint(weights).model)
        configs[weights] = model.pretrained_cfg | {"file": str(weights_path(weights))}
    return generate_default_cfgs(configs)
