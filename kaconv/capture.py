"""Records of the attention that a model's KAConv layers compute."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from scipy.special import entr
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from kaconv.files import replacing
from kaconv.layers import KAConv2d

if TYPE_CHECKING:
    from pandas import DataFrame

    from kaconv.data import Preprocessing

_OF_SAMPLES = ("labels", "predictions", "ids", "thumbnails")  # fields of a record with a row for each sample


def kaconv_layers(model: nn.Module, pattern: str = "*") -> dict[str, KAConv2d]:
    """The KAConv2d layers of a model by name, in the order of the model, that match a shell pattern.

    Names are those in the model itself, without what a wrapper for several processes puts before them.

    Raises:
        ValueError: if there is none; it names those that there are.
    """
    if isinstance(model, (DataParallel, DistributedDataParallel)):
        model = model.module
    layers = {name: module for name, module in model.named_modules() if isinstance(module, KAConv2d)}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no KAConv2d layer")
    chosen = {name: module for name, module in layers.items() if fnmatch(name, pattern)}
    if not chosen:
        raise ValueError(f"no KAConv2d layer matches {pattern!r}; there are {', '.join(layers)}")
    return chosen


@dataclass(frozen=True)
class AttentionRecord:
    """The attention of some samples.

    Args:
        attention: for each layer its attention (N, kh, kw, C), float32, with the dimensions `dims`: non-negative, with
            sum 1 over the kh·kw positions; 1/(kh·kw) is "no preference".
        labels: true classes (N,), where known.
        predictions: predicted classes (N,), where known.
        ids: names or numbers of the samples (N,); by default they are numbered from 0.
        thumbnails: the samples as small pictures (N, h, w, 3), uint8, where there are any.
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
        return entr(attention).sum(axis=(1, 2)) / np.log(positions)

    def input_dependence(self, layer: str) -> np.ndarray:
        """How far the map moves with the input: the total variation distance, half the sum of absolute differences,
        between a sample's map and the mean map of its channel, averaged over samples. 0 is a static map. (C,)."""
        attention = self.attention[layer]
        return np.abs(attention - attention.mean(axis=0)).sum(axis=(1, 2)).mean(axis=0) / 2

    def class_means(self, layer: str) -> np.ndarray:
        """Mean map of each class, in the order of the labels that there are. (classes, kh, kw, C).

        Raises:
            ValueError: if the record has no labels; so do `class_distances` and `class_share`.
        """
        if self.labels is None:
            raise ValueError("the record has no labels; give them to AttentionCapture.record(labels=...)")
        attention = self.attention[layer]
        return np.stack([attention[self.labels == label].mean(axis=0) for label in np.unique(self.labels)])

    def class_distances(self, layer: str) -> np.ndarray:
        """Total variation distance between the classes' mean maps, averaged over channels. (classes, classes)."""
        return map_distances(self.class_means(layer))

    def class_share(self, layer: str) -> float:
        """Share of the attention's variance over samples that lies between the classes' means, in [0, 1].

        With no relation to the class it is about (classes - 1) / (samples - 1).
        """
        means, attention = self.class_means(layer), self.attention[layer]
        _, index, counts = np.unique(self.labels, return_inverse=True, return_counts=True)
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
            np.savez_compressed(file, layers=json.dumps(self.layers), **arrays)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` has written."""
        with np.load(path, allow_pickle=False) as file:
            attention = {name: file[f"attention/{name}"] for name in json.loads(str(file["layers"]))}
            return cls(attention, **{name: file.get(name) for name in _OF_SAMPLES})


def map_distances(means: np.ndarray) -> np.ndarray:
    """Total variation distance between mean maps (M, kh, kw, C), averaged over channels. (M, M)."""
    return np.abs(means[:, None] - means[None]).sum(axis=(2, 3)).mean(axis=-1) / 2


class AttentionCapture:
    """Collects the attention of every forward pass that runs inside the `with` block.

    It adds a forward hook to the attention generators, takes them away at the end, on errors too, and changes
    nothing else: the model keeps its mode and its outputs. It sees what hooks made of the attention that were there
    before it, not those that come later. Everything is kept, about 140 kB a picture for KAResNet50; for a whole data
    set in constant memory there is `kaconv.statistics.attention_statistics`. Of several processes each records what it
    has seen; `AttentionRecord.concatenate` puts the records together.

    Args:
        model: any model with KAConv2d layers, in a DistributedDataParallel or not.
        layers: shell pattern of layer names, such as "layer3.*".
        preprocessing: how the pictures were normalised, so that thumbnails have their true colours; without it each
            is scaled to its own range.
        thumbnail: longest side of the thumbnails in pixels, which pictures (N, 1 or 3, H, W) get; 0 for none.

    Raises:
        ValueError: if no KAConv2d layer matches.

    Example:
        >>> with AttentionCapture(model, layers="layer3.*") as capture:
        ...     model(images)
        >>> record = capture.record(labels=labels)
    """

    def __init__(
        self, model: nn.Module, layers: str = "*", *, preprocessing: "Preprocessing | None" = None, thumbnail: int = 64
    ) -> None:
        self.model = model
        self.preprocessing, self.thumbnail = preprocessing, thumbnail
        self._layers = kaconv_layers(model, layers)
        self._batches: dict[str, list[np.ndarray]] = {}
        self._predictions: list[np.ndarray] = []
        self._thumbnails: list[np.ndarray] = []
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        self._batches = {name: [] for name in self._layers}
        self._predictions, self._thumbnails = [], []
        for name, layer in self._layers.items():
            self._handles.append(layer.attention_generator.register_forward_hook(self._keep(name, layer)))
        self._handles.append(self.model.register_forward_hook(self._keep_predictions))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _keep(self, name: str, layer: KAConv2d) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], attention: Tensor) -> None:
            maps = attention.detach().unflatten(1, layer.kernel_size)
            self._batches[name].append(maps.to("cpu", torch.float32, copy=True).numpy())  # later hooks may write to it

        return hook

    def _keep_predictions(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 2:
            self._predictions.append(output.detach().argmax(dim=1).cpu().numpy())
        if self.thumbnail and inputs and _are_pictures(inputs[0]):
            self._thumbnails.append(_thumbnails(inputs[0].detach(), self.thumbnail, self.preprocessing))

    def record(self, labels: Any = None, ids: Any = None) -> AttentionRecord:
        """What was collected, the passes one after another.

        Args:
            labels: the samples' true classes (N,), kept with the record.
            ids: names or numbers of the samples (N,); None numbers them from 0.

        Raises:
            ValueError: if nothing ran inside the block, if a pass broke off between the layers, or if there are not as
                many labels or ids as samples.
        """
        if not any(self._batches.values()):
            raise ValueError("nothing was captured: run the model inside the `with AttentionCapture(...)` block")
        attention = {name: np.concatenate(batches) for name, batches in self._batches.items() if batches}
        sizes = {name: len(maps) for name, maps in attention.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"a forward pass broke off: the layers have seen different numbers of samples, {sizes}")
        given = {
            name: np.asarray(values) for name, values in {"labels": labels, "ids": ids}.items() if values is not None
        }
        n = len(next(iter(attention.values())))
        for name, values in given.items():
            if values.shape != (n,):
                raise ValueError(f"{n} samples were captured, but {name} has shape {values.shape}")
        return AttentionRecord(attention, **given, **self._whole(n))

    def _whole(self, n: int) -> dict[str, np.ndarray]:
        """Predictions and thumbnails, where every sample has them and all are of one size."""
        found = {"predictions": self._predictions, "thumbnails": self._thumbnails}
        alike = {name: parts for name, parts in found.items() if len({part.shape[1:] for part in parts}) == 1}
        return {name: whole for name, parts in alike.items() if len(whole := np.concatenate(parts)) == n}


def _are_pictures(x: Any) -> bool:
    return isinstance(x, Tensor) and x.ndim == 4 and x.shape[1] in (1, 3) and x.numel() > 0


def _thumbnails(x: Tensor, longest: int, preprocessing: "Preprocessing | None") -> np.ndarray:
    """Pictures (N, 1 or 3, H, W) as uint8 (N, h, w, 3), none larger than it was."""
    x = x.float()
    if preprocessing:
        x = preprocessing.denormalise(x)
    else:
        low, high = (limit(x, dim=(1, 2, 3), keepdim=True) for limit in (torch.amin, torch.amax))
        x = (x - low) / (high - low).clamp_min(torch.finfo(x.dtype).tiny)
    scale = min(1, longest / max(x.shape[2:]))
    x = adaptive_avg_pool2d(x, [max(1, round(side * scale)) for side in x.shape[2:]])
    return (x.expand(-1, 3, -1, -1).movedim(1, -1) * 255).round().to("cpu", torch.uint8).numpy()
