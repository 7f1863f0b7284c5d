"""Records of the attention that a model's KAConv layers compute."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kaconv.files import replacing
from kaconv.layers import KAConv2d


def kaconv_layers(model: nn.Module, pattern: str = "*") -> dict[str, KAConv2d]:
    """The KAConv2d layers of a model by name, in the order of the model, that match a shell pattern.

    Raises:
        ValueError: if there is none; it names those that there are.
    """
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
        attention: for each layer its attention (N, kh, kw, C), float32: non-negative, with sum 1 over the kh·kw
            positions; 1/(kh·kw) is "no preference".
        labels: true classes (N,), where known.
        predictions: predicted classes (N,), where known.
    """

    attention: dict[str, np.ndarray]
    labels: np.ndarray | None = None
    predictions: np.ndarray | None = None

    @property
    def layers(self) -> list[str]:
        """Layer names, in the order of the model."""
        return list(self.attention)

    def __len__(self) -> int:
        """The number of samples N."""
        return len(next(iter(self.attention.values())))

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
        log = np.log(attention, where=attention > 0, out=np.zeros_like(attention))
        return -(attention * log).sum(axis=(1, 2)) / np.log(positions)

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
        means = self.class_means(layer)
        return np.abs(means[:, None] - means[None]).sum(axis=(2, 3)).mean(axis=-1) / 2

    def class_share(self, layer: str) -> float:
        """Share of the attention's variance over samples that lies between the classes' means, in [0, 1].

        With no relation to the class it is about (classes - 1) / (samples - 1).
        """
        means, attention = self.class_means(layer), self.attention[layer]
        _, index, counts = np.unique(self.labels, return_inverse=True, return_counts=True)
        between = (counts[:, None, None, None] * (means - attention.mean(axis=0)) ** 2).sum()
        total = between + ((attention - means[index]) ** 2).sum()
        return float(between / total) if total else 0.0

    def save(self, path: str | Path) -> None:
        """Write an npz file without pickled objects; `load` reads it."""
        arrays = {f"attention/{name}": array for name, array in self.attention.items()}
        for name in ("labels", "predictions"):
            if (array := getattr(self, name)) is not None:
                arrays[name] = array
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, layers=json.dumps(self.layers), **arrays)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` has written."""
        with np.load(path, allow_pickle=False) as file:
            attention = {name: file[f"attention/{name}"] for name in json.loads(str(file["layers"]))}
            return cls(attention, file.get("labels"), file.get("predictions"))


class AttentionCapture:
    """Collects the attention of every forward pass that runs inside the `with` block.

    It adds a forward hook to the attention generators, takes them away at the end, on errors too, and changes
    nothing else: the model keeps its mode and its outputs. It sees what hooks made of the attention that were there
    before it, not those that come later.

    Args:
        model: any model with KAConv2d layers.
        layers: shell pattern of layer names, such as "layer3.*".

    Raises:
        ValueError: if no KAConv2d layer matches.

    Example:
        >>> with AttentionCapture(model, layers="layer3.*") as capture:
        ...     model(images)
        >>> record = capture.record(labels=labels)
    """

    def __init__(self, model: nn.Module, layers: str = "*") -> None:
        self.model = model
        self._layers = kaconv_layers(model, layers)
        self._batches: dict[str, list[np.ndarray]] = {}
        self._predictions: list[np.ndarray] = []
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        self._batches = {name: [] for name in self._layers}
        self._predictions = []
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

    def _keep_predictions(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 2:
            self._predictions.append(output.detach().argmax(dim=1).cpu().numpy())

    def record(self, labels: Any = None) -> AttentionRecord:
        """What was collected, the passes one after another.

        Args:
            labels: the samples' true classes (N,), kept with the record.

        Raises:
            ValueError: if nothing ran inside the block, if a pass broke off between the layers, or if there are not as
                many labels as samples.
        """
        if not any(self._batches.values()):
            raise ValueError("nothing was captured: run the model inside the `with AttentionCapture(...)` block")
        attention = {name: np.concatenate(batches) for name, batches in self._batches.items() if batches}
        sizes = {name: len(maps) for name, maps in attention.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"a forward pass broke off: the layers have seen different numbers of samples, {sizes}")
        predictions = np.concatenate(self._predictions) if self._predictions else None
        record = AttentionRecord(attention, None if labels is None else np.asarray(labels), predictions)
        if record.labels is not None and record.labels.shape != (len(record),):
            raise ValueError(f"{len(record)} samples were captured, but labels has shape {record.labels.shape}")
        return record
