"""Kernel attention convolutions (KAConv, Neurocomputing 2022) for PyTorch."""

from kaconv.capture import AttentionCapture, AttentionRecord
from kaconv.layers import KAConv2d
from kaconv.models import create_model, list_models

__version__ = "0.1.0"
__all__ = ["AttentionCapture", "AttentionRecord", "KAConv2d", "create_model", "list_models"]
