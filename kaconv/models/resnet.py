"""ResNet, ResNeXt and their KAConv forms, with torchvision's submodule names and no in-place operation."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kaconv.layers import KAConv2d


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


class ResNet(nn.Module):
    """A residual network of bottlenecks. Input (N, 3, H, W), output (N, num_classes) logits.

    Args:
        layers: number of bottlenecks in each stage; the stages have widths planes, 2·planes, 4·planes, ...
        planes: width of the first stage and of the stem.
        small_input: a 3×3 stem without pooling, for images of 32×32, in place of the 7×7 one with stride 4.
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
        self.stages = [f"layer{i + 1}" for i in range(len(layers))]
        options: dict[str, Any] = {
            "groups": groups,
            "base_width": base_width,
            "attention": attention,
            "norm_layer": norm_layer,
        }
        block: Callable[..., Bottleneck] = partial(Bottleneck, **options, **kaconv_options)
        inplanes, dilation = planes, 1
        for i, (name, depth) in enumerate(zip(self.stages, layers, strict=True)):
            stride = 2 if i > 0 and not dilated[i] else 1
            width = planes * 2**i
            # As in torchvision, a stage's first block still has the dilation of the stage before.
            stage = nn.Sequential(block(inplanes, width, stride, dilation=dilation))
            dilation *= 2 if dilated[i] else 1
            inplanes = width * Bottleneck.expansion
            for _ in range(depth - 1):
                stage.append(block(inplanes, width, 1, dilation=dilation))
            self.add_module(name, stage)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inplanes, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = getattr(self, name)(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


def refuse_kaconv_options(options: dict[str, Any]) -> None:
    """ValueError if a plain model is given options of KAConv2d."""
    if options:
        raise ValueError(f"a model without KAConv2d takes no {', '.join(options)}")


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
