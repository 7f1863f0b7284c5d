import numpy as np
import pytest

from kaconv.utils.intervals import no_better_than_chance


@pytest.mark.parametrize(
    ("correct", "total", "classes", "expected"),
    [
        (10, 100, 10, True),
        (15, 100, 10, True),
        (16, 100, 10, False),
        (100, 100, 2, False),
        (0, 5, 4, True),
        (4, 5, 4, False),
    ],
)
def test_no_better_than_chance(correct, total, classes, expected):
    assert no_better_than_chance(correct, total, classes) is expected


def test_guessing_passes_for_knowledge_one_time_in_twenty_at_most():
    rng = np.random.default_rng(0)
    correct = (rng.integers(0, 4, (2000, 100)) == 0).sum(1)
    assert 0.01 < np.mean([not no_better_than_chance(int(count), 100, 4) for count in correct]) < 0.06
