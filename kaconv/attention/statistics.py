"""Statistics of the attention over a whole data set, in memory that does not grow with it."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, distributed, nn
from tqdm.auto import tqdm

from kaconv.attention.hooks import AttentionHook, kaconv_layers, watching
from kaconv.attention.record import map_distances
from kaconv.data.unreadable import UNREADABLE
from kaconv.layers import KAConv2d
from kaconv.utils.files import replacing
from kaconv.utils.modes import evaluating

_SUMS = ("deviations", "squares", "entropies")


@dataclass(frozen=True)
class AttentionStatistics:
    """Sums over the samples of a data set, class by class (or all in one, where no classes were told apart).

    Sums are of the attention's distance from 1/K, which is small: so the variance loses no digits.

    Args:
        class_counts: samples of each class (classes,).
        deviations: for each layer Σ (A - 1/K), (classes, kh, kw, C), float64.
        squares: for each layer Σ (A - 1/K)².
        entropies: for each layer Σ of the entropy relative to log K, (classes, C).
    """

    class_counts: np.ndarray
    deviations: dict[str, np.ndarray]
    squares: dict[str, np.ndarray]
    entropies: dict[str, np.ndarray]

    @property
    def layers(self) -> list[str]:
        """Layer names, in the order of the model."""
        return list(self.deviations)

    @property
    def count(self) -> int:
        """The number of samples."""
        return int(self.class_counts.sum())

    def mean(self, layer: str) -> np.ndarray:
        """Mean map of each channel. (kh, kw, C)."""
        return self._even(layer) + self.deviations[layer].sum(axis=0) / self.count

    def variance(self, layer: str) -> np.ndarray:
        """Variance over the samples, without Bessel's correction. (kh, kw, C)."""
        mean = self.deviations[layer].sum(axis=0) / self.count
        return np.maximum(self.squares[layer].sum(axis=0) / self.count - mean**2, 0)

    def entropy(self, layer: str) -> np.ndarray:
        """Mean entropy over the positions, relative to the largest possible. (C,)."""
        return self.entropies[layer].sum(axis=0) / self.count

    def class_means(self, layer: str) -> np.ndarray:
        """Mean map of each class; NaN for a class without samples. (classes, kh, kw, C).

        Raises:
            ValueError: if the classes were not told apart; so do the other statistics of classes.
        """
        return self._even(layer) + self._by_class(self.deviations[layer])

    def class_variances(self, layer: str) -> np.ndarray:
        """Variance over the samples of each class. (classes, kh, kw, C)."""
        means = self._by_class(self.deviations[layer])
        return np.maximum(self._by_class(self.squares[layer]) - means**2, 0)

    def class_entropies(self, layer: str) -> np.ndarray:
        """Mean entropy of each class. (classes, C)."""
        return self._by_class(self.entropies[layer])

    def class_distances(self, layer: str) -> np.ndarray:
        """Total variation distance between the classes' mean maps, averaged over channels. (classes, classes)."""
        return map_distances(self.class_means(layer))

    def class_share(self, layer: str) -> float:
        """Share of the variance over samples that lies between the classes' means, as of `AttentionRecord`."""
        present = self.class_counts > 0
        apart = self.class_means(layer)[present] - self.mean(layer)
        between = (self.class_counts[present, None, None, None] * apart**2).sum()
        total = self.count * self.variance(layer).sum()
        return float(between / total) if total else 0.0

    def save(self, path: str | Path) -> None:
        """Write an npz file without pickled objects; `load` reads it."""
        arrays = {f"{name}/{layer}": array for name in _SUMS for layer, array in getattr(self, name).items()}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, layers=json.dumps(self.layers), class_counts=self.class_counts, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` has written."""
        with np.load(path, allow_pickle=False) as file:
            layers = json.loads(str(file["layers"]))
            return cls(file["class_counts"], *({layer: file[f"{name}/{layer}"] for layer in layers} for name in _SUMS))

    def _even(self, layer: str) -> float:
        _, kh, kw, _ = self.deviations[layer].shape
        return 1 / (kh * kw)

    def _by_class(self, sums: np.ndarray) -> np.ndarray:
        if len(self.class_counts) == 1:
            raise ValueError("the classes were not told apart; give their number, attention_statistics(classes=...)")
        with np.errstate(invalid="ignore"):
            return sums / self.class_counts.reshape(-1, *[1] * (sums.ndim - 1))


def attention_statistics(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor] | Tensor],
    layers: str = "*",
    *,
    classes: int | None = None,
    progress: bool = False,
) -> AttentionStatistics:
    """Run a model over a data set, in eval mode and on its own device, and sum up its attention.

    Memory is that of the sums, 0.6 MB a class for all layers of KAResNet50, however many samples there are.
    Of several processes each gives its share of the batches, and all get the statistics of the whole; all must call.

    Args:
        batches: images (N, 3, H, W), each with labels (N,) or without, as a DataLoader gives them. Images that
            could not be read (`kaconv.data.UNREADABLE`) do not count.
        layers: shell pattern of layer names, such as "layer3.*".
        classes: number of classes to tell apart by the labels; None: all samples in one.

    Raises:
        ValueError: if no layer matches, if there are no samples, or for labels that are missing or not below `classes`.
    """
    device = next(model.parameters()).device
    sums = _Sums(kaconv_layers(model, layers), classes or 1)
    with watching(model, layers, sums.hook), evaluating(model), torch.no_grad():
        for batch in tqdm(batches, desc="attention", unit="batch", leave=False, disable=None if progress else True):
            images, labels = batch if isinstance(batch, (tuple, list)) else (batch, None)
            sums.groups = _groups(len(images), labels, classes)
            model(images.to(device, non_blocking=True))
            sums.counts += torch.bincount(sums.groups[sums.groups >= 0], minlength=len(sums.counts))
    return sums.result()


def _groups(n: int, labels: Tensor | None, classes: int | None) -> Tensor:
    """The class that each sample counts for; negative for none."""
    if labels is None:
        if classes is not None:
            raise ValueError("classes cannot be told apart without labels: give batches of (images, labels)")
        return torch.zeros(n, dtype=torch.int64)
    labels = labels.cpu().long()
    if classes is None:
        return torch.where(labels == UNREADABLE, -1, 0)
    wrong = labels[(labels >= classes) | (labels < UNREADABLE)]
    if len(wrong):
        raise ValueError(f"labels must be from 0 to {classes - 1}; got {int(wrong[0])}")
    return labels


class _Sums:
    """The sums while they grow."""

    def __init__(self, layers: dict[str, KAConv2d], classes: int) -> None:
        self.layers = layers
        self.groups = torch.zeros(0, dtype=torch.int64)  # of the pass that runs
        self.counts = torch.zeros(classes, dtype=torch.int64)
        shapes = {
            name: (layer.kernel_size[0] * layer.kernel_size[1], layer.out_channels) for name, layer in layers.items()
        }
        self.deviations, self.squares = (
            {name: torch.zeros(classes, *shape, dtype=torch.float64) for name, shape in shapes.items()}
            for _ in range(2)
        )
        self.entropies = {name: torch.zeros(classes, c, dtype=torch.float64) for name, (_, c) in shapes.items()}

    def hook(self, name: str, layer: KAConv2d) -> AttentionHook:
        def add(q: Tensor, attention: Tensor) -> None:
            known = self.groups >= 0
            groups, maps = self.groups[known], attention.detach().to("cpu", torch.float64)[known]
            k = maps.shape[1]
            deviation = maps - 1 / k
            entropy = torch.special.entr(maps).sum(1) / np.log(k) if k > 1 else torch.ones_like(maps[:, 0])
            self.deviations[name].index_add_(0, groups, deviation)
            self.squares[name].index_add_(0, groups, deviation**2)
            self.entropies[name].index_add_(0, groups, entropy)

        return add

    def result(self) -> AttentionStatistics:
        tensors = [self.counts, *(tensor for name in _SUMS for tensor in getattr(self, name).values())]
        if distributed.is_available() and distributed.is_initialized():
            for tensor in tensors:
                _sum_over_processes(tensor)
        if not self.counts.sum():
            raise ValueError("there are no samples to take statistics of")
        sizes = {name: layer.kernel_size for name, layer in self.layers.items()}
        deviations, squares = (
            {name: sums.unflatten(1, sizes[name]).numpy() for name, sums in by_layer.items()}
            for by_layer in (self.deviations, self.squares)
        )
        entropies = {name: sums.numpy() for name, sums in self.entropies.items()}
        return AttentionStatistics(self.counts.numpy(), deviations, squares, entropies)


def _sum_over_processes(tensor: Tensor) -> None:
    """In place; the processes may speak through GPUs only."""
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    there = tensor.to(device)
    distributed.all_reduce(there)
    tensor.copy_(there)
