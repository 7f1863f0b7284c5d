"""What a training needs to go on where it was: files state-EPOCH-STEP.pt in its folder, the newest two of them."""

import io
import logging
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from kaconv.utils.files import replacing

KEPT = 2
_LOGGER = logging.getLogger("kaconv")


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write a state, in one step, and remove those before its predecessor.

    Args:
        state: tensors, numbers, strings, lists and dicts; `epoch` and `step` say where it stands.
    """
    name = f"state-{state['epoch']:05d}-{state['step']:07d}.pt"
    buffer = io.BytesIO()  # written by Python: torch does not say that a disk is full
    torch.save(state, buffer)
    with replacing(folder / name) as temporary, temporary.open("wb") as file:
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())  # so that it is whole after a power cut, too
    for path in state_files(folder)[:-KEPT]:
        path.unlink(missing_ok=True)


def load_newest_state(folder: Path) -> dict[str, Any] | None:
    """The newest state that can be read; None where there is none. One that cannot be read is named in the log.

    Raises:
        ValueError: if there are states, but none can be read.
    """
    paths = state_files(folder)
    for path in reversed(paths):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(state, dict) or not {"epoch", "step"} <= state.keys():
                raise ValueError("it holds no training's state")
        except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            _LOGGER.warning("%s cannot be read and is passed over: %s", path, reason[:200])
            continue
        if path != paths[-1]:
            _LOGGER.warning("the training goes on from %s", path)
        return state
    if paths:
        names = ", ".join(path.name for path in paths)
        raise ValueError(f"no state in {folder} can be read ({names}); remove them to train from the beginning")
    return None


def state_files(folder: Path) -> list[Path]:
    """The states in a run's folder, the oldest first."""
    return sorted(folder.glob("state-*.pt"))


def remove_states(folder: Path) -> None:
    """Remove them all: the training has ended."""
    for path in state_files(folder):
        path.unlink(missing_ok=True)
