"""Common corruptions of images: noise, blur, brightness, contrast, JPEG, coarse pixels, in five severities.

The kinds and their strengths are those of ImageNet-C (Hendrycks and Dietterich, ICLR 2019) as far as torchvision has
them, so errors compare models with each other, and not with published figures.
"""

from collections.abc import Callable, Sized
from dataclasses import replace
from io import BytesIO
from typing import cast

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from kaconv.data.datasets import DataBundle
from kaconv.data.preprocessing import Preprocessing

SEVERITIES = (1, 2, 3, 4, 5)
_IMAGENET_SIDE = 224  # pixels, for which ImageNet-C's blur is meant


def _noise(image: Tensor, strength: float, number: int) -> Tensor:
    generator = torch.Generator().manual_seed(number)  # the same noise for every model
    return image + strength * torch.randn(image.shape, generator=generator)


def _blur(image: Tensor, strength: float, number: int) -> Tensor:
    sigma = strength * image.shape[-1] / _IMAGENET_SIDE
    most = (min(image.shape[-2:]) - 1) // 2  # what the border can mirror
    return F.gaussian_blur(image, [2 * min(max(1, round(3 * sigma)), most) + 1] * 2, [sigma, sigma])


def _brightness(image: Tensor, strength: float, number: int) -> Tensor:
    return image + strength


def _contrast(image: Tensor, strength: float, number: int) -> Tensor:
    mean = image.mean((-2, -1), keepdim=True)
    return mean + strength * (image - mean)


def _jpeg(image: Tensor, strength: float, number: int) -> Tensor:
    buffer = BytesIO()
    F.to_pil_image(image).save(buffer, "JPEG", quality=int(strength))
    return F.to_dtype(F.pil_to_tensor(Image.open(buffer)), torch.float32, scale=True)


def _pixelate(image: Tensor, strength: float, number: int) -> Tensor:
    size = list(image.shape[-2:])
    coarse = F.resize(image, [max(1, round(strength * side)) for side in size], antialias=True)
    return F.resize(coarse, size, InterpolationMode.NEAREST_EXACT)


# What corrupts an image in [0, 1], and its strength at each severity.
CORRUPTIONS: dict[str, tuple[Callable[[Tensor, float, int], Tensor], tuple[float, ...]]] = {
    "noise": (_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),  # standard deviation, of the range
    "blur": (_blur, (1, 2, 3, 4, 6)),  # standard deviation in pixels, where an image has 224
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),  # added
    "contrast": (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),  # what is left of it
    "jpeg": (_jpeg, (25, 18, 15, 10, 7)),  # quality
    "pixelate": (_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),  # pixels left of each side
}


def corrupted(data: DataBundle, corruption: str, severity: int) -> DataBundle:
    """The same data set with corrupted test images, as `kaconv.inference.evaluate` takes them.

    They are corrupted at the model's own size, behind resizing and cropping, and always in the same way.

    Args:
        corruption: noise, blur, brightness, contrast, jpeg or pixelate.
        severity: from 1 to 5.

    Raises:
        ValueError: for an unknown corruption or severity.
    """
    if corruption not in CORRUPTIONS:
        raise ValueError(f"unknown corruption {corruption!r}; choose from {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be a whole number from 1 to {SEVERITIES[-1]}, got {severity!r}")
    corrupt, strengths = CORRUPTIONS[corruption]
    return replace(data, test=_Corrupted(data.test, data.preprocessing, corrupt, strengths[severity - 1]))


class _Corrupted(Dataset):
    def __init__(
        self,
        dataset: Dataset,
        preprocessing: Preprocessing,
        corrupt: Callable[[Tensor, float, int], Tensor],
        strength: float,
    ) -> None:
        self.dataset, self.preprocessing, self.corrupt, self.strength = dataset, preprocessing, corrupt, strength

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.dataset[index]
        changed = self.corrupt(self.preprocessing.denormalise(image), self.strength, index).clamp(0, 1)
        return F.normalize(changed, list(self.preprocessing.mean), list(self.preprocessing.std)), label
