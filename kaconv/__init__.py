"""Kernel attention convolutions (KAConv, Neurocomputing 2022) for PyTorch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kaconv.capture import AttentionCapture, AttentionRecord
    from kaconv.interventions import intervene
    from kaconv.layers import KAConv2d
    from kaconv.models import create_model, list_models
    from kaconv.ops import use_backend
    from kaconv.statistics import AttentionStatistics, attention_statistics

__version__ = "0.1.0"
__all__ = [
    "AttentionCapture",
    "AttentionRecord",
    "AttentionStatistics",
    "KAConv2d",
    "attention_statistics",
    "create_model",
    "intervene",
    "list_models",
    "use_backend",
]

_MODULES = {
    "AttentionCapture": "capture",
    "AttentionRecord": "capture",
    "AttentionStatistics": "statistics",
    "KAConv2d": "layers",
    "attention_statistics": "statistics",
    "create_model": "models",
    "intervene": "interventions",
    "list_models": "models",
    "use_backend": "ops",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch on first use, so that `kaconv --help` answers at once."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
