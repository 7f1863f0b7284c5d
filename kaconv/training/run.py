"""A training's folder: config.yaml, metrics.jsonl, tensorboard/, last and best.safetensors, summary.json."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from kaconv.checkpoints import Checkpoint, load_checkpoint
from kaconv.files import write_text
from kaconv.training.config import TrainConfig

CONFIG, METRICS, SUMMARY, TENSORBOARD = "config.yaml", "metrics.jsonl", "summary.json", "tensorboard"
CHECKPOINTS = ("best", "last")


@dataclass
class Run:
    """A training as its folder holds it.

    `history` has a dict per epoch: epoch (from 1), train_loss (label smoothing included), train_error, test_loss,
    test_error, test_top5_error, lr, seconds (training and test), images_per_second (training). Errors are in percent;
    train_error is that of augmented pictures while the weights still change. `summary` is empty until the run has
    finished: model, data, parameters, best and last (epoch, test_error, test_top5_error), seconds, images_per_second,
    provenance.
    """

    folder: Path
    config: TrainConfig
    history: list[dict] = field(default_factory=list)
    summary: dict = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether the training has come to its end; summary.json is written last."""
        return bool(self.summary)

    @classmethod
    def load(cls, folder: str | Path) -> "Run":
        """Read a run's folder, finished or not. FileNotFoundError or ValueError if it is none."""
        folder = Path(folder)
        if not (folder / CONFIG).is_file():
            raise FileNotFoundError(f"{folder.resolve()} is not the folder of a run: it has no {CONFIG}")
        try:
            config = TrainConfig.from_dict(yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8")))
        except (yaml.YAMLError, ValueError, AttributeError) as error:
            raise ValueError(f"cannot read {folder / CONFIG}: {error}") from None
        metrics, summary = folder / METRICS, folder / SUMMARY
        history = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.is_file() else []
        return cls(folder, config, history, json.loads(summary.read_text()) if summary.is_file() else {})

    def load_checkpoint(self, which: str = "best") -> Checkpoint:
        """The model of the epoch with the lowest test error ("best", the first such) or of the last one ("last")."""
        if which not in CHECKPOINTS:
            raise ValueError(f"which must be one of {', '.join(CHECKPOINTS)}, got {which!r}")
        return load_checkpoint(self.checkpoint_path(which))

    def checkpoint_path(self, which: str) -> Path:
        """Where the "best" or "last" weights lie."""
        return self.folder / f"{which}.safetensors"


def find_run(config: TrainConfig) -> Run | None:
    """The run that `config.out` holds already, or None where there is nothing.

    ValueError if the folder holds a run of another config, or files that are no run's.
    """
    folder = Path(config.out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out {str(folder)!r} is a file; it must be a new or empty folder")
    if not folder.exists() or not any(folder.iterdir()):
        return None
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} holds files that are not a run's (no {CONFIG}); choose a new or empty folder")
    run = Run.load(folder)
    there, here = run.config.identity(), config.identity()
    different = [name for name in here if here[name] != there[name]]
    if different:
        changes = ", ".join(f"{name} ({there[name]!r} there, {here[name]!r} here)" for name in different)
        raise ValueError(f"{folder} holds a run of another config: {changes}; choose another folder or remove that one")
    return run


def clear_run(run: Run) -> None:
    """Make the run's folder with its config alone, without what the same run has left there if it was interrupted."""
    shutil.rmtree(run.folder / TENSORBOARD, ignore_errors=True)
    for path in (run.folder / METRICS, *(run.checkpoint_path(which) for which in CHECKPOINTS)):
        path.unlink(missing_ok=True)
    write_text(run.folder / CONFIG, yaml.safe_dump(run.config.to_dict(), sort_keys=False))
