"""Models by name: the 15 of the paper's table, and a small family for pictures of 32×32."""

from kaconv.models.factory import create_model
from kaconv.models.optimize import optimize_for_inference
from kaconv.models.registry import list_models

__all__ = ["create_model", "list_models", "optimize_for_inference"]
