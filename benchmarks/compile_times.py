"""Measures how long torch.compile takes for a KAConv model and for its plain twin, inference and training step.

    .venv/bin/python benchmarks/compile_times.py --out benchmarks/results/compile/cpu.json

Each compilation has a process and a cache folder of its own, so that nothing is at hand, and one thread, so that its
processor time (the C++ compiler's included) is what it takes: that holds on a busy machine, where the clock does not.
"""

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from kaconv.bench.benchmark import plain_twin
from kaconv.models import create_model
from kaconv.ops import native
from kaconv.utils.files import write_json
from kaconv.utils.provenance import provenance

IMAGE_SIZES = {"ka_resnet29_cifar_l": 32, "ka_mobilenetv2_050_l": 224}  # pixels
BATCH_SIZE = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    native.library()  # is built once for a machine, and not by torch.compile
    rows = []
    for model, size in IMAGE_SIZES.items():
        for training in (False, True):
            for name in (plain_twin(model), model):
                seconds, processor_seconds = _in_its_own_process(name, size, training)
                mode = "training" if training else "inference"
                row = {"model": model, "name": name, "mode": mode, "image_size": size, "batch_size": BATCH_SIZE}
                rows.append(row | {"seconds": seconds, "processor_seconds": processor_seconds})
                write_json(arguments.out, {"rows": rows, "provenance": provenance()})
                print(f"{name:24} {mode:10} {processor_seconds:6.1f} s of the processor, {seconds:6.1f} s", flush=True)


def _in_its_own_process(name: str, size: int, training: bool) -> tuple[float, float]:
    with (
        tempfile.TemporaryDirectory() as cache,
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        return pool.submit(_compile, name, size, training, cache).result()


def _compile(name: str, size: int, training: bool, cache: str) -> tuple[float, float]:
    os.environ |= {"TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    torch.set_num_threads(1)
    torch.compile(lambda x: x + 1)(torch.ones(16))  # what torch.compile prepares once for all
    model = create_model(name).train(training)
    x, y = torch.randn(BATCH_SIZE, 3, size, size), torch.arange(BATCH_SIZE)

    def step() -> Any:
        with torch.inference_mode(not training):
            logits = model(x)
        return F.cross_entropy(logits, y).backward() if training else logits

    step()
    model.compile(fullgraph=True)
    before = time.perf_counter(), _processor_seconds()
    step()
    return time.perf_counter() - before[0], _processor_seconds() - before[1]


def _processor_seconds() -> float:
    """Of this process and of those that it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    main()
