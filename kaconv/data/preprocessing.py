"""Preprocessing: from images to a model's input."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from kaconv.utils.checks import MOST_PIXELS, is_number, or_none, whole
from kaconv.utils.text import short_repr


@dataclass(frozen=True)
class Preprocessing:
    """Preparation of images for a model, in training and in evaluation.

    Evaluation resizes the shorter side to `resize` and cuts out the middle `image_size` square (with black borders
    where `resize` is smaller). Training takes a random crop: of random area and aspect ratio as for ImageNet where
    `padding` is None, else of constant size from the resized image with `padding` black pixels around it; then it
    mirrors half of the images where `flip` is set. `mean` and `std` are per RGB channel of images in [0, 1].
    """

    image_size: int
    resize: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    padding: int | None = None
    flip: bool = True

    def eval_transform(self) -> v2.Transform:
        """Image (PIL or uint8 tensor (..., 1 or 3, H, W)) to normalised float (..., 3, image_size, image_size)."""
        return v2.Compose([v2.RGB(), self.resizing(), v2.CenterCrop(self.image_size), *self._to_tensor()])

    def train_transform(self) -> v2.Transform:
        """As `eval_transform`, for single images, with the random crop and flip of training."""
        if self.padding is None:
            crop = [v2.RandomResizedCrop(self.image_size, interpolation=v2.InterpolationMode(self.interpolation))]
        else:
            crop = [self.resizing(), v2.RandomCrop(self.image_size, padding=self.padding)]
        flip = [v2.RandomHorizontalFlip()] if self.flip else []
        return v2.Compose([v2.RGB(), *crop, *flip, *self._to_tensor()])

    def denormalise(self, images: Tensor) -> Tensor:
        """Normalised (3, H, W) or (N, 3, H, W) back to [0, 1], for showing."""
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (images * std + mean).clamp(0, 1)

    def at(self, image_size: int | None) -> "Preprocessing":
        """The same for another `image_size`: `resize` and `padding` scale along. None changes nothing.

        ValueError if images would have more than 8,192 pixels a side.
        """
        if image_size is None:
            return self
        scale = image_size / self.image_size
        padding = None if self.padding is None else round(self.padding * scale)
        resize = round(self.resize * scale)
        if not _ALLOWED["resize"](resize):
            raise ValueError(f"image_size {image_size} is too large: images would be resized to {resize} pixels")
        return replace(self, image_size=image_size, resize=resize, padding=padding)

    def to_dict(self) -> dict:
        """JSON-able."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Preprocessing":
        """Inverse of `to_dict`; ValueError on a missing or unknown field or a value that a field cannot have."""
        if not isinstance(values, dict):
            raise ValueError(f"preprocessing must be a dict of its fields, got {values!r}")
        unknown = sorted(values.keys() - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"unknown preprocessing fields: {', '.join(unknown)}")
        try:
            preprocessing = cls(**values | {"mean": tuple(values["mean"]), "std": tuple(values["std"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"incomplete preprocessing {short_repr(values)}: {error}") from None
        bad = [name for name, is_allowed in _ALLOWED.items() if not is_allowed(getattr(preprocessing, name))]
        if bad:
            raise ValueError(f"bad preprocessing: {', '.join(f'{name} {short_repr(values[name])}' for name in bad)}")
        return preprocessing

    def resizing(self) -> v2.Transform:
        """The shorter side to `resize`."""
        return v2.Resize(self.resize, interpolation=v2.InterpolationMode(self.interpolation))

    def _to_tensor(self) -> list[v2.Transform]:
        return [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.mean, self.std)]


def _is_three_numbers(values: tuple) -> bool:
    return len(values) == 3 and all(is_number(math.isfinite)(value) for value in values)


_ALLOWED: dict[str, Callable[[Any], bool]] = {
    "image_size": whole(1, MOST_PIXELS)[1],
    "resize": whole(1, MOST_PIXELS)[1],
    "interpolation": lambda value: value in [mode.value for mode in v2.InterpolationMode],
    "mean": _is_three_numbers,
    "std": lambda values: _is_three_numbers(values) and min(values) > 0,
    "padding": or_none(whole(0, MOST_PIXELS))[1],
    "flip": lambda value: isinstance(value, bool),
}

IMAGENET = Preprocessing(224, 256, "bicubic", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
DIGITS = Preprocessing(16, 16, "bilinear", mean=(0.305,) * 3, std=(0.319,) * 3, padding=1, flip=False)
FASHION_MNIST = Preprocessing(32, 28, "bilinear", mean=(0.286,) * 3, std=(0.353,) * 3, padding=4)
CIFAR10 = Preprocessing(32, 32, "bilinear", mean=(0.491, 0.482, 0.447), std=(0.247, 0.243, 0.262), padding=4)
FAKE = Preprocessing(32, 32, "bilinear", mean=(0.5,) * 3, std=(0.5,) * 3, padding=4)
