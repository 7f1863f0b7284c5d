"""Seeing what kernel attention convolutions do: figures, attributions, reports."""

from typing import TYPE_CHECKING

from kaconv.utils.lazy import lazy_names

if TYPE_CHECKING:
    from kaviz.attribution import attribute
    from kaviz.explorer import AttentionExplorer, export_explorer
    from kaviz.live import LiveCurves
    from kaviz.style import set_style

__all__ = ["AttentionExplorer", "LiveCurves", "attribute", "export_explorer", "set_style"]

_MODULES = {
    "AttentionExplorer": "explorer",
    "LiveCurves": "live",
    "attribute": "attribution",
    "export_explorer": "explorer",
    "set_style": "style",
}


__getattr__ = lazy_names(__name__, _MODULES)
