"""The config of a training, checked before anything is written.

What needs torch is imported where it is used: the command line's help comes from here.
"""

import math
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from kaconv.utils.checks import (
    EVALUATION_RULES,
    MOST_PICTURES,
    MOST_PIXELS,
    MOST_SEED,
    MOST_WORKERS,
    SPLIT_RULE,
    TEXT,
    TRUE_OR_FALSE,
    VAL_FRACTION,
    Rule,
    check_values,
    is_number,
    is_one_of,
    or_none,
    whole,
)
from kaconv.utils.text import short_repr

WARMUP_START = 0.1  # share of the learning rate in the first epoch of a warm-up
STEP_MILESTONES = (0.3, 0.6, 0.9)  # shares of the epochs: 30, 60 and 90 of the paper's 100
STEP_FACTOR = 0.1
EXPONENTIAL_FACTOR = 0.92  # of each epoch, as the paper trains MobileNetV2
TEMPERATURE_START = 30.0  # of the attention's softmax in the first step of a warm-up, as ODConv is trained
_PLAIN = (str, int, float, Path, type(None))  # what a field may be
# Learning rate as a share of its peak, by how many epochs (after the warm-up) have passed, and of how many.
SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "cosine": lambda passed, epochs: (1 + math.cos(math.pi * passed / epochs)) / 2,
    "step": lambda passed, epochs: STEP_FACTOR ** sum(passed / epochs >= milestone for milestone in STEP_MILESTONES),
    "exponential": lambda passed, epochs: EXPONENTIAL_FACTOR**passed,
}
_AT_LEAST_ZERO: Rule = ("a number >= 0", is_number(lambda value: 0 <= value < math.inf))
_BELOW_ONE: Rule = ("a number in [0, 1)", is_number(lambda value: 0 <= value < 1))


def _option(default: Any, help: str, rule: Rule | None = None, *, where_only: bool = False) -> Any:
    """A field of the config.

    Args:
        help: for the command line.
        rule: what `validate` allows; None where more than the value has to be looked at.
        where_only: whether it says where things lie or how the work is done, not what is trained.
    """
    return field(default=default, metadata={"help": help, "rule": rule, "where_only": where_only})


