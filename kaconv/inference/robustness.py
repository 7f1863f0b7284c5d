"""Errors of a model under common corruptions of the images."""

from collections.abc import Iterable
from typing import TypedDict

from torch import nn

from kaconv.data.corruptions import CORRUPTIONS, SEVERITIES, corrupted
from kaconv.data.datasets import DataBundle
from kaconv.inference.evaluation import evaluate
from kaconv.utils.intervals import wilson_interval

CLEAN = "none"


class CorruptionRow(TypedDict):
    """Top-1 error under one corruption, in percent, with Wilson's 95 % interval over the drawing of the images.

    - corruption, severity: "none" and 0 for the images as they are
    - n: images whose class the model knows
    """

    corruption: str
    severity: int
    n: int
    top1_error: float
    top1_error_interval: tuple[float, float]


def corruption_errors(
    model: nn.Module,
    data: DataBundle,
    corruptions: Iterable[str] = tuple(CORRUPTIONS),
    severities: Iterable[int] = SEVERITIES,
    *,
    batch_size: int = 256,
    progress: bool = True,
) -> list[CorruptionRow]:
    """Evaluate a model on the test images as they are and under each corruption in each severity.

    Args:
        corruptions: some of `kaconv.data.corruptions.CORRUPTIONS`.
        severities: some of 1 to 5.

    Raises:
        ValueError: for an unknown corruption or severity, and as `evaluate` does.
    """
    conditions = [(name, severity) for name in corruptions for severity in severities]
    tests = [corrupted(data, *condition).test for condition in conditions]  # a mistyped one comes to light at once
    rows: list[CorruptionRow] = []
    for (name, severity), test in zip([(CLEAN, 0), *conditions], [data.test, *tests], strict=True):
        found = evaluate(model, test, batch_size=batch_size, progress=progress)
        rows.append(
            {
                "corruption": name,
                "severity": severity,
                "n": found.n,
                "top1_error": found.top1_error,
                "top1_error_interval": wilson_interval(found.top1_error, found.n),
            }
        )
    return rows
