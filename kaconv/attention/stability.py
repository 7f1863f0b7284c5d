"""Stability of the attention when the image is changed: shifted, mirrored, turned, blurred, covered with noise.

Changes act on images in [0, 1]. Distances are in proportion to that between two random images, so that models and
layers can be compared: 0 is the attention as it was, 1 that of another image.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from kaconv.attention.capture import AttentionCapture
from kaconv.attention.record import AttentionRecord
from kaconv.data.preprocessing import Preprocessing
from kaconv.utils.modes import evaluating

PictureChange = Callable[[Tensor], Tensor]  # images (N, 3, H, W) in [0, 1] -> the same, changed

ANOTHER_PICTURE, ANOTHER_OF_ITS_CLASS = "another image", "another of its class"

_ROUNDING = 1e-6  # a distance that is no larger is none


@dataclass(frozen=True)
class Change:
    """A change of images.

    Args:
        kind: what is done, such as "shift".
        strength: how much of it, in `unit`; or which, such as "left-right".
        unit: of a strength that is a number.
        variants: ways to do it that are as strong as each other, such as the four directions of a shift; distances
            are the mean over them.
    """

    kind: str
    strength: float | str
    unit: str
    variants: tuple[PictureChange, ...]

    @property
    def name(self) -> str:
        """Such as "shift 2 px"."""
        number = self.strength if isinstance(self.strength, str) else f"{self.strength:g}"
        return f"{self.kind} {number} {self.unit}".strip()


def shift(pixels: int) -> Change:
    """Right, left, down and up. The image's border goes on where there is nothing to move in."""
    directions = ((pixels, 0), (-pixels, 0), (0, pixels), (0, -pixels))
    return Change("shift", pixels, "px", tuple(partial(_shifted, x=x, y=y) for x, y in directions))


def flip(axis: str) -> Change:
    """ "left-right" or "top-bottom"."""
    flips = {"left-right": F.horizontal_flip, "top-bottom": F.vertical_flip}
    if axis not in flips:
        raise ValueError(f"unknown flip {axis!r}; choose from {', '.join(flips)}")
    return Change("flip", axis, "", (flips[axis],))


def rotation(degrees: float) -> Change:
    """About the centre, either way. The image's border goes on in the corners."""
    return Change("rotation", degrees, "degrees", tuple(partial(_turned, degrees=sign * degrees) for sign in (1, -1)))


def blur(sigma: float) -> Change:
    """With a Gaussian of this standard deviation in pixels."""
    return Change("blur", sigma, "px", (partial(_blurred, sigma=sigma),))


def noise(sigma: float) -> Change:
    """Gaussian, for each pixel and colour by itself, of this standard deviation, where the image's range is 1."""
    return Change("noise", sigma, "of the range", (partial(F.gaussian_noise, sigma=sigma),))


def _shifted(images: Tensor, x: int, y: int) -> Tensor:
    height, width = images.shape[-2:]
    reach = max(abs(x), abs(y))
    padded = F.pad(images, [reach], padding_mode="edge")
    return F.crop(padded, reach - y, reach - x, height, width)


def _turned(images: Tensor, degrees: float) -> Tensor:
    if degrees % 90 == 0 and images.shape[-1] == images.shape[-2]:
        return images.rot90(round(degrees / 90), (-2, -1))  # exact
    height, width = images.shape[-2:]
    padded = F.pad(images, [max(height, width)], padding_mode="edge")
    return F.center_crop(F.rotate(padded, degrees, F.InterpolationMode.BILINEAR), [height, width])


def _blurred(images: Tensor, sigma: float) -> Tensor:
    reach = [min(int(np.ceil(3 * sigma)), side - 1) for side in (images.shape[-1], images.shape[-2])]
    return F.gaussian_blur(images, [2 * r + 1 for r in reach], [sigma, sigma])


class StabilityRow(TypedDict):
    """Movement of one layer's attention under one change.

    - change (its name), kind, strength, unit: see `Change`.
    - distance: of the attention, in [0, 1]; relative: the same over that of another image (NaN where all images have
      the same attention).
    - pixels: root mean square difference of the images in [0, 1], over that of another image.
    - kept: share of the images whose predicted class stays the same (NaN for a model that is no classifier).
    """

    change: str
    kind: str
    strength: float | str
    unit: str
    layer: str
    distance: float
    relative: float
    pixels: float
    kept: float


