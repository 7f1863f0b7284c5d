"""Errors of a model over a whole data set."""

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from kaconv.data.datasets import load_data, parse_spec
from kaconv.data.preprocessing import IMAGENET, Preprocessing
from kaconv.data.unreadable import UNREADABLE, BrokenPictures, describe_sample, tolerant
from kaconv.models.checkpoints import load_checkpoint
from kaconv.models.weights import weights_path
from kaconv.utils.checks import EVALUATION_RULES, check_values, file_in_the_way
from kaconv.utils.files import write_text
from kaconv.utils.modes import evaluating
from kaconv.utils.provenance import provenance

MAX_BROKEN = 10
MOST_MISTAKES = 100
PER_CLASS, MISTAKES = "per_class.csv", "mistakes.csv"
HEADERS = {
    PER_CLASS: ("index", "class", "n", "top1_error", "top5_error", "most_frequent_mistake", "times"),
    MISTAKES: ("picture", "index", "class", "predicted_index", "predicted_class", "probability", "class_probability"),
}


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
    in_top5: np.ndarray  # (n,), whether the label is among the five best
    indices: np.ndarray  # (n,), the samples' numbers in the data set: 0 ... n - 1 unless some were skipped
    skipped: list[str] = field(default_factory=list)  # pictures that could not be read, by name


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    *,
    batch_size: int = 256,
    workers: int = 0,
    progress: bool = True,
    accelerator: Accelerator | None = None,
    max_broken: int = MAX_BROKEN,
) -> Evaluation:
    """Evaluate a model on every sample of a data set, each once, on the device where the model is.

    Every part of the model comes back in the mode (training or evaluation) it had. With fewer than five classes the
    top-5 error is 0. Several processes share the samples, each taking a run of them, and all return the whole result.

    Args:
        dataset: yields (3 x H x W tensor, int label). A label that the model has no output for is never right, and the
            loss leaves it out.
        batch_size: samples at a time in each process.
        accelerator: that of a running training.
        max_broken: how many pictures, over all processes, may be unreadable. They are named in the log and in
            `skipped`, and count nowhere else.

    Raises:
        ValueError: for an empty data set, or if more than `max_broken` pictures are unreadable, or all of them.
        FloatingPointError: if the model's outputs are not all finite.
    """
    if len(dataset) == 0:
        raise ValueError("there are no samples to evaluate on")
    accelerator = accelerator or make_accelerator()
    # Not wrapped for training: the wrapper would wait for processes that have fewer batches.
    model = accelerator.unwrap_model(model)
    device = next(model.parameters()).device
    mine = _share(len(dataset), accelerator)
    loader = DataLoader(
        tolerant(Subset(dataset, mine)),
        batch_size,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # nothing is drawn from the one that a training goes on with
    )
    broken, batches = BrokenPictures(dataset, max_broken, "to evaluate on"), []
    quiet = None if progress and accelerator.is_main_process else True  # None: only where somebody watches
    bar = tqdm(total=len(mine), desc="evaluate", unit="img", leave=False, disable=quiet)
    with evaluating(model), torch.no_grad(), bar:
        for (images, labels), indices in zip(loader, torch.tensor(mine).split(batch_size), strict=False):
            try:
                broken.note(labels, indices)
            except ValueError:
                break  # raised below, in all processes together
            logits = model(images.to(device, non_blocking=True)).float().cpu()
            known = labels != UNREADABLE
            batches.append((logits[known], labels[known], indices[known]))
            bar.update(len(labels))
    parts = gather_object([(batches, broken.names)])
    broken.names = [name for _, names in parts for name in names]
    broken.check()
    if len(broken.names) == len(dataset):
        raise ValueError(f"none of the {len(dataset)} pictures to evaluate on can be read: {broken.names[0]}, ...")
    batches = [batch for batches, _ in parts for batch in batches]
    logits, labels, indices = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
    return _evaluation(logits, labels, indices, broken.names)


