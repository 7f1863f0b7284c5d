"""MobileNetV2 at the paper's two widths, plain and with KAConv2d in place of every depthwise triple."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual

from kaconv.layers import KAConv2d
from kaconv.models.classifier import Classifier, as_class, refuse_kaconv_options

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


class MobileNetV2(Classifier, torchvision.models.MobileNetV2):
    """MobileNetV2. Input (N, in_chans, H, W), output (N, num_classes) logits.

    Args:
        num_classes: 0 for none: the output then is the pooled features.
        half_width: the paper's .5× model: every width is halved but the stem's 32, the first block's 16 and the
            last layer's 1280. torchvision's `width_mult=0.5` halves the first two as well.
        attention: "L", "H", or None for the plain model.
        in_chans: channels of the images.
        global_pool: "avg", or "" for none, which takes num_classes=0.
        drop_rate: share of the pooled features that training drops.
        norm_layer: called with a number of channels, gives a norm, of each kernel position of the KAConvs, too; batch
            norm by default.
        kaconv_options: further arguments of KAConv2d.

    Raises:
        ValueError: for `kaconv_options` without attention.
    """

    first_conv, head = "features.0.0", "classifier.1"
    blocks = (InvertedResidual,)
    features: nn.Sequential

    def __init__(
        self,
        num_classes: int,
        *,
        half_width: bool = False,
        attention: str | None = None,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.2,
        norm_layer: Callable[[int], nn.Module] | None = None,
        **kaconv_options: Any,
    ) -> None:
        if attention is None:
            refuse_kaconv_options(kaconv_options)
        norm_layer = norm_layer or nn.BatchNorm2d
        setting = [_SETTING[0], *([t, c // 2, n, s] for t, c, n, s in _SETTING[1:])] if half_width else _SETTING
        super().__init__(num_classes or 1, inverted_residual_setting=setting, norm_layer=norm_layer, dropout=drop_rate)
        if attention is not None:
            for block in self.modules():
                if isinstance(block, InvertedResidual):
                    _replace_depthwise(block.conv, attention, norm_layer=norm_layer, **kaconv_options)
        self._set_up(num_classes, in_chans, global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        return self._run(self.features, x)  # as a whole, so that a hook on it sees them

    def _trunk(self) -> list[str]:
        return [f"features.{i}" for i in range(len(self.features))]

    def _levels(self) -> list[dict[str, Any]]:
        reduction = 2  # the stem's
        levels: dict[int, dict[str, Any]] = {}
        for i, block in enumerate(self.features):
            if isinstance(block, InvertedResidual):
                reduction *= block.stride
                # The last block of a resolution stands for it.
                levels[reduction] = {"num_chs": block.out_channels, "reduction": reduction, "module": f"features.{i}"}
        return list(levels.values())

    def _pool(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, 1)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Patterns of parameters' names for timm's layer-wise learning rates, by block."""
        return {"stem": r"^features\.0\.", "blocks": r"^features\.(\d+)\."}

    def __prepare_scriptable__(self) -> nn.Module:
        return as_class(self, torchvision.models.MobileNetV2)


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
