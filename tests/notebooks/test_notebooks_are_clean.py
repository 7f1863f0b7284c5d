"""What holds for every notebook in the repository, without running it."""

from pathlib import Path

import nbformat
import pytest
from papermill.translators import PythonTranslator

from kaviz.reports.spec import declared_parameters

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LONGEST_CELL = 15  # lines; what needs more belongs into the packages


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    notebook = nbformat.read(request.param, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_folder_is_found():
    assert NOTEBOOKS


def test_it_is_stored_without_results(notebook):
    assert not [cell.id for cell in code(notebook) if cell.outputs or cell.execution_count is not None]
    assert "widgets" not in notebook.metadata
    assert "papermill" not in notebook.metadata


def test_it_runs_in_the_environments_own_kernel(notebook):
    assert notebook.metadata.kernelspec.name == "python3"


def test_it_has_one_parameters_cell_before_all_other_code(notebook):
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == code(notebook)[:1]


def test_every_parameter_has_a_type_and_an_explanation(notebook):
    lines = [
        line for line in code(notebook)[0].source.splitlines() if line and not line.startswith(("#", " ", ")", "]"))
    ]
    assert lines
    assert not [line for line in lines if ":" not in line.split("=")[0] or "#" not in line]


def test_papermill_knows_every_parameter(notebook):
    declared = declared_parameters(code(notebook)[0].source)
    assert {parameter.name for parameter in PythonTranslator.inspect(code(notebook)[0])} == declared.keys()


def test_it_opens_with_a_title_and_a_question(notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert "?" in first.source


def test_its_cells_are_short(notebook):
    _, *cells = code(notebook)  # the parameters, a line for each, may be many
    assert not {cell.id: cell.source for cell in cells if len(cell.source.splitlines()) > LONGEST_CELL}


def test_its_text_needs_no_mathjax(notebook):
    assert not [cell.source for cell in notebook.cells if cell.cell_type == "markdown" and "$" in cell.source]
