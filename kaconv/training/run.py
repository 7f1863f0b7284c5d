"""A training's folder: config.yaml, metrics.jsonl, tensorboard/, last and best.safetensors, summary.json.

With `keep_epochs` also epoch_000.safetensors, the weights before the first epoch, and those after each.

Until it has finished, there are also the states from which it can go on (`kaconv.training.state`), and while a
training is at work, a lock.
"""

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import yaml
from filelock import FileLock, Timeout

from kaconv.models.checkpoints import Checkpoint, load_checkpoint
from kaconv.training.config import TrainConfig
from kaconv.training.state import state_files
from kaconv.utils.checks import file_in_the_way, is_number
from kaconv.utils.files import write_text
from kaconv.utils.yaml_text import load_yaml

CONFIG, METRICS, SUMMARY, TENSORBOARD = "config.yaml", "metrics.jsonl", "summary.json", "tensorboard"
CHECKPOINTS = ("best", "last")
RESULT = ("epoch", "test_error", "test_top5_error")
LOCK = ".lock"
# What `kaconv.utils.files.replacing` calls a file of this folder until it is whole.
_TEMPORARY = re.compile(
    r"\.(config\.yaml|metrics\.jsonl|summary\.json|state-\d+-\d+\.pt|(best|last|epoch_\d+)\.safetensors)\.\d+\.tmp"
)
EPOCH = (*RESULT, "train_loss", "train_error", "test_loss", "lr", "seconds", "images_per_second")


class EpochResult(TypedDict):
    """Test errors after an epoch of a training, in percent; epochs count from 1.

    - test_top5_error: None for five classes or fewer
    - test_error_fresh_statistics: with batch norm statistics taken afresh; of the last epoch, if the config asks for it
    """

    epoch: int
    test_error: float
    test_top5_error: float | None
    test_error_fresh_statistics: NotRequired[float]


class WarmUp(TypedDict, total=False):
    """Setting of the attention's warm-up in an epoch's first step, where there is a warm-up."""

    attention_uniform_share: float
    attention_temperature: float


class Epoch(EpochResult, WarmUp):
    """An epoch of a training, as metrics.jsonl has it.

    - train_loss: label smoothing included
    - train_error: percent, of augmented images while the weights still change
    - seconds: training and test; images_per_second: of the training
    """

    train_loss: float
    train_error: float
    test_loss: float
    lr: float
    seconds: float
    images_per_second: float


@dataclass
class Run:
    """A training as its folder holds it.

    `summary` is empty until the run has finished: model, data, parameters, best and last (`EpochResult`), seconds,
    images_per_second, provenance.
    """

    folder: Path
    config: TrainConfig
    history: list[Epoch] = field(default_factory=list)
    summary: dict = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """True once the training has ended and its weights are there; summary.json is written last."""
        return bool(self.summary) and all(self.checkpoint_path(which).is_file() for which in CHECKPOINTS)

    @classmethod
    def load(cls, folder: str | Path) -> "Run":
        """Read a run's folder, finished or not.

        Raises:
            FileNotFoundError: if it is none.
            ValueError: if one of its files is damaged, with the file's name.
        """
        folder = Path(folder)
        if not (folder / CONFIG).is_file():
            raise FileNotFoundError(f"{folder.resolve()} is not the folder of a run: it has no {CONFIG}")
        config, metrics, summary = folder / CONFIG, folder / METRICS, folder / SUMMARY
        return cls(
            folder,
            _read(config, _parse_config),
            _read(metrics, _parse_history) if metrics.is_file() else [],
            _read(summary, _parse_summary) if summary.is_file() else {},
        )

    def describe_epoch(self, index: int) -> str:
        """A line for the terminal about an epoch of the history, counted from 0."""
        epoch = self.history[index]
        return (
            f"{self.config.model} epoch {epoch['epoch']}/{self.config.epochs}: "
            f"train loss {epoch['train_loss']:.3f} error {epoch['train_error']:.2f} %, "
            f"test loss {epoch['test_loss']:.3f} error {epoch['test_error']:.2f} %, "
            f"{epoch['seconds']:.1f} s, {epoch['images_per_second']:.0f} img/s"
        )

    def load_checkpoint(self, which: str = "best") -> Checkpoint:
        """The model of the epoch with the lowest test error ("best", the first such) or of the last one ("last")."""
        if which not in CHECKPOINTS:
            raise ValueError(f"which must be one of {', '.join(CHECKPOINTS)}, got {which!r}")
        return load_checkpoint(self.checkpoint_path(which))

    def checkpoint_path(self, which: str | int) -> Path:
        """Where the "best" or "last" weights lie; or those of an epoch, where they are kept (`keep_epochs`)."""
        name = f"epoch_{which:03d}" if isinstance(which, int) else which
        return self.folder / f"{name}.safetensors"

    def kept_epochs(self) -> dict[int, Path]:
        """The weights after each epoch that were kept, in the order of the epochs; 0 is before the first."""
        paths = {epoch: self.checkpoint_path(epoch) for epoch in range(self.config.epochs + 1)}
        return {epoch: path for epoch, path in paths.items() if path.is_file()}


