"""Models by name: the 15 of the paper's table, and a small family for 32×32 images; other models, converted."""

from kaconv.models.convert import convert_to_kaconv
from kaconv.models.dense import backbone, detector
from kaconv.models.ecosystem import register
from kaconv.models.factory import create_model
from kaconv.models.optimize import optimize_for_inference
from kaconv.models.registry import list_models, register_builder
from kaconv.models.weights import list_weights, model_card

__all__ = [
    "backbone",
    "convert_to_kaconv",
    "create_model",
    "detector",
    "list_models",
    "list_weights",
    "model_card",
    "optimize_for_inference",
    "register",
    "register_builder",
]
