"""Kernel attention convolutions (KAConv, Neurocomputing 2022) for PyTorch."""

from typing import TYPE_CHECKING

from kaconv.utils.lazy import lazy_names

if TYPE_CHECKING:
    from kaconv.attention import (
        AttentionCapture,
        AttentionRecord,
        AttentionStatistics,
        attention_statistics,
        intervene,
    )
    from kaconv.layers import KAConv1d, KAConv2d, KAConv3d
    from kaconv.models import (
        convert_to_kaconv,
        create_model,
        list_models,
        optimize_for_inference,
        register,
        register_builder,
    )
    from kaconv.ops import use_backend

__version__ = "0.1.0"
__all__ = [
    "AttentionCapture",
    "AttentionRecord",
    "AttentionStatistics",
    "KAConv1d",
    "KAConv2d",
    "KAConv3d",
    "attention_statistics",
    "convert_to_kaconv",
    "create_model",
    "intervene",
    "list_models",
    "optimize_for_inference",
    "register",
    "register_builder",
    "use_backend",
]

_MODULES = {
    "AttentionCapture": "attention",
    "AttentionRecord": "attention",
    "AttentionStatistics": "attention",
    "KAConv1d": "layers",
    "KAConv2d": "layers",
    "KAConv3d": "layers",
    "attention_statistics": "attention",
    "convert_to_kaconv": "models",
    "create_model": "models",
    "intervene": "attention",
    "list_models": "models",
    "optimize_for_inference": "models",
    "register": "models",
    "register_builder": "models",
    "use_backend": "ops",
}


__getattr__ = lazy_names(__name__, _MODULES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
