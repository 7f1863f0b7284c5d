"""ResNet, ResNeXt and their KAConv forms, with torchvision's submodule names and no in-place operation."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck as TorchvisionBottleneck

from kaconv.layers import KAConv2d
from kaconv.models.classifier import Classifier, as_class, refuse_kaconv_options


def _conv3x3(cin: int, cout: int, stride: int, groups: int = 1, dilation: int = 1) -> nn.Module:
    return nn.Conv2d(cin, cout, 3, stride, padding=dilation, dilation=dilation, groups=groups, bias=False)


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 with a shortcut; the stride is on the 3×3. Input (N, inplanes, H, W), output 4·planes channels.

    Args:
        attention: "L" or "H" replaces the 3×3 convolution, its norm and its activation by a KAConv2d; None keeps them.
        norm_layer: called with a number of channels, gives a norm.
        dilation: of the 3×3 convolution, or the KAConv2d.
        kaconv_options: further arguments of KAConv2d.
    """

    expansion = 4

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int,
        *,
        groups: int,
        base_width: int,
        attention: str | None,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
        dilation: int = 1,
        **kaconv_options: Any,
    ) -> None:
        super().__init__()
        width = planes * base_width // 64 * groups
        outplanes = planes * self.expansion
        self.conv1 = nn.Conv2d(inplanes, width, 1, bias=False)
        self.bn1 = norm_layer(width)
        if attention is None:
            self.conv2 = _conv3x3(width, width, stride, groups, dilation)
            self.bn2 = norm_layer(width)
            self.relu2 = nn.ReLU()
        else:
            kaconv_options |= {"attention": attention, "norm_layer": norm_layer}
            self.conv2 = KAConv2d(width, width, 3, stride, dilation=dilation, groups=groups, **kaconv_options)
        self.attention = attention
        self.conv3 = nn.Conv2d(width, outplanes, 1, bias=False)
        self.bn3 = norm_layer(outplanes)
        # One activation for each place: what hooks them, such as DeepLift, keeps one input for each module.
        self.relu1, self.relu3 = nn.ReLU(), nn.ReLU()
        self.downsample = None
        if stride != 1 or inplanes != outplanes:
            shortcut = nn.Conv2d(inplanes, outplanes, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, norm_layer(outplanes))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.conv2(out)
        if self.attention is None:
            out = self.relu2(self.bn2(out))
        out = self.bn3(self.conv3(out))
        return self.relu3(out + identity)


