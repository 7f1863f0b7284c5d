"""All attributions of a few images as plain arrays, for whoever draws them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from kaviz.attribution.pixels import attribute
from kaviz.attribution.positions import attribute_positions
from kaviz.attribution.scores import Target


@dataclass(frozen=True)
class Explanation:
    """Attributions of N images, float32.

    Args:
        pixels: for each method its maps (N, H, W), the channels added up.
        positions: for each KAConv layer the contributions of its kernel positions, (N, kh, kw, C), or (N, kh, kw) where
            whole positions were ablated.
        attention: for each layer its attention, (N, kh, kw, C).
        completeness: how far the contributions miss the change in the score; see `PositionAttribution.completeness`.
    """

    pixels: dict[str, np.ndarray]
    positions: dict[str, np.ndarray]
    attention: dict[str, np.ndarray]
    completeness: dict[str, float]


def explain(
    model: nn.Module,
    images: Tensor,
    target: Target,
    *,
    methods: Sequence[str] = ("integrated_gradients", "grad_cam"),
    positions: str = "integrated_gradients",
    layers: str = "*",
    progress: bool = True,
) -> Explanation:
    """Attribute a score to the pixels of images, by several methods, and to the kernel positions of KAConv layers.

    Args:
        images: (N, C, H, W), on the model's device.
        target: a class, one for each image, or a pair of them, as in `kaviz.attribute`.
        methods: of `kaviz.attribution.METHODS`.
        positions: one of `kaviz.attribution.POSITION_METHODS`.
        layers: shell pattern of the layers whose positions are explained.

    Raises:
        ValueError: as `attribute` and `attribute_positions` do.
    """
    found = attribute_positions(model, images, target, positions, layers, progress=progress)
    pixels = {
        method: attribute(model, images, target, method, progress=progress).sum(1).float().cpu().numpy()
        for method in methods
    }
    return Explanation(pixels, _single(found.contributions), _single(found.attention), found.completeness())


def _single(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values.astype(np.float32) for name, values in arrays.items()}
