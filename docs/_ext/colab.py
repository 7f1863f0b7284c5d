"""Writes into every notebook its link to Colab and the cell that installs this release there.

    python docs/_ext/colab.py

The address and the version come from pyproject.toml and the package; a test says when a notebook lags behind.
"""

import re
from uuid import NAMESPACE_URL, uuid5

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell
from repository_links import REPOSITORY, ROOT

import kaconv

TAG = "install"
_LINK = re.compile(r"\n\n\[Open in Colab\]\([^)]*\)")
INSTALL = f"""\
from importlib.util import find_spec

if find_spec("google") and find_spec("google.colab"):  # only in Colab: this release, and the files that notebooks read
    %pip install --quiet "kaconv[notebooks] @ git+{REPOSITORY}@v{kaconv.__version__}"
    !kaviz notebooks ."""


def colab_address(name: str) -> str:
    """Where Colab opens a notebook of this release."""
    owner_and_name = REPOSITORY.removeprefix("https://github.com/")
    return f"https://colab.research.google.com/github/{owner_and_name}/blob/v{kaconv.__version__}/notebooks/{name}"


def with_colab(notebook: NotebookNode, name: str) -> NotebookNode:
    """The notebook with the link at the end of its first cell, and the installation in its first code cell."""
    question, *cells = notebook.cells
    question.source = f"{_LINK.sub('', question.source)}\n\n[Open in Colab]({colab_address(name)})"
    install = new_code_cell(INSTALL, metadata={"tags": [TAG]}, id=uuid5(NAMESPACE_URL, name).hex[:8])
    notebook.cells = [question, install, *(cell for cell in cells if TAG not in cell.metadata.get("tags", []))]
    return notebook


if __name__ == "__main__":
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        nbformat.write(with_colab(nbformat.read(path, as_version=4), path.name), path)
