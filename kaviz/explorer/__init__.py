"""Exploring attention: what is computed, the numbers that it is drawn from, the widget and the page."""

from kaviz.explorer.export import export_explorer
from kaviz.explorer.widget import AttentionExplorer

__all__ = ["AttentionExplorer", "export_explorer"]
