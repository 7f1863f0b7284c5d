"""Fixtures that tests of several folders use. What needs torch or Matplotlib is imported where it is asked for."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from torch import nn


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests that are marked `suites` out where `-m` does not name them."""
    if "suites" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("suites")]
        items[:] = [item for item in items if not item.get_closest_marker("suites")]
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture
def rng() -> np.random.Generator:
    """The same random numbers in every test."""
    return np.random.default_rng(0)


@pytest.fixture
def small_model() -> "nn.Module":
    """A KAConv network of four classes in eval mode, untrained and in every test the same."""
    import torch

    from kaconv import create_model

    torch.manual_seed(0)
    return create_model("ka_resnet11_cifar_l", num_classes=4).eval()


@pytest.fixture
def no_open_figures() -> Iterator[None]:
    """Fails a test after which pyplot still holds a figure."""
    import matplotlib.pyplot as plt

    yield
    assert not plt.get_fignums()
