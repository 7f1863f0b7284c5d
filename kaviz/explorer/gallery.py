"""Images, and what a model makes of them, by itself and with its attention replaced."""

import io
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kaconv.attention.capture import AttentionCapture
from kaconv.attention.hooks import kaconv_layers
from kaconv.attention.interventions import INTERVENTION_KINDS, SHUFFLED, Intervention, intervene
from kaconv.attention.record import AttentionRecord
from kaconv.data.pictures import check_resized_size, read_image
from kaconv.data.preprocessing import Preprocessing
from kaconv.utils.modes import evaluating

NONE = "none"
INTERVENTIONS = {NONE: "no intervention"} | {name: kind.description for name, kind in INTERVENTION_KINDS.items()}
LONGEST_SIDE = 10_000  # pixels of an added image
_BATCH = 16  # images in a pass of the model: progress is told, and a cancellation heeded, after each
_SHUFFLED_BATCH = 64  # attention is shuffled within a batch
_UNKNOWN = -1  # label of an image whose class is not known
_PLACES = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")


Watch = Callable[[int, int], None]  # is told how many images are done, and of how many; it may raise to end the work


@dataclass(frozen=True)
class Outcome:
    """The outcome of a model for some images.

    Args:
        record: their attention, labels, predictions and names.
        probabilities: of the classes (N, classes).
        shares: for each layer the share of each channel in the layer's output, by mean absolute value (N, C).
    """

    record: AttentionRecord
    probabilities: np.ndarray
    shares: dict[str, np.ndarray]


