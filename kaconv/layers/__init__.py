"""The KAConv layer and its attention generators."""

from kaconv.layers.attention_generators import (
    AttentionGeneratorH,
    AttentionGeneratorL,
    set_temperature,
    set_uniform_share,
)
from kaconv.layers.kaconv2d import KAConv2d, PerPositionNorm

__all__ = [
    "AttentionGeneratorH",
    "AttentionGeneratorL",
    "KAConv2d",
    "PerPositionNorm",
    "set_temperature",
    "set_uniform_share",
]
