"""Training of a detector on boxes, and its mean average precision.

For small data and for a first look at a claim; it runs in one process, on one device.
"""

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from kaconv.data.detection import DetectionBundle, Target, collate, load_detection
from kaconv.data.preprocessing import Preprocessing
from kaconv.inference.detection import DetectionEvaluation, average_precision, evaluate_detector
from kaconv.models import detector, register_builder
from kaconv.models.checkpoints import load_checkpoint, save_checkpoint
from kaconv.models.dense import DETECTORS, NORMS, STRIDES
from kaconv.training.batches import SeededPictures, StepBatches
from kaconv.training.config import SCHEDULES
from kaconv.training.run import holding
from kaconv.training.state import remove_states, save_state, take_up_newest_state
from kaconv.utils.checks import (
    MOST_PICTURES,
    MOST_PIXELS,
    MOST_SEED,
    MOST_WORKERS,
    TRUE_OR_FALSE,
    check_values,
    file_in_the_way,
    is_number,
    is_one_of,
    or_none,
    whole,
)
from kaconv.utils.files import write_json
from kaconv.utils.provenance import provenance
from kaconv.utils.seeds import mixed_seed

BUILDER = "kaconv.models.dense:detector"  # in a checkpoint, the model's name
CONFIG, CHECKPOINT, SUMMARY = "config.json", "last.safetensors", "summary.json"
# Of an image: those of torchvision's references for COCO, 0.02 for 16, 0.01 for 16, 0.15 for 192.
LEARNING_RATES = {"faster_rcnn": 0.02 / 16, "retinanet": 0.01 / 16, "ssdlite": 0.15 / 192}
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
SAVE_MINUTES = 5  # from one state of an epoch to the next: no more is lost
LARGEST_GRADIENT = 10.0  # its norm is clipped there: a new detector's first losses can be huge
WARMUP_STEPS, WARMUP_SHARE = 1000, 0.1  # the learning rate grows over a tenth of all steps, but no more than these
_RULES = {
    "detector": is_one_of(*DETECTORS),
    "norm": or_none(is_one_of(*NORMS)),
    "epochs": whole(1),
    "batch_size": whole(1, MOST_PICTURES),
    "lr": or_none(("a number > 0", is_number(lambda value: 0 < value < math.inf))),
    "image_size": or_none(whole(32, MOST_PIXELS)),
    "trainable_layers": or_none(whole(0, len(STRIDES))),
    "crop": or_none(TRUE_OR_FALSE),
    "seed": whole(0, MOST_SEED),
    "workers": whole(0, MOST_WORKERS),
}


@dataclass(frozen=True, kw_only=True)
class DetectionConfig:
    """A training of a detector.

    Args:
        data: `voc:PATH` or `coco:PATH`, see `kaconv.data.detection.load_detection`.
        backbone: a model's name.
        detector: "faster_rcnn", "retinanet" or "ssdlite".
        out: the folder of its results: new, empty, or that of the same training.
        epochs: passes over the training images.
        batch_size: images of a step. A last step with fewer is left out.
        lr: peak learning rate. None: torchvision's for the detector on COCO, in proportion to the batch.
        crop: whether training images are cropped at random, as SSD is trained. None: for "ssdlite" alone.
        image_size, weights, norm, trainable_layers: see `kaconv.models.detector`.
        workers: processes that load images.
    """

    data: str
    backbone: str
    detector: str = "ssdlite"
    out: str
    epochs: int = 26
    batch_size: int = 8
    lr: float | None = None
    image_size: int | None = None
    crop: bool | None = None
    weights: str | None = None
    norm: str | None = None
    trainable_layers: int | None = None
    seed: int = 0
    workers: int = 0


@dataclass(frozen=True)
class DetectionRun:
    """A finished training of a detector: the model in evaluation mode, on the CPU, and what summary.json says.

    Args:
        summary: config, classes, losses (the mean of each epoch's steps), average_precision, average_precision_50 and
            average_precision_75 (percent, of the test images after the last epoch), test_images, seconds, provenance.
    """

    model: nn.Module
    summary: dict[str, Any]

    @property
    def classes(self) -> list[str]:
        """Names of the labels from 1 on."""
        return self.summary["classes"]


