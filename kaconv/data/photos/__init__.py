"""Photographs under CC BY 2.0 that come with the package: nine of classes of Imagenette, the others of ImageNet's.

`photos.csv` gives each one's author, licence and page. They stem from the development set of the NIPS 2017 competition
on adversarial attacks, were not taken from ImageNet, and are squares of 299 pixels; nothing else was changed.
"""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

FOLDER = Path(__file__).parent
IMAGENETTE = (
    "tench",
    "English springer",
    "cassette player",
    "chain saw",
    "church",
    "French horn",
    "garbage truck",
    "gas pump",
    "golf ball",
    "parachute",
)


class Credit(NamedTuple):
    """A line of `photos.csv`: the photograph's file name and class, its author, licence and page."""

    file: str
    label: str
    author: str
    licence: str
    page: str


def photo_credits() -> list[Credit]:
    """Author, licence and page of each photograph, in the data set's order."""
    with (FOLDER / "photos.csv").open(encoding="utf-8", newline="") as file:
        return [Credit(*row) for row in list(csv.reader(file))[1:]]


class Photos(Dataset):
    """The photographs as (transformed image, label). `classes`: Imagenette's ten, then those of the other photographs.

    So a network for Imagenette knows the classes of the first nine, and gets the others as something new.
    """

    def __init__(self, transform: Callable[[Image.Image], Tensor], load: Callable[[str], Image.Image]) -> None:
        self.transform, self.loader = transform, load
        credits = photo_credits()
        self.classes = list(dict.fromkeys([*IMAGENETTE, *(credit.label for credit in credits)]))
        self.samples = [(str(FOLDER / credit.file), self.classes.index(credit.label)) for credit in credits]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        return self.transform(self.loader(path)), label
