"""A study: several models, each trained from several seeds, and what can be said of their differences."""

import re
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import fields
from pathlib import Path
from statistics import median
from typing import TypedDict, cast

import numpy as np
import torch

from kaconv.data.datasets import load_data
from kaconv.models import create_model
from kaconv.models.complexity import complexity
from kaconv.training.config import TrainConfig
from kaconv.training.processes import launch
from kaconv.training.run import Epoch, Run, find_finished_run
from kaconv.training.trainer import fit
from kaconv.utils.intervals import t_interval, welch_interval, wilson_interval


def study_config(model: str, seed: int, *, data: str = "digits", runs: str | Path = "runs", **options) -> TrainConfig:
    """The config of one training of a study; its folder in `runs` is named by all that is unusual.

    Args:
        options: further fields of `TrainConfig`.
    """
    # Another recipe is another folder: a study with other settings neither clashes with this one nor replaces it.
    decisive = {item.name: item.default for item in fields(TrainConfig) if not item.metadata["where_only"]}
    recipe = "".join(
        f"_{name}-{value}" for name, value in sorted(options.items()) if value != decisive.get(name, value)
    )
    folder = f"{re.sub(r'[^A-Za-z0-9]+', '-', data).strip('-')}_{model}{recipe}_seed{seed}"
    return TrainConfig(model=model, data=data, seed=seed, out=str(Path(runs) / folder), **options)


def train_study(
    models: Sequence[str],
    seeds: Sequence[int],
    *,
    data: str = "digits",
    runs: str | Path = "runs",
    progress: bool = True,
    processes: int = 1,
    on_epoch: Callable[[Run], None] | None = None,
    **options,
) -> Iterator[Run]:
    """Train every model from every seed, or take finished runs of the same config from `runs`; yield each as it ends.

    All models of one seed come before the next seed, so that a machine that is busy for a while slows all models alike.

    Args:
        processes: of each training, on this machine; see `launch`.
        on_epoch: see `fit`.
        options: further fields of `TrainConfig`.

    Raises:
        ValueError: for no or repeated models or seeds; and, like other errors, as `fit` does.
    """
    for name, values in (("models", models), ("seeds", seeds)):
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name} must be at least one, all different, got {list(values)}")
    configs = [study_config(model, seed, data=data, runs=runs, **options) for seed in seeds for model in models]
    for config in configs:  # a bad one should not come to light after an hour
        config.validate()
    for config in configs:
        yield train(config, processes, progress=progress, on_epoch=on_epoch)


def train(
    config: TrainConfig,
    processes: int = 1,
    *,
    progress: bool = True,
    on_epoch: Callable[[Run], None] | None = None,
) -> Run:
    """One training of a study, in this process or in several; a finished run of the same config is taken as it is.

    Args:
        processes: see `launch`; with one, `fit` trains here.
        progress: whether to show the progress, where it trains here.
        on_epoch: see `fit`.

    Raises:
        ValueError: and other errors, as `fit` and `launch` do.
    """
    if processes == 1 or find_finished_run(config):
        return fit(config, progress=progress, on_epoch=on_epoch)
    return launch(config, processes, on_epoch=on_epoch)


class LearningCurveRow(Epoch):
    """An epoch of one training of a study."""

    model: str
    seed: int


def learning_curves(runs: Sequence[Run]) -> list[LearningCurveRow]:
    """The epochs of all runs, with the model and the seed of each."""
    return [
        LearningCurveRow(model=run.config.model, seed=run.config.seed, **epoch) for run in runs for epoch in run.history
    ]


class StudyRow(TypedDict):
    """A model's trainings in a study.

    - model, seeds
    - test_errors: percent, one per seed, of the last epoch (the best epoch would be chosen by the test images)
    - test_error: their mean
    - seed_interval: 95 % interval of that mean over seeds; None for a single seed
    - picture_interval: 95 % interval of one model's error over the drawing of its test images
    - test_pictures: their number
    - params, paper_flops, macs: see `kaconv.models.complexity.Complexity`, at the data's input size
    - train_seconds: for one epoch without its test, median over epochs and seeds
    """

    model: str
    seeds: list[int]
    test_errors: list[float]
    test_error: float
    seed_interval: tuple[float, float] | None
    picture_interval: tuple[float, float]
    test_pictures: int
    params: int
    paper_flops: int
    macs: int
    train_seconds: float


class ComparisonRow(TypedDict):
    """A model of a study against another one.

    - difference: its mean test error minus the other's, in percentage points: negative is better
    - difference_interval: 95 %, over seeds, by Welch's t; None for a single seed
    - the ratios of its costs to the other's
    """

    model: str
    difference: float
    difference_interval: tuple[float, float] | None
    params_ratio: float
    paper_flops_ratio: float
    macs_ratio: float
    train_seconds_ratio: float


def summarise(runs: Sequence[Run]) -> list[StudyRow]:
    """Summarise the runs of a study, all of the same data: a row per model, in the order of the runs."""
    first = runs[0].config
    data = load_data(first.data, first.data_root, first.image_size, val_fraction=first.val_fraction)
    size, pictures = data.preprocessing.image_size, len(cast(Sized, data.test))
    rows: list[StudyRow] = []
    for model in dict.fromkeys(run.config.model for run in runs):
        own = [run for run in runs if run.config.model == model]
        errors = [run.summary["last"]["test_error"] for run in own]
        with torch.device("meta"):
            cost = complexity(create_model(model, num_classes=len(data.classes)), size)
        rows.append(
            {
                "model": model,
                "seeds": [run.config.seed for run in own],
                "test_errors": errors,
                "test_error": float(np.mean(errors)),
                "seed_interval": t_interval(errors),
                "picture_interval": wilson_interval(float(np.mean(errors)), pictures),
                "test_pictures": pictures,
                "params": cost.params,
                "paper_flops": cost.paper_flops,
                "macs": cost.macs,
                "train_seconds": median(
                    len(cast(Sized, data.train)) / epoch["images_per_second"] for run in own for epoch in run.history
                ),
            }
        )
    return rows


def compare(rows: Sequence[StudyRow], baseline: str) -> list[ComparisonRow]:
    """Compare each model with `baseline` in costs and error: a row per other model, from those of `summarise`.

    Raises:
        ValueError: if `baseline` is not among the models.
    """
    plain = next((row for row in rows if row["model"] == baseline), None)
    if plain is None:
        raise ValueError(f"baseline {baseline!r} is not in the study: {', '.join(row['model'] for row in rows)}")
    return [
        {
            "model": row["model"],
            "difference": row["test_error"] - plain["test_error"],
            "difference_interval": welch_interval(row["test_errors"], plain["test_errors"]),
            "params_ratio": row["params"] / plain["params"],
            "paper_flops_ratio": row["paper_flops"] / plain["paper_flops"],
            "macs_ratio": row["macs"] / plain["macs"],
            "train_seconds_ratio": row["train_seconds"] / plain["train_seconds"],
        }
        for row in rows
        if row is not plain
    ]
