"""The authors' pickled checkpoint as a kaconv checkpoint, read without running anything that is in the file."""

import hashlib
import math
import re
import textwrap
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights

from kaconv.data.preprocessing import IMAGENET
from kaconv.layers import KAConv2d
from kaconv.models import create_model
from kaconv.models.checkpoints import Checkpoint, save_checkpoint

_FAMILIES = {(3, 4, 6, 3): "resnet50", (3, 4, 23, 3): "resnet101"}  # by the bottlenecks of the four stages
_OUR_MODULES = {"basic_conv.0": "conv1", "basic_conv.1": "bn1", "classifier": "fc"}
_OUR_BLOCK_MODULES = {
    "conv1.0": "conv1",
    "conv1.1": "bn1",
    "conv3.0": "conv3",
    "conv3.1": "bn3",
    "shortcut.0": "downsample.0",
    "shortcut.1": "downsample.1",
}
_MOST_NUMBERS = 10_000  # of one of the recorder's arrays


def convert(source: str | Path, destination: str | Path) -> Checkpoint:
    """Read the authors' checkpoint and save it as one of ours; see `read_authors_checkpoint`."""
    checkpoint = read_authors_checkpoint(source)
    save_checkpoint(
        destination,
        checkpoint.model,
        name=checkpoint.name,
        classes=checkpoint.classes,
        preprocessing=checkpoint.preprocessing,
        info=checkpoint.info,
    )
    return checkpoint


