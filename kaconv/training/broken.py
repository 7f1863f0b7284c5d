"""Pictures that cannot be read: named, counted, and passed over up to a limit."""

import logging

from torch import Tensor
from torch.utils.data import Dataset

from kaconv.data import UNREADABLE, describe_sample

_LOGGER = logging.getLogger("kaconv")
_NAMED = 5


class BrokenPictures:
    """The unreadable pictures that this process has met.

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
            _LOGGER.warning("%s cannot be read and is passed over", self.names[-1])
        self.check()

    def check(self) -> None:
        """ValueError if there are too many."""
        if len(self.names) > self.most:
            some = ", ".join(self.names[:_NAMED]) + (", ..." if len(self.names) > _NAMED else "")
            pictures = f"{len(self.names)} picture{'s' * (len(self.names) > 1)}"
            raise ValueError(f"{pictures} {self.where} cannot be read, more than max_broken={self.most}: {some}")
