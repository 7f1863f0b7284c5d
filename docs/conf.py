"""The documentation site: `make docs` builds it from this folder, the docstrings and the repository's own documents."""

import os
import sys
from importlib import import_module
from pathlib import Path

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
suppress_warnings = ["misc.highlighting_failure"]  # `explorer` and `...` stand in for code

# Docstrings have single backticks for code; a name that the reference has becomes a link to it.
default_role = "py:obj"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
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
html_sidebars = {"**": ["sidebar-nav-bs"]}  # all pages, by `_templates/sidebar-nav-bs.html`
html_theme_options = {
    "navbar_center": [],
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_toc_level": 2,
    "navigation_depth": 2,
}
