import numpy as np
import pytest

from kaconv.utils.intervals import no_better_than_chance


@pytest.mark.parametrize(
    ("labels", "predictions", "expected"),
    [
        ([0, 1] * 20, [0, 1] * 20, False),
        ([0, 1] * 20, [0] * 40, True),  # one class for everything
        ([0] * 90 + [1] * 10, [0] * 100, True),  # right in 90 of 100, as is whoever looks at the labels alone
        ([0] * 90 + [1] * 10, [0] * 90 + [1] * 10, False),
        ([0, 1], [0, 1], True),  # a coin is right twice in a quarter of all cases
        ([3] * 50, [3] * 50, True),
    ],
)
def test_no_better_than_chance(labels, predictions, expected):
    assert no_better_than_chance(labels, predictions) is expected
    assert no_better_than_chance(np.array(labels), np.array(predictions)) is expected


def test_chance_is_refused_as_often_as_it_should_be():
    rng = np.random.default_rng(0)
    labels = np.arange(100) % 4
    better = [not no_better_than_chance(labels, rng.integers(0, 4, 100)) for _ in range(1000)]
    assert 0.01 < np.mean(better) <= 0.06


def test_predictions_belong_to_labels():
    for labels, predictions in (([], []), ([1, 2], [1])):
        with pytest.raises(ValueError, match="a prediction for each label"):
            no_better_than_chance(labels, predictions)
