"""Packs: the numbers that the explorer's front end draws from, in the same bytes for a notebook and for a page.

A pack is gzip of: the length of a header (4 bytes, little-endian), the header (JSON), and arrays one after another,
each at the place that the header's `arrays` names. The front end makes no numbers but sums, entropies and differences
of those in the packs; what needs a model is in them.
"""

import base64
import gzip
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from PIL import Image

from kaconv.attention.record import AttentionRecord
from kaviz.style import DIVERGING, SEQUENTIAL

BITS = 12  # of an attention weight: between a layer's least and greatest there are 4095 equal steps
_LONGEST_SIDE = 224  # pixels of an image in a pack
_LONGEST_ATTRIBUTION = 64  # cells of an attribution's map
_LOSSLESS = 64  # pixels: images up to this size are PNG, larger ones JPEG
_QUALITY = 82  # of JPEG


class _Arrays:
    """Arrays one after another, and where each begins."""

    def __init__(self) -> None:
        self.specs: dict[str, dict[str, Any]] = {}
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, name: str, values: np.ndarray, **more: Any) -> None:
        """Exactly as they are: uint8 or float32."""
        content = values.tobytes() + bytes(-values.nbytes % 4)
        self.specs[name] = {"dtype": str(values.dtype), "shape": values.shape, "offset": self._size, **more}
        self._parts.append(content)
        self._size += len(content)

    def add_quantised(self, name: str, values: np.ndarray, bits: int = BITS) -> None:
        """In equal steps between the least and the greatest: value = low + step · code, the error at most step / 2.

        Codes of more than 8 bits lie as all low bytes, then all high bytes: gzip makes those small.
        """
        low, high = float(values.min()), float(values.max())
        step = (high - low) / (2**bits - 1)
        codes = np.round((values.astype(np.float64) - low) / (step or 1)).astype("<u2")
        if bits > 8:
            planes = np.ascontiguousarray(codes.reshape(-1).view(np.uint8).reshape(-1, 2).T)
        else:
            planes = codes.astype(np.uint8)
        self.add(name, planes, low=low, high=high, step=step)
        self.specs[name] |= {"dtype": "code16" if bits > 8 else "code8", "shape": values.shape}

    def content(self) -> bytes:
        return b"".join(self._parts)


