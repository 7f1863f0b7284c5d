"""Records of attention: maps of some samples, with what is known of them."""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import torch

from kaconv.utils.files import replacing

if TYPE_CHECKING:
    from pandas import DataFrame

_OF_SAMPLES = ("labels", "predictions", "ids", "thumbnails")  # fields of a record with a row for each sample

# What numpy raises for a file that is damaged, or no npz file, or one of something else.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, MemoryError, zipfile.BadZipFile)


@dataclass(frozen=True)
class AttentionRecord:
    """The attention of some samples.

    Args:
        attention: for each layer its attention (N, kh, kw, C), float32, with the dimensions `dims`: non-negative, with
            sum 1 over the kh·kw positions; 1/(kh·kw) is "no preference".
        labels: true classes (N,), where known.
        predictions: predicted classes (N,), where known.
        ids: names or numbers of the samples (N,); by default they are numbered from 0.
        thumbnails: the samples as small images (N, h, w, 3), uint8, where there are any.
    """

    attention: dict[str, np.ndarray]
    labels: np.ndarray | None = None
    predictions: np.ndarray | None = None
    ids: np.ndarray | None = None
    thumbnails: np.ndarray | None = None

    dims: ClassVar[tuple[str, ...]] = ("sample", "row", "column", "channel")

    def __post_init__(self) -> None:
        if self.ids is None:
            object.__setattr__(self, "ids", np.arange(len(self)))

    @property
    def layers(self) -> list[str]:
        """Layer names, in the order of the model."""
        return list(self.attention)

    def __len__(self) -> int:
        """The number of samples N."""
        return len(next(iter(self.attention.values())))

    def select(self, samples: Sequence[int] | np.ndarray) -> Self:
        """The record of some samples, by their places or by a mask (N,)."""
        samples = np.asarray(samples)
        kept = {name: value[samples] for name in _OF_SAMPLES if (value := getattr(self, name)) is not None}
        return type(self)({layer: maps[samples] for layer, maps in self.attention.items()}, **kept)

    @classmethod
    def concatenate(cls, records: Sequence[Self]) -> Self:
        """One record of all samples, as when each of several processes has recorded its share.

        What one of the records lacks (labels, predictions, thumbnails), or has in another size, the whole lacks.

        Raises:
            ValueError: if there are none, or if they are not of the same layers.
        """
        if not records or any(record.layers != records[0].layers for record in records):
            raise ValueError("records to concatenate must be of the same layers, and there must be one at least")
        attention = {
            layer: np.concatenate([record.attention[layer] for record in records]) for layer in records[0].layers
        }
        parts = {name: [getattr(record, name) for record in records] for name in _OF_SAMPLES}
        alike = {
            name: part
            for name, part in parts.items()
            if len({np.shape(x)[1:] if x is not None else None for x in part}) == 1
        }
        return cls(attention, **{name: np.concatenate(part) for name, part in alike.items() if part[0] is not None})

    def mean(self, layer: str) -> np.ndarray:
        """Mean map of each channel over the samples. (kh, kw, C)."""
        return self.attention[layer].mean(axis=0)

    def variance(self, layer: str) -> np.ndarray:
        """Variance over the samples, without Bessel's correction. (kh, kw, C)."""
        return self.attention[layer].var(axis=0)

    def deviation(self, layer: str) -> np.ndarray:
        """Attention over 1/(kh·kw), minus 1: 0 is "no preference", 1 is twice the even share. (N, kh, kw, C)."""
        attention = self.attention[layer]
        return attention * (attention.shape[1] * attention.shape[2]) - 1

    def entropy(self, layer: str) -> np.ndarray:
        """Entropy over the positions, relative to the largest possible: 1 is uniform, 0 is one position. (N, C)."""
        attention = self.attention[layer]
        positions = attention.shape[1] * attention.shape[2]
        if positions == 1:
            return np.ones(attention.shape[::3], attention.dtype)
        return torch.special.entr(torch.from_numpy(attention)).sum(dim=(1, 2)).numpy() / np.log(positions)

    def input_dependence(self, layer: str) -> np.ndarray:
        """Dependence of the map on the input: the total variation distance, half the sum of absolute differences,
        between a sample's map and the mean map of its channel, averaged over samples. 0 is a static map. (C,)."""
        attention = self.attention[layer]
        return np.abs(attention - attention.mean(axis=0)).sum(axis=(1, 2)).mean(axis=0) / 2

    def distances_to(self, other: Self, layer: str) -> np.ndarray:
        """Total variation distance of each sample's maps to those of the other record's sample at the same place,
        averaged over channels. (N,)."""
        return np.abs(self.attention[layer] - other.attention[layer]).sum(axis=(1, 2)).mean(axis=-1) / 2

    def class_means(self, layer: str) -> np.ndarray:
        """Mean map of each class, in the order of the labels that there are. (classes, kh, kw, C).

        Raises:
            ValueError: if the record has no labels; so do `class_distances` and `class_share`.
        """
        labels = self._known_labels()
        attention = self.attention[layer]
        return np.stack([attention[labels == label].mean(axis=0) for label in np.unique(labels)])

    def _known_labels(self) -> np.ndarray:
        if self.labels is None:
            raise ValueError("the record has no labels; give them to AttentionCapture.record(labels=...)")
        return self.labels

    def class_distances(self, layer: str) -> np.ndarray:
        """Total variation distance between the classes' mean maps, averaged over channels. (classes, classes)."""
        return map_distances(self.class_means(layer))

    def class_share(self, layer: str) -> float:
        """Share of the attention's variance over samples that lies between the classes' means, in [0, 1].

        With no relation to the class it is about (classes - 1) / (samples - 1).
        """
        means, attention = self.class_means(layer), self.attention[layer]
        _, index, counts = np.unique(self._known_labels(), return_inverse=True, return_counts=True)
        between = (counts[:, None, None, None] * (means - attention.mean(axis=0)) ** 2).sum()
        total = between + ((attention - means[index]) ** 2).sum()
        return float(between / total) if total else 0.0

    def to_frame(self) -> "DataFrame":
        """A tidy table with a row for each number: sample (its id), layer, row, column, channel, attention; and label
        and prediction where known."""
        import pandas as pd

        frames = []
        for layer, maps in self.attention.items():
            places = pd.MultiIndex.from_product([range(size) for size in maps.shape], names=self.dims)
            frame = pd.DataFrame({"attention": maps.ravel()}, places).reset_index()
            frame.insert(1, "layer", layer)
            frames.append(frame)
        frame = pd.concat(frames, ignore_index=True)
        for name, values in {"label": self.labels, "prediction": self.predictions, "sample": self.ids}.items():
            if values is not None:
                frame[name] = values[frame["sample"]]
        return frame

    def save(self, path: str | Path) -> None:
        """Write an npz file without pickled objects; `load` reads it."""
        arrays = {f"attention/{name}": array for name, array in self.attention.items()}
        for name in _OF_SAMPLES:
            if (array := getattr(self, name)) is not None:
                arrays[name] = array
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays, layers=np.array(json.dumps(self.layers)), allow_pickle=False)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` has written.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is no record, or one of its arrays cannot be what its name says.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no attention record {Path(path).resolve()}")
        try:
            with np.load(path, allow_pickle=False) as file:
                attention = {name: file[f"attention/{name}"] for name in json.loads(str(file["layers"]))}
                of_samples = {name: file.get(name) for name in _OF_SAMPLES}
            _check(attention, of_samples)
        except _UNREADABLE as error:
            raise ValueError(f"{path} is not an attention record: {str(error) or type(error).__name__}") from None
        return cls(attention, **of_samples)


def _check(attention: dict[str, np.ndarray], of_samples: dict[str, np.ndarray | None]) -> None:
    """ValueError, with the field's name, for arrays that no capture gives."""
    if not attention:
        raise ValueError("it has no layers")
    n = len(next(iter(attention.values()))) if next(iter(attention.values())).ndim else 0
    for layer, maps in attention.items():
        field = f"attention/{layer}"
        if maps.ndim != 4 or maps.dtype.kind != "f":
            raise ValueError(f"{field} must be floats (N, kh, kw, C), got {maps.dtype} {maps.shape}")
        if len(maps) != n:
            raise ValueError(f"{field} has {len(maps)} samples, the first layer {n}")
        # Less than 1 is the sum where an intervention has removed positions.
        if not ((maps >= 0).all() and (maps.sum(axis=(1, 2)) < 1.01).all()):  # both are false for NaN
            raise ValueError(f"{field} must be finite, at least 0, and of sum 1 at most over the positions")
    kinds = {"labels": ("iu", 1), "predictions": ("iu", 1), "ids": ("iuU", 1), "thumbnails": ("u", 4)}
    for field, values in of_samples.items():
        allowed, ndim = kinds[field]
        if values is not None and (values.dtype.kind not in allowed or values.ndim != ndim or len(values) != n):
            raise ValueError(f"{field} must be of {n} samples, got {values.dtype} {values.shape}")


def map_distances(means: np.ndarray) -> np.ndarray:
    """Total variation distance between mean maps (M, kh, kw, C), averaged over channels. (M, M)."""
    # Row by row: all pairs at a time of 1000 classes would take gigabytes.
    return np.stack([np.abs(means - one).sum(axis=(1, 2)).mean(axis=-1) / 2 for one in means])
