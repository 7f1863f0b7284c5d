"""Training of a detector on boxes, and its mean average precision.

For small data and for a first look at a claim; it runs in one process, on one device.
"""

import json
import math
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from kaconv.data.detection import DetectionBundle, collate, load_detection
from kaconv.data.preprocessing import Preprocessing
from kaconv.inference.detection import DetectionEvaluation, average_precision, evaluate_detector
from kaconv.models import detector, register_builder
from kaconv.models.checkpoints import load_checkpoint, save_checkpoint
from kaconv.models.dense import DETECTORS, NORMS, STRIDES
from kaconv.training.config import SCHEDULES
from kaconv.utils.checks import (
    MOST_PICTURES,
    MOST_PIXELS,
    MOST_SEED,
    MOST_WORKERS,
    check_values,
    file_in_the_way,
    is_number,
    is_one_of,
    or_none,
    whole,
)
from kaconv.utils.files import write_json
from kaconv.utils.provenance import provenance

BUILDER = "kaconv.models.dense:detector"  # in a checkpoint, the model's name
CHECKPOINT, SUMMARY = "last.safetensors", "summary.json"
# Of an image: those of torchvision's references for COCO, 0.02 for 16, 0.01 for 16, 0.15 for 192.
LEARNING_RATES = {"faster_rcnn": 0.02 / 16, "retinanet": 0.01 / 16, "ssdlite": 0.15 / 192}
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
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
    images are looked at once, after the last epoch. The folder gets last.safetensors, which
    `load_checkpoint(path, "kaconv.models.dense:detector")` reads, and summary.json.

    Args:
        progress: show bars, where somebody watches, and a line for each epoch.

    Raises:
        ValueError: for a bad config, an annotation that cannot be read, or a folder with something else.
        FileNotFoundError: for missing data or weights.
        FloatingPointError: if the loss is no longer finite.
        ModuleNotFoundError: if what measures average precision is not installed.
    """
    check_values(vars(config), _RULES)
    if (finished := _finished(config)) is not None:
        return finished
    average_precision([], [])  # what it lacks, it says before the work
    data = load_detection(config.data, crop=config.detector == "ssdlite")
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
    began = time.perf_counter()
    losses = _train(model.to(device), data, config, progress)
    tested = evaluate_detector(model, data.test, workers=config.workers, progress=progress)
    summary = _summary(config, data, losses, tested) | {"seconds": time.perf_counter() - began}
    _save(model, data, config, summary)
    return DetectionRun(model.cpu().eval(), summary)


def _train(model: nn.Module, data: DetectionBundle, config: DetectionConfig, progress: bool) -> list[float]:
    """Mean loss of each epoch."""
    if len(data.train) < config.batch_size:
        raise ValueError(f"batch_size {config.batch_size} is more than the {len(data.train)} training images")
    device = next(model.parameters()).device
    loader: DataLoader = DataLoader(
        data.train,
        batch_size=config.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=config.workers,
        collate_fn=collate,
        generator=torch.Generator().manual_seed(config.seed),
    )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    lr = config.lr or LEARNING_RATES[config.detector] * config.batch_size
    optimizer = SGD(trained, lr=lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    schedule = LambdaLR(optimizer, partial(_share_of_peak, steps=config.epochs * len(loader)))
    means = []
    model.train()
    for epoch in range(1, config.epochs + 1):
        found = []
        description = f"epoch {epoch}/{config.epochs}"
        for images, targets in tqdm(loader, description, unit="step", leave=False, disable=None if progress else True):
            there = [{name: value.to(device) for name, value in target.items()} for target in targets]
            loss = sum(model([image.to(device) for image in images], there).values())
            if not math.isfinite(value := loss.item()):
                raise FloatingPointError(f"the loss became {value} in epoch {epoch}; try a smaller lr than {lr:g}")
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, LARGEST_GRADIENT)
            optimizer.step()
            schedule.step()
            found.append(value)
        means.append(sum(found) / len(found))
        if progress:
            print(f"{description}: loss {means[-1]:.3f}", flush=True)
    return means


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
    folder = Path(config.out)
    if file := file_in_the_way(folder):
        raise ValueError(f"out {config.out!r} cannot be a folder: {file} is a file")
    if not (folder / SUMMARY).is_file():
        if (folder / CHECKPOINT).exists():
            raise ValueError(f"{folder / CHECKPOINT} is of another training; choose another folder")
        return None
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        there = summary["config"]
        same = {**there, "workers": config.workers, "out": config.out} == asdict(config)
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise ValueError(f"{folder} holds another training; choose another folder")
    return DetectionRun(load_checkpoint(folder / CHECKPOINT, BUILDER).model, summary)
