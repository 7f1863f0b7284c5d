"""Checks a built site: every link leads to a page and place that is there, and nothing is loaded from the network.

python docs/_ext/check_site.py site/html
"""

import re
import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup

LOADS = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}
_FROM_AFAR = re.compile(r"""(?:@import\s+(?:url\()?|url\()\s*["']?(?:https?:)?//""")


@cache
def _page(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


@cache
def _places(path: Path) -> set[str]:
    """The anchors of a page."""
    return {str(tag.get("id") or tag.get("name")) for tag in _page(path).find_all(["a", True])}


def _is_far(address: str) -> bool:
    return bool(urlsplit(address).netloc)


def _target_fault(page: Path, address: str, root: Path) -> str:
    """What is wrong with a link to a place of the site; empty, if nothing is."""
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return ""
    path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if path.is_dir():
        path /= "index.html"
    if not path.is_relative_to(root.resolve()) or not path.is_file():
        return f"{address} leads nowhere"
    anchor = unquote(parts.fragment)
    # The explorer's view is in its page's address.
    if anchor and path.suffix == ".html" and "=" not in anchor and anchor not in _places(path):
        return f"{address}: there is no such place in {path.name}"
    return ""


def faults(root: Path) -> list[str]:
    """The links that lead nowhere, and what would come from the network: a line for each."""
    root, found = root.resolve(), []
    for page in sorted(root.rglob("*.html")):
        name = page.relative_to(root)
        for tag in _page(page).find_all([*LOADS, "a"]):
            address = str(tag.get(LOADS.get(tag.name, "href")) or "")
            if tag.name != "a" and _is_far(address) and tag.get("rel") != ["canonical"]:
                found.append(f"{name}: <{tag.name}> loads {address}")
            elif address and (fault := _target_fault(page, address, root)):
                found.append(f"{name}: {fault}")
    for sheet in sorted(root.rglob("*.css")):
        if _FROM_AFAR.search(sheet.read_text(encoding="utf-8")):
            found.append(f"{sheet.relative_to(root)}: loads from the network")
    return found


if __name__ == "__main__":
    site = Path(sys.argv[1])
    lines = faults(site)
    print("\n".join(lines) or f"{site.resolve() / 'index.html'}: its links are good, and it needs no network.")
    sys.exit(bool(lines))
