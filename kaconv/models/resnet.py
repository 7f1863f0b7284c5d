"""ResNet, ResNeXt and their KAConv forms, with torchvision's submodule names and no in-place operation."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kaconv.layers import KAConv2d


def _conv3x3(cin: int, cout: int, stride: int, groups: int) -> nn.Module:
    return nn.Conv2d(cin, cout, 3, stride, padding=1, groups=groups, bias=False)


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 with a shortcut; the stride is on the 3×3. Input (N, inplanes, H, W), output 4·planes channels.

    Args:
        attention: "L" or "H" replaces the 3×3 convolution, its norm and its activation by a KAConv2d; None keeps them.
        kaconv_options: further arguments of KAConv2d.
    """

    expansion = 4

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int,
        groups: int,
        base_width: int,
        attention: str | None,
        **kaconv_options: Any,
    ) -> None:
        super().__init__()
        width = planes * base_width // 64 * groups
        outplanes = planes * self.expansion
        self.conv1 = nn.Conv2d(inplanes, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        if attention is None:
            self.conv2 = _conv3x3(width, width, stride, groups)
            self.bn2 = nn.BatchNorm2d(width)
            self.relu2 = nn.ReLU()
        else:
            self.conv2 = KAConv2d(width, width, 3, stride, groups=groups, attention=attention, **kaconv_options)
        self.attention = attention
        self.conv3 = nn.Conv2d(width, outplanes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outplanes)
        # One activation for each place: what hooks them, such as DeepLift, keeps one input for each module.
        self.relu1, self.relu3 = nn.ReLU(), nn.ReLU()
        self.downsample = None
        if stride != 1 or inplanes != outplanes:
            self.downsample = nn.Sequential(
                nn.Conv2d(inplanes, outplanes, 1, stride, bias=False), nn.BatchNorm2d(outplanes)
            )

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
        **kaconv_options: Any,
    ) -> None:
        super().__init__()
        self.conv1 = _conv3x3(3, planes, 1, 1) if small_input else nn.Conv2d(3, planes, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if small_input else nn.MaxPool2d(3, 2, padding=1)
        self.stages = [f"layer{i + 1}" for i in range(len(layers))]
        inplanes = planes
        for i, (name, depth) in enumerate(zip(self.stages, layers, strict=True)):
            stage = nn.Sequential()
            for block in range(depth):
                stride = 2 if i > 0 and block == 0 else 1
                stage.append(
                    Bottleneck(inplanes, planes * 2**i, stride, groups, base_width, attention, **kaconv_options)
                )
                inplanes = planes * 2**i * Bottleneck.expansion
            self.add_module(name, stage)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inplanes, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = getattr(self, name)(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))
