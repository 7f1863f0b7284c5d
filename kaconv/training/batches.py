"""The images of each training step and their augmentation: a function of seed, epoch and step alone.

Neither the number of processes nor that of loading workers nor an interruption changes it.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from kaconv.utils.seeds import mixed_seed

Key = tuple[int, int]  # epoch and index of an image


class SeededPictures(Dataset):
    """A data set that is asked for (epoch, index), and augments each image by random numbers of its own.

    It gives the image, its label, and the index.
    """

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, key: Key) -> tuple[Tensor, int, int]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mixed_seed(self.seed, *key))
            return *self.dataset[key[1]], key[1]


class StepBatches(Sampler[list[Key]]):
    """The batches of one process, one after another: `accumulation` of them make a step of `batch_size` images.

    A step's images are cut into `processes` · `accumulation` parts, the same ones however these two share the
    product; each process takes its own. A last step with fewer images is left out, unless it is the only one.

    Args:
        pictures: how many images there are.
        batch_size: images of a step, over all processes.
        rank: which process this is.
    """

    def __init__(
        self, pictures: int, batch_size: int, seed: int, *, accumulation: int = 1, processes: int = 1, rank: int = 0
    ) -> None:
        self.pictures, self.batch_size, self.seed = pictures, min(batch_size, pictures), seed
        self.accumulation, self.processes, self.rank = accumulation, processes, rank
        self.steps = self.pictures // self.batch_size
        self.epoch, self.first_step = 1, 0

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.accumulation

    def __iter__(self) -> Iterator[list[Key]]:
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, self.epoch))
        order = torch.randperm(self.pictures, generator=generator)
        for step in range(self.first_step, self.steps):
            indices = order[step * self.batch_size : (step + 1) * self.batch_size]
            parts = indices.tensor_split(self.processes * self.accumulation)
            for part in parts[self.rank * self.accumulation : (self.rank + 1) * self.accumulation]:
                yield [(self.epoch, index) for index in part.tolist()]
