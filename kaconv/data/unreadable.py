"""Images that cannot be read: named, counted, and passed over up to a limit."""

import logging
from collections.abc import Sized
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from kaconv.utils.text import printable

UNREADABLE = -1  # the label of what stands for an unreadable image, see `tolerant`
_LOGGER = logging.getLogger("kaconv")
_NAMED = 5


class UnreadablePicture(ValueError):
    """A file of a data set that is gone, truncated, no image, or larger than Pillow deems safe."""


class _Tolerant(Dataset):
    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            return self.dataset[index]
        except UnreadablePicture:
            return _blank(_innermost(self.dataset, index)[0]), UNREADABLE


def tolerant(dataset: Dataset) -> Dataset:
    """The same data set, but an image that cannot be read gives (zeros of the usual shape, `UNREADABLE`).

    No error has to cross from a loading process, and the batch keeps its size. `describe_sample` names the image.
    """
    return _Tolerant(dataset)


def describe_sample(dataset: Dataset, index: int) -> str:
    """The path of an image, or "sample 17" where it has none."""
    innermost, own_index = _innermost(dataset, index)
    samples = getattr(innermost, "samples", None)
    return f"sample {index}" if samples is None else str(samples[own_index][0])


def _innermost(dataset: Any, index: int) -> tuple[Any, int]:
    """What a `Subset` or another wrapper is made of, and the sample's index there."""
    while hasattr(dataset, "dataset"):
        index = dataset.indices[index] if hasattr(dataset, "indices") else index
        dataset = dataset.dataset
    return dataset, index


def _blank(dataset: Any) -> Tensor:
    with torch.random.fork_rng(devices=[]):  # the random crop must not shift those of the images after it
        return torch.zeros_like(dataset.transform(torch.zeros(3, 8, 8, dtype=torch.uint8)))


class BrokenPictures:
    """The unreadable images that this process has met.

    Args:
        dataset: knows their names.
        most: how many are passed over.
        where: what was going on, for the error's text: "in epoch 3".
    """

    def __init__(self, dataset: Dataset, most: int, where: str) -> None:
        self.dataset, self.most, self.where = dataset, most, where
        self.names: list[str] = []

    def note(self, labels: Tensor, indices: Tensor) -> None:
        """Look through a batch's labels; ValueError if there are now too many."""
        for index in indices[labels == UNREADABLE].tolist():
            self.names.append(describe_sample(self.dataset, index))
            _LOGGER.warning("%s cannot be read and is passed over", printable(self.names[-1]))
        self.check()

    def check(self) -> None:
        """ValueError if there are too many."""
        if len(self.names) > self.most:
            some = ", ".join(self.names[:_NAMED]) + (", ..." if len(self.names) > _NAMED else "")
            pictures = f"{len(self.names)} image{'s' * (len(self.names) > 1)}"
            raise ValueError(f"{pictures} {self.where} cannot be read, more than max_broken={self.most}: {some}")
