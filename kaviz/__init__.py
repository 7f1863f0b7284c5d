"""Seeing what kernel attention convolutions do: figures, attributions, reports."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kaviz.style import set_style

if TYPE_CHECKING:
    from kaviz.explorer import AttentionExplorer
    from kaviz.live import LiveCurves

__all__ = ["AttentionExplorer", "LiveCurves", "set_style"]

_MODULES = {"AttentionExplorer": "explorer", "LiveCurves": "live"}


def __getattr__(name: str) -> Any:
    """Import what needs torch on first use, so that `kaviz --help` answers at once."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