def train_detector(config: DetectionConfig, *, progress: bool = True) -> DetectionRun:
    """Train a detector into the folder `config.out`, or return the finished training of the same config there.

    SGD with momentum; the learning rate warms up linearly and falls to zero along a cosine; gradients are clipped. Test
    images are looked at once, after the last epoch. The folder gets config.json, last.safetensors, which
    `load_checkpoint(path, "kaconv.models.dense:detector")` reads, and summary.json. Its state is saved every five
    minutes and after each epoch: a training of the same config that was interrupted goes on there, and ends with the
    same weights as one that was not (bit for bit on a CPU).

    Args:
        progress: show bars, where somebody watches, and a line for each epoch.

    Raises:
        ValueError: for a bad config, an annotation that cannot be read, or a folder with something else or in use.
        FileNotFoundError: for missing data or weights.
        FloatingPointError: if the loss is no longer finite.
        ModuleNotFoundError: if what measures average precision is not installed.
    """
    check_values(vars(config), _RULES)
    if (finished := _finished(config)) is not None:
        return finished
    average_precision([], [])  # what it lacks, it says before the work
    data = load_detection(config.data, crop=config.detector == "ssdlite" if config.crop is None else config.crop)
    if len(data.train) < config.batch_size:
        raise ValueError(f"batch_size {config.batch_size} is more than the {len(data.train)} training images")
    torch.manual_seed(config.seed)
    model = detector(
        config.backbone,
        config.detector,
        len(data.classes),
        image_size=config.image_size,
        weights=config.weights,
        norm=config.norm,
        trainable_layers=config.trainable_layers,
    )
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    training = _Training(model.to(device), data, config, progress)
    with holding(Path(config.out)) as held:
        if not held:
            raise ValueError(f"{config.out} is in use by another training; wait for its end or choose another folder")
        training.train()
        began = time.perf_counter()
        tested = evaluate_detector(model, data.test, workers=config.workers, progress=progress)
        seconds = training.seconds + time.perf_counter() - began
        summary = _summary(config, data, training.losses, tested) | {"seconds": seconds}
        _save(model, data, config, summary)
        remove_states(Path(config.out))
    return DetectionRun(model.cpu().eval(), summary)


