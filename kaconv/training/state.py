"""The state from which a training goes on: files state-EPOCH-STEP.pt in its folder, the newest two of them.

Such a file is what `torch.save` writes, and the SHA-256 of that: zip's own checksums leave a part of it unprotected.
"""

import hashlib
import io
import logging
import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from kaconv.utils.checks import Rule, check_values, is_number, whole
from kaconv.utils.files import replacing
from kaconv.utils.text import printable, shortened

KEPT = 2
_DIGEST_SIZE = hashlib.sha256().digest_size
_LOGGER = logging.getLogger("kaconv")
_Taken = TypeVar("_Taken")

_RULES: dict[str, Rule] = {
    "epoch": whole(1),
    "step": whole(0),
    "history": ("text", lambda value: isinstance(value, str)),
    "totals": ("a row of sums", lambda value: isinstance(value, torch.Tensor) and value.dim() == 1 and len(value) > 0),
    "epoch_seconds": ("a number >= 0", is_number(lambda value: 0 <= value < math.inf)),
    "model": ("tensors by name", lambda value: isinstance(value, dict)),
    "optimizer": ("an optimizer's state", lambda value: isinstance(value, dict)),
}
_OPTIONAL_RULES: dict[str, Rule] = {
    "ema": ("tensors by name or None", lambda value: isinstance(value, dict | None)),
    "scaler": ("a gradient scaler's state or None", lambda value: isinstance(value, dict | None)),
}


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write a state, in one step, and remove all but it and its predecessor.

    Args:
        state: tensors, numbers, strings, lists and dicts; `epoch` and `step` say where it stands. It needs what
            `_RULES` names, and may have what `_OPTIONAL_RULES` names.
    """
    name = f"state-{state['epoch']:05d}-{state['step']:07d}.pt"
    buffer = io.BytesIO()  # written by Python: torch does not say that a disk is full
    torch.save(state, buffer)
    with replacing(folder / name) as temporary, temporary.open("wb") as file:
        file.write(buffer.getbuffer())
        file.write(hashlib.sha256(buffer.getbuffer()).digest())
        file.flush()
        os.fsync(file.fileno())  # so that it is whole after a power cut, too
    paths = state_files(folder)
    newest = paths.index(folder / name) + 1  # those after it were passed over
    for path in paths[: max(newest - KEPT, 0)] + paths[newest:]:
        path.unlink(missing_ok=True)


def take_up_newest_state(folder: Path, take_up: Callable[[dict[str, Any]], _Taken]) -> _Taken | None:
    """Take up the newest good state and return what `take_up` gives; None where there is none.

    A bad one is named in the log.

    Args:
        take_up: may raise any exception for a state that does not fit; the one before is taken up in its place.

    Raises:
        ValueError: if there are states, but none is good.
    """
    paths = state_files(folder)
    for path in reversed(paths):
        try:
            taken = take_up(_read(path))
        except (MemoryError, torch.OutOfMemoryError):
            raise  # not the state's fault
        except Exception as error:  # a strange state may make torch raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            _LOGGER.warning("%s cannot be read and is passed over: %s", path, printable(shortened(reason, 300)))
            continue
        if path != paths[-1]:
            _LOGGER.warning("the training goes on from %s", path)
        return taken
    if paths:
        names = ", ".join(path.name for path in paths)
        raise ValueError(f"no state in {folder} can be read ({names}); remove them to train from the beginning")
    return None


def _read(path: Path) -> dict[str, Any]:
    """A whole state with values of the right kinds; ValueError or OSError for another file."""
    with path.open("rb") as file:
        content = file.read(max(path.stat().st_size - _DIGEST_SIZE, 0))
        digest = file.read()
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("it is damaged, its checksum is another")
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch's text recommends to read it all the same
        raise ValueError("it holds other things than tensors, numbers and text") from None
    if not isinstance(state, dict):
        raise ValueError("it holds no training's state")
    if missing := _RULES.keys() - state.keys():
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    check_values(state, _RULES | {name: rule for name, rule in _OPTIONAL_RULES.items() if name in state})
    return state


def state_files(folder: Path) -> list[Path]:
    """The states in a run's folder, the oldest first."""
    return sorted(folder.glob("state-*.pt"))


def remove_states(folder: Path) -> None:
    """Remove them all: the training has ended."""
    for path in state_files(folder):
        path.unlink(missing_ok=True)