class Gallery:
    """Images, and what a model makes of them.

    The model's own outcome for all images and that of the last intervention are kept. One thread at a time runs the
    model; others wait.

    Args:
        model: with KAConv2d layers, giving (N, classes). It runs in eval mode, on its own device; it is left as it was.
        images: as the model takes them, normalised, (N, 3, H, W).
        labels: true classes (N,), -1 where one is not known; None if none is.
        classes: names of all classes; None numbers them.
        preprocessing: how the images were normalised; without it none can be added, and each is shown in its own
            range of colours.
        ids: names of the images (N,), such as those of their files; None numbers them from 0.

    Raises:
        ValueError: if the model has no KAConv2d layer or gives no (N, classes), or if the rest does not fit together.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        *,
        labels: Sequence[int] | Tensor | None = None,
        classes: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
        ids: Sequence[Any] | None = None,
    ) -> None:
        self.kernels = {name: (layer.kernel_size, layer.out_channels) for name, layer in kaconv_layers(model).items()}
        _check_images(images, preprocessing)
        for name, values in {"labels": labels, "ids": ids}.items():
            if values is not None and len(values) != len(images):
                raise ValueError(f"there are {len(images)} images, but {len(values)} {name}")
        self.model, self.images, self.preprocessing = model, images, preprocessing
        self.labels = np.asarray([_UNKNOWN] * len(images) if labels is None else labels)
        self.ids = [f"image {number}" for number in range(len(images))] if ids is None else list(map(str, ids))
        self.lock = threading.RLock()
        self._last: tuple[tuple, Outcome] | None = None
        self._own = self._run(None, "*", None, self.images)
        outputs = self._own.probabilities.shape[1]
        self.classes = [str(name) for name in (range(outputs) if classes is None else classes)]
        if len(self.classes) != outputs:
            raise ValueError(f"the model knows {outputs} classes, but there are {len(self.classes)} names of classes")
        if not np.isin(self.labels, [_UNKNOWN, *range(outputs)]).all():
            raise ValueError(
                f"labels must be whole numbers from 0 to {outputs - 1}, or {_UNKNOWN} where the class is not known; "
                f"got {self.labels.tolist()}"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def layers(self) -> list[str]:
        """Layer names, in the order of the model."""
        return list(self.kernels)

    def positions(self, layer: str) -> list[str]:
        """Names of a layer's kernel positions, row-major."""
        kh, kw = self.kernels[layer][0]
        if (kh, kw) == (3, 3):
            return list(_PLACES)
        return [f"row {row + 1}, column {column + 1}" for row in range(kh) for column in range(kw)]

    def add(self, files: Sequence[tuple[str, bytes]], watch: Watch | None = None) -> list[str]:
        """Take in images from the names and bytes of their files.

        Returns:
            A sentence for each file that cannot be taken in; the others are.

        Raises:
            ValueError: if the preprocessing is not known.
        """
        if self.preprocessing is None:
            raise ValueError("cannot take in images: it is not known how the others were preprocessed")
        taken, names, refused = [], [], []
        for name, content in files:
            try:
                taken.append(self._prepare(name, content))
                names.append(name)
            except ValueError as error:
                refused.append(str(error))
        if taken:
            added = torch.stack(taken).to(self.images)
            with self.lock:
                outcome = self._run(None, "*", None, added, watch)
                self._own = _together(self._own, outcome)
                self.images = torch.cat([self.images, added])
                self.labels = np.append(self.labels, [_UNKNOWN] * len(taken))
                self.ids += names
                self._last = None
        return refused

    def _prepare(self, name: str, content: bytes) -> Tensor:
        assert self.preprocessing is not None
        image = read_image(io.BytesIO(content), name, longest=LONGEST_SIDE)
        check_resized_size(name, image, self.preprocessing.resize)
        return self.preprocessing.eval_transform()(image)

    def picture(self, index: int) -> np.ndarray:
        """An image for showing, (H, W, 3) in [0, 1]."""
        image = self.images[index].float().cpu()
        if self.preprocessing is not None:
            image = self.preprocessing.denormalise(image)
        else:
            image = (image - image.min()) / (image.max() - image.min()).clamp_min(torch.finfo(torch.float32).tiny)
        return image.movedim(0, -1).numpy()

    def label(self, index: int) -> int | None:
        """The true class of an image; None where it is not known."""
        return None if self.labels[index] == _UNKNOWN else int(self.labels[index])

    def describe(self, index: int) -> str:
        """An image's name and class, and what the model takes it for unless that is its true class."""
        label, predicted = self.label(index), int(self._own.probabilities[index].argmax())
        name = self.ids[index] if label is None else f"{self.ids[index]}, a “{self.classes[label]}”"
        return name if predicted == label else f"{name}, taken for “{self.classes[predicted]}”"

    def own(self) -> Outcome:
        """The outcome for the images with the model's own attention."""
        return self._own

    def under(
        self,
        intervention: str,
        layers: str = "*",
        *,
        position: int | None = None,
        donor: int | None = None,
        watch: Watch | None = None,
    ) -> Outcome:
        """The outcome for the images with the model's attention replaced.

        Args:
            intervention: one of `INTERVENTIONS`.
            layers: shell pattern of the layers with the intervention.
            position: row-major number of the kernel position, for "one position removed".
            donor: number of the image B, for "attention of B".
            watch: called between batches with how many images are done and of how many; an error that it raises
                ends the work.

        Raises:
            ValueError: if there is no such intervention, layer, position or image.
        """
        if intervention == NONE:
            return self._own
        key = (intervention, layers, position, donor)
        with self.lock:
            if self._last is None or self._last[0] != key:
                change = self._change(intervention, donor)
                positions = None if position is None else [position]
                size = _SHUFFLED_BATCH if intervention == SHUFFLED else _BATCH
                self._last = key, self._run(change, layers, positions, self.images, watch, size)
            return self._last[1]

    def _change(self, intervention: str, donor: int | None) -> Intervention:
        if intervention not in INTERVENTION_KINDS:
            raise ValueError(f"there is no intervention {intervention!r}; there are {', '.join(INTERVENTIONS)}")
        return INTERVENTION_KINDS[intervention].make(self._own.record, donor)

    def _run(
        self,
        change: Intervention | None,
        layers: str,
        positions: list[int] | None,
        images: Tensor,
        watch: Watch | None = None,
        size: int = _BATCH,
    ) -> Outcome:
        device = next(self.model.parameters()).device
        batches = images.tensor_split(-(-len(images) // size))  # even: shuffling needs two in each
        changed = nullcontext() if change is None else intervene(self.model, change, layers, positions)
        outputs: list[Tensor] = []
        with (
            self.lock,
            torch.no_grad(),
            evaluating(self.model),
            changed,
            AttentionCapture(self.model, thumbnail=0) as capture,
            _output_shares(self.model) as shares,
        ):
            for batch in batches:
                if watch is not None:
                    watch(sum(map(len, outputs)), len(images))
                outputs.append(_logits(self.model, batch.to(device)))
        probabilities = torch.cat(outputs).float().softmax(1).cpu().numpy()
        if not np.isfinite(probabilities).all():
            raise ValueError("the model's outputs are not finite")
        return Outcome(
            capture.record(), probabilities, {layer: np.concatenate(parts) for layer, parts in shares.items()}
        )


def _logits(model: nn.Module, batch: Tensor) -> Tensor:
    outputs = model(batch)
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        what = f"a tensor {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(f"the explorer needs a model that gives class scores (N, classes); this one gives {what}")
    return outputs


@contextmanager
def _output_shares(model: nn.Module) -> Iterator[dict[str, list[np.ndarray]]]:
    """The shares of the channels in the outputs of the layers, (N, C) for each batch that runs in the block."""
    layers = kaconv_layers(model)
    found: dict[str, list[np.ndarray]] = {name: [] for name in layers}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            size = output.float().abs().mean(dim=(2, 3))
            found[name].append((size / size.sum(1, keepdim=True).clamp_min(1e-30)).cpu().numpy())

        return hook

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(keep(name)).remove)
        yield found


def _together(one: Outcome, other: Outcome) -> Outcome:
    return Outcome(
        AttentionRecord.concatenate([one.record, other.record]),
        np.concatenate([one.probabilities, other.probabilities]),
        {layer: np.concatenate([shares, other.shares[layer]]) for layer, shares in one.shares.items()},
    )


def _check_images(images: Tensor, preprocessing: Preprocessing | None) -> None:
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3 or not len(images):
        what = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images must be a tensor (N, 3, H, W) with at least one image; got {what}")
    if preprocessing is not None and images.shape[2:] != (preprocessing.image_size,) * 2:
        size = preprocessing.image_size
        raise ValueError(f"the preprocessing makes images of {size} x {size}; images are {tuple(images.shape[2:])}")
