"""The KAConv layer and its attention generators."""

from kaconv.layers.attention_generators import (
    AttentionGeneratorH,
    AttentionGeneratorL,
    set_temperature,
    set_uniform_share,
)
from kaconv.layers.kaconv2d import KAConv2d, PerPositionNorm
from kaconv.layers.kaconvnd import KAConv1d, KAConv3d

__all__ = [
    "AttentionGeneratorH",
    "AttentionGeneratorL",
    "KAConv1d",
    "KAConv2d",
    "KAConv3d",
    "PerPositionNorm",
    "set_temperature",
    "set_uniform_share",
]
