"""Models as backbones of torchvision's detectors and segmentation heads, and such detectors."""

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.ops import Conv2dNormActivation, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from kaconv.data.preprocessing import IMAGENET
from kaconv.layers import KAConv2d
from kaconv.layers.kaconv2d import position_norm
from kaconv.models.factory import create_model
from kaconv.utils.checks import MOST_PIXELS, check_values, is_one_of, or_none, whole
from kaconv.utils.modes import evaluating

HEADS = ("faster_rcnn", "retinanet", "ssdlite", "segmentation")
DETECTORS = HEADS[:3]
NORMS = ("batch", "frozen", "group")
STRIDES = (2, 4, 8, 16, 32)  # of the five stages of an ImageNet model
_PYRAMID_CHANNELS = 256
_SSDLITE_EXTRAS = (512, 256, 256, 128)  # channels of the levels beyond the backbone's


def backbone(
    model: str | nn.Module,
    head: str = "faster_rcnn",
    *,
    weights: str | Path | None = None,
    norm: str | None = None,
    trainable_layers: int | None = None,
    **kaconv_options: Any,
) -> nn.Module:
    """The convolutional part of a model, as torchvision's detectors and segmentation heads take it.

    Images (N, 3, H, W) become a dict of maps; `out_channels` says how many channels they have.

    - "faster_rcnn" (and Mask or Keypoint R-CNN): a `BackboneWithFPN` over strides 4 to 32, and a pooled level.
    - "retinanet" (and FCOS): a `BackboneWithFPN` over strides 8 to 32, and the levels P6 and P7.
    - "ssdlite": of a MobileNetV2, the expansion before stride 32, the last map, and four smaller levels.
    - "segmentation" (FCN, DeepLabV3): the last map as "out" and the one of the stage before as "aux", both at stride 8:
      as with torchvision's `replace_stride_with_dilation=(False, True, True)`, later strides become dilations.

    A KAConv layer pools over the whole map that it gets. Where a detector pads the images of a batch to a common size,
    the attention of an image therefore sees its padding.

    Args:
        model: one of `list_models()` but for the `_cifar` ones, or a network with torchvision's submodule names, such
            as a converted ResNet: `conv1`, ..., `layer4`, or `features`. A network that is given is taken apart.
        head: one of `HEADS`.
        weights: as for `create_model`.
        norm: "batch" leaves all norms as they are. "frozen" makes every batch norm a `FrozenBatchNorm2d` with the
            numbers that it has: the k² norms of a KAConv layer and the one of its attention generator, too. "group"
            puts new group norms in place of all of these (up to 32 groups of at least 4 channels; in a KAConv layer,
            each position has its own), which train from scratch and with one image a batch; KAConv layers run unfused
            with them. None: "frozen" with `weights`, else "batch", as in torchvision.
        trainable_layers: how many of the five stages, one for each stride from 2 to 32, are trained, the last ones
            first. In the others no parameter wants a gradient, whether of a convolution, a norm or an attention
            generator; running statistics of batch norms still move unless `norm` is "frozen". None: 3 with `weights`,
            else 5.
        kaconv_options: further arguments of `create_model`, such as `generator_norm="layer"`.

    Raises:
        ValueError: for an unknown name, head or norm, options or weights with a network, weights with new group norms,
            a network without these five stages, or SSDLite on another one than MobileNetV2.
        FileNotFoundError: for weights that are not there.

    Example:
        >>> faster_rcnn = FasterRCNN(backbone("ka_resnet50_l", weights="ka_resnet50_l.safetensors"), num_classes=21)
        >>> from torchvision.models.segmentation.fcn import FCN, FCNHead
        >>> maps = backbone("ka_resnet50_l", "segmentation")
        >>> segmenter = FCN(maps, FCNHead(maps.out_channels, 21))
    """
    norm = norm or ("batch" if weights is None else "frozen")
    check_values({"head": head, "norm": norm}, {"head": is_one_of(*HEADS), "norm": is_one_of(*NORMS)})
    check_values({"trainable_layers": trainable_layers}, {"trainable_layers": or_none(whole(0, len(STRIDES)))})
    if weights is not None and norm == "group":
        raise ValueError('norm="group" puts new norms in place of those that the weights were trained with')
    if isinstance(model, nn.Module):
        if weights is not None or kaconv_options:
            raise ValueError(f"{type(model).__name__} is built already: it takes no weights and no options")
        network = model
    else:
        network = create_model(model, weights=weights, **kaconv_options)
    trunk = _trunk(network)
    stages = _stages(trunk)
    if norm != "batch":
        _replace_norms(trunk, _frozen if norm == "frozen" else _grouped)
    trained = trainable_layers if trainable_layers is not None else len(STRIDES) if weights is None else 3
    for stride in STRIDES[: len(STRIDES) - trained]:
        for name, _ in stages[stride]:
            trunk[name].requires_grad_(False)
    if head == "ssdlite":
        return _SSDLiteBackbone(trunk, stages, group_norm if norm == "group" else _ssdlite_norm)
    if head == "segmentation":
        return _dilated(trunk, stages)
    return _pyramid(trunk, stages, p6p7=head == "retinanet")


