"""Exploring attention: the widget, what it computes and what it draws."""

from kaviz.explorer.widget import AttentionExplorer

__all__ = ["AttentionExplorer"]
