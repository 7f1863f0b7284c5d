"""The documentation site: `make docs` builds it from this folder, the docstrings and the repository's own documents."""

import os
import shutil
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from docutils import nodes

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]
os.environ["PYTHONPATH"] = str(ROOT)  # the kernels that run the pages' cells see the packages of this tree

project = "kaconv"
author = "The kaconv authors"
copyright = f"{author}, MIT licence"
version = release = import_module("kaconv").__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "mathml",
    "repository_links",
]
exclude_patterns = ["_*"]
templates_path = ["_templates"]

myst_enable_extensions = ["dollarmath", "attrs_inline", "attrs_block", "colon_fence"]
myst_heading_anchors = 3

# Pages with code cells, such as the gallery, are run whenever the site is built; a cell that fails fails the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 900
nb_merge_streams = True
nb_ipywidgets_js: dict[str, dict] = {}  # it would be a script from the network
suppress_warnings = ["misc.highlighting_failure"]  # `explorer` and `...` stand in for code

# Docstrings have single backticks for code; a name that the reference has becomes a link to it.
default_role = "py:obj"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Shape", "params_style")]
maximum_signature_line_length = 100
add_module_names = False

# Nothing may come from the network: no fonts, no scripts, and formulas as MathML (`_ext/mathml.py`).
html_theme = "pydata_sphinx_theme"
html_title = "kaconv"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
html_sidebars = {"**": ["all-pages"]}
html_theme_options = {
    "navbar_center": [],
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_toc_level": 2,
    "navigation_depth": 2,
}


def take_in_the_report(app: Any, error: Exception | None) -> None:
    """Copy the pages of `make report`, if it has been run, beside the site's own; notebooks.md links to them."""
    report = ROOT / "reports" / "out" / "default"
    if error is None and (report / "index.html").exists():
        hidden = shutil.ignore_patterns(".*")
        shutil.copytree(report, Path(app.outdir) / "report", ignore=hidden, dirs_exist_ok=True)


def name_figures(app: Any, doctree: nodes.document) -> None:
    """Give figures of code cells the heading above them as alternative text; Sphinx would take the file's name."""
    for image in doctree.findall(nodes.image):
        section = next((parent for parent in _parents(image) if isinstance(parent, nodes.section)), None)
        if "alt" not in image and section is not None:
            image["alt"] = section[0].astext()


def _parents(node: nodes.Node) -> Iterator[nodes.Node]:
    while node := node.parent:
        yield node


def setup(app: Any) -> None:
    """Have Sphinx call what is above."""
    app.connect("doctree-read", name_figures)
    app.connect("build-finished", take_in_the_report)
