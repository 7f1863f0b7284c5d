"""`create_model`: a model by name, with new weights, a checkpoint's or torchvision's."""

import contextlib
import http.client
import pickle
import socket
import sys
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from kaconv.models.build import build_model
from kaconv.models.checkpoints import load_weights
from kaconv.models.classifier import Classifier
from kaconv.models.registry import check_name
from kaconv.models.weights import list_weights, weights_of

_TORCHVISION_WEIGHTS = {
    "resnet50": torchvision.models.ResNet50_Weights.IMAGENET1K_V1,
    "resnet101": torchvision.models.ResNet101_Weights.IMAGENET1K_V1,
    "resnext50_32x4d": torchvision.models.ResNeXt50_32X4D_Weights.IMAGENET1K_V1,
    "mobilenetv2_100": torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1,
}
_DOWNLOAD_TIMEOUT = 20  # seconds without an answer


def create_model(
    name: str, num_classes: int | None = None, *, weights: str | Path | None = None, **options: Any
) -> nn.Module:
    """A model by name, in training mode: (N, 3, H, W) to (N, num_classes) logits. No module works in place.

    It has timm's methods: `forward_features`, `reset_classifier`, ...; see `kaconv.models.classifier.Classifier`.

    Without `weights` it is initialised as in the paper's recipe: convolutions and linear layers are Kaiming-normal
    (fan-in), norms 1, biases 0.

    Args:
        name: one of `list_models()`, or a builder's that was given to `kaconv.register_builder`.
        num_classes: if not given, that of the weights, else 1000. 0 leaves the classifier out: the output is the
            pooled features.
        weights: the path of a kaconv checkpoint of this model; the tag of weights that come with the package, such as
            "imagenette" (see `list_weights`); or "torchvision" for the plain ImageNet models that
            torchvision has weights of. These are its IMAGENET1K_V1 ones: they come from the classic recipe (random
            crops and flips), as the paper's baselines do, while V2's is longer and stronger, and its ResNets' errors
            are about 4 percentage points lower. They are downloaded to PyTorch's cache the first time.
        options: `in_chans` (3), `norm_layer`, for ResNets and ResNeXts `replace_stride_with_dilation`, as in
            torchvision, `global_pool` ("avg", or "" with `num_classes=0`) and `drop_rate`; for models with KAConv2d its
            further arguments, such as `reduction=8`, for every one in the model; for a builder, its arguments.

    Raises:
        ValueError: for an unknown name, a negative number of classes, options for a model without KAConv2d, or
            weights that are not of this model and number of classes.
        FileNotFoundError: if there is no such checkpoint, or torchvision's weights cannot be downloaded.

    Example:
        >>> model = create_model("ka_resnet50_l", num_classes=10)
        >>> backbone = create_model("resnet50", num_classes=0, replace_stride_with_dilation=(False, True, True))
    """
    if not (weights is None or isinstance(weights, str | Path)):
        raise ValueError(f"weights must be a path or 'torchvision'; got {weights!r}")
    if weights is None:
        return build_model(name, num_classes, **options)
    check_name(name)
    if num_classes == 0:
        global_pool = options.pop("global_pool", "avg")
        return _without_head(create_model(name, weights=weights, **options), name, global_pool)
    if weights != "torchvision":
        return load_weights(_weights_file(name, weights), name, num_classes, **options)
    _check_torchvision_has(name, num_classes, options)
    model = build_model(name, num_classes, **options)
    _load_torchvision_weights(model, name, options)
    return model


def _weights_file(name: str, weights: str | Path) -> Path:
    """The file that is meant by a path or a tag; FileNotFoundError for what can only be a tag, and is none."""
    path = Path(weights)
    if path.exists():
        return path
    if packaged := weights_of(name, str(weights)):
        return packaged
    if path.suffix or path.parent != Path():
        return path
    tags = [*(found.removeprefix(f"{name}.") for found in list_weights(f"{name}.*"))]
    tags += ["torchvision"] if name in _TORCHVISION_WEIGHTS else []
    known = f"it has {', '.join(tags)}" if tags else "it has none"
    raise FileNotFoundError(f"there is no file {path.resolve()} and no weights {str(weights)!r} of {name}; {known}")


def _without_head(model: nn.Module, name: str, global_pool: str) -> nn.Module:
    if not isinstance(model, Classifier):
        raise ValueError(f"num_classes=0 takes the head from kaconv's own models, not from {name} with weights")
    model.reset_classifier(0, global_pool)
    return model


def _check_torchvision_has(name: str, num_classes: int | None, options: dict[str, Any]) -> None:
    if name not in _TORCHVISION_WEIGHTS:
        raise ValueError(f"torchvision has no weights of {name}; it has them of {', '.join(_TORCHVISION_WEIGHTS)}")
    if options.get("in_chans", 3) != 3:
        raise ValueError(f"torchvision's weights of {name} are for 3 channels, not {options['in_chans']}")
    if num_classes not in (None, 1000):
        raise ValueError(f"torchvision's weights of {name} are for 1000 classes, not {num_classes}")


def _load_torchvision_weights(model: nn.Module, name: str, options: dict[str, Any]) -> None:
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
        elif "state_dict" in reason and options:
            raise ValueError(f"torchvision's weights of {name} do not fit it with {', '.join(options)}") from None
        elif "state_dict" in reason:
            reason = "its weights do not fit"
        advice = "remove it" if file.exists() else f"without a network, put {weights.url} there"
        raise FileNotFoundError(f"cannot get torchvision's weights of {name} as {file}: {reason}; {advice}") from None
    finally:
        socket.setdefaulttimeout(timeout)
