"""Links of documents that stand in the repository and on the site: to the page, where there is one, else to the file.

A document of the repository, such as CONTRIBUTING.md, is included in a page as it is. Its links are relative to where
it lies; on the site they lead to the page that includes the file, or to the file in the public repository.
"""

import os
import re
import tomllib
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]

# The pages that include a document of the repository, or stand for a part of it.
PAGES = {
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "index.md",
    "benchmarks/README.md": "speed.md",
    "data/README.md": "data.md",
    "notebooks/README.md": "notebooks.md",
    "reports/studies": "study.md",
}
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")


def on_site(text: str, folder: Path, page_folder: Path) -> str:
    """The text of a document in `folder`, with its links to files as a page of `page_folder` has to have them."""

    def replace(link: re.Match[str]) -> str:
        path = Path(os.path.normpath(folder / link["target"]))
        if "://" in link["target"] or not path.is_relative_to(ROOT) or not path.exists():
            return link[0]
        if path.is_relative_to(DOCS) and path.suffix == ".md":
            page = path
        elif (name := path.relative_to(ROOT).as_posix()) in PAGES:
            page = DOCS / PAGES[name]
        else:
            return f"[{link['text']}]({REPOSITORY}/blob/main/{name})"
        target = os.path.relpath(page, page_folder)
        return f"[{link['text']}]({target}{link['anchor'] or ''})"

    return _LINK.sub(replace, text)


def _page(app: Sphinx, name: str, source: list[str]) -> None:
    folder = Path(app.env.doc2path(name)).parent
    source[0] = on_site(source[0], folder, folder)


def _included(app: Sphinx, path: Path, name: str, source: list[str]) -> None:
    source[0] = on_site(source[0], (DOCS / path).parent, Path(app.env.doc2path(name)).parent)


def setup(app: Sphinx) -> dict[str, Any]:
    """Have Sphinx pass every page and every included document through `on_site`."""
    app.connect("source-read", _page)
    app.connect("include-read", _included)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
