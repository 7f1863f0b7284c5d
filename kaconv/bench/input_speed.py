"""Speed of loading images, beside the speed at which a model takes them: `kaconv bench --input`.

Files are read once before anything is timed, so they come from the system's cache: a slow disk is not seen.
"""

import copy
import math
import os
import random
import statistics
import time
from collections.abc import Sequence, Sized
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from kaconv.bench.benchmark import MODELS, ROUNDS, describe_machine, run_benchmark
from kaconv.data.datasets import DataBundle, load_data, training_pictures

PICTURES = 512
LOADING_BATCH = 32
DECODE = "reading and decoding"
STAGE_OF_MODE = {"training": "training", "inference": "evaluation"}  # what a model must be fed with


def run_input_benchmark(
    data: str,
    models: Sequence[str] = MODELS,
    *,
    workers: Sequence[int] | None = None,
    pictures: int = PICTURES,
    rounds: int = ROUNDS,
    image_size: int | None = None,
    progress: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Measure loading by stage and number of workers, then the models on this machine, one after the other.

    Stages: "reading and decoding"; "evaluation" and "training", which do that and prepare or augment the images;
    "training (all Pillow)", which leaves nothing of it to torch. For data kept in memory "evaluation" and "training".

    Args:
        data: a spec of `load_data`.
        workers: numbers of loading processes; None: 0, 1, 2, 4 ... up to the number of cores.
        pictures: how many images to load in a round, chosen at random; all where there are fewer.
        rounds: of loading and of the models.
        options: further ones of `run_benchmark`, such as device, dtype, batch_size, threads.

    Returns:
        `run_benchmark`'s result for the plain and the fused models, with a further key `input`: data, images,
        image_size, cores, and

        - rows: a dict for each stage and number of workers: stage, workers, seconds (for each round),
          images_per_second (by the median)
        - needs: a dict for each model and mode: name, mode, stage, images_per_second (what the model takes), loaded
          (the most that was loaded), workers (with how many), limited_by ("model" or "input"), workers_needed (an
          estimate, by what a worker gives).

    Raises:
        ValueError: for a bad number, an unknown model, data or option, or an image that cannot be read.
    """
    workers = default_workers() if workers is None else list(dict.fromkeys(workers))
    for name, value, least in (
        *(("workers", number, 0) for number in workers),
        ("pictures", pictures, 1),
        ("rounds", rounds, 1),
    ):
        if type(value) is not int or value < least:
            raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")
    if not workers:
        raise ValueError("workers must hold a number")
    bundle = load_data(data, image_size=image_size)
    # The models first: a mistake in their options is found before anything is loaded.
    result = run_benchmark(
        models,
        ["fused"],
        rounds=rounds,
        image_size=bundle.preprocessing.image_size,
        progress=progress,
        **options,
    )
    stages = {name: _some(dataset, pictures) for name, dataset in _stages(bundle).items()}
    rows = []
    total = len(stages) * len(workers) * (1 + rounds)
    with tqdm(total=total, unit="pass", disable=None if progress else True, leave=False) as bar:
        for number in workers:
            bar.set_description(f"loading, {number} workers")
            rows += _rows(stages, number, rounds, bar)
    result["input"] = {
        "data": data,
        "pictures": len(cast(Sized, stages["training"])),
        "image_size": bundle.preprocessing.image_size,
        "cores": os.cpu_count(),
        "rows": rows,
        "needs": _needs(result, rows),
    }
    return result


def default_workers() -> list[int]:
    """0, then powers of two up to the number of cores, and that."""
    cores = os.cpu_count() or 1
    return sorted({0, cores, *(2**power for power in range(int(math.log2(cores)) + 1))})


def _stages(bundle: DataBundle) -> dict[str, Dataset]:
    test: Any = bundle.test
    if not hasattr(test, "loader"):  # in memory: there is nothing to decode
        return {"evaluation": test, "training": bundle.train or test}
    training = bundle.train or training_pictures(test.root, bundle.preprocessing)
    return {
        DECODE: _changed(test, transform=_nothing),
        "evaluation": test,
        "training": training,
        "training (all Pillow)": _changed(training, loader=test.loader),
    }


def _changed(dataset: Dataset, **attributes: Any) -> Dataset:
    changed = copy.copy(dataset)
    vars(changed).update(attributes)
    return changed


def _nothing(picture: object) -> int:
    return 0  # so that no pixels travel from the loading process


def _some(dataset: Dataset, pictures: int) -> Subset:
    n = len(cast(Sized, dataset))
    return Subset(dataset, random.Random(0).sample(range(n), min(n, pictures)))


def _rows(stages: dict[str, Subset], workers: int, rounds: int, bar: tqdm) -> list[dict[str, Any]]:
    """All stages take turns in every round: a slow spell of the machine meets them all."""
    loaders = {
        name: DataLoader(
            dataset, LOADING_BATCH, num_workers=workers, persistent_workers=workers > 0, generator=torch.Generator()
        )
        for name, dataset in stages.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in stages}
    with torch.random.fork_rng(devices=[]):
        for i in range(1 + rounds):  # the first starts the workers and fills the system's cache
            for name, loader in loaders.items():
                taken = _pass(loader)
                if i > 0:
                    seconds[name].append(taken)
                bar.update()
    return [
        {
            "stage": name,
            "workers": workers,
            "seconds": seconds[name],
            "images_per_second": len(cast(Sized, dataset)) / statistics.median(seconds[name]),
        }
        for name, dataset in stages.items()
    ]


def _pass(loader: DataLoader) -> float:
    start = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - start


def _needs(result: dict[str, Any], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    needs = []
    for model in result["rows"]:
        for mode, stage in STAGE_OF_MODE.items():
            if model[mode] is None:
                continue
            need = 1000 * model["batch_size"] / model[mode]["median_ms"]
            best = max((row for row in rows if row["stage"] == stage), key=lambda row: row["images_per_second"])
            loaded = best["images_per_second"]
            needs.append(
                {
                    "name": model["name"],
                    "mode": mode,
                    "stage": stage,
                    "images_per_second": need,
                    "loaded": loaded,
                    "workers": best["workers"],
                    "limited_by": "model" if loaded >= need else "input",
                    "workers_needed": math.ceil(need * max(1, best["workers"]) / loaded),
                }
            )
    return needs


def format_input_benchmark(result: dict[str, Any]) -> str:
    """A result as text: images per second by stage and number of workers, then what each model needs."""
    measured = result["input"]
    workers = list(dict.fromkeys(row["workers"] for row in measured["rows"]))
    speeds = {(row["stage"], row["workers"]): row["images_per_second"] for row in measured["rows"]}
    stages = list(dict.fromkeys(stage for stage, _ in speeds))
    size = f"{measured['image_size']}×{measured['image_size']} pixels"
    lines = [
        describe_machine(result),
        f"Images per second, {measured['pictures']} of {measured['data']}, to {size}; {measured['cores']} cores",
        "",
        f"{'workers':24}" + "".join(f"{number:>10}" for number in workers),
        *(f"{stage:24}" + "".join(f"{speeds[stage, number]:10,.0f}" for number in workers) for stage in stages),
        "",
        *(f"{need['name']}, {need['mode']}: {_describe_need(need)}" for need in measured["needs"]),
    ]
    if DECODE in stages:
        lines.append(f"Reading and decoding take {_decoding_share(measured['rows']):.0%} of a training image's time.")
    lines.append("Loading and models were measured one after the other; on a CPU they share its cores.")
    return "\n".join(lines)


def _describe_need(need: dict[str, Any]) -> str:
    speeds = f"takes {need['images_per_second']:,.1f}/s, {need['workers']} workers give {need['loaded']:,.1f}/s"
    if need["limited_by"] == "model":
        return f"{speeds}: the model limits"
    return f"{speeds}: loading limits; about {need['workers_needed']} workers on as many cores would keep up"


def _decoding_share(rows: list[dict[str, Any]]) -> float:
    """The median over the rounds, with the smallest number of workers."""
    least = min(row["workers"] for row in rows)
    decode, training = (
        next(row["seconds"] for row in rows if row["stage"] == stage and row["workers"] == least)
        for stage in (DECODE, "training")
    )
    return statistics.median(one / other for one, other in zip(decode, training, strict=True))
