"""A model with batch norm statistics recomputed, which tells a bad model from one with bad running statistics."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, Subset

from kaconv.data.datasets import DataBundle
from kaconv.data.unreadable import UNREADABLE, tolerant
from kaconv.utils.seeds import mixed_seed

PICTURES = 2000  # enough that another choice of them changes little


def has_batch_norm(model: nn.Module) -> bool:
    """True if a model has running statistics that could be recomputed."""
    return any(isinstance(module, _BatchNorm) and module.running_mean is not None for module in model.modules())


def with_fresh_statistics(
    model: nn.Module, data: DataBundle, *, batch_size: int, seed: int, workers: int = 0, most: int | None = None
) -> nn.Module:
    """A copy of a model whose batch norms know training images without augmentation, as its weights see them now.

    The running statistics of a training come from the last steps, each with weights of its own, and from augmented
    images. Here they are the mean over batches of up to 2,000 images; every process takes the same ones.

    Args:
        data: where it has no training split, its test images are taken, without their labels.
        seed: of the choice of the images.
        batch_size: images of a batch; an incomplete last one is left out.
        most: images to take, if not 2,000.
    """
    images = _images(data, seed, most or PICTURES)
    loader = DataLoader(
        tolerant(images),
        min(batch_size, len(images)),
        num_workers=workers,
        drop_last=True,
        generator=torch.Generator(),  # nothing is drawn from the one that a training goes on with
    )
    fresh = copy.deepcopy(model)
    update_bn(_readable(loader), fresh, next(fresh.parameters()).device)
    return fresh


def _images(data: DataBundle, seed: int, most: int) -> Subset:
    plain: Any = copy.copy(data.train if data.train is not None else data.test)
    plain.transform = data.preprocessing.eval_transform()
    # In random order: in a folder's order, each batch would have the statistics of one class.
    order = torch.randperm(len(plain), generator=torch.Generator().manual_seed(mixed_seed(seed)))
    return Subset(plain, order[:most].tolist())


def _readable(loader: DataLoader) -> Iterator[Tensor]:
    for images, labels in loader:
        images = images[labels != UNREADABLE]
        if len(images) > 1:  # batch norm cannot train on one image
            yield images
