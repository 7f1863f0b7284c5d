"""Attributions, of pixels and of kernel positions, and what speaks for believing them."""

from kaviz.attribution.explanation import Explanation, explain
from kaviz.attribution.faithfulness import (
    MEASURES,
    faithfulness_table,
    infidelities,
    method_agreement,
    perturbation_curve,
    randomisation_similarity,
    road,
    sensitivities,
)
from kaviz.attribution.pixels import METHOD_LABELS, METHODS, NOISE_TUNNELS, attribute
from kaviz.attribution.positions import POSITION_METHODS, PositionAttribution, attribute_positions, position_agreement

__all__ = [
    "MEASURES",
    "METHODS",
    "METHOD_LABELS",
    "NOISE_TUNNELS",
    "POSITION_METHODS",
    "Explanation",
    "PositionAttribution",
    "attribute",
    "attribute_positions",
    "explain",
    "faithfulness_table",
    "infidelities",
    "method_agreement",
    "perturbation_curve",
    "position_agreement",
    "randomisation_similarity",
    "road",
    "sensitivities",
]
