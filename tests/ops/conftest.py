import pytest

from kaconv.ops import dispatch


@pytest.fixture
def fused_only(monkeypatch):
    """Fails where the fused backend falls back."""

    def no_eager(*args):
        raise AssertionError("fell back to eager")

    monkeypatch.setattr(dispatch.eager, "kaconv2d", no_eager)
