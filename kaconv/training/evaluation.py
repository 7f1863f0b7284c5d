"""Errors of a model over a whole data set."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from kaconv.checkpoints import load_checkpoint
from kaconv.data import load_data
from kaconv.modes import evaluating
from kaconv.provenance import provenance
from kaconv.training.config import EVALUATION_RULES, check_values


def make_accelerator(**options: Any) -> Accelerator:
    """An Accelerator for this machine: without the explicit `cpu`, processes under `torchrun` would not share a CPU."""
    return Accelerator(cpu=not torch.accelerator.is_available(), **options)


@dataclass
class Evaluation:
    """Errors in percent and mean cross-entropy over `n` samples; and, in the data set's order, what they come from."""

    top1_error: float
    top5_error: float
    loss: float
    n: int
    labels: np.ndarray  # (n,)
    predictions: np.ndarray  # (n,)
    probabilities: np.ndarray  # (n, classes)


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    *,
    batch_size: int = 256,
    workers: int = 0,
    progress: bool = True,
    accelerator: Accelerator | None = None,
) -> Evaluation:
    """Evaluate a model on every sample of a data set, each once, on the device where the model is.

    Every part of the model comes back in the mode (training or evaluation) it had. With fewer than five classes the
    top-5 error is 0.

    Args:
        dataset: yields (3 x H x W tensor, int label).
        accelerator: that of a running training; the samples are shared among its processes.

    Raises:
        ValueError: for an empty data set.
        FloatingPointError: if the model's outputs are not all finite.
    """
    if len(dataset) == 0:
        raise ValueError("there are no samples to evaluate on")
    accelerator = accelerator or make_accelerator()
    device = next(model.parameters()).device
    loader = DataLoader(dataset, batch_size, num_workers=workers, pin_memory=device.type == "cuda")
    loader = accelerator.prepare_data_loader(loader, device_placement=False)
    batches = []
    quiet = None if progress and accelerator.is_main_process else True  # None: only where somebody watches
    bar = tqdm(total=len(dataset), desc="evaluate", unit="img", leave=False, disable=quiet)
    with evaluating(model), torch.no_grad(), bar:
        for images, labels in loader:
            logits = model(images.to(device, non_blocking=True)).float()
            logits, labels = accelerator.gather_for_metrics((logits, labels.to(device)))
            batches.append((logits.cpu(), labels.cpu()))
            bar.update(len(labels))
    logits, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return _evaluation(logits, labels)


def _evaluation(logits: torch.Tensor, labels: torch.Tensor) -> Evaluation:
    n, classes = logits.shape
    broken = int((~logits.isfinite()).any(1).sum())
    if broken:
        raise FloatingPointError(f"the model's outputs are not finite for {broken} of {n} samples")
    ranked = logits.topk(min(5, classes)).indices
    right = ranked == labels[:, None]
    return Evaluation(
        top1_error=100 * (n - int(right[:, 0].sum())) / n,
        top5_error=100 * (n - int(right.sum())) / n,
        loss=F.cross_entropy(logits.double(), labels).item(),
        n=n,
        labels=labels.numpy(),
        predictions=ranked[:, 0].numpy(),
        probabilities=logits.softmax(1).numpy(),
    )


def evaluate_checkpoint(
    path: str | Path,
    spec: str,
    root: str | Path = "data/cache",
    batch_size: int = 256,
    workers: int = 0,
    *,
    progress: bool = True,
) -> dict:
    """Evaluate a checkpoint on a data set's test split, prepared as the checkpoint says: a result to keep.

    A JSON-able dict: model, data, n, top1_error and top5_error (percent), loss, image_size, checkpoint (the file's
    name), sha256 (the file's), provenance. ValueError for a bad `batch_size` or `workers`, or if the model was trained
    for other classes; the errors of `load_checkpoint`, `load_data` and `evaluate`, too.
    """
    check_values({"batch_size": batch_size, "workers": workers}, EVALUATION_RULES)
    checkpoint = load_checkpoint(path)
    data = load_data(spec, root, preprocessing=checkpoint.preprocessing)
    _check_classes(checkpoint.classes, data.classes, spec)
    accelerator = make_accelerator()
    model = checkpoint.model.to(accelerator.device)
    evaluation = evaluate(
        model, data.test, batch_size=batch_size, workers=workers, progress=progress, accelerator=accelerator
    )
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "model": checkpoint.name,
        "data": spec,
        "n": evaluation.n,
        "top1_error": evaluation.top1_error,
        "top5_error": evaluation.top5_error,
        "loss": evaluation.loss,
        "image_size": checkpoint.preprocessing.image_size,
        "checkpoint": Path(path).name,
        "sha256": digest,
        "provenance": provenance(),
    }


def _check_classes(trained: Sequence[str], found: Sequence[str], spec: str) -> None:
    if list(trained) == list(found):
        return
    if len(trained) != len(found):
        raise ValueError(
            f"the checkpoint knows {len(trained)} classes ({trained[0]} ... {trained[-1]}), "
            f"data {spec!r} has {len(found)} ({found[0]} ... {found[-1]})"
        )
    index = next(index for index, (one, other) in enumerate(zip(trained, found, strict=True)) if one != other)
    raise ValueError(
        f"the checkpoint's classes are not those of data {spec!r}: "
        f"class {index} is {trained[index]!r} there, {found[index]!r} here"
    )