class _BottleneckClassifier(Classifier):
    """The conventions of both: a stem, stages `layer1`, `layer2`, ... of bottlenecks, and a linear layer `fc`."""

    first_conv, head = "conv1", "fc"
    blocks = (Bottleneck, TorchvisionBottleneck)
    drop_rate = 0.0
    avgpool: nn.Module

    def _trunk(self) -> list[str]:
        return ["conv1", "bn1", "relu", "maxpool", *self._stages()]

    def _stages(self) -> list[str]:
        return [name for name, _ in self.named_children() if name.startswith("layer")]

    def _levels(self) -> list[dict[str, Any]]:
        stem: Any = self.conv1
        reduction = stem.stride[0]
        levels = [{"num_chs": stem.out_channels, "reduction": reduction, "module": "relu"}]
        if isinstance(self.maxpool, nn.MaxPool2d):
            reduction *= 2
        for name in self._stages():
            stage: Any = getattr(self, name)
            reduction *= stage[0].conv2.stride[0]
            levels.append({"num_chs": stage[-1].conv3.out_channels, "reduction": reduction, "module": name})
        return levels

    def _pool(self, x: Tensor) -> Tensor:
        x = self.avgpool(x)
        return F.dropout(x, self.drop_rate, self.training) if self.drop_rate else x

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Patterns of parameters' names for timm's layer-wise learning rates, by block or, if coarse, by stage."""
        return {"stem": r"^conv1|^bn1", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}


class ResNet(_BottleneckClassifier):
    """A residual network of bottlenecks. Input (N, in_chans, H, W), output (N, num_classes) logits.

    Args:
        layers: number of bottlenecks in each stage; the stages have widths planes, 2·planes, 4·planes, ...
        num_classes: 0 for none: the output then is the pooled features.
        planes: width of the first stage and of the stem.
        small_input: a 3×3 stem without pooling, for images of 32×32, in place of the 7×7 one with stride 4.
        in_chans: channels of the images.
        global_pool: "avg", or "" for none, which takes num_classes=0.
        drop_rate: share of the pooled features that training drops.
        norm_layer: called with a number of channels, gives a norm, of each kernel position of the KAConvs, too; batch
            norm by default.
        replace_stride_with_dilation: for each stage but the first, whether it keeps the size of its input, and its
            3×3 kernels are dilated instead; no stage by default. Segmentation has it for the last two.
        kaconv_options: further arguments of KAConv2d.

    Raises:
        ValueError: for `kaconv_options` without attention, or a `replace_stride_with_dilation` of another length.
    """

    def __init__(
        self,
        layers: Sequence[int],
        num_classes: int,
        *,
        attention: str | None = None,
        groups: int = 1,
        base_width: int = 64,
        planes: int = 64,
        small_input: bool = False,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        norm_layer: Callable[[int], nn.Module] | None = None,
        replace_stride_with_dilation: Sequence[bool] | None = None,
        **kaconv_options: Any,
    ) -> None:
        super().__init__()
        if attention is None:
            refuse_kaconv_options(kaconv_options)
        norm_layer = norm_layer or nn.BatchNorm2d
        dilated = _check_dilated(replace_stride_with_dilation, len(layers))
        self.conv1 = _conv3x3(3, planes, 1) if small_input else nn.Conv2d(3, planes, 7, 2, padding=3, bias=False)
        self.bn1 = norm_layer(planes)
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if small_input else nn.MaxPool2d(3, 2, padding=1)
        options: dict[str, Any] = {"groups": groups, "base_width": base_width, "attention": attention}
        block: Callable[..., Bottleneck] = partial(Bottleneck, norm_layer=norm_layer, **options, **kaconv_options)
        inplanes, dilation = planes, 1
        for i, depth in enumerate(layers):
            stride = 2 if i > 0 and not dilated[i] else 1
            width = planes * 2**i
            # As in torchvision, a stage's first block still has the dilation of the stage before.
            stage = nn.Sequential(block(inplanes, width, stride, dilation=dilation))
            dilation *= 2 if dilated[i] else 1
            inplanes = width * Bottleneck.expansion
            for _ in range(depth - 1):
                stage.append(block(inplanes, width, 1, dilation=dilation))
            self.add_module(f"layer{i + 1}", stage)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inplanes, num_classes or 1)
        self.drop_rate = drop_rate
        self._set_up(num_classes, in_chans, global_pool)


class PlainResNet(_BottleneckClassifier, torchvision.models.ResNet):
    """torchvision's own network of bottlenecks, with timm's conventions; arguments as of `ResNet`."""

    def __init__(
        self,
        layers: list[int],
        num_classes: int,
        *,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        groups: int = 1,
        base_width: int = 64,
        norm_layer: Callable[[int], nn.Module] | None = None,
        replace_stride_with_dilation: Sequence[bool] | None = None,
        **kaconv_options: Any,
    ) -> None:
        refuse_kaconv_options(kaconv_options)
        _check_dilated(replace_stride_with_dilation, len(layers))
        super().__init__(
            TorchvisionBottleneck,
            layers,
            num_classes or 1,
            groups=groups,
            width_per_group=base_width,
            norm_layer=norm_layer,
            replace_stride_with_dilation=replace_stride_with_dilation,
        )
        self.drop_rate = drop_rate
        self._set_up(num_classes, in_chans, global_pool)

    def __prepare_scriptable__(self) -> nn.Module:
        return as_class(self, torchvision.models.ResNet)


def _check_dilated(replace_stride_with_dilation: Sequence[bool] | None, stages: int) -> list[bool]:
    """Whether each stage is dilated instead of strided; the first never is."""
    if replace_stride_with_dilation is None:
        return [False] * stages
    if len(replace_stride_with_dilation) != stages - 1:
        raise ValueError(
            f"replace_stride_with_dilation has a value for each stage but the first, {stages - 1} in all; "
            f"got {replace_stride_with_dilation!r}"
        )
    return [False, *replace_stride_with_dilation]
