"""Recording the attention that a model's KAConv layers compute."""

from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from kaconv.attention.hooks import AttentionHook, kaconv_layers, watching
from kaconv.attention.record import AttentionRecord
from kaconv.layers import KAConv2d

if TYPE_CHECKING:
    from kaconv.data.preprocessing import Preprocessing


class AttentionCapture:
    """Collects the attention of every forward pass that runs inside the `with` block.

    It adds a forward hook to the attention generators, takes them away at the end, on errors too, and changes
    nothing else: the model keeps its mode and its outputs. It sees what hooks made of the attention that were there
    before it, not those that come later. Everything is kept, about 140 kB an image for KAResNet50; for a whole data
    set in constant memory there is `kaconv.attention_statistics`. Of several processes each records what it has seen;
    `AttentionRecord.concatenate` puts the records together.

    Args:
        model: any model with KAConv2d layers, in a DistributedDataParallel or not.
        layers: shell pattern of layer names, such as "layer3.*".
        preprocessing: how the images were normalised, so that thumbnails have their true colours; without it each
            is scaled to its own range.
        thumbnail: longest side of the thumbnails in pixels, which images (N, 1 or 3, H, W) get; 0 for none.

    Raises:
        ValueError: if no KAConv2d layer matches.

    Example:
        >>> with AttentionCapture(model, layers="layer3.*") as capture:
        ...     logits = model(images)
        >>> record = capture.record(labels=labels)
    """

    def __init__(
        self, model: nn.Module, layers: str = "*", *, preprocessing: "Preprocessing | None" = None, thumbnail: int = 64
    ) -> None:
        self.model = model
        self.preprocessing, self.thumbnail = preprocessing, thumbnail
        self.layers = layers
        kaconv_layers(model, layers)  # a mistyped pattern is refused here already
        self._batches: dict[str, list[np.ndarray]] = {}
        self._predictions: list[np.ndarray] = []
        self._thumbnails: list[np.ndarray] = []
        self._hooks = ExitStack()

    def __enter__(self) -> Self:
        self._batches, self._predictions, self._thumbnails = {}, [], []
        self._hooks.enter_context(watching(self.model, self.layers, self._keep))
        self._hooks.callback(self.model.register_forward_hook(self._keep_predictions).remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._hooks.close()

    def _keep(self, name: str, layer: KAConv2d) -> AttentionHook:
        batches = self._batches[name] = []

        def hook(q: Tensor, attention: Tensor) -> None:
            maps = attention.detach().unflatten(1, layer.kernel_size)
            batches.append(maps.to("cpu", torch.float32, copy=True).numpy())  # later hooks may write to it

        return hook

    def _keep_predictions(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 2:
            self._predictions.append(output.detach().argmax(dim=1).cpu().numpy())
        if self.thumbnail and inputs and _are_pictures(inputs[0]):
            self._thumbnails.append(_thumbnails(inputs[0].detach(), self.thumbnail, self.preprocessing))

    def record(self, labels: Any = None, ids: Any = None) -> AttentionRecord:
        """The collected attention, the passes one after another.

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
    """Images (N, 1 or 3, H, W) as uint8 (N, h, w, 3), none larger than it was."""
    x = x.float()
    if preprocessing:
        x = preprocessing.denormalise(x)
    else:
        low, high = (limit(x, dim=(1, 2, 3), keepdim=True) for limit in (torch.amin, torch.amax))
        x = (x - low) / (high - low).clamp_min(torch.finfo(x.dtype).tiny)
    scale = min(1, longest / max(x.shape[2:]))
    height, width = (max(1, round(side * scale)) for side in x.shape[2:])
    x = adaptive_avg_pool2d(x, (height, width))
    return (x.expand(-1, 3, -1, -1).movedim(1, -1) * 255).round().to("cpu", torch.uint8).numpy()
