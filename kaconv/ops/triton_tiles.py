"""Tile sizes of the Triton kernels: measured ones, where this kind of device has some, in place of reckoned ones.

`python -m kaconv.bench.tuning` measures them and writes `tiles/sm_90.json` (for compute capability 9.0) beside this
module: "choices", from a kernel and a class of shapes (`TritonTaps._shape_class`) to its blocks. Other tiles add in
another order, so results differ in rounding between devices with and without such a file.
"""

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch

Blocks = dict[str, int]

NAMES = ("BLOCK_P", "BLOCK_C", "BLOCK_CI", "num_warps", "num_stages")
FOLDER = Path(__file__).with_name("tiles")

_trial: ContextVar[dict[str, Blocks] | None] = ContextVar("kaconv_tiles", default=None)


@contextmanager
def trying(trial: dict[str, Blocks]) -> Iterator[None]:
    """Blocks of this dict in place of all others, inside the block; what is asked for and not in it is put in."""
    token = _trial.set(trial)
    try:
        yield
    finally:
        _trial.reset(token)


def blocks_for(shape_class: str, reckoned: Blocks, device: torch.device) -> Blocks:
    """The blocks to take: those under trial, else measured ones, else the reckoned."""
    if (trial := _trial.get()) is not None:
        return trial.setdefault(shape_class, reckoned)
    if device.type != "cuda" or torch.version.hip is not None:
        return reckoned
    return measured(path_for(torch.cuda.get_device_capability(device))).get(shape_class, reckoned)


def path_for(capability: tuple[int, int]) -> Path:
    """The file of a compute capability."""
    return FOLDER / "sm_{}{}.json".format(*capability)


@functools.cache
def measured(path: Path) -> dict[str, Blocks]:
    """The choices of a file; none where there is no such file.

    Raises:
        ValueError: if it holds something else.
    """
    if not path.exists():
        return {}
    try:
        choices = json.loads(path.read_text(encoding="utf-8"))["choices"]
        blocks = {shape_class: choice["blocks"] for shape_class, choice in choices.items()}
        if not all(_are_blocks(sizes) for sizes in blocks.values()):
            raise ValueError(f"blocks are powers of two for {', '.join(NAMES)}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no file of tile sizes: {error}; write it anew or remove it") from error
    return blocks


def _are_blocks(sizes: Blocks) -> bool:
    whole = sizes.keys() == set(NAMES) and all(type(size) is int and size > 0 for size in sizes.values())
    return whole and all(sizes[name].bit_count() == 1 for name in NAMES if name != "num_stages")
