"""Models by name: the 15 of the paper's table, and a small family for 32×32 images; other models, converted."""

from kaconv.models.convert import convert_to_kaconv
from kaconv.models.ecosystem import register
from kaconv.models.factory import create_model
from kaconv.models.registry import list_models, register_builder

__all__ = ["convert_to_kaconv", "create_model", "list_models", "register", "register_builder"]
