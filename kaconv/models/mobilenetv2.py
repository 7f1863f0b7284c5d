"""MobileNetV2 at the paper's two widths, plain and with KAConv2d in place of every depthwise triple."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torchvision.models.mobilenetv2 import InvertedResidual, MobileNetV2

from kaconv.layers import KAConv2d
from kaconv.models.resnet import refuse_kaconv_options

# torchvision's t, c, n, s: expansion, output channels, repetitions, first stride.
_SETTING = [
    [1, 16, 1, 1],
    [6, 24, 2, 2],
    [6, 32, 3, 2],
    [6, 64, 4, 2],
    [6, 96, 3, 1],
    [6, 160, 3, 2],
    [6, 320, 1, 1],
]


def mobilenetv2(
    num_classes: int,
    *,
    half_width: bool = False,
    attention: str | None = None,
    norm_layer: Callable[[int], nn.Module] | None = None,
    **kaconv_options: Any,
) -> MobileNetV2:
    """MobileNetV2. Input (N, 3, H, W), output (N, num_classes) logits.

    Args:
        half_width: the paper's .5× model: every width is halved but the stem's 32, the first block's 16 and the
            last layer's 1280. torchvision's `width_mult=0.5` halves the first two as well.
        attention: "L", "H", or None for the plain model.
        norm_layer: called with a number of channels, gives a norm, of each kernel position of the KAConvs, too; batch
            norm by default.
        kaconv_options: further arguments of KAConv2d.
    """
    if attention is None:
        refuse_kaconv_options(kaconv_options)
    norm_layer = norm_layer or nn.BatchNorm2d
    setting = [_SETTING[0], *([t, c // 2, n, s] for t, c, n, s in _SETTING[1:])] if half_width else _SETTING
    model = MobileNetV2(num_classes=num_classes, inverted_residual_setting=setting, norm_layer=norm_layer)
    if attention is not None:
        for block in model.modules():
            if isinstance(block, InvertedResidual):
                _replace_depthwise(block.conv, attention, norm_layer=norm_layer, **kaconv_options)
    return model


def _replace_depthwise(block: nn.Sequential, attention: str, **kaconv_options: Any) -> None:
    # The depthwise triple stands first where the block does not expand its input, else second.
    convolutions = [module for module in block.modules() if isinstance(module, nn.Conv2d)]
    conv: Any  # its sizes are pairs, which its types do not say
    index, conv = next((i, conv) for i, conv in enumerate(convolutions) if conv.groups > 1)
    block[index] = KAConv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        groups=conv.groups,
        attention=attention,
        act_layer=nn.ReLU6,
        **kaconv_options,
    )
