"""What holds for every notebook in the repository, without running it."""

import subprocess
import sys
import tomllib
import types
from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from papermill.translators import PythonTranslator

import kaconv
from kaviz.reports.spec import declared_parameters

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LONGEST_CELL = 15  # lines; what needs more belongs into the packages


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    notebook = nbformat.read(request.param, as_version=4)
    nbformat.validate(notebook)
    return notebook


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def code(notebook):
    """The code cells but the one that installs in Colab."""
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell not in tagged(notebook, "install")]


def test_the_folder_is_found():
    assert NOTEBOOKS


def test_it_is_stored_without_results(notebook):
    assert not [cell.id for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count") is not None]
    assert "widgets" not in notebook.metadata
    assert "papermill" not in notebook.metadata


def test_it_runs_in_the_environments_own_kernel(notebook):
    assert notebook.metadata.kernelspec.name == "python3"


def test_it_has_one_parameters_cell_before_all_other_code(notebook):
    assert tagged(notebook, "parameters") == code(notebook)[:1]


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


def test_it_opens_in_colab_and_installs_this_release_there(notebook, request):
    name = f"{request.node.callspec.id}.ipynb"
    version, owner = f"v{kaconv.__version__}", REPOSITORY.removeprefix("https://github.com/")
    address = f"https://colab.research.google.com/github/{owner}/blob/{version}/notebooks/{name}"
    assert notebook.cells[0].source.endswith(f"[Open in Colab]({address})"), "run python docs/_ext/colab.py"
    (install,) = tagged(notebook, "install")
    assert install is notebook.cells[1]
    assert f'%pip install --quiet "kaconv[notebooks] @ git+{REPOSITORY}@{version}"' in install.source


@pytest.mark.parametrize("in_colab", [False, True])
def test_the_installation_is_run_in_colab_alone(notebook, in_colab, monkeypatch):
    if in_colab:
        for name in ("google", "google.colab"):
            module = types.ModuleType(name)
            module.__spec__, module.__path__ = types.SimpleNamespace(name=name), []
            monkeypatch.setitem(sys.modules, name, module)
    shell, ran = InteractiveShell(), []
    shell.run_line_magic = lambda magic, line, **_: ran.append(f"%{magic} {line}")
    shell.system = lambda command: ran.append(f"!{command}")
    (install,) = tagged(notebook, "install")
    shell.run_cell(install.source).raise_error()
    assert [line.split()[:2] for line in ran] == ([["%pip", "install"], ["!kaviz", "notebooks"]] if in_colab else [])


def test_the_script_that_writes_links_and_installations_has_nothing_to_write(tmp_path):
    copied = tmp_path / "clone"
    for path in (ROOT / "pyproject.toml", *NOTEBOOKS, *(ROOT / "docs" / "_ext").glob("*.py")):
        target = copied / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    before = {path.name: path.read_bytes() for path in NOTEBOOKS}
    subprocess.run([sys.executable, copied / "docs" / "_ext" / "colab.py"], check=True, cwd=ROOT)
    assert {path.name: path.read_bytes() for path in (copied / "notebooks").iterdir()} == before
