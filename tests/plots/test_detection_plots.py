"""Figures of detections, and of the attention inside of objects and outside."""

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from kaconv import AttentionRecord
from kaviz import plots
from kaviz.figures import figure_data


def record(value, samples=5):
    """Every map puts this much on the first position, the rest evenly on the others."""
    maps = np.full((samples, 3, 3, 4), (1 - value) / 8, np.float32)
    maps[:, 0, 0] = value
    return AttentionRecord({"layer": maps})


def test_distances_are_those_of_the_records():
    figure = plots.plot_inside_and_outside(record(0.5), record(0.2), record(0.3))
    rows = figure_data(figure).dropna(subset="pair").set_index("pair")
    assert rows["distance"].to_dict() == pytest.approx({"inside and outside": 0.3, "outside and outside": 0.1})
    assert (rows["low"] <= rows["distance"] + 1e-6).all()


def test_detections_below_the_score_are_left_out():
    boxes = np.array([[2.0, 3, 10, 12], [4, 4, 9, 9]])
    found = {"boxes": boxes, "labels": np.array([1, 2]), "scores": np.array([0.9, 0.2])}
    images = [np.zeros((16, 20, 3)), np.ones((20, 16, 3))]
    empty = {"boxes": boxes[:0], "labels": np.array([]), "scores": np.array([])}
    figure = plots.plot_detections(images, [{"boxes": boxes[:1]}, empty], [found, empty], ["cat", "dog"])
    data = figure_data(figure)
    assert data["kind"].tolist() == ["object", "detection"]
    assert data["class"].dropna().tolist() == ["cat"]
    first, second = figure.axes
    assert len([patch for patch in first.patches if isinstance(patch, Rectangle)]) == 4  # each with its outline
    assert not second.patches
    assert (first.get_title(), second.get_title()) == ("cat 0.90", "nothing above 0.3")