class _Training:
    """What a training holds. What is random in it follows from seed, epoch and step: nothing of it has to be restored.

    Args:
        losses: the mean of each epoch.
        loss_sum: over the steps of the epoch so far.
        seconds: of all steps so far, those before an interruption, too.
    """

    def __init__(self, model: nn.Module, data: DetectionBundle, config: DetectionConfig, progress: bool) -> None:
        self.model, self.config, self.progress = model, config, progress
        self.device = next(model.parameters()).device
        self.batches = StepBatches(len(data.train), config.batch_size, config.seed)
        self.loader: DataLoader = DataLoader(
            SeededPictures(data.train, config.seed),
            batch_sampler=self.batches,
            num_workers=config.workers,
            collate_fn=_without_index,
        )
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.peak = config.lr or LEARNING_RATES[config.detector] * config.batch_size
        self.optimizer = SGD(self.trained, lr=self.peak, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        self.losses: list[float] = []
        self.loss_sum = 0.0
        self.seconds = 0.0
        self.last_saved = time.monotonic()

    def train(self) -> None:
        """All steps, or those that are left after the newest state."""
        folder = Path(self.config.out)
        position = take_up_newest_state(folder, self._restore)
        write_json(folder / CONFIG, asdict(self.config))
        first_epoch, first_step = position or (1, 0)
        if position and first_epoch <= self.config.epochs and self.progress:
            print(f"{folder}: going on with epoch {first_epoch}, step {first_step + 1}", flush=True)
        self.model.train()
        for epoch in range(first_epoch, self.config.epochs + 1):
            self._epoch(epoch, first_step if epoch == first_epoch else 0)

    def _epoch(self, epoch: int, first_step: int) -> None:
        self.batches.epoch, self.batches.first_step = epoch, first_step
        description = f"epoch {epoch}/{self.config.epochs}"
        hidden = None if self.progress else True
        bar = tqdm(self.loader, description, unit="step", leave=False, disable=hidden)
        began, before = time.perf_counter(), self.seconds
        for step, (images, targets) in enumerate(bar, first_step + 1):
            self.loss_sum += self._step(epoch, step, images, targets)
            self.seconds = before + time.perf_counter() - began
            if step < self.batches.steps and time.monotonic() - self.last_saved >= 60 * SAVE_MINUTES:
                self._save(epoch, step)
        self.losses.append(self.loss_sum / self.batches.steps)
        self.loss_sum = 0.0
        self._save(epoch + 1, 0)
        if self.progress:
            print(f"{description}: loss {self.losses[-1]:.3f}", flush=True)

    def _step(self, epoch: int, step: int, images: list[Tensor], targets: list[Target]) -> float:
        torch.manual_seed(mixed_seed(self.config.seed, epoch, step))  # detectors draw from what they are compared with
        done = (epoch - 1) * self.batches.steps + step - 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.peak * _share_of_peak(done, self.config.epochs * self.batches.steps)
        there = [{name: value.to(self.device) for name, value in target.items()} for target in targets]
        loss = sum(self.model([image.to(self.device) for image in images], there).values())
        if not math.isfinite(value := loss.item()):
            raise FloatingPointError(f"the loss became {value} in epoch {epoch}; try a smaller lr than {self.peak:g}")
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, LARGEST_GRADIENT)
        self.optimizer.step()
        return value

    def _save(self, epoch: int, step: int) -> None:
        """What `_restore` needs to go on with the step of an epoch that comes after `step`."""
        state = {
            "epoch": epoch,
            "step": step,
            "history": json.dumps(self.losses),
            "totals": torch.tensor([self.loss_sum], dtype=torch.float64),
            "epoch_seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        save_state(Path(self.config.out), state)
        self.last_saved = time.monotonic()

    def _restore(self, state: dict[str, Any]) -> tuple[int, int]:
        """Take up a state; the epoch to go on with, and how many of its steps are done."""
        epoch, step, losses = state["epoch"], state["step"], json.loads(state["history"])
        if epoch > self.config.epochs + 1 or step >= self.batches.steps or len(losses) != epoch - 1:
            raise ValueError(f"there is no epoch {epoch}, step {step + 1} in this training")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.losses, self.loss_sum, self.seconds = losses, float(state["totals"][0]), state["epoch_seconds"]
        return epoch, step


def _without_index(samples: list[tuple[Tensor, Target, int]]) -> tuple[list[Tensor], list[Target]]:
    return collate([(image, target) for image, target, _ in samples])


def _share_of_peak(step: int, steps: int) -> float:
    """The learning rate at a step, as a share of its peak."""
    warmup = max(1, min(WARMUP_STEPS, round(WARMUP_SHARE * steps)))
    return min((step + 1) / warmup, SCHEDULES["cosine"](step, steps))


def _summary(
    config: DetectionConfig, data: DetectionBundle, losses: list[float], tested: DetectionEvaluation
) -> dict[str, Any]:
    return {
        "config": asdict(config),
        "classes": data.classes,
        "losses": losses,
        "average_precision": tested.precision,
        "average_precision_50": tested.precision_50,
        "average_precision_75": tested.precision_75,
        "test_images": len(tested.targets),
        "provenance": provenance(),
    }


def _save(model: nn.Module, data: DetectionBundle, config: DetectionConfig, summary: dict[str, Any]) -> None:
    register_builder(BUILDER)
    options = {"model": config.backbone, "head": config.detector, "image_size": config.image_size}
    # The weights are in the file: only what they led to is said, so that it can be read without them.
    options["norm"] = config.norm or ("batch" if config.weights is None else "frozen")
    size = config.image_size or 320
    as_it_is = Preprocessing(size, size, "bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    info = {name: summary[name] for name in ("config", "average_precision", "average_precision_50")}
    folder = Path(config.out)
    facts: dict[str, Any] = {"name": BUILDER, "classes": data.classes, "preprocessing": as_it_is}
    save_checkpoint(folder / CHECKPOINT, model, **facts, info=info, options=options)
    write_json(folder / SUMMARY, summary)


def _finished(config: DetectionConfig) -> DetectionRun | None:
    """The finished training of this config in its folder; ValueError if the folder holds another one."""
    folder = Path(config.out)
    if file := file_in_the_way(folder):
        raise ValueError(f"out {config.out!r} cannot be a folder: {file} is a file")
    if not (folder / CONFIG).is_file():
        if (folder / CHECKPOINT).exists():
            raise ValueError(f"{folder / CHECKPOINT} is of another training; choose another folder")
        return None
    try:
        there = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        same = {**there, "workers": config.workers, "out": config.out} == asdict(config)
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8")) if (folder / SUMMARY).is_file() else None
    except (ValueError, TypeError):
        same = False
    if not same:
        raise ValueError(f"{folder} holds another training; choose another folder")
    return summary and DetectionRun(load_checkpoint(folder / CHECKPOINT, BUILDER).model, summary)
