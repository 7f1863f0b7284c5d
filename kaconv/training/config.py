"""What a training is made of, checked before anything is written.

What needs torch is imported where it is used: the command line's help comes from here.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

WARMUP_START = 0.1  # share of the learning rate in the first epoch of a warm-up
STEP_MILESTONES = (0.3, 0.6, 0.9)  # shares of the epochs: 30, 60 and 90 of the paper's 100
STEP_FACTOR = 0.1
WHERE_ONLY = ("out", "data_root")  # fields that say where things lie, not what is trained


def _option(default: object, help: str) -> object:
    return field(default=default, metadata={"help": help})


def _required(help: str) -> object:
    return field(metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training, whole: the same config gives the same weights on a CPU. The defaults suit small data on a CPU."""

    model: str = _required("a name from `kaconv list`, such as ka_resnet29_cifar_l")
    data: str = _option("digits", "digits, fashion_mnist, cifar10, imagenette, imagenet:PATH, folder:PATH or fake")
    out: str = _required("the run's folder: new, empty, or that of the same run")
    epochs: int = _option(10, "passes over the training pictures")
    batch_size: int = _option(32, "pictures per step, over all processes together")
    lr: float = _option(0.05, "peak learning rate of SGD with Nesterov momentum")
    momentum: float = _option(0.9, "momentum of SGD")
    weight_decay: float = _option(5e-4, "weight decay, on all parameters")
    schedule: str = _option("cosine", "cosine, to zero; or step, a tenth after 30, 60 and 90 percent of the epochs")
    warmup_epochs: int = _option(0, "epochs over which the learning rate first rises")
    label_smoothing: float = _option(0.0, "probability to spread evenly over the wrong classes")
    seed: int = _option(0, "seed of the initial weights, the order of the pictures and the augmentation")
    data_root: str = _option("data/cache", "where downloaded data sets lie or go")
    image_size: int | None = _option(None, "side of the model's input in pixels, if not the data's usual one")
    workers: int = _option(0, "processes that load pictures; a few are worth it for data read from folders")
    mixed_precision: str = _option("no", "no, bf16 or fp16")

    def validate(self) -> None:
        """ValueError for the first field with a bad value, with what it may be."""
        import torch

        from kaconv.data import parse_spec
        from kaconv.models import create_model

        check_values(vars(self), _RULES)
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs must be less than epochs ({self.epochs}), got {self.warmup_epochs}")
        parse_spec(self.data)
        with torch.device("meta"):
            create_model(self.model)

    def lr_factor(self, epoch: int) -> float:
        """What the learning rate is multiplied by in an epoch, counted from 0."""
        if epoch < self.warmup_epochs:
            return WARMUP_START + (1 - WARMUP_START) * epoch / self.warmup_epochs
        return SCHEDULES[self.schedule]((epoch - self.warmup_epochs) / max(1, self.epochs - self.warmup_epochs))

    def to_dict(self) -> dict:
        """YAML- and JSON-able."""
        return asdict(self) | {"out": str(self.out), "data_root": str(self.data_root)}  # may be Paths

    def identity(self) -> dict:
        """The fields that decide what is trained: two runs with equal ones are the same run."""
        return {name: value for name, value in self.to_dict().items() if name not in WHERE_ONLY}

    @classmethod
    def from_dict(cls, values: dict) -> "TrainConfig":
        """Inverse of `to_dict`; missing fields take their defaults. ValueError for an unknown or a required one."""
        unknown = sorted(values.keys() - {item.name for item in fields(cls)})
        if unknown:
            raise ValueError(f"unknown config fields: {', '.join(unknown)}")
        missing = sorted({"model", "out"} - values.keys())
        if missing:
            raise ValueError(f"config fields missing: {', '.join(missing)}")
        return cls(**values)


# Learning rate as a share of its peak, by the share of the epochs (after the warm-up) that has passed.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda passed: (1 + math.cos(math.pi * passed)) / 2,
    "step": lambda passed: STEP_FACTOR ** sum(passed >= milestone for milestone in STEP_MILESTONES),
}


Rule = tuple[str, Callable[[object], bool]]  # what a value may be, in words and as a test


def check_values(values: dict, rules: dict[str, Rule]) -> None:
    """ValueError for the first value that its rule does not allow, with what it may be."""
    for name, (allowed, is_allowed) in rules.items():
        if not is_allowed(values[name]):
            raise ValueError(f"{name} must be {allowed}, got {values[name]!r}")


def file_in_the_way(folder: Path) -> Path | None:
    """The folder itself or a parent of it that exists but is not a folder."""
    return next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None)


def _whole(least: int, most: int | None = None) -> Rule:
    allowed = f"a whole number >= {least}" if most is None else f"a whole number from {least} to {most}"
    return allowed, lambda value: type(value) is int and least <= value and (most is None or value <= most)


def _is_number(is_allowed: Callable[[float], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and is_allowed(value)


def _is_one_of(*allowed: str) -> Rule:
    return f"one of {', '.join(allowed)}", lambda value: value in allowed


MOST_PICTURES, MOST_WORKERS = 2**20, 1024  # far above what is of use; beyond them torch fails in obscure ways

_RULES: dict[str, Rule] = {
    "out": ("a folder's path", lambda value: isinstance(value, str | Path) and str(value) != ""),
    "epochs": _whole(1),
    "batch_size": _whole(2, MOST_PICTURES),  # batch norm cannot train on one picture
    "lr": ("a number > 0", _is_number(lambda value: 0 < value < math.inf)),
    "momentum": ("a number in [0, 1)", _is_number(lambda value: 0 <= value < 1)),
    "weight_decay": ("a number >= 0", _is_number(lambda value: 0 <= value < math.inf)),
    "schedule": _is_one_of(*SCHEDULES),
    "warmup_epochs": _whole(0),
    "label_smoothing": ("a number in [0, 0.5)", _is_number(lambda value: 0 <= value < 0.5)),
    "seed": _whole(0, 2**32 - 1),  # NumPy's limit
    "data_root": ("a folder's path", lambda value: isinstance(value, str | Path)),
    "image_size": ("a whole number >= 1 or None", lambda value: value is None or _whole(1)[1](value)),
    "workers": _whole(0, MOST_WORKERS),
    "mixed_precision": _is_one_of("no", "bf16", "fp16"),
}
EVALUATION_RULES: dict[str, Rule] = {"batch_size": _whole(1, MOST_PICTURES), "workers": _RULES["workers"]}
