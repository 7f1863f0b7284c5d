"""The explorer in a page: a fragment of HTML with its numbers, and the one module that may run there."""

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from kaconv.attention.record import AttentionRecord
from kaconv.utils.files import write_text
from kaviz.explorer.modules import join_modules
from kaviz.explorer.views import attribution_pack, position_pack, view_pack

FRONT = Path(__file__).parent / "front"
_NOTE = "This view is drawn by a script that stands in this page; scripts are off here."
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{fragment}
</main>
<script type="module">{script}</script>
</body>
</html>
"""
_PAGE_STYLE = """
:root { color-scheme: light dark; }
body { margin: 0; padding: min(24px, 2vw); background: light-dark(#eef0f3, #0d0f12); }
main { max-width: 1240px; margin: 0 auto; }
@media print { body { padding: 0; background: none; } }
"""


@dataclass(frozen=True)
class FrontEnd:
    """The script and the style that a page with explorers contains once, however many there are.

    A page's Content-Security-Policy needs `script-src` with `script_hash`, `img-src data:`, and, unless it admits
    inline styles, `style-src` with `hash_of` its style element's content.

    Args:
        script: the content of a `<script type="module">` after the fragments.
        style: the content of a `<style>`.
        frame: the HTML of each explorer, hidden until the script fills it; it stands in its fragment.
    """

    script: str
    style: str
    frame: str

    @property
    def script_hash(self) -> str:
        """The script's hash, which a Content-Security-Policy names in quotes."""
        return hash_of(self.script)


@cache
def front_end() -> FrontEnd:
    """The explorer's module, its style and its frame."""
    style, frame = ((FRONT / f"explorer.{kind}").read_text(encoding="utf-8") for kind in ("css", "html"))
    return FrontEnd(join_modules(FRONT / "explorer.js"), style, frame)


def hash_of(content: str) -> str:
    """The hash of an inline script or style, which a Content-Security-Policy names in quotes."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def fragment(packs: Sequence[bytes], state: Mapping[str, Any] | None = None) -> str:
    """The HTML of one explorer, with its numbers in data blocks, which no browser runs.

    Args:
        packs: of `kaviz.explorer.views`, the view first.
        state: what is chosen at first, as `AttentionExplorer.state`.
    """
    chosen = html.escape(json.dumps(dict(state or {}), ensure_ascii=False))
    data = "".join(
        f'<script type="application/octet-stream">{base64.b64encode(content).decode()}</script>\n' for content in packs
    )
    frame = front_end().frame
    return f'<div data-kaviz-explorer data-state="{chosen}">\n{data}<noscript><p>{_NOTE}</p></noscript>\n{frame}</div>'


def saved_fragment(model: Mapping[str, Any]) -> str:
    """The HTML of an explorer out of an executed notebook.

    Args:
        model: its entry in the notebook's metadata, `widgets`, `application/vnd.jupyter.widget-state+json`, `state`.

    Raises:
        ValueError: if the entry is of another widget, or its numbers have not been saved.
    """
    if not is_explorer(model):
        raise ValueError("the widget is no AttentionExplorer")
    buffers = {tuple(buffer["path"]): base64.b64decode(buffer["data"]) for buffer in model.get("buffers", [])}
    if ("view_data",) not in buffers:
        raise ValueError("the notebook holds the explorer without its numbers: run it with widget state saved")
    extras = sorted(path for path in buffers if path[0] == "extra_data")
    packs = [buffers["view_data",], *(buffers[path] for path in extras)]
    return fragment(packs, model["state"].get("state"))


def is_explorer(model: Mapping[str, Any]) -> bool:
    """True if an entry of a notebook's saved widgets is an explorer."""
    return model.get("state", {}).get("_anywidget_id") == "kaviz.explorer.widget.AttentionExplorer"


def write_page(path: str | Path, packs: Sequence[bytes], title: str, state: Mapping[str, Any] | None = None) -> Path:
    """Write a page that holds one explorer and needs nothing else: no network, no kernel, no other file."""
    front = front_end()
    style = front.style + _PAGE_STYLE
    policy = (
        f"default-src 'none'; script-src '{front.script_hash}'; style-src '{hash_of(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    page = _PAGE.format(
        policy=policy,
        title=html.escape(title),
        style=style,
        fragment=fragment(packs, state),
        script=front.script,
    )
    path = Path(path)
    write_text(path, page)
    return path


def export_explorer(
    record: AttentionRecord,
    path: str | Path,
    *,
    images: Sequence[np.ndarray] | None = None,
    probabilities: np.ndarray | None = None,
    classes: Sequence[str] | None = None,
    attributions: Mapping[str, np.ndarray] | None = None,
    positions: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    title: str = "Attention",
    state: Mapping[str, Any] | None = None,
) -> Path:
    """Write a record of attention as a page that explores it: one file, with no network and no kernel.

    Attention is stored in 4095 equal steps between the least and the greatest weight of each layer; the page says how
    far its values may be off. Images of more than 224 pixels a side are made smaller, and stored as JPEG. KAResNet50
    takes about 90 kB an image.

    Args:
        path: of the file, such as "view.html".
        images: (H, W, 3) each, in [0, 1] or uint8; by default the record's thumbnails.
        probabilities: of the classes (N, classes).
        classes: names of all classes.
        attributions: for each method its maps (N, h, w), positive for what speaks for the predicted class.
        positions: for each method and layer what the kernel positions contribute to the predicted class's score,
            (N, kh, kw), or (N, kh, kw, C), which is summed over the channels.
        state: what is chosen at first, as `AttentionExplorer.state`.

    Raises:
        ValueError: if something does not fit the record; nothing is written.

    Example:
        >>> page = export_explorer(AttentionRecord.load("maps.npz"), "view.html")
    """
    packs = [view_pack(record, images=images, probabilities=probabilities, classes=classes, title=title)]
    for method, maps in (attributions or {}).items():
        packs.append(attribution_pack(method, _of(record, maps, method)))
    for method, values in (positions or {}).items():
        packs.append(position_pack(method, {layer: _of(record, maps, method) for layer, maps in values.items()}))
    return write_page(path, packs, title, state)


def _of(record: AttentionRecord, values: np.ndarray, method: str) -> np.ndarray:
    if len(values) != len(record):
        raise ValueError(f"the record has {len(record)} samples, but {method} has {len(values)}")
    return values
