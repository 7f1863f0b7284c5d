"""The number that is explained, and how many images a pass may hold."""

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Classes: TypeAlias = int | Tensor | Any  # one for all samples, or one for each (N,), as an array or a sequence
Target: TypeAlias = Classes | tuple[Classes, Classes]

_VALUES = 2**21  # input values in a pass of the model: 13 images of 3×224×224, 75 of 3×96×96
_MOST_IMAGES = 256


class Score(nn.Module):
    """The logit of a class, or the difference of the logits of two. (N, ...) and classes (N, 1 or 2) to (N,).

    Captum repeats the classes with the inputs wherever a method needs copies of them.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, classes: Tensor) -> Tensor:
        logits = self.model(inputs).gather(1, classes)
        return logits[:, 0] - logits[:, 1] if classes.shape[1] == 2 else logits[:, 0]


def target_classes(model: nn.Module, inputs: Tensor, target: Target) -> Tensor:
    """The classes (N, 1), or (N, 2) for a pair, that a target names.

    Raises:
        ValueError: for inputs that are no batch of images, a model that does not give (N, classes), or classes that are
            no whole numbers of it, or too few or too many.
    """
    if inputs.ndim != 4 or not len(inputs):
        raise ValueError(f"inputs must be images (N, C, H, W), got shape {tuple(inputs.shape)}")
    parts = target if isinstance(target, tuple) else (target,)
    if len(parts) not in (1, 2):
        raise ValueError(f"target must be a class, one for each image, or a pair (this, not that); got {target!r}")
    columns = [torch.as_tensor(part, device=inputs.device) for part in parts]
    for column in columns:
        if column.is_floating_point() or column.shape not in ((), (1,), (len(inputs),)):
            raise ValueError(f"a class for all {len(inputs)} images, or one for each, is wanted; got {target!r}")
    classes = torch.stack([column.long().expand(len(inputs)) for column in columns], dim=1)
    with torch.no_grad():
        logits = model(inputs[:1])
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise ValueError(f"{type(model).__name__} must give logits (N, classes) to be explained")
    outside = classes[(classes < 0) | (classes >= logits.shape[1])]
    if len(outside):
        raise ValueError(f"classes must be from 0 to {logits.shape[1] - 1}, got {int(outside[0])}")
    return classes


def images_per_pass(inputs: Tensor) -> int:
    """The number of images of this size to take through a model at a time, so that memory is bounded."""
    return max(1, min(_MOST_IMAGES, _VALUES // max(1, inputs[0].numel())))