def _required(help: str, rule: Rule | None = None, *, where_only: bool = False) -> Any:
    return field(metadata={"help": help, "rule": rule, "where_only": where_only})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training, whole: the same config gives the same weights on a CPU. The defaults suit small data on a CPU."""

    model: str = _required("a name from `kaconv list`, such as ka_resnet29_cifar_l")
    data: str = _option("digits", "digits, fashion_mnist, cifar10, imagenette, imagenet:PATH, folder:PATH or fake")
    out: str = _required(
        "the run's folder: new, empty, or that of the same run",
        ("a folder's path", lambda value: isinstance(value, str | Path) and str(value) != ""),
        where_only=True,
    )
    epochs: int = _option(10, "passes over the training images", whole(1))
    # Batch norm cannot train on one image.
    batch_size: int = _option(32, "images per step, over all processes together", whole(2, MOST_PICTURES))
    accumulation: int = _option(
        1,
        "parts in which each process takes its share of a step, to save memory",
        whole(1, MOST_PICTURES),
        where_only=True,
    )
    lr: float = _option(
        0.05, "peak learning rate of SGD", ("a number > 0", is_number(lambda value: 0 < value < math.inf))
    )
    lr_batch_size: int | None = _option(
        None, "the batch size that lr is meant for: it is scaled to batch_size", or_none(whole(1, MOST_PICTURES))
    )
    momentum: float = _option(0.9, "momentum of SGD", _BELOW_ONE)
    nesterov: bool = _option(True, "Nesterov's momentum, or the plain one", TRUE_OR_FALSE)
    weight_decay: float = _option(5e-4, "weight decay, on all parameters", _AT_LEAST_ZERO)
    schedule: str = _option(
        "cosine",
        "cosine, to zero; step, a tenth after 30, 60 and 90 percent of the epochs; exponential, 0.92 of it each epoch",
        is_one_of(*SCHEDULES),
    )
    warmup_epochs: int = _option(0, "epochs over which the learning rate first rises", whole(0))
    attention_warmup: str = _option(
        "blend",
        "how attention warms up in training (tests and checkpoints have it as it is): blend, from 1/K for each kernel "
        "position to what is learnt; temperature, its softmax cools from 30 to 1",
        is_one_of("blend", "temperature"),
    )
    attention_warmup_epochs: int = _option(
        0, "epochs over which it does, 0: none, as in the paper; a model without KAConv ignores it", whole(0)
    )
    label_smoothing: float = _option(
        0.0,
        "probability to spread evenly over the wrong classes",
        ("a number in [0, 0.5)", is_number(lambda value: 0 <= value < 0.5)),
    )
    ema_decay: float = _option(
        0.0, "test and keep a moving average of the weights with this decay a step; 0: none", _BELOW_ONE
    )
    sync_batch_norm: bool = _option(
        False, "take the statistics of batch norm over all processes, not over each", TRUE_OR_FALSE
    )
    fresh_statistics: bool = _option(
        False,
        "at the end, also test with batch norm's statistics recomputed from training images not augmented",
        TRUE_OR_FALSE,
    )
    seed: int = _option(
        0, "seed of the initial weights, the order of the images and the augmentation", whole(0, MOST_SEED)
    )
    weights: str | None = _option(
        None,
        "what to start from: a checkpoint's path, or a name that create_model takes, such as torchvision",
        ("a path, a name or None", lambda value: value is None or isinstance(value, str | Path)),
    )
    freeze: str | None = _option(
        None,
        "shell patterns of parameters that stay as they are, with commas between: 'conv1.*,layer1.*'",
        or_none(TEXT),
    )
    val_fraction: float = _option(
        VAL_FRACTION,
        "share of each class to test on, for folder: data without val/ or test/; the file names decide which",
        SPLIT_RULE,
    )
    data_root: str = _option(
        "data/cache",
        "where downloaded data sets lie or go",
        ("a folder's path", lambda value: isinstance(value, str | Path)),
        where_only=True,
    )
    image_size: int | None = _option(
        None, "side of the model's input in pixels, if not the data's usual one", or_none(whole(1, MOST_PIXELS))
    )
    workers: int = _option(
        0,
        "processes that load images; a few are worth it for data read from folders",
        EVALUATION_RULES["workers"],
        where_only=True,
    )
    prefetch: int = _option(
        2, "batches that each of these workers loads ahead", whole(1, MOST_WORKERS), where_only=True
    )
    max_broken: int = _option(
        10,
        "unreadable images to pass over before giving up, in an epoch and in a test",
        EVALUATION_RULES["max_broken"],
        where_only=True,
    )
    mixed_precision: str = _option("no", "no, bf16 or fp16", is_one_of("no", "bf16", "fp16"))
    channels_last: bool = _option(False, "keep maps with the channels last: quicker on most GPUs", TRUE_OR_FALSE)
    keep_epochs: bool = _option(
        False, "keep the weights of every epoch, and those before the first", TRUE_OR_FALSE, where_only=True
    )
    save_minutes: float = _option(
        10.0,
        "how often to save what is needed to go on after a crash; 0: after every step",
        _AT_LEAST_ZERO,
        where_only=True,
    )

    def validate(self) -> None:
        """ValueError for the first field with a bad value, with what it may be."""
        import torch

        from kaconv.data.datasets import parse_spec
        from kaconv.models import create_model
        from kaconv.models.registry import check_name
        from kaconv.training.fine_tuning import matching_parameters

        rules: dict[str, Rule] = {item.name: rule for item in fields(self) if (rule := item.metadata["rule"])}
        check_values(vars(self), rules)
        for name in ("warmup_epochs", "attention_warmup_epochs"):
            if getattr(self, name) >= self.epochs:
                raise ValueError(f"{name} must be less than epochs ({self.epochs}), got {getattr(self, name)}")
        parse_spec(self.data)
        check_name(self.model)
        if self.freeze:
            with torch.device("meta"):
                matching_parameters(create_model(self.model), self.freeze)

    def lr_factor(self, epoch: int) -> float:
        """The factor of the learning rate in an epoch, counted from 0."""
        if epoch < self.warmup_epochs:
            return WARMUP_START + (1 - WARMUP_START) * epoch / self.warmup_epochs
        return SCHEDULES[self.schedule](epoch - self.warmup_epochs, self.epochs - self.warmup_epochs)

    def attention_warmup_value(self, epochs: float) -> tuple[str, float]:
        """The setting of the attention's warm-up after so many epochs, a fraction within one: its name and value.

        After the warm-up it is exactly what leaves the attention as it is.
        """
        left = max(0.0, 1 - epochs / self.attention_warmup_epochs) if self.attention_warmup_epochs else 0.0
        if self.attention_warmup == "temperature":
            return "temperature", 1 + (TEMPERATURE_START - 1) * left
        return "uniform_share", left

    @property
    def peak_lr(self) -> float:
        """The learning rate for this batch size."""
        return self.lr if self.lr_batch_size is None else self.lr * self.batch_size / self.lr_batch_size

    def to_dict(self) -> dict:
        """YAML- and JSON-able."""
        weights = None if self.weights is None else str(self.weights)
        return asdict(self) | {"out": str(self.out), "data_root": str(self.data_root), "weights": weights}  # or Paths

    def identity(self) -> dict:
        """The fields that decide what is trained: two runs with equal ones are the same run."""
        values = self.to_dict()
        return {item.name: values[item.name] for item in fields(self) if not item.metadata["where_only"]}

    def to_arguments(self) -> list[str]:
        """The options of `kaconv train` that give this config."""
        arguments = []
        for name, value in self.to_dict().items():
            option = name.replace("_", "-")
            if isinstance(value, bool):
                arguments.append(f"--{'' if value else 'no-'}{option}")
            elif value is not None:
                arguments += [f"--{option}", str(value)]
        return arguments

    @classmethod
    def from_dict(cls, values: dict) -> "TrainConfig":
        """Inverse of `to_dict`; missing fields take their defaults.

        ValueError for an unknown or a missing required field, or a value that is a list or a mapping.
        """
        unknown = sorted(values.keys() - {item.name for item in fields(cls)})
        if unknown:
            raise ValueError(f"unknown config fields: {', '.join(unknown)}")
        required = {item.name for item in fields(cls) if item.default is MISSING}
        missing = sorted(required - values.keys())
        if missing:
            raise ValueError(f"config fields missing: {', '.join(missing)}")
        nested = next((name for name, value in values.items() if not isinstance(value, _PLAIN)), None)
        if nested is not None:
            raise ValueError(f"{nested} must be a single value, got {short_repr(values[nested])}")
        return cls(**values)
