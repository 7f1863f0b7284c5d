"""Errors of a model over a whole data set."""

import csv
import hashlib
import io
import logging
import math
from collections.abc import Sequence, Sized
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from kaconv.data.datasets import DataBundle, load_data, parse_spec
from kaconv.data.preprocessing import IMAGENET, Preprocessing
from kaconv.data.unreadable import UNREADABLE, BrokenPictures, describe_sample, tolerant
from kaconv.inference.fresh_statistics import PICTURES, has_batch_norm, with_fresh_statistics
from kaconv.models.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from kaconv.models.weights import weights_path
from kaconv.utils.checks import EVALUATION_RULES, VAL_FRACTION, check_values, file_in_the_way
from kaconv.utils.files import write_text
from kaconv.utils.intervals import paired_interval
from kaconv.utils.modes import evaluating
from kaconv.utils.provenance import provenance

MAX_BROKEN = 10
SAMPLE = 500  # images that tell whether fresh statistics would help: a small part of a usual evaluation
FRESH_BATCH = 100  # a few batches of the sample, each large enough
WORTH_A_WARNING = 5.0  # percentage points
_LOGGER = logging.getLogger("kaconv")
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
    """Errors in percent and mean cross-entropy over `n` samples; and, in the data set's order, what they come from.

    Samples of a class that the model does not know stand among the latter and count in no error. Where it knows none,
    the errors and the loss are NaN.
    """

    top1_error: float
    top5_error: float | None  # None for five classes or fewer, of which every label is among the five best
    loss: float
    n: int
    labels: np.ndarray  # (samples,); those beyond the model's outputs are of classes that it does not know
    predictions: np.ndarray  # (samples,)
    probabilities: np.ndarray  # (samples, classes)
    in_top5: np.ndarray  # (samples,), whether the label is among the five best
    indices: np.ndarray  # (samples,), their numbers in the data set: 0, 1, 2, ... unless some were skipped
    skipped: list[str] = field(default_factory=list)  # images that could not be read, by name

    @property
    def known(self) -> np.ndarray:
        """The samples whose class the model knows, as a mask (samples,): `n` of them."""
        return self.labels < self.probabilities.shape[1]


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

    Every part of the model comes back in the mode (training or evaluation) it had. With five classes or fewer there is
    no top-5 error. Several processes share the samples, each taking a run of them, and all return the whole result.

    Args:
        dataset: yields (3 x H x W tensor, int label). A label that the model has no output for is that of
            an unknown class: the sample is predicted, but counts in no error.
        batch_size: samples at a time in each process.
        accelerator: that of a running training.
        max_broken: how many images, over all processes, may be unreadable. They are named in the log and in
            `skipped`, and count nowhere else.

    Raises:
        ValueError: for an empty data set, or if more than `max_broken` images are unreadable, or all of them.
        FloatingPointError: if the model's outputs are not all finite.
    """
    size = len(cast(Sized, dataset))
    if size == 0:
        raise ValueError("there are no samples to evaluate on")
    accelerator = accelerator or make_accelerator()
    # Not wrapped for training: the wrapper would wait for processes that have fewer batches.
    model = accelerator.unwrap_model(model)
    device = next(model.parameters()).device
    mine = _share(size, accelerator)
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
    if len(broken.names) == size:
        raise ValueError(f"none of the {size} images to evaluate on can be read: {broken.names[0]}, ...")
    batches = [batch for batches, _ in parts for batch in batches]
    logits, labels, indices = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
    return _evaluation(logits, labels, indices, broken.names)


def _share(n: int, accelerator: Accelerator) -> range:
    """The samples of this process: neighbours, so that all shares one after another are the data set."""
    rank, processes = accelerator.process_index, accelerator.num_processes
    return range(n * rank // processes, n * (rank + 1) // processes)


def _evaluation(logits: torch.Tensor, labels: torch.Tensor, indices: torch.Tensor, skipped: list[str]) -> Evaluation:
    samples, classes = logits.shape
    broken = int((~logits.isfinite()).any(1).sum())
    if broken:
        raise FloatingPointError(f"the model's outputs are not finite for {broken} of {samples} samples")
    ranked = logits.topk(min(5, classes)).indices
    right = ranked == labels[:, None]
    known = labels < classes
    n = int(known.sum())
    return Evaluation(
        top1_error=_error(int(right[:, 0].sum()), n),
        top5_error=_error(int(right.sum()), n) if classes > 5 else None,
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
    fresh_statistics: str | Path | None = None,
    progress: bool = True,
) -> dict:
    """Evaluate a checkpoint on a data set's test split, prepared as the checkpoint says: a result to keep.

    Args:
        max_broken: see `evaluate`.
        details: a folder to write `write_details`' files to.
        fresh_statistics: a file to write the checkpoint to with the statistics of its batch norms recomputed from up
            to 2,000 training images; the error with them is measured on all test images.

    Without `fresh_statistics`, a sample tells whether it would help: up to 500 training images (test images, without
    their labels, where there is no training split), but no more than were tested or 100, and up to 500 test images. The
    log says so if the error of these test images falls by 5 percentage points or more, and by more than chance (the
    95 % interval of the paired difference is above 0).

    Returns:
        A JSON-able dict: model, data, n, top1_error and top5_error (percent; the latter None for five classes or
        fewer), loss, fresh_statistics (None for a model without batch norm; else n, the test images that were asked,
        top1_error_before and top1_error of these, interval of the difference, images, from whose statistics, and
        split, where these come from), skipped (names of unreadable
        images), image_size, preprocessing (all fields), protocol ("paper" for ImageNet images prepared as in the
        paper, else "checkpoint"), checkpoint (the file's name), sha256 (the file's), provenance.

    Raises:
        ValueError: for a bad number or folder, if the model was trained for other classes, or for fresh statistics
            without batch norm or a training split; and the errors of
            `load_checkpoint`, `load_data` and `evaluate`.
    """
    numbers = {"batch_size": batch_size, "workers": workers, "max_broken": max_broken}
    check_values(numbers, EVALUATION_RULES)
    if details is not None:
        check_details_folder(Path(details))
    checkpoint = load_checkpoint(path)
    data = load_data(spec, root, preprocessing=checkpoint.preprocessing, val_fraction=_val_fraction_of(checkpoint.info))
    _check_classes(checkpoint.classes, data.classes, spec)
    if fresh_statistics is not None and (data.train is None or not has_batch_norm(checkpoint.model)):
        lack = f"data {spec!r} has no train/ folder" if data.train is None else f"{checkpoint.name} has no batch norm"
        raise ValueError(f"statistics cannot be recomputed: {lack}")
    accelerator = make_accelerator()
    model = checkpoint.model.to(accelerator.device)
    evaluation = evaluate(model, data.test, **numbers, progress=progress, accelerator=accelerator)
    options = {"batch_size": batch_size, "workers": workers, "progress": progress, "accelerator": accelerator}
    recomputed, model = _with_fresh_statistics(model, data, evaluation, fresh_statistics is not None, **options)
    if details is not None and accelerator.is_main_process:
        write_details(Path(details), evaluation, data.classes, data.test)
    with weights_path(path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if fresh_statistics is None:
        _warn_of_statistics(recomputed)
    elif accelerator.is_main_process:  # now that the file, which this may replace, has been read
        _save(fresh_statistics, checkpoint, model, recomputed)
    return {
        "model": checkpoint.name,
        "data": spec,
        "n": evaluation.n,
        "top1_error": evaluation.top1_error,
        "top5_error": evaluation.top5_error,
        "loss": evaluation.loss,
        "fresh_statistics": recomputed,
        "skipped": evaluation.skipped,
        "image_size": checkpoint.preprocessing.image_size,
        "preprocessing": checkpoint.preprocessing.to_dict(),
        "protocol": _protocol(spec, checkpoint.preprocessing),
        "checkpoint": Path(path).name,
        "sha256": digest,
        "provenance": provenance(),
    }


def _error(right: int, n: int) -> float:
    return 100 * (n - right) / n if n else math.nan


def _val_fraction_of(info: dict) -> float:
    """What the training that a checkpoint comes from took for testing, of a folder without splits."""
    config = info.get("config")
    return config.get("val_fraction", VAL_FRACTION) if isinstance(config, dict) else VAL_FRACTION


def _with_fresh_statistics(
    model: nn.Module,
    data: DataBundle,
    evaluation: Evaluation,
    whole: bool,
    *,
    batch_size: int,
    workers: int,
    progress: bool,
    accelerator: Accelerator,
) -> tuple[dict | None, nn.Module]:
    """What `evaluate_checkpoint` says of fresh statistics, and the model with them.

    Args:
        whole: recompute them from all images that `with_fresh_statistics` takes, and ask all test images.
    """
    images = len(cast(Sized, data.train if data.train is not None else data.test))
    if not has_batch_norm(model) or images < 2:
        return None, model
    most = None if whole else min(SAMPLE, max(evaluation.n, FRESH_BATCH))
    fresh = with_fresh_statistics(
        model, data, batch_size=min(batch_size, FRESH_BATCH), seed=0, workers=workers, most=most
    )
    order = torch.randperm(evaluation.n, generator=torch.Generator().manual_seed(0))[:most].sort().values.numpy()
    asked = Subset(data.test, evaluation.indices[order].tolist())
    again = evaluate(
        fresh,
        asked,
        batch_size=batch_size,
        workers=workers,
        progress=progress,
        accelerator=accelerator,
        max_broken=len(asked),
    )
    order = order[again.indices]  # an image may have become unreadable
    right, right_now = (evaluation.predictions == evaluation.labels)[order], again.predictions == again.labels
    n = len(order)
    interval = paired_interval(int((right_now & ~right).sum()), int((right & ~right_now).sum()), n)
    recomputed = {
        "n": n,
        "top1_error_before": 100 * int((~right).sum()) / n,
        "top1_error": again.top1_error,
        "interval": list(interval),
        "images": min(images, most or PICTURES),
        "split": "test" if data.train is None else "train",
    }
    return recomputed, fresh


def _warn_of_statistics(recomputed: dict | None) -> None:
    if recomputed is None:
        return
    before, now, interval = recomputed["top1_error_before"], recomputed["top1_error"], recomputed["interval"]
    if before - now < WORTH_A_WARNING or interval[0] <= 0:
        return
    trained = recomputed["split"] == "train"
    advice = "; --fresh-statistics FILE.safetensors writes a checkpoint with them" if trained else ""
    _LOGGER.warning(
        "the statistics of the batch norms do not fit the weights: recomputed from %d %s images, the top-1 error of %d "
        "test images is %.1f instead of %.1f %%%s",
        recomputed["images"],
        "training" if trained else "test",
        recomputed["n"],
        now,
        before,
        advice,
    )


def _save(path: str | Path, checkpoint: Checkpoint, model: nn.Module, recomputed: dict | None) -> None:
    info = {key: value for key, value in checkpoint.info.items() if key not in ("test_error", "test_top5_error")}
    save_checkpoint(
        path,
        model,
        name=checkpoint.name,
        classes=checkpoint.classes,
        preprocessing=checkpoint.preprocessing,
        info=info | {"fresh_statistics": recomputed},
    )


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

    per_class.csv, a line for each class: `index`; `class`, its name; `n`, its images; `top1_error` and `top5_error`
    in percent (empty if there are no images, the latter also for five classes or fewer); `most_frequent_mistake`, the
    wrong class that was predicted most often (empty if none was), and how many `times`.

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
    top1 = 100 * (predicted != index).mean()
    top5 = "" if evaluation.top5_error is None else f"{100 * (~evaluation.in_top5[of_class]).mean():.2f}"
    return index, classes[index], n, f"{top1:.2f}", top5, classes[mistake] if times else "", times


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