def pack(header: Mapping[str, Any], arrays: _Arrays) -> bytes:
    """The bytes of a pack."""
    text = json.dumps({**header, "arrays": arrays.specs}, ensure_ascii=False, allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    return gzip.compress(len(text).to_bytes(4, "little") + text + arrays.content(), 6, mtime=0)


def unpack(content: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header of a pack and its arrays, as the front end reads them."""
    raw = gzip.decompress(content)
    start = 4 + int.from_bytes(raw[:4], "little")
    header = json.loads(raw[4:start])
    return header, {name: _read(raw[start:], spec) for name, spec in header["arrays"].items()}


def _read(raw: bytes, spec: Mapping[str, Any]) -> np.ndarray:
    count = int(np.prod(spec["shape"]))
    if spec["dtype"] == "code16":
        planes = np.frombuffer(raw, np.uint8, 2 * count, spec["offset"]).reshape(2, count).astype(np.uint16)
        values = spec["low"] + spec["step"] * (planes[0] | planes[1] << 8)
    elif spec["dtype"] == "code8":
        values = spec["low"] + spec["step"] * np.frombuffer(raw, np.uint8, count, spec["offset"])
    else:
        values = np.frombuffer(raw, spec["dtype"], count, spec["offset"])
    return values.reshape(spec["shape"])


def view_pack(
    record: AttentionRecord,
    *,
    images: Sequence[np.ndarray] | None = None,
    probabilities: np.ndarray | None = None,
    classes: Sequence[str] | None = None,
    shares: Mapping[str, np.ndarray] | None = None,
    title: str = "Attention",
) -> bytes:
    """The attention of images, and what else is known of them.

    Args:
        record: the attention; with its labels, predictions and ids, and thumbnails where no `images` are given.
        images: (H, W, 3) each, in [0, 1] or uint8.
        probabilities: of the classes (N, classes).
        classes: names of all classes.
        shares: for each layer the share of each channel in its output (N, C).

    Raises:
        ValueError: for something that does not fit the record's samples.
    """
    count = len(record)
    if images is None:
        images = list(record.thumbnails) if record.thumbnails is not None else None
    predictions = record.predictions if probabilities is None else probabilities.argmax(axis=1)
    for name, values in {"images": images, "probabilities": probabilities}.items():
        if values is not None and len(values) != count:
            raise ValueError(f"the record has {count} samples, but there are {len(values)} {name}")
    if probabilities is not None and classes is not None and probabilities.shape[1] != len(classes):
        raise ValueError(f"there are probabilities of {probabilities.shape[1]} classes, but {len(classes)} names")
    arrays = _Arrays()
    for kind, name in {"sequential": SEQUENTIAL, "diverging": DIVERGING}.items():
        arrays.add(kind, np.round(255 * colormaps[name](np.arange(256))).astype(np.uint8))  # RGBA
    layers = []
    for layer, maps in record.attention.items():
        arrays.add_quantised(f"attention/{layer}", maps)
        arrays.add(f"dependence/{layer}", record.input_dependence(layer).astype(np.float32))
        if shares is not None:
            arrays.add_quantised(f"share/{layer}", shares[layer])
        layers.append({"name": layer, "kernel": maps.shape[1:3], "channels": maps.shape[3]})
    if probabilities is not None:
        arrays.add("probabilities", probabilities.astype(np.float32))
    names, labels = _names(record), [-1] * count if record.labels is None else [int(label) for label in record.labels]
    guesses = [None] * count if predictions is None else [int(prediction) for prediction in predictions]
    outputs = 1 + max(-1, *labels, *(guess for guess in guesses if guess is not None))
    if probabilities is not None:
        outputs = probabilities.shape[1]
    called = [f"class {number}" for number in range(outputs)] if classes is None else [str(name) for name in classes]
    header = {
        "kind": "view",
        "title": title,
        "layers": layers,
        "names": names,
        "about": [_about(*one, called) for one in zip(names, labels, guesses, strict=True)],
        "labels": labels,
        "predictions": guesses,
        "right": [
            None if label < 0 or guess is None else label == guess for label, guess in zip(labels, guesses, strict=True)
        ],
        "classes": called,
        "pictures": [_data_url(image) for image in ([] if images is None else images)],
    }
    return pack(header, arrays)


def outcome_pack(name: str, record: AttentionRecord, probabilities: np.ndarray) -> bytes:
    """Attention and probabilities under an intervention.

    Maps that are the same for all images are kept once.

    Args:
        name: of the intervention, such as "uniform in all layers".
    """
    arrays = _Arrays()
    for layer, maps in record.attention.items():
        arrays.add_quantised(f"attention/{layer}", maps[:1] if (maps == maps[:1]).all() else maps, 8)
    arrays.add("probabilities", probabilities.astype(np.float32))
    return pack({"kind": "outcome", "name": name}, arrays)


def attribution_pack(method: str, maps: np.ndarray, about: str = "the predicted class") -> bytes:
    """Contributions of each pixel, in whole per cent of the strongest of its image, which is kept exactly.

    Args:
        method: its name.
        maps: (N, h, w); maps of more than 64 cells a side are averaged down to that.
        about: whose score the maps explain.

    Raises:
        ValueError: for other shapes, or values that are not finite.
    """
    if maps.ndim != 3 or not np.isfinite(maps).all():
        raise ValueError(f"attributions of {method} must be finite maps (N, h, w); got {maps.dtype} {maps.shape}")
    small = np.stack([_shrink(values.astype(np.float32)) for values in maps])
    scale = np.abs(small).max(axis=(1, 2))
    arrays = _Arrays()
    arrays.add("scale", scale.astype(np.float32))
    codes = np.round(100 * small / np.maximum(scale, 1e-30)[:, None, None]) + 100
    arrays.add("percent", codes.astype(np.uint8))
    return pack({"kind": "attribution", "method": method, "about": about}, arrays)


def position_pack(
    method: str, values: Mapping[str, np.ndarray], about: str = "the predicted class", note: str = ""
) -> bytes:
    """Contributions of each kernel position of each layer to a class score.

    Args:
        method: its name.
        values: for each layer (N, kh, kw), or (N, kh, kw, C), which is summed over the channels.
        about: whose score the values explain.
        note: a sentence that the explorer shows below them, such as on their completeness.

    Raises:
        ValueError: for other shapes, or values that are not finite.
    """
    arrays = _Arrays()
    for layer, array in values.items():
        if array.ndim not in (3, 4) or not np.isfinite(array).all():
            raise ValueError(f"position attributions of {layer} must be finite (N, kh, kw); got {array.shape}")
        arrays.add(f"values/{layer}", (array.sum(axis=-1) if array.ndim == 4 else array).astype(np.float32))
    return pack({"kind": "positions", "method": method, "about": about, "note": note}, arrays)


def _names(record: AttentionRecord) -> list[str]:
    ids = np.arange(len(record)) if record.ids is None else record.ids
    return [f"image {name}" if np.issubdtype(ids.dtype, np.integer) else str(name) for name in ids]


def _about(name: str, label: int, guess: int | None, classes: Sequence[str]) -> str:
    """Name, class and mistake of an image, in words."""
    truth = f", {classes[label]}" if label >= 0 else ""
    return f"{name}{truth}" if guess in (None, label) else f"{name}{truth}, taken for {classes[guess]}"


def _data_url(image: np.ndarray) -> str:
    if image.dtype != np.uint8:
        image = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
    picture = Image.fromarray(image).convert("RGB")
    picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    kind = "PNG" if max(picture.size) <= _LOSSLESS else "JPEG"
    picture.save(file, kind, **({"optimize": True} if kind == "PNG" else {"quality": _QUALITY}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def _shrink(values: np.ndarray) -> np.ndarray:
    height, width = values.shape
    scale = min(1, _LONGEST_ATTRIBUTION / max(height, width))
    if scale == 1:
        return values
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BOX))
