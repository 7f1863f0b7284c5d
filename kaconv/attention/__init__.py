"""Seeing and changing the attention of a model: records, statistics, interventions and their effects."""

from kaconv.attention.capture import AttentionCapture
from kaconv.attention.hooks import kaconv_layers
from kaconv.attention.interventions import intervene
from kaconv.attention.record import AttentionRecord
from kaconv.attention.statistics import AttentionStatistics, attention_statistics

__all__ = [
    "AttentionCapture",
    "AttentionRecord",
    "AttentionStatistics",
    "attention_statistics",
    "intervene",
    "kaconv_layers",
]
