"""Pictures, and what a model makes of them, by itself and with its attention replaced."""

import io
from collections.abc import Sequence
from contextlib import nullcontext
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
LONGEST_SIDE = 10_000  # pixels of an added picture
_BATCH = 64  # pictures in a pass of the model
_UNKNOWN = -1  # label of a picture whose class is not known
_PLACES = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")


@dataclass(frozen=True)
class Outcome:
    """What a model makes of pictures.

    Args:
        record: their attention; its `ids` are the pictures' numbers.
        probabilities: of the classes (N, classes).
    """

    record: AttentionRecord
    probabilities: np.ndarray

    def maps(self, layer: str, index: int) -> np.ndarray:
        """The attention of one picture. (kh, kw, C)."""
        return self.record.attention[layer][self._place(index)]

    def prediction(self, index: int) -> np.ndarray:
        """The probabilities of one picture. (classes,)."""
        return self.probabilities[self._place(index)]

    def _place(self, index: int) -> int:
        return int(np.flatnonzero(self.record.ids == index)[0])


class Gallery:
    """Pictures, and what a model makes of them.

    The model's own outcome for all pictures and that of the last intervention are kept.

    Args:
        model: with KAConv2d layers, giving (N, classes). It runs in eval mode, on its own device; it is left as it was.
        images: the pictures as the model takes them, normalised, (N, 3, H, W).
        labels: true classes (N,), where known.
        classes: names of all classes; None numbers them.
        preprocessing: how the pictures were normalised; without it none can be added, and each is shown in its own
            range of colours.
        ids: names or numbers of the pictures (N,); None numbers them from 0.

    Raises:
        ValueError: if the model has no KAConv2d layer, or if the rest does not fit together.
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
        self.ids = (
            [f"picture {number}" for number in range(len(images))] if ids is None else [str(name) for name in ids]
        )
        self._kept: dict[tuple, Outcome] = {}
        outputs = self.own().probabilities.shape[1]
        self.classes = [str(name) for name in (range(outputs) if classes is None else classes)]
        if len(self.classes) != outputs:
            raise ValueError(f"the model knows {outputs} classes, but there are {len(self.classes)} names of classes")
        if labels is not None and not np.isin(self.labels, range(outputs)).all():
            raise ValueError(f"labels must be whole numbers from 0 to {outputs - 1}; got {self.labels.tolist()}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def layers(self) -> list[str]:
        """Layer names, in the order of the model."""
        return list(self.kernels)

    @property
    def labelled(self) -> bool:
        """Whether true classes are known."""
        return bool((self.labels != _UNKNOWN).any())

    def positions(self, layer: str) -> list[str]:
        """Names of a layer's kernel positions, row-major."""
        kh, kw = self.kernels[layer][0]
        if (kh, kw) == (3, 3):
            return list(_PLACES)
        return [f"row {row + 1}, column {column + 1}" for row in range(kh) for column in range(kw)]

    def add(self, content: bytes, name: str) -> int:
        """Take in a picture from the bytes of its file; gives its number.

        Raises:
            ValueError: if it is no picture, damaged or too large, or if the preprocessing is not known.
        """
        if self.preprocessing is None:
            raise ValueError(f"cannot take in {name}: it is not known how the other pictures were preprocessed")
        picture = read_image(io.BytesIO(content), name, longest=LONGEST_SIDE)
        check_resized_size(name, picture, self.preprocessing.resize)
        image = self.preprocessing.eval_transform()(picture)
        self.images = torch.cat([self.images, image[None].to(self.images)])
        self.labels = np.append(self.labels, _UNKNOWN)
        self.ids.append(f"uploaded: {name}")
        self._kept.clear()
        return len(self) - 1

    def picture(self, index: int) -> np.ndarray:
        """For showing, (H, W, 3) in [0, 1]."""
        image = self.images[index].float().cpu()
        if self.preprocessing is not None:
            image = self.preprocessing.denormalise(image)
        else:
            image = (image - image.min()) / (image.max() - image.min()).clamp_min(torch.finfo(torch.float32).tiny)
        return image.movedim(0, -1).numpy()

    def label(self, index: int) -> int | None:
        """The true class of a picture; None where it is not known."""
        return None if self.labels[index] == _UNKNOWN else int(self.labels[index])

    def prediction(self, index: int) -> int:
        """The class that the model takes a picture for, by itself."""
        return int(self.own().prediction(index).argmax())

    def name(self, index: int) -> str:
        """A picture's name, with its class where that is known."""
        label = self.label(index)
        return self.ids[index] if label is None else f"{self.ids[index]}, a “{self.classes[label]}”"

    def describe(self, index: int) -> str:
        """A picture's name, and what the model takes it for unless that is its true class."""
        predicted = self.prediction(index)
        mistaken = "" if predicted == self.label(index) else f", taken for “{self.classes[predicted]}”"
        return f"{self.name(index)}{mistaken}"

    def class_members(self, index: int) -> tuple[int, np.ndarray]:
        """A picture's class, true where known, else predicted; and a mask (N,) of the pictures that are labelled so.

        Raises:
            ValueError: if there are none.
        """
        label = self.label(index)
        label = self.prediction(index) if label is None else label
        members = self.labels == label
        if not members.any():
            raise ValueError(f"there is no mean over the class “{self.classes[label]}”: no picture is labelled so")
        return label, members

    def own(self) -> Outcome:
        """What the model makes of the pictures by itself."""
        return self.under(NONE)

    def under(
        self,
        intervention: str,
        layers: str = "*",
        *,
        position: int | None = None,
        donor: int | None = None,
        samples: Sequence[int] | None = None,
    ) -> Outcome:
        """What the model makes of pictures with its attention replaced.

        Args:
            intervention: one of `INTERVENTIONS`.
            layers: shell pattern of the layers with the intervention.
            position: row-major number of the kernel position, for "one position removed".
            donor: number of the picture B, for "attention of B".
            samples: numbers of the pictures that are asked for; None: all.

        Raises:
            ValueError: if there is no such intervention, layer, position or picture.
        """
        if samples is None or intervention in (NONE, SHUFFLED):  # what is shuffled depends on all
            samples = range(len(self))
        key = (intervention, layers, position, donor, *samples)
        if key not in self._kept:
            change = self._change(intervention, donor)
            outcome = self._run(change, layers, None if position is None else [position], list(samples))
            own = {name: kept for name, kept in self._kept.items() if name[0] == NONE}
            self._kept = own | {key: outcome}
        return self._kept[key]

    def _change(self, intervention: str, donor: int | None) -> Intervention | None:
        if intervention == NONE:
            return None
        if intervention not in INTERVENTION_KINDS:
            raise ValueError(f"there is no intervention {intervention!r}; there are {', '.join(INTERVENTIONS)}")
        return INTERVENTION_KINDS[intervention].make(self.own().record, donor)

    def _run(
        self, change: Intervention | None, layers: str, positions: list[int] | None, samples: list[int]
    ) -> Outcome:
        device = next(self.model.parameters()).device
        batches = self.images[samples].tensor_split(-(-len(samples) // _BATCH))  # even: shuffling needs two in each
        changed = nullcontext() if change is None else intervene(self.model, change, layers, positions)
        with torch.no_grad(), evaluating(self.model), changed, AttentionCapture(self.model, thumbnail=0) as capture:
            outputs = torch.cat([self.model(batch.to(device)) for batch in batches])
        probabilities = outputs.float().softmax(1).cpu().numpy()
        if not np.isfinite(probabilities).all():
            raise ValueError("the model's outputs are not finite")
        return Outcome(capture.record(ids=samples), probabilities)


def _check_images(images: Tensor, preprocessing: Preprocessing | None) -> None:
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3 or not len(images):
        what = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images must be a tensor (N, 3, H, W) with at least one picture; got {what}")
    if preprocessing is not None and images.shape[2:] != (preprocessing.image_size,) * 2:
        size = preprocessing.image_size
        raise ValueError(f"the preprocessing makes pictures of {size} x {size}; images are {tuple(images.shape[2:])}")
