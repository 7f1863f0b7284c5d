"""Mean average precision of detectors."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from kaconv.data.detection import DetectionImages, Target, collate
from kaconv.utils.extras import missing_package
from kaconv.utils.intervals import CONFIDENCE
from kaconv.utils.modes import evaluating


@dataclass(frozen=True)
class DetectionEvaluation:
    """Average precision in percent, with the detections and the targets that it comes from, image by image.

    Args:
        precision: COCO's mean average precision: over classes and over IoU thresholds from 0.50 to 0.95.
        precision_50: at an IoU of 0.50, close to Pascal VOC's (COCO's 101 points of recall in place of all).
        precision_75: at an IoU of 0.75.
        detections: `boxes`, `scores` and `labels` of each image.
        targets: as `DetectionImages` has them.
        sizes: (height, width) of each image in pixels.
    """

    precision: float
    precision_50: float
    precision_75: float
    detections: list[dict[str, Tensor]]
    targets: list[Target]
    sizes: list[tuple[int, int]]

    def precision_of_another_image(self) -> float:
        """Average precision, in percent, where each image is given the next one's detections, scaled to its size.

        A detector that has only learned where objects usually are loses nothing by it.
        """
        moved = []
        for index, (height, width) in enumerate(self.sizes):
            other = (index + 1) % len(self.sizes)
            there_height, there_width = self.sizes[other]
            scale = torch.tensor([width / there_width, height / there_height] * 2)
            found = self.detections[other]
            moved.append(found | {"boxes": found["boxes"] * scale})
        return average_precision(moved, self.targets)["map"]

    def interval(self, resamples: int = 200, seed: int = 0) -> tuple[float, float]:
        """95 % interval of `precision` over images: the bootstrap's percentiles.

        It says how far other test images would move the figure; another training would move it, too.
        """
        rng, n = np.random.default_rng(seed), len(self.targets)
        evaluator = _coco_evaluator(self.detections, self.targets)
        matched = np.array(evaluator.evalImgs, dtype=object).reshape(-1, n)  # of each class, what became of each image
        found = []
        for _ in range(resamples):
            evaluator.evalImgs = list(matched[:, rng.integers(n, size=n)].flat)
            found.append(_accumulated(evaluator))
        tail = 50 * (1 - CONFIDENCE)
        low, high = np.percentile(found, [tail, 100 - tail])
        return float(low), float(high)


def _coco_evaluator(detections: Sequence[dict[str, Tensor]], targets: Sequence[Target]) -> Any:
    """pycocotools' evaluator, with all detections matched to targets: images can be drawn again without matching."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    sets = []
    for objects in (targets, detections):
        annotations = [
            {"image_id": image, "category_id": label, "bbox": [x, y, x2 - x, y2 - y], "area": (x2 - x) * (y2 - y)}
            | {"score": score, "iscrowd": crowd}
            for image, one in enumerate(objects)
            for (x, y, x2, y2), label, score, crowd in zip(
                one["boxes"].tolist(),
                one["labels"].tolist(),
                one.get("scores", one["labels"]).tolist(),
                one.get("iscrowd", torch.zeros_like(one["labels"])).tolist(),
                strict=True,
            )
        ]
        labels = {annotation["category_id"] for annotation in annotations}
        coco = COCO()
        coco.dataset = {
            "images": [{"id": image} for image in range(len(targets))],
            "categories": [{"id": label} for label in sorted(labels)],
            "annotations": [annotation | {"id": number} for number, annotation in enumerate(annotations, 1)],
        }
        sets.append(coco)
    with contextlib.redirect_stdout(io.StringIO()):  # it says how far it is
        for coco in sets:
            coco.createIndex()
        evaluator = COCOeval(*sets, "bbox")
        evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluator.params.maxDets = [100]
        evaluator.evaluate()
    return evaluator


def _accumulated(evaluator: Any) -> float:
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.accumulate()
    precision = evaluator.eval["precision"]
    counted = precision[precision > -1]  # classes of which no object is there are not
    return 100 * float(counted.mean()) if counted.size else 0.0


def average_precision(detections: Sequence[dict[str, Tensor]], targets: Sequence[Target]) -> dict[str, float]:
    """torchmetrics' `map`, `map_50` and `map_75` in percent; 0 where no target is to be counted.

    Raises:
        ModuleNotFoundError: if torchmetrics or pycocotools is not installed.
    """
    try:
        import pycocotools  # noqa: F401 (torchmetrics needs it)
        from torchmetrics.detection import MeanAveragePrecision
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(missing_package(error), name=error.name) from None
    metric = MeanAveragePrecision()
    metric.warn_on_many_detections = False  # the best 100 of an image count, as for COCO
    metric.update(list(detections), list(targets))
    found = metric.compute()
    # Where there is nothing to find, it gives −1.
    return {name: max(100 * found[name].item(), 0.0) for name in ("map", "map_50", "map_75")}


def evaluate_detector(
    model: nn.Module, dataset: DetectionImages, *, workers: int = 0, progress: bool = True
) -> DetectionEvaluation:
    """Run a detector over a data set, one image at a time, so that none is padded to the size of another.

    Args:
        model: as `kaconv.models.detector` gives it, or one of torchvision's; its mode is restored.
        workers: processes that load images.
        progress: show a bar, where somebody watches.

    Raises:
        ValueError: if an image cannot be read.
        ModuleNotFoundError: if torchmetrics or pycocotools is not installed.
    """
    average_precision([], [])  # what it lacks, it says before the work
    device = next(model.parameters()).device
    loader = DataLoader(dataset, batch_size=1, num_workers=workers, collate_fn=collate)
    detections: list[dict[str, Tensor]] = []
    targets: list[Target] = []
    sizes: list[tuple[int, int]] = []
    with evaluating(model), torch.no_grad():
        for images, own in tqdm(loader, desc="test", unit="img", leave=False, disable=None if progress else True):
            found = model([image.to(device) for image in images])
            detections += [{name: value.cpu() for name, value in one.items()} for one in found]
            targets += own
            sizes += [(image.shape[1], image.shape[2]) for image in images]
    scores = average_precision(detections, targets)
    return DetectionEvaluation(scores["map"], scores["map_50"], scores["map_75"], detections, targets, sizes)
