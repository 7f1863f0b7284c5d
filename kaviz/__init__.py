"""Seeing what kernel attention convolutions do: figures, attributions, reports."""

from kaviz.style import set_style

__all__ = ["set_style"]