def attention_stability(
    model: nn.Module,
    images: Tensor,
    preprocessing: Preprocessing,
    changes: Sequence[Change],
    labels: np.ndarray | None = None,
    layers: str = "*",
    *,
    batch_size: int = 256,
    seed: int = 0,
) -> list[StabilityRow]:
    """Measure how far changes of the images move the attention of each layer, in eval mode.

    The distance between two maps is the total variation distance, averaged over channels and images.

    Args:
        images: normalised images (N, 3, H, W), at least 2.
        preprocessing: how they were normalised.
        labels: their classes (N,), where known.
        layers: shell pattern of layer names, such as "layer3.*".
        seed: of the noise, and of who is compared with whom.

    Returns:
        A row for each change and layer; two more kinds say what to compare with: "another image", and, where some
        class has two images, "another of its class".

    Raises:
        ValueError: for less than 2 images, or not as many labels as images; if no layer matches.
    """
    n = len(images)
    if n < 2:
        raise ValueError(f"at least 2 images are needed, so that there is another one to compare with; got {n}")
    if labels is not None and len(labels) != n:
        raise ValueError(f"there are {n} images, but {len(labels)} labels")

    def look(pictures: Tensor) -> _Look:
        normalised = F.normalize(pictures, list(preprocessing.mean), list(preprocessing.std))
        return _Look(pictures, _record(model, normalised.split(batch_size), layers))

    original = look(preprocessing.denormalise(images.cpu()))
    random = np.random.default_rng(seed)
    another = _difference(original, original, _partners(np.zeros(n), random))
    measured = [(Change(ANOTHER_PICTURE, "", "", ()), another)]
    partners = np.arange(n) if labels is None else _partners(np.asarray(labels), random)
    if (partners != np.arange(n)).any():
        measured.append((Change(ANOTHER_OF_ITS_CLASS, "", "", ()), _difference(original, original, partners)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for change in changes:
            variants = [_difference(original, look(variant(original.pictures))) for variant in change.variants]
            measured.append((change, np.mean(variants, axis=0)))
    rows = []
    for change, (pixels, kept, *distances) in measured:
        for layer, distance, of_another in zip(original.record.layers, distances, another[2:], strict=True):
            rows.append(
                StabilityRow(
                    change=change.name,
                    kind=change.kind,
                    strength=change.strength,
                    unit=change.unit,
                    layer=layer,
                    distance=float(distance),
                    relative=_ratio(distance, of_another),
                    pixels=_ratio(pixels, another[0]),
                    kept=float(kept),
                )
            )
    return rows


def _ratio(value: float, of: float) -> float:
    return float(value / of) if of > _ROUNDING else math.nan


@dataclass(frozen=True)
class _Look:
    """Images in [0, 1], and what the model makes of them."""

    pictures: Tensor
    record: AttentionRecord


def _record(model: nn.Module, batches: Sequence[Tensor], layers: str) -> AttentionRecord:
    device = next(model.parameters()).device
    with evaluating(model), torch.no_grad(), AttentionCapture(model, layers, thumbnail=0) as capture:
        for batch in batches:
            model(batch.to(device))
    return capture.record()


def _partners(groups: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """For each image another one of its group, or itself where it is the only one: its neighbour in a random ring."""
    partners = np.arange(len(groups))
    for group in np.unique(groups):
        ring = random.permutation(np.flatnonzero(groups == group))
        partners[ring] = np.roll(ring, 1)
    return partners


def _difference(one: _Look, other: _Look, partners: np.ndarray | None = None) -> np.ndarray:
    """Mean difference of the pixels, share of equal predictions, and the attention's distance in every layer.

    Args:
        partners: which image of `other` each one is compared with; one is left out that would be with itself.
    """
    here = np.arange(len(one.pictures))
    there = here if partners is None else partners
    if partners is not None:
        here, there = here[here != there], there[here != there]
    a, b = one.record.select(here), other.record.select(there)
    pixels = (one.pictures[here] - other.pictures[there]).square().mean(dim=(1, 2, 3)).sqrt().mean()
    distances = [np.abs(a.attention[layer] - b.attention[layer]).sum(axis=(1, 2)).mean() / 2 for layer in a.layers]
    kept = math.nan if a.predictions is None else (a.predictions == b.predictions).mean()
    return np.array([float(pixels), kept, *distances])