def read_authors_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint as the authors' code writes it: a pickled dict with the `state_dict` of a KAResNet.

    ResNet-50 and ResNet-101, AG-L and AG-H, both revisions of the key names, with and without `module.` before them.
    Nothing in the file is run: besides tensors, only the names of the metrics recorder and its arrays are admitted,
    and they become objects that do nothing.

    The checkpoint's `info` says `source` (the file's name), `sha256`, `revision` ("agg" or "ag"), `prefix` ("module."
    or ""), and, where they can be read, `epoch` and `recorder` (what the recorder holds, under the authors' names).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file asks for anything else to be loaded, is damaged, or is not such a checkpoint; with the
            keys that are missing, left over, or have another shape or dtype.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path.resolve()}")
    content = _load(path)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        holds = f"a dict of {_some(map(str, content))}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ValueError(f"{path} is not the authors' checkpoint, a dict with a state_dict: it holds {holds}")
    weights = content["state_dict"]
    try:
        name, model = _build(weights)
    except ValueError as error:
        raise ValueError(f"{path} is not the authors' checkpoint: {error}") from None
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    info: dict[str, Any] = {
        "source": path.name,
        "sha256": sha256,
        "revision": "agg" if any(".agg." in key for key in weights) else "ag",
        "prefix": "module." if any(key.startswith("module.") for key in weights) else "",
    }
    if type(content.get("epoch")) is int:
        info["epoch"] = content["epoch"]
    if recorded := _recorded(content.get("recorder")):
        info["recorder"] = recorded
    classes = list(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
    return Checkpoint(model.eval(), name, classes, IMAGENET, info)


class _StandIn:
    """What the unpickler makes where the file names a class or function: it keeps what it is given, and does nothing.

    The slots and `__setstate__` leave the unpickler no attribute to set.
    """

    __slots__ = ("arguments", "state")
    arguments: Any
    state: Any

    def __new__(cls, *arguments: Any) -> "_StandIn":
        self = super().__new__(cls)
        self.arguments, self.state = arguments, None
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Recorder(_StandIn):
    __slots__ = ()


class _Array(_StandIn):
    __slots__ = ()


class _Scalar(_StandIn):
    __slots__ = ()


class _DType(_StandIn):
    __slots__ = ()


_STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_Recorder, "metrics.RecorderMeter"),
    (_Array, "numpy.ndarray"),
    (_DType, "numpy.dtype"),
    # NumPy 1 and 2 differ in where these functions are.
    *((_Array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_Scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def _load(path: Path) -> Any:
    # As an open file, since torch.load goes by some file names' endings.
    with path.open("rb") as file, torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged files make the unpickler raise nearly everything
            message = str(error)
            if wanted := re.search(r"GLOBAL (\S+)", message):
                problem = f"is refused, and nothing in it was run: it asks for {wanted[1]}, which weights do not need"
            else:
                message = message.rpartition("WeightsUnpickler error:")[2].strip() or type(error).__name__
                problem = f"is not a whole checkpoint that can be read safely: {message.splitlines()[0]}"
            # Without torch's advice to load such a file all the same.
            raise ValueError(f"{path} {textwrap.shorten(problem.partition('. ')[0], 300)}") from None


def _build(state_dict: dict) -> tuple[str, nn.Module]:
    """The model that a state_dict is of, by its registered name, with these weights; ValueError if it is of none."""
    strange = [
        str(key) for key, value in state_dict.items() if not (isinstance(key, str) and isinstance(value, Tensor))
    ]
    if strange:
        raise ValueError(f"{_some(strange)} in state_dict should be tensors by name")
    theirs = {_common_key(key): value for key, value in state_dict.items()}
    if len(theirs) < len(state_dict):
        raise ValueError("state_dict has keys twice, with and without module., or as agg and as ag")
    name = _detect(theirs)
    with torch.device("meta"):
        model = create_model(name)
    model.to_empty(device="cpu")
    ours = authors_views(model)
    if problems := _problems(ours, theirs):
        raise ValueError(f"it does not fit {name}: {'; '.join(problems)}")
    with torch.no_grad():
        for key, view in ours.items():
            view.copy_(theirs[key])
    return name, model


def _common_key(key: str) -> str:
    return key.removeprefix("module.").replace(".conv2.0.ag.", ".conv2.0.agg.")


def _detect(keys: dict[str, Tensor]) -> str:
    blocks = {match[0] for key in keys if (match := re.match(r"stage_[1-4]\.\d+\.", key))}
    depths = tuple(sum(block.startswith(f"stage_{stage}.") for block in blocks) for stage in range(1, 5))
    if depths not in _FAMILIES:
        raise ValueError(
            f"stage_1 to stage_4 have {_commas(depths)} bottlenecks; known are "
            + " and ".join(f"{_commas(known)} ({family})" for known, family in _FAMILIES.items())
        )
    for key, value in keys.items():
        # AG-L's first matrices take in all positions at once, AG-H's one at a time.
        if key.endswith(".conv2.0.agg.fc.0.weight") and value.ndim == 4 and value.shape[2] in (1, 9):
            return f"ka_{_FAMILIES[depths]}_{'l' if value.shape[2] == 9 else 'h'}"
    raise ValueError("no conv2.0.agg.fc.0.weight (or .ag.) says which attention generator it has")


def authors_views(model: nn.Module) -> dict[str, Tensor]:
    """A KAResNet's state under the authors' names (revision `agg`) and in their shapes, as views of its tensors.

    The count of batches of the K norms of a layer is a single one here; all its names are views of it.
    """
    modules = {theirs: model.get_submodule(ours) for theirs, ours in _OUR_MODULES.items()}
    views: dict[str, Tensor] = {}
    for stage in range(1, 5):
        for index, block in enumerate(model.get_submodule(f"layer{stage}").children()):
            prefix = f"stage_{stage}.{index}"
            for theirs, ours in _OUR_BLOCK_MODULES.items():
                if block.downsample is not None or not ours.startswith("downsample"):
                    modules[f"{prefix}.{theirs}"] = block.get_submodule(ours)
            views |= {
                f"{prefix}.conv2.0.{key}": view for key, view in _kaconv_views(cast(KAConv2d, block.conv2)).items()
            }
    return {f"{name}.{key}": value for name, m in modules.items() for key, value in m.state_dict().items()} | views


def _kaconv_views(layer: KAConv2d) -> dict[str, Tensor]:
    taps = layer.weight.detach().flatten(2)  # (Cout, Cin, K)
    positions = taps.shape[2]
    generator = layer.attention_generator
    views = {f"agg.fc.1.{key}": value for key, value in generator.norm.state_dict().items()}
    squeeze, excite = generator.squeeze.weight.detach(), generator.excite.weight.detach()
    views["agg.fc.0.weight"] = _by_position(squeeze, positions if layer.attention == "L" else 1)
    for p, matrix in enumerate(excite.chunk(positions)):
        views[f"agg.fcs.{p}.weight"] = _by_position(matrix, positions if layer.attention == "H" else 1)
    for p, bias in enumerate(generator.excite.bias.detach().chunk(positions)):
        views[f"agg.fcs.{p}.bias"] = bias
    for p in range(positions):
        views[f"convs.{p}.1.weight"] = taps[:, :, p, None, None]
        for key, value in layer.norm.state_dict().items():
            views[f"convs.{p}.2.{key}"] = value.chunk(positions)[p] if value.ndim else value
    return views


def _by_position(matrix: Tensor, positions: int) -> Tensor:
    """(out, positions·in), the positions side by side, as the kernel (out, in, positions, 1) of a convolution."""
    return matrix.unflatten(1, (positions, -1)).movedim(1, 2)[..., None]


def _problems(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[str]:
    def said(x: Tensor) -> str:
        unusual = [str(kind) for kind in (x.layout, x.device) if str(kind) not in ("torch.strided", "cpu")]
        return " ".join([str(tuple(x.shape)), str(x.dtype), *unusual]).replace("torch.", "")

    wrong = [key for key in ours.keys() & theirs.keys() if said(ours[key]) != said(theirs[key])]
    found = {
        "missing": sorted(ours.keys() - theirs.keys()),
        "left over": sorted(theirs.keys() - ours.keys()),
        "unlike": [f"{key} is {said(theirs[key])}, not {said(ours[key])}" for key in sorted(wrong)],
    }
    return [f"{what}: {_some(keys)}" for what, keys in found.items() if keys]


def _recorded(recorder: object) -> dict:
    """The numbers in a recorder, JSON-able, by attribute; what cannot be read is left out."""
    state = recorder.state if isinstance(recorder, _Recorder) else None
    if not isinstance(state, dict):
        return {}
    numbers = {key: _numbers(value) for key, value in state.items() if isinstance(key, str)}
    return {key: value for key, value in numbers.items() if value is not None}


def _numbers(value: object) -> Any:
    try:
        if type(value) in (bool, int, float):
            array = np.array(value)
        elif isinstance(value, _Array):
            _, shape, dtype, is_fortran, data = value.state
            array = np.frombuffer(data, _dtype(dtype)).reshape(shape, order="F" if is_fortran else "C")
        elif isinstance(value, _Scalar):
            dtype, data = value.arguments
            array = np.frombuffer(data, _dtype(dtype)).reshape(())
        elif isinstance(value, Tensor) and value.numel() <= _MOST_NUMBERS:
            array = value.detach().double().numpy()
        else:
            return None
    except (TypeError, ValueError, IndexError, RuntimeError):
        return None
    if array.size > _MOST_NUMBERS or array.dtype == object:
        return None
    # JSON has no NaN. Strings keep float32's short digits: 76.3, not 76.30000305175781.
    return _mapped(array.tolist() if array.dtype != np.float32 else array.astype(str).astype(float).tolist())


def _dtype(dtype: _DType) -> np.dtype:
    kind, order = str(dtype.arguments[0]), str(dtype.state[1])
    if not re.fullmatch(r"[fiub][1248]", kind) or order not in "<>|=":
        raise ValueError(kind)
    return np.dtype(order + kind)


def _mapped(value: Any) -> Any:
    if isinstance(value, list):
        return [_mapped(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _commas(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _some(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(textwrap.shorten(name, 150) for name in names[:most]) + more or "nothing"
