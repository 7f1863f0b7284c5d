"""Trained models as single safetensors files that say what they are: model name, classes, preprocessing."""

import hashlib
import json
import textwrap
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from kaconv.data.preprocessing import Preprocessing
from kaconv.models.build import OPTIONS, build_model, describe_data
from kaconv.models.classifier import Classifier
from kaconv.models.registry import check_name, register_builder
from kaconv.models.weights import list_weights, weights_path
from kaconv.utils.files import replacing

CHECKSUM = "sha256"  # among the metadata
METADATA_KEY = "kaconv"  # one key: safetensors writes several in no fixed order, and equal models should be equal files
_OF_TORCH_SAVE = (
    "it is a pickle, as torch.save writes, which can run code when it is read. Load it in the program that it comes "
    "from and write the model with kaconv.models.checkpoints.save_checkpoint; for the authors' own there is "
    "`kaconv convert`"
)


@dataclass
class Checkpoint:
    """A model in evaluation mode on the CPU, with its name, class names, preprocessing and further facts.

    Args:
        options: what the model was built with beside the number of classes.
    """

    model: nn.Module
    name: str
    classes: list[str]
    preprocessing: Preprocessing
    info: dict
    options: dict = field(default_factory=dict)

    def metadata(self) -> dict:
        """All but the model, JSON-able."""
        return _metadata(self.name, self.classes, self.preprocessing, self.info, self.options)


def save_checkpoint(
    path: str | Path,
    model: nn.Module,
    *,
    name: str,
    classes: list[str],
    preprocessing: Preprocessing,
    info: dict | None = None,
    half: bool = False,
    options: dict | None = None,
) -> None:
    """Write a model's weights and buffers to a safetensors file, in one step, with a checksum.

    Args:
        name: what `create_model` builds this model from: a registered model's, or "package.module:function" of a
            builder given to `kaconv.register_builder`.
        classes: one name per output of the model.
        info: further JSON-able facts, such as the epoch and the errors; the versions of kaconv and torch are added.
        half: store kernels and matrices as float16, in half of the room; norms and biases stay as they are, and a
            loaded model computes in float32 as ever.
        options: what else the model was built with, JSON-able; if not given, what `create_model` had.

    Raises:
        ValueError: for a name that no model could be built from again, or options that are not JSON-able.
    """
    check_name(name)
    info = {**(info or {}), "versions": {package: version(package) for package in ("kaconv", "torch")}}
    options = getattr(model, OPTIONS, {}) if options is None else options
    _check_options(options)
    metadata = _metadata(name, list(classes), preprocessing, info, options)
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    if half:
        tensors = {key: value.half() if value.dim() > 1 else value for key, value in tensors.items()}
    metadata[CHECKSUM] = _checksum(metadata, tensors)
    with replacing(path) as temporary:
        temporary.write_bytes(save(tensors, metadata={METADATA_KEY: json.dumps(metadata)}))


def _metadata(name: str, classes: list[str], preprocessing: Preprocessing, info: dict, options: dict) -> dict:
    facts = {"name": name, "classes": classes, "preprocessing": preprocessing.to_dict(), "info": info}
    return facts | ({"options": options} if options else {})


def _check_options(options: dict) -> None:
    for key, value in options.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            raise ValueError(
                f"a checkpoint cannot hold {key}={value!r}, which is not JSON-able: build the model in a function of "
                "your own, see kaconv.register_builder"
            ) from None


def load_checkpoint(path: str | Path, builder: str | None = None) -> Checkpoint:
    """Read what `save_checkpoint` wrote; files without a checksum, from elsewhere, are taken as they are.

    Args:
        path: of the file, or the name of weights that come with the package (see `list_weights`).
        builder: for a model outside of kaconv, the "package.module:function" that builds it: it is registered (see
            `kaconv.register_builder`), and must be what the file names.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a whole kaconv checkpoint, is damaged, or its weights do not fit the model that it
            names.
    """
    path = Path(path)
    if builder is not None:
        register_builder(builder)
    facts, tensors = _read(path)
    if builder not in (None, facts.name):
        raise ValueError(f"{path} holds weights of {facts.name}, not of {builder}")
    model = _build(facts, path)
    _load_weights(model, facts, tensors, path)
    return Checkpoint(model.eval(), **vars(facts))


