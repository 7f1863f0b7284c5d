"""A short search for the Triton kernels' tile sizes on a CUDA device: `python -m kaconv.bench.tuning`.

From the sizes that `kaconv.ops.triton_taps` reckons, one size at a time is doubled or halved, as long as that is
faster. A class of shapes is measured in the first layer that has it, the slowest classes first, until the time is over.
Sizes whose results differ from the reckoned ones', or which do not run, are not taken. It has not been run on a device
yet.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from kaconv.bench.benchmark import DTYPES, MODELS
from kaconv.bench.roofline import timed
from kaconv.layers import KAConv2d
from kaconv.models import create_model
from kaconv.ops.geometry import Geometry
from kaconv.ops.triton_taps import TritonTaps
from kaconv.ops.triton_tiles import NAMES, Blocks, path_for, trying
from kaconv.utils.files import write_json
from kaconv.utils.modes import evaluating
from kaconv.utils.provenance import provenance

Pass = Callable[[], Sequence[Tensor]]
Timer = Callable[[Callable[[], Any]], float]

BATCH_SIZE = 32
SECONDS = 40
GAIN = 0.97  # of the time so far, that other sizes must stay below to be taken
TOLERANCE = 0.02  # of a result's largest value: bfloat16 has 8 bits
LIMITS = {"BLOCK_P": (16, 256), "BLOCK_C": (16, 256), "num_warps": (2, 16), "num_stages": (1, 4)}


class Choice(TypedDict):
    """Measured sizes of a class of shapes, and the time they take in times of that of the reckoned ones."""

    blocks: Blocks
    time_ratio: float


def tune(
    passes: Iterable[Pass], timer: Timer, seconds: float, clock: Callable[[], float] = time.monotonic
) -> dict[str, Choice]:
    """Search for the sizes of all classes that the passes ask for; what is found by the end of the time is given.

    Args:
        timer: the seconds that a call takes.
        seconds: after which no other sizes are tried.
    """
    end = clock() + seconds
    classes: dict[str, tuple[Pass, Blocks, float]] = {}
    for run in passes:
        if clock() >= end:
            break
        asked: dict[str, Blocks] = {}
        with trying(asked):
            run()
            least = timer(run) if asked.keys() - classes.keys() else 0.0
        for shape_class, blocks in asked.items():
            classes.setdefault(shape_class, (run, blocks, least))
    choices: dict[str, Choice] = {}
    for shape_class, (run, reckoned, first) in sorted(classes.items(), key=lambda item: -item[1][2]):
        best, least = _search(run, shape_class, reckoned, first, timer, lambda: clock() >= end)
        if best != reckoned:
            choices[shape_class] = {"blocks": best, "time_ratio": round(least / first, 3)}
    return choices


def _search(
    run: Pass, shape_class: str, reckoned: Blocks, first: float, timer: Timer, is_over: Callable[[], bool]
) -> tuple[Blocks, float]:
    with trying({}):
        expected = run()
    best, least, tried = reckoned, first, [reckoned]
    improved = True
    while improved:
        improved = False
        for blocks in neighbours(best):
            if is_over():
                return best, least
            if blocks in tried:
                continue
            tried.append(blocks)
            seconds = _time(run, {shape_class: blocks}, expected, timer)
            if seconds is not None and seconds < GAIN * least:
                best, least, improved = blocks, seconds, True
                break
    return best, least


def neighbours(blocks: Blocks) -> Iterator[Blocks]:
    """The sizes with one of them doubled or halved; stages are one more or less."""
    for name, (least, most) in LIMITS.items():
        size = blocks[name]
        for other in (size - 1, size + 1) if name == "num_stages" else (size // 2, size * 2):
            if least <= other <= most:
                yield {**blocks, name: other}


def _time(run: Pass, trial: dict[str, Blocks], expected: Sequence[Tensor], timer: Timer) -> float | None:
    """None where the sizes do not run, as they need too many registers or too much memory, or give something else."""
    with trying(trial):
        try:
            results = run()
        except Exception:  # whatever Triton has against them
            return None
        agree = all(map(_agree, results, expected))
        return timer(run) if agree else None


def _agree(result: Tensor, expected: Tensor) -> bool:
    difference = (result.double() - expected.double()).abs().max()
    return bool(difference <= TOLERANCE * expected.double().abs().max())


def passes_of(models: Iterable[str], device: torch.device, dtype: torch.dtype, image_size: int = 224) -> Iterator[Pass]:
    """All passes over each different KAConv layer of the models, on random numbers."""
    seen = set()
    for model in models:
        for layer, shape in _layers(model, image_size):
            key = (tuple(layer.weight.shape), layer.geometry, shape)
            if key not in seen:
                seen.add(key)
                yield from _passes(layer.weight.shape, layer.geometry, shape, device, dtype)


def _layers(model: str, image_size: int) -> list[tuple[KAConv2d, torch.Size]]:
    """The KAConv layers of a model, and the shapes of their inputs."""
    found: list[tuple[KAConv2d, torch.Size]] = []
    with torch.device("meta"):
        made = create_model(model)
        for layer in made.modules():
            if isinstance(layer, KAConv2d):
                layer.register_forward_pre_hook(lambda layer, inputs: found.append((layer, inputs[0].shape)))
        with torch.no_grad(), evaluating(made):
            made(torch.empty(1, 3, image_size, image_size))
    return found


def _passes(
    weight_shape: torch.Size, geometry: Geometry, shape: torch.Size, device: torch.device, dtype: torch.dtype
) -> Iterator[Pass]:
    positions, channels, cap = geometry.positions, weight_shape[0], 6.0

    @functools.cache  # when they are first needed: the classes that are not come to cost no memory
    def arguments() -> tuple[TritonTaps, list[Tensor], list[Tensor], Tensor]:
        torch.manual_seed(0)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        x = torch.randn(BATCH_SIZE, *shape[1:], device=device).to(dtype, memory_format=torch.channels_last)
        weight = torch.randn(weight_shape, device=device).to(dtype)
        dout = torch.randn(BATCH_SIZE, channels, *geometry.output_size(*shape[2:]), device=device).to(dtype)
        of_channels = torch.randn(6, positions, channels, device=device, dtype=wide).unbind()
        of_samples = torch.rand(2, BATCH_SIZE, positions, channels, device=device, dtype=wide).unbind()
        dout = dout.contiguous(memory_format=torch.channels_last)
        return TritonTaps(x, weight, geometry), list(of_channels), list(of_samples), dout

    def run(name: str) -> Sequence[Tensor]:
        taps, (r, t, gamma, beta, delta, epsilon), (alpha, bias), dout = arguments()
        norm = (r, t, gamma, beta, cap)
        passes: dict[str, Callable[[], Any]] = {
            "moments": lambda: taps.moments(),
            "pooled": lambda: (taps.pooled(r, t, cap),),
            "pool": lambda: taps.pool(*norm),
            "aggregate": lambda: (taps.aggregate(r, t, alpha, cap),),
            "reduce": lambda: taps.reduce(*norm, dout),
            "gradients": lambda: taps.gradients(*norm, dout, alpha, bias, delta, epsilon),
        }
        return passes[name]()

    for name in ("moments", "pooled", "pool", "aggregate", "reduce", "gradients"):
        yield functools.partial(run, name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Tune for the models of `kaconv bench` and write the file that the kernels read; 1 without a CUDA device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time to search (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="JSON file (default: the one that the kernels read)")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("tuning: there is no CUDA device, so nothing was measured", file=sys.stderr)
        return 1
    device = torch.device("cuda")
    out = options.out or path_for(torch.cuda.get_device_capability())

    def timer(run: Callable[[], Any]) -> float:
        return min(timed(run, device, 5) for _ in range(3))

    choices = tune(passes_of(MODELS, device, DTYPES[options.dtype]), timer, options.seconds)
    write_json(out, {"choices": choices, "provenance": provenance()})
    for shape_class, choice in choices.items():
        sizes = ", ".join(f"{name} {choice['blocks'][name]}" for name in NAMES)
        print(f"{choice['time_ratio']:.2f} of the time: {shape_class}: {sizes}")
    print(f"{out}: {len(choices)} classes of shapes with other tiles than the reckoned ones")
    return 0


if __name__ == "__main__":
    sys.exit(main())
