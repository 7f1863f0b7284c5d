from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook


class Project:
    """A project folder of tiny notebooks."""

    def __init__(self, root: Path):
        self.root = root
        (root / "notebooks").mkdir(parents=True)
        (root / "pyproject.toml").touch()

    def notebook(self, name: str, *cells: str, parameters: str | None = None) -> Path:
        """Cells that start with '#' are Markdown; `parameters` is the source of the parameters cell."""
        made = [new_markdown_cell(cell) if cell.startswith("#") else new_code_cell(cell) for cell in cells]
        if parameters is not None:
            made.insert(1, new_code_cell(parameters, metadata={"tags": ["parameters"]}))
        path = self.root / "notebooks" / f"{name}.ipynb"
        nbformat.write(new_notebook(cells=made), path)
        return path

    def spec(self, text: str) -> Path:
        path = self.root / "study.yaml"
        path.write_text(text)
        return path


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path / "project")


@pytest.fixture(scope="module")
def shared_project(tmp_path_factory):
    return Project(tmp_path_factory.mktemp("report") / "project")
