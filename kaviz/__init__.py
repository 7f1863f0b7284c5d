"""Seeing what kernel attention convolutions do: figures, attributions, reports."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kaviz.style import set_style

if TYPE_CHECKING:
    from kaviz.live import LiveCurves

__all__ = ["LiveCurves", "set_style"]


def __getattr__(name: str) -> Any:
    """Import what needs torch on first use, so that `kaviz --help` answers at once."""
    if name != "LiveCurves":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("kaviz.live").LiveCurves
