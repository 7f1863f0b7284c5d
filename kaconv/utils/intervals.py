"""Confidence intervals."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's 95 % interval of the mean of a few values; None for a single one."""
    if len(values) < 2:
        return None
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stats.sem(values)
    return float(np.mean(values) - half), float(np.mean(values) + half)


def welch_interval(values: Sequence[float], others: Sequence[float]) -> tuple[float, float] | None:
    """Welch's 95 % interval of the difference of two means; None where one of them has a single value."""
    if min(len(values), len(others)) < 2:
        return None
    if np.ptp(values) == np.ptp(others) == 0:  # no spread to judge by; scipy gives NaN
        return (float(values[0] - others[0]),) * 2
    interval = stats.ttest_ind(values, others, equal_var=False).confidence_interval(CONFIDENCE)
    return float(interval.low), float(interval.high)


def wilson_interval(error: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of an error in percent that was measured on `n` images, in percent."""
    z, share = stats.norm.ppf((1 + CONFIDENCE) / 2), error / 100
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = max(centre - half, 0) if share > 0 else 0, min(centre + half, 1) if share < 1 else 1  # not almost
    return float(100 * low), float(100 * high)


def no_better_than_chance(correct: int, total: int, classes: int) -> bool:
    """Test errors against guessing: True where guessing gets as many right in more than 5 % of all cases.

    The exact binomial test, one-sided.

    Args:
        correct: of `total` samples.
        classes: guessed among, all alike.
    """
    return bool(stats.binom.sf(correct - 1, total, 1 / classes) > 1 - CONFIDENCE)


def paired_interval(more: int, fewer: int, n: int) -> tuple[float, float]:
    """95 % interval of a difference of two shares of the same `n` images, in percentage points.

    Agresti and Min's (Statistics in Medicine 24, 2005): Wald's, with half an image added to each of the four cells.

    Args:
        more: images that count for the first share only.
        fewer: images that count for the second share only.
    """
    z, total, gained, lost = stats.norm.ppf((1 + CONFIDENCE) / 2), n + 2, more + 0.5, fewer + 0.5
    centre = (gained - lost) / total
    half = z * np.sqrt(gained + lost - (gained - lost) ** 2 / total) / total
    return float(100 * max(centre - half, -1)), float(100 * min(centre + half, 1))
