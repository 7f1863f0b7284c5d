"""Average precision of detections."""

import pytest
import torch

pytest.importorskip("torchmetrics")
pytest.importorskip("pycocotools")

from kaconv.inference.detection import DetectionEvaluation, average_precision


def target(*boxes, crowd=()):
    return {
        "boxes": torch.tensor([[x, 0.0, x + 10, 10.0] for x in boxes]).reshape(-1, 4),
        "labels": torch.ones(len(boxes), dtype=torch.int64),
        "iscrowd": torch.tensor([int(n in crowd) for n in range(len(boxes))]),
    }


def found(*boxes, width=10.0):
    return {
        "boxes": torch.tensor([[x, 0.0, x + width, 10.0] for x in boxes]).reshape(-1, 4),
        "labels": torch.ones(len(boxes), dtype=torch.int64),
        "scores": 1 - torch.arange(len(boxes)) / 10,
    }


def evaluation(detections, targets):
    scores = average_precision(detections, targets)
    return DetectionEvaluation(
        scores["map"], scores["map_50"], scores["map_75"], detections, targets, [(20, 100)] * len(targets)
    )


def test_all_found_is_100_and_nothing_is_0():
    targets = [target(0, 50), target(20)]
    assert average_precision([found(0, 50), found(20)], targets)["map"] == 100
    assert average_precision([found(), found()], targets)["map"] == 0
    assert average_precision([], []) == {"map": 0, "map_50": 0, "map_75": 0}


def test_thresholds_are_coco_s():
    # An IoU of 0.82 passes 7 of the 10 thresholds: 0.50, 0.55, ..., 0.80.
    scores = average_precision([found(0, width=8.2)], [target(0)])
    assert scores == pytest.approx({"map": 70, "map_50": 100, "map_75": 100})


def test_one_of_two_found_is_half_of_the_recall():
    # 51 of COCO's 101 points of recall, from 0 to 0.50.
    assert average_precision([found(0)], [target(0, 50)])["map"] == pytest.approx(100 * 51 / 101)


def test_uncounted_objects_are_neither_missed_nor_wrongly_found():
    targets = [target(0, 50, crowd=[1])]
    assert average_precision([found(0)], targets)["map"] == 100
    assert average_precision([found(50, 0)], targets)["map"] == 100


def test_the_interval_is_of_the_same_measure():
    torch.manual_seed(0)
    targets = [target(*range(0, 15 * n, 15)) for n in (1, 2, 3, 2, 1, 3)]
    detections = [found(*(own["boxes"][:2, 0] + 3 * torch.rand(len(own["boxes"][:2]))).tolist()) for own in targets]
    result = evaluation(detections, targets)
    low, high = result.interval(100)
    assert 0 < low < result.precision < high < 100
    assert result.interval(100) == (low, high)
    alike = evaluation(detections[:1] * 6, targets[:1] * 6)  # whichever images are drawn
    assert alike.interval(10) == pytest.approx((alike.precision,) * 2)
    assert evaluation([found()] * 3, targets[:3]).interval(10) == (0, 0)


def test_what_does_not_look_at_the_image_loses_nothing_with_another_one_s_detections():
    targets = [target(0), target(40)]
    assert evaluation([found(0), found(40)], targets).precision_of_another_image() == 0
    blind = evaluation([found(0)] * 2, targets)
    assert blind.precision_of_another_image() == pytest.approx(blind.precision)
    half = {"boxes": torch.tensor([[0.0, 0, 5, 5]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.9])}
    scaled = DetectionEvaluation(0, 0, 0, [found(), half], [target(0), target()], [(20, 100), (10, 50)])
    assert scaled.precision_of_another_image() == 100