def detector(
    model: str | nn.Module = "ka_resnet50_l",
    head: str = "faster_rcnn",
    num_classes: int = 1,
    *,
    image_size: int | None = None,
    **options: Any,
) -> nn.Module:
    """A torchvision detector on one of these backbones: Faster R-CNN, RetinaNet or SSDLite.

    It is called as torchvision's are: with a list of images (3, H, W) in [0, 1] and, in training, their targets (boxes
    x1, y1, x2, y2 in pixels, labels from 1), and gives losses or detections. It normalises and resizes images itself.

    Args:
        model, options: as for `backbone`; a path of weights, too.
        head: "faster_rcnn", "retinanet" or "ssdlite".
        num_classes: kinds of objects, without the background.
        image_size: in pixels, what images are resized to: for SSDLite the side of a square (320), else the shorter
            side (800), or less, so that the longer one has 5/3 of it at most.

    Raises:
        ValueError, FileNotFoundError: those of `backbone`, and for a bad head or number.

    Example:
        >>> model = detector("ka_mobilenetv2_050_l", "ssdlite", num_classes=20).eval()
        >>> model([torch.rand(3, 240, 320)])[0].keys()
        dict_keys(['boxes', 'scores', 'labels'])
    """
    given = {"head": head, "num_classes": num_classes, "image_size": image_size}
    rules = {"head": is_one_of(*DETECTORS), "num_classes": whole(1), "image_size": or_none(whole(32, MOST_PIXELS))}
    check_values(given, rules)
    body = backbone(model, head, **options)
    normalise = {"image_mean": list(IMAGENET.mean), "image_std": list(IMAGENET.std)}
    if head == "ssdlite":
        assert isinstance(body, _SSDLiteBackbone)
        return _ssdlite(body, num_classes + 1, image_size or 320, normalise)
    shorter = image_size or 800
    sizes = {"min_size": shorter, "max_size": round(shorter * 5 / 3)}
    if head == "faster_rcnn":
        return FasterRCNN(body, num_classes + 1, **sizes, **normalise)
    return RetinaNet(body, num_classes + 1, **sizes, **normalise)


