"""A model's own decisions as labels: effects of interventions can then be measured on images of any classes."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn
from torch.utils.data import Dataset

from kaconv.inference.evaluation import evaluate


def label_with_decisions(
    model: nn.Module, dataset: Dataset, *, batch_size: int = 256, progress: bool = False
) -> Dataset:
    """Label images with the classes that a model decides for, untouched, in place of their own labels.

    To `measure_effects`, an error is then a decision that an intervention turns, the class whose probability changes
    is the one that the untouched model decides for, and donors of the same class are images that it decides alike.

    An image whose decision no other one shares is left out, as nobody could lend it maps of the same class; so is one
    that cannot be read.

    Args:
        dataset: yields (image, label); the labels may be any.
        batch_size: images at a time.

    Returns:
        Yields (image, decision), in the order of `dataset`; no image is kept in memory.

    Raises:
        ValueError: if images of fewer than two decisions are left; and as `evaluate` does.
    """
    found = evaluate(model, dataset, batch_size=batch_size, progress=progress)
    shared = np.bincount(found.predictions)[found.predictions] > 1
    decisions = found.predictions[shared]
    if (different := len(np.unique(decisions))) < 2:
        raise ValueError(
            f"the model's decisions on {len(shared)} images cannot stand for labels: two or more must be shared "
            f"by two or more images each, and {'one is' if different else 'none is'}; take more images, or others"
        )
    return _Labelled(dataset, found.indices[shared].tolist(), decisions.tolist())


class _Labelled(Dataset):
    """Some images of a data set, by their numbers there, with other labels."""

    def __init__(self, dataset: Dataset, indices: Sequence[int], labels: Sequence[int]) -> None:
        self.dataset, self.indices, self.labels = dataset, indices, labels  # as a `Subset` has them

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.dataset[self.indices[index]][0], self.labels[index]
