import pytest
import torch

from kaconv.data.corruptions import corrupted
from kaconv.data.datasets import load_data
from kaconv.inference import evaluate
from kaconv.inference.robustness import corruption_errors
from kaconv.models import create_model


def test_errors_are_those_of_the_corrupted_images():
    data = load_data("digits")
    torch.manual_seed(0)
    model = create_model("resnet11_cifar", len(data.classes))
    rows = corruption_errors(model, data, ["noise", "contrast"], [1, 5], progress=False)
    places = [(row["corruption"], row["severity"]) for row in rows]
    assert places == [("none", 0), ("noise", 1), ("noise", 5), ("contrast", 1), ("contrast", 5)]
    assert rows[0]["top1_error"] == evaluate(model, data.test, progress=False).top1_error
    expected = evaluate(model, corrupted(data, "contrast", 5).test, progress=False)
    assert (rows[-1]["top1_error"], rows[-1]["n"]) == (expected.top1_error, len(data.test))
    low, high = rows[-1]["top1_error_interval"]
    assert low < expected.top1_error < high


def test_a_mistyped_corruption_comes_to_light_at_once():
    data = load_data("digits")
    with pytest.raises(ValueError, match="unknown corruption 'fog'"):
        corruption_errors(None, data, ["noise", "fog"])
