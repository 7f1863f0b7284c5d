from pathlib import Path

import pytest

from kaconv import register_builder
from kaconv.models import registry
from kaconv.training.study_spec import load_study

STUDIES = Path(__file__).parents[2] / "reports/studies"


@pytest.fixture
def study_with_builders(monkeypatch):
    """Loads a study of the repository whose models are builders, each of which its comment's command has to name."""

    def load(name, builders):
        monkeypatch.setattr(registry, "OWN_BUILDERS", {})
        path = STUDIES / f"{name}.yaml"
        for builder in builders:
            register_builder(builder)
            assert f"--builder {builder}" in path.read_text()
        return load_study(path)

    return load