def group_norm(channels: int) -> nn.GroupNorm:
    """A group norm of up to 32 groups with at least 4 channels each, as many as divide the channels."""
    return nn.GroupNorm(math.gcd(32, channels // 4) if channels % 4 == 0 else 1, channels)


class FrozenBatchNorm1d(FrozenBatchNorm2d):
    """torchvision's frozen batch norm on vectors (N, C), as an attention generator has them."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[..., None, None])[..., 0, 0]


Stages = dict[int, list[tuple[str, int]]]  # by stride: names and output channels of a trunk's children


def _trunk(network: nn.Module) -> nn.ModuleDict:
    """The children that make the maps, in their order."""
    features = getattr(network, "features", None)
    children = list((features if isinstance(features, nn.Sequential) else network).named_children())
    last = next((place for place, (name, _) in enumerate(children) if name == "layer4"), None)
    if last is None and features is None:
        names = ", ".join(name for name, _ in children[:6])
        raise ValueError(f"a backbone has layer1 to layer4, or features; {type(network).__name__} has {names}")
    return nn.ModuleDict(OrderedDict(children[: None if last is None else last + 1]))


def _stages(trunk: nn.ModuleDict) -> Stages:
    """The stages by their strides, as a small image shows them."""
    like = next(trunk.parameters())
    x = like.new_zeros(1, 3, 64, 64)
    stages: Stages = {}
    with evaluating(trunk), torch.no_grad():
        for name, child in trunk.items():
            x = child(x)
            stages.setdefault(64 // x.shape[-1], []).append((name, x.shape[1]))
    if tuple(stages) != STRIDES:
        raise ValueError(f"a backbone has stages of the strides {STRIDES}; this one's are {tuple(stages)}")
    return stages


def _replace_norms(module: nn.Module, replace: Callable[[_BatchNorm], nn.Module]) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, KAConv2d) and replace is _grouped and isinstance(child.norm, _BatchNorm):
            # One of its channels in a group with those of another position would mix the two.
            child.norm = position_norm(group_norm, len(child.geometry.taps()), child.out_channels).to(child.weight)
            _replace_norms(child.attention_generator, replace)
        elif isinstance(child, _BatchNorm):
            setattr(module, name, replace(child))
        else:
            _replace_norms(child, replace)


def _frozen(norm: _BatchNorm) -> FrozenBatchNorm2d:
    if norm.running_mean is None:
        raise ValueError('norm="frozen" wants batch norms with running statistics; this network has one without')
    kind = FrozenBatchNorm1d if isinstance(norm, nn.BatchNorm1d) else FrozenBatchNorm2d
    frozen = kind(norm.num_features, norm.eps).to(norm.running_mean)
    frozen.load_state_dict(norm.state_dict(), strict=False)  # one that is not affine has no weight and no bias
    return frozen


def _grouped(norm: _BatchNorm) -> nn.GroupNorm:
    like = next(norm.parameters(), torch.empty(0))
    return group_norm(norm.num_features).to(like)


def _pyramid(trunk: nn.ModuleDict, stages: Stages, p6p7: bool) -> BackboneWithFPN:
    tops = [stages[stride][-1] for stride in STRIDES[2 if p6p7 else 1 :]]
    levels = {name: str(place) for place, (name, _) in enumerate(tops)}
    extra = LastLevelP6P7(_PYRAMID_CHANNELS, _PYRAMID_CHANNELS) if p6p7 else None  # None: torchvision's pooled level
    return BackboneWithFPN(trunk, levels, [channels for _, channels in tops], _PYRAMID_CHANNELS, extra)


def _dilated(trunk: nn.ModuleDict, stages: Stages) -> IntermediateLayerGetter:
    before = 1
    for stride in (16, 32):
        for name, _ in stages[stride]:
            for part in trunk[name].modules():
                if isinstance(part, nn.Conv2d | KAConv2d):
                    _dilate(part, before, stride // 8)
        before = stride // 8
    (aux, aux_channels), (out, out_channels) = stages[16][-1], stages[32][-1]
    maps: Any = IntermediateLayerGetter(trunk, {aux: "aux", out: "out"})
    maps.out_channels, maps.aux_channels = out_channels, aux_channels
    with evaluating(maps), torch.no_grad():
        found = maps(next(maps.parameters()).new_zeros(1, 3, 64, 64))["out"].shape[-1]
    if found != 8:
        raise ValueError(f"only a convolution's stride becomes a dilation; the last map still has stride {64 // found}")
    return maps


def _dilate(part: Any, before: int, dilation: int) -> None:
    """Take a stage's stride away; where it stood, the dilation is still that of the stage before."""
    strided = part.stride != (1, 1)
    part.stride = (1, 1)
    if part.kernel_size != (1, 1):
        rate = before if strided else dilation
        part.dilation = tuple(own * rate for own in part.dilation)
        part.padding = tuple(own * rate for own in part.padding)


class _SSDLiteBackbone(nn.Module):
    """The maps for SSDLite, as torchvision takes them from a MobileNetV3."""

    def __init__(self, trunk: nn.ModuleDict, stages: Stages, norm_layer: Callable[[int], nn.Module]) -> None:
        super().__init__()
        first = trunk[stages[32][0][0]]
        if not isinstance(first, InvertedResidual):
            raise ValueError('head="ssdlite" wants a MobileNetV2, such as ka_mobilenetv2_100_l; others: "retinanet"')
        blocks = list(trunk.values())
        place = blocks.index(first)
        self.features = nn.Sequential(
            nn.Sequential(*blocks[:place], first.conv[0]),
            nn.Sequential(first.conv[1:], *blocks[place + 1 :]),
        )
        last = stages[32][-1][1]
        self.extra = nn.ModuleList()
        for cin, cout in zip((last, *_SSDLITE_EXTRAS), _SSDLITE_EXTRAS, strict=False):
            self.extra.append(_smaller_level(cin, cout, norm_layer))
        expanded: Any = first.conv[0][0]
        self.out_channels = [expanded.out_channels, last, *_SSDLITE_EXTRAS]
        self.norm_layer = norm_layer

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = OrderedDict()
        for part in (*self.features, *self.extra):
            x = maps[str(len(maps))] = part(x)
        return maps


def _smaller_level(cin: int, cout: int, norm_layer: Callable[[int], nn.Module]) -> nn.Sequential:
    layer = partial(Conv2dNormActivation, norm_layer=norm_layer, activation_layer=nn.ReLU6, inplace=False)
    middle = cout // 2
    level = nn.Sequential(
        layer(cin, middle, kernel_size=1),
        layer(middle, middle, kernel_size=3, stride=2, groups=middle),
        layer(middle, cout, kernel_size=1),
    )
    for part in level.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, std=0.03)  # as torchvision does
    return level


_ssdlite_norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)  # torchvision's


def _ssdlite(body: _SSDLiteBackbone, classes: int, side: int, normalise: dict[str, Any]) -> SSD:
    anchors = DefaultBoxGenerator([[2, 3]] * len(body.out_channels), min_ratio=0.2, max_ratio=0.95)
    head = SSDLiteHead(body.out_channels, anchors.num_anchors_per_location(), classes, body.norm_layer)
    # The limits on detections are those of torchvision's SSDLite.
    limits = {"score_thresh": 0.001, "nms_thresh": 0.55, "detections_per_img": 300, "topk_candidates": 300}
    return SSD(body, anchors, (side, side), classes, head=head, **normalise, **limits)
