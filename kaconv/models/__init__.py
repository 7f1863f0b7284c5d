"""Models by name: the 15 of the paper's table, and a small family for pictures of 32×32."""

from kaconv.models.factory import create_model
from kaconv.models.optimize import optimize_for_inference
from kaconv.models.registry import list_models
from kaconv.models.weights import list_weights, model_card

__all__ = ["create_model", "list_models", "list_weights", "model_card", "optimize_for_inference"]