def _share(n: int, accelerator: Accelerator) -> range:
    """The samples of this process: neighbours, so that all shares one after another are the data set."""
    rank, processes = accelerator.process_index, accelerator.num_processes
    return range(n * rank // processes, n * (rank + 1) // processes)


def _evaluation(logits: torch.Tensor, labels: torch.Tensor, indices: torch.Tensor, skipped: list[str]) -> Evaluation:
    n, classes = logits.shape
    broken = int((~logits.isfinite()).any(1).sum())
    if broken:
        raise FloatingPointError(f"the model's outputs are not finite for {broken} of {n} samples")
    ranked = logits.topk(min(5, classes)).indices
    right = ranked == labels[:, None]
    known = labels < classes
    return Evaluation(
        top1_error=100 * (n - int(right[:, 0].sum())) / n,
        top5_error=100 * (n - int(right.sum())) / n,
        loss=F.cross_entropy(logits[known].double(), labels[known]).item(),
        n=n,
        labels=labels.numpy(),
        predictions=ranked[:, 0].numpy(),
        probabilities=logits.softmax(1).numpy(),
        in_top5=right.any(1).numpy(),
        indices=indices.numpy(),
        skipped=skipped,
    )


def evaluate_checkpoint(
    path: str | Path,
    spec: str,
    root: str | Path = "data/cache",
    batch_size: int = 256,
    workers: int = 0,
    *,
    max_broken: int = MAX_BROKEN,
    details: str | Path | None = None,
    progress: bool = True,
) -> dict:
    """Evaluate a checkpoint on a data set's test split, prepared as the checkpoint says: a result to keep.

    Args:
        max_broken: see `evaluate`.
        details: a folder to write `write_details`' files to.

    Returns:
        A JSON-able dict: model, data, n, top1_error and top5_error (percent), loss, skipped (names of unreadable
        pictures), image_size, preprocessing (all fields), protocol ("paper" for ImageNet pictures prepared as in the
        paper, else "checkpoint"), checkpoint (the file's name), sha256 (the file's), provenance.

    Raises:
        ValueError: for a bad number or folder, or if the model was trained for other classes; and the errors of
            `load_checkpoint`, `load_data` and `evaluate`.
    """
    numbers = {"batch_size": batch_size, "workers": workers, "max_broken": max_broken}
    check_values(numbers, EVALUATION_RULES)
    if details is not None:
        check_details_folder(Path(details))
    checkpoint = load_checkpoint(path)
    data = load_data(spec, root, preprocessing=checkpoint.preprocessing)
    _check_classes(checkpoint.classes, data.classes, spec)
    accelerator = make_accelerator()
    model = checkpoint.model.to(accelerator.device)
    evaluation = evaluate(model, data.test, **numbers, progress=progress, accelerator=accelerator)
    if details is not None and accelerator.is_main_process:
        write_details(Path(details), evaluation, data.classes, data.test)
    with weights_path(path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "model": checkpoint.name,
        "data": spec,
        "n": evaluation.n,
        "top1_error": evaluation.top1_error,
        "top5_error": evaluation.top5_error,
        "loss": evaluation.loss,
        "skipped": evaluation.skipped,
        "image_size": checkpoint.preprocessing.image_size,
        "preprocessing": checkpoint.preprocessing.to_dict(),
        "protocol": _protocol(spec, checkpoint.preprocessing),
        "checkpoint": Path(path).name,
        "sha256": digest,
        "provenance": provenance(),
    }


def _protocol(spec: str, preprocessing: Preprocessing) -> str:
    training_only = {"padding": None, "flip": None}
    as_in_the_paper = asdict(preprocessing) | training_only == asdict(IMAGENET) | training_only
    return "paper" if as_in_the_paper and parse_spec(spec)[0] == "imagenet" else "checkpoint"


def check_details_folder(folder: Path) -> None:
    """ValueError if `write_details` could not write there, or would replace files of another kind."""
    if file := file_in_the_way(folder):
        raise ValueError(f"details cannot be written to {folder}: {file} is a file, not a folder")
    for name, header in HEADERS.items():
        path = folder / name
        if path.exists() and not path.read_bytes().startswith(",".join(header).encode()):
            raise ValueError(f"{path} exists and is not such a file of kaconv evaluate; choose another folder")


def write_details(folder: Path, evaluation: Evaluation, classes: Sequence[str], dataset: Dataset) -> None:
    """Write what lies behind an evaluation as CSV files, UTF-8, with a header.

    per_class.csv, a line for each class: `index`; `class`, its name; `n`, its pictures; `top1_error` and `top5_error`
    in percent (empty if there are no pictures); `most_frequent_mistake`, the wrong class that was predicted most
    often (empty if none was), and how many `times`.

    mistakes.csv, a line for each wrong prediction, the most confident first, 100 at most: `picture` (its path, or
    "sample 17"); `index` and `class`, the true one; `predicted_index` and `predicted_class`; `probability`, that of
    the prediction; `class_probability`, that of the true class.
    """
    rows = [_class_row(index, evaluation, classes) for index in range(len(classes))]
    _write_csv(folder / PER_CLASS, rows)
    confidence = evaluation.probabilities.max(1)
    wrong = np.flatnonzero(evaluation.predictions != evaluation.labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:MOST_MISTAKES]
    _write_csv(folder / MISTAKES, [_mistake_row(place, evaluation, classes, dataset) for place in worst])


def _class_row(index: int, evaluation: Evaluation, classes: Sequence[str]) -> tuple:
    of_class = evaluation.labels == index
    n, predicted = int(of_class.sum()), evaluation.predictions[of_class]
    if n == 0:
        return index, classes[index], 0, "", "", "", 0
    wrong = np.bincount(predicted[predicted != index], minlength=len(classes))
    mistake, times = int(wrong.argmax()), int(wrong.max())
    top1, top5 = 100 * (predicted != index).mean(), 100 * (~evaluation.in_top5[of_class]).mean()
    return index, classes[index], n, f"{top1:.2f}", f"{top5:.2f}", classes[mistake] if times else "", times


def _mistake_row(place: int, evaluation: Evaluation, classes: Sequence[str], dataset: Dataset) -> tuple:
    label, prediction = int(evaluation.labels[place]), int(evaluation.predictions[place])
    probabilities = evaluation.probabilities[place]
    picture = describe_sample(dataset, int(evaluation.indices[place]))
    figures = (f"{probabilities[prediction]:.6f}", f"{probabilities[label]:.6f}")
    return picture, label, classes[label], prediction, classes[prediction], *figures


def _write_csv(path: Path, rows: Sequence[tuple]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([HEADERS[path.name], *rows])
    write_text(path, text.getvalue())


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
