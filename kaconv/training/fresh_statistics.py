"""A model with batch norm statistics recomputed, which tells a bad model from one with bad running statistics."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, Dataset, Subset

from kaconv.data.datasets import DataBundle
from kaconv.data.unreadable import UNREADABLE, tolerant
from kaconv.training.batches import mixed_seed

PICTURES = 2000  # enough that another choice of them changes little


def with_fresh_statistics(
    model: nn.Module, data: DataBundle, *, batch_size: int, seed: int, workers: int = 0
) -> nn.Module:
    """A copy of a model whose batch norms know training pictures without augmentation, as its weights see them now.

    The running statistics of a training come from the last steps, each with weights of its own, and from augmented
    pictures. Here they are the mean over batches of up to 2,000 pictures; every process takes the same ones.

    Args:
        seed: of the choice of the pictures.
        batch_size: pictures of a batch; an incomplete last one is left out.
    """
    pictures = _training_pictures(data, seed)
    loader = DataLoader(
        tolerant(pictures),
        min(batch_size, len(pictures)),
        num_workers=workers,
        drop_last=True,
        generator=torch.Generator(),  # nothing is drawn from the one that a training goes on with
    )
    fresh = copy.deepcopy(model)
    update_bn(_readable(loader), fresh, next(fresh.parameters()).device)
    return fresh


def _training_pictures(data: DataBundle, seed: int) -> Dataset:
    plain = copy.copy(data.train)
    plain.transform = data.preprocessing.eval_transform()
    # In random order: in a folder's order, each batch would have the statistics of one class.
    order = torch.randperm(len(plain), generator=torch.Generator().manual_seed(mixed_seed(seed)))
    return Subset(plain, order[:PICTURES].tolist())


def _readable(loader: DataLoader) -> Iterator[Tensor]:
    for images, labels in loader:
        images = images[labels != UNREADABLE]
        if len(images) > 1:  # batch norm cannot train on one picture
            yield images