def load_weights(path: str | Path, name: str, num_classes: int | None, **kaconv_options: Any) -> nn.Module:
    """A new model `name` with the weights of a checkpoint, for `create_model`: as new models are, in training mode.

    Raises:
        FileNotFoundError, ValueError: as `load_checkpoint`, or if the checkpoint is of another model or has another
            number of classes than `num_classes` (None: whatever it has).
    """
    path = Path(path)
    facts, tensors = _read(path)
    classes = len(facts.classes)
    if (name, num_classes or classes) != (facts.name, classes):
        wanted = name if num_classes is None else f"{name} with {num_classes} classes"
        raise ValueError(f"{path} holds weights of {facts.name} with {classes} classes, not of {wanted}")
    model = _build(facts, path, **kaconv_options)
    _load_weights(model, facts, tensors, path)
    return model


@dataclass
class _Facts:
    """What a checkpoint says beside its weights."""

    name: str
    classes: list[str]
    preprocessing: Preprocessing
    info: dict
    options: dict


def _build(facts: _Facts, path: Path, **options: Any) -> nn.Module:
    try:
        model = build_model(facts.name, num_classes=len(facts.classes), **(facts.options | options))
    except TypeError as error:  # of an option that its builder does not know
        raise ValueError(f"{path}: {facts.name} cannot be built with {facts.options | options}: {error}") from None
    if isinstance(model, Classifier):
        describe_data(model, facts.name, facts.preprocessing)
    return model


def _load_weights(model: nn.Module, facts: _Facts, tensors: dict[str, torch.Tensor], path: Path) -> None:
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        name, classes, problem = facts.name, facts.classes, str(error).splitlines()[-1]
        raise ValueError(
            f"{path}: the weights do not fit {name} with {len(classes)} classes: {textwrap.shorten(problem, 300)}"
        ) from None


def _facts(metadata: object) -> _Facts:
    kinds = {"name": str, "classes": list, "preprocessing": dict, "info": dict}
    if not isinstance(metadata, dict):
        raise ValueError(f"it must be an object, got {metadata!r}")
    for key, kind in kinds.items():
        if key not in metadata:
            raise ValueError(f"it lacks {key}")
        if not isinstance(metadata[key], kind):
            raise ValueError(f"{key} must be a {kind.__name__}, got {metadata[key]!r}")
    name, classes = metadata["name"], metadata["classes"]
    if not classes or not all(isinstance(item, str) for item in classes):
        raise ValueError(f"classes must be names, got {classes!r}")
    options = metadata.get("options", {})
    if not isinstance(options, dict):
        raise ValueError(f"options must be a dict, got {options!r}")
    check_name(name)
    return _Facts(name, classes, Preprocessing.from_dict(metadata["preprocessing"]), metadata["info"], options)


def _read(path: Path) -> tuple[_Facts, dict[str, torch.Tensor]]:
    path = weights_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path.resolve()}{_packaged(path)}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = (file.metadata() or {}).get(METADATA_KEY)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        reason = _OF_TORCH_SAVE if _is_of_torch_save(path) else str(error)
        raise ValueError(f"{path} is not a safetensors file: {reason}") from None
    if metadata is None:
        raise ValueError(f"{path} is a safetensors file, but says no model name, classes and preprocessing for kaconv")
    try:
        metadata = json.loads(metadata)
        checksum = metadata.pop(CHECKSUM, None) if isinstance(metadata, dict) else None
        damaged = checksum is not None and checksum != _checksum(metadata, tensors)
        facts = None if damaged else _facts(metadata)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: bad checkpoint metadata: {error}") from None
    if facts is None:
        raise ValueError(f"{path}: damaged: its weights or its metadata are not those of its checksum")
    return facts, tensors


def _packaged(path: Path) -> str:
    """Names of weights of the package, where a path without a folder may have been meant as one."""
    return f", and the package's weights are {', '.join(list_weights())}" if path.parent == Path() else ""


def _is_of_torch_save(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(4)
    return start == b"PK\x03\x04" or (start[:1] == b"\x80" and path.suffix != ".safetensors")  # zip, or a bare pickle


def _checksum(metadata: dict, tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over the metadata and over each tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(json.dumps(metadata).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