def find_finished_run(config: TrainConfig) -> Run | None:
    """The finished run of this config in `config.out`, or None where there is something to train.

    ValueError if the folder holds a run of another config, a finished run with damaged files, or files that are no
    run's.
    """
    folder = Path(config.out)
    if file := file_in_the_way(folder):
        raise ValueError(f"out must be a new or empty folder, got {str(folder)!r}: {file} is a file")
    if not folder.exists() or all(path.name == LOCK or _is_temporary(path) for path in folder.iterdir()):
        return None
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} holds files that are not a run's (no {CONFIG}); choose a new or empty folder")
    run = Run(folder, _read(folder / CONFIG, _parse_config))
    kept = (folder / SUMMARY, *map(run.checkpoint_path, CHECKPOINTS), *state_files(folder))
    if not any(path.exists() for path in kept):
        return None  # failed in its first epoch: nothing is lost if another config takes its place
    there, here = run.config.identity(), config.identity()
    different = [name for name in here if here[name] != there[name]]
    if different:
        changes = ", ".join(f"{name} ({there[name]!r} there, {here[name]!r} here)" for name in different)
        raise ValueError(f"{folder} holds a run of another config: {changes}; choose another folder or remove that one")
    try:
        run.summary = _read(folder / SUMMARY, _parse_summary)
    except (FileNotFoundError, ValueError):
        return None
    return Run.load(folder) if run.finished else None


@contextmanager
def holding(folder: Path) -> Iterator[bool]:
    """Keep other trainings out of a run's folder, which is made if need be; False where one is at work there.

    The lock is the operating system's: it ends with the process, however that ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    with suppress(Timeout):
        lock.acquire(blocking=False)
    try:
        yield lock.is_locked
    finally:
        if lock.is_locked:
            with suppress(OSError):  # Windows keeps a file that is open
                (folder / LOCK).unlink()
            lock.release()


def is_held(folder: Path) -> bool:
    """True while a training is at work in a run's folder: its lock says so."""
    if not (folder / LOCK).is_file():
        return False
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    except OSError:  # the folder may not be written to, so nobody here trains in it
        return False
    lock.release()
    return False


def leftovers(run: Run) -> list[Path]:
    """Files that killed trainings left, of no use to anybody: half-written ones, and states beside a finished run."""
    temporaries = [path for path in run.folder.glob(".*.tmp") if _is_temporary(path)]
    return temporaries + (state_files(run.folder) if run.finished else [])


def tidy(run: Run) -> None:
    """Remove what killed trainings left in a folder that this process holds."""
    for path in leftovers(run):
        path.unlink(missing_ok=True)


def write_config(run: Run) -> None:
    """Make the run's folder, if need be, and say in it what is trained."""
    write_text(run.folder / CONFIG, yaml.safe_dump(run.config.to_dict(), sort_keys=False))


def clear_run(run: Run) -> None:
    """Remove what an interrupted training left, but for its weights, which the new ones replace in one step each."""
    untrained = run.checkpoint_path(0) if run.config.keep_epochs else None  # this training has written it already
    kept = (path for path in run.folder.glob("epoch_*.safetensors") if path != untrained)
    for path in (run.folder / SUMMARY, run.folder / METRICS, *kept):
        path.unlink(missing_ok=True)
    shutil.rmtree(run.folder / TENSORBOARD, ignore_errors=True)


def _is_temporary(path: Path) -> bool:
    return _TEMPORARY.fullmatch(path.name) is not None


def _read(path: Path, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None


def _parse_config(text: str) -> TrainConfig:
    values = load_yaml(text)
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ValueError("it must hold a training's fields as `name: value`")
    return TrainConfig.from_dict(values)


def _parse_history(text: str) -> list[Epoch]:
    history = [json.loads(line) for line in text.splitlines()]
    for epoch in history:
        check_numbers(epoch, EPOCH)
    return history


def _parse_summary(text: str) -> dict:
    summary = json.loads(text)
    check_numbers(summary, ("parameters", "seconds", "images_per_second"))
    for which in CHECKPOINTS:
        check_numbers(summary.get(which), RESULT)
    return summary


def check_numbers(values: object, names: tuple[str, ...]) -> None:
    """ValueError if `values` is not a dict with a finite number for each name."""
    if not isinstance(values, dict):
        raise ValueError(f"there must be an object with {', '.join(names)}, found {values!r}")
    bad = [name for name in names if not _is_finite(values.get(name)) and not _is_left_out(name, values)]
    if bad:
        raise ValueError(f"it must have a number for {', '.join(bad)}")


_is_finite = is_number(math.isfinite)


def _is_left_out(name: str, values: dict) -> bool:
    """Five classes or fewer have no top-5 error."""
    return name == "test_top5_error" and name in values and values[name] is None
