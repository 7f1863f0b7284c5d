"""Every notebook, opened and run by clicking."""

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

pytestmark = pytest.mark.ui
NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("name", [path.name for path in NOTEBOOKS])
def test_it_runs_from_top_to_bottom_and_shows_its_pictures(open_notebook, request, name):
    notebook = open_notebook(f"notebooks/{name}", request)
    notebook.run_all()
    assert notebook.complaints() == []
    sizes = notebook.picture_sizes()
    assert sizes
    assert min(map(min, sizes)) > 0, f"broken pictures: {sizes}"


def test_what_goes_wrong_is_seen(open_notebook, request, project):
    """The test above could not fail if it overlooked errors, warnings or broken pictures."""
    cells = [
        "import sys; print('careful', file=sys.stderr)",
        "from IPython.display import HTML; HTML('<img src=\"nowhere.png\">')",
        "1 / 0",
        "print('not reached')",
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(new_notebook(cells=list(map(new_code_cell, cells)), metadata=kernel), project / "wrong.ipynb")
    notebook = open_notebook("wrong.ipynb", request)
    notebook.run_all()
    warning, error = notebook.complaints()
    assert warning.strip() == "careful"
    assert error.splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert notebook.picture_sizes() == [(0, 0)]
