"""Static forms of what a notebook shows through scripts: formulas, and the views of ipywidgets."""

import base64
import html
import io
import re
from pathlib import Path

import matplotlib as mpl
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import MathTextParser, math_to_image
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

VIEW = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"
_SILENT = ("ButtonModel", "FileUploadModel", "FloatProgressModel", "IntProgressModel", "PlayModel")
_FONT_SIZE = 12
_EM = 11  # set a little larger than the text, beside whose sans-serif the formulas' STIX looks small


class StaticRenderer(IPythonRenderer):
    """Markdown to HTML with every formula drawn by matplotlib, whose TeX subset needs no script in the browser."""

    def __init__(self, folder: Path, attachments: dict | None = None):
        super().__init__(
            escape=False, embed_images=True, exclude_anchor_links=True, path=str(folder), attachments=attachments
        )
        self.unreadable: list[str] = []

    def _html_embed_images(self, html: str) -> str:
        # nbconvert's own parses a fragment as if it were whole: it would close <sub> before its text.
        return super()._html_embed_images(html) if "<img" in html else html

    def inline_math(self, body: str) -> str:
        return self._formula(body)

    def block_math(self, body: str) -> str:
        return f'<div class="formula">{self._formula(body)}</div>'

    def latex_environment(self, name: str, body: str) -> str:
        return self._formula(f"\\begin{{{name}}}{body}\\end{{{name}}}")

    def _formula(self, body: str) -> str:
        tex = " ".join(body.split())
        try:
            return tex_image(tex)
        except ValueError:
            self.unreadable.append(tex)
            return f"<code>{html.escape(tex)}</code>"


def markdown_html(source: str, folder: Path = Path(), attachments: dict | None = None) -> str:
    """Markdown as HTML that needs no script; local images, sought from `folder`, are embedded."""
    return MarkdownWithMath(renderer=StaticRenderer(folder, attachments)).render(source)


def unreadable_maths(notebook: NotebookNode) -> list[str]:
    """The formulas in Markdown cells that a page could only show as raw TeX, one sentence each."""
    problems = []
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type == "markdown":
            renderer = StaticRenderer(Path(), cell.get("attachments"))
            MarkdownWithMath(renderer=renderer).render(cell.source)
            problems += [
                f"cell {number}: matplotlib, which draws a page's formulas, cannot read {tex!r}"
                for tex in renderer.unreadable
            ]
    return problems


def tex_image(tex: str) -> str:
    """An <img> of a formula, sized and set on the baseline in em. ValueError where matplotlib cannot read it."""
    font = FontProperties(size=_FONT_SIZE, math_fontfamily="stix")
    with mpl.rc_context({"savefig.transparent": True, "svg.hashsalt": tex}):
        _, height, depth, _, _ = MathTextParser("path").parse(f"${tex}$", dpi=72, prop=font)
        picture = io.BytesIO()
        math_to_image(f"${tex}$", picture, prop=font, format="svg")
    source = base64.b64encode(picture.getvalue()).decode()
    style = f"height:{height / _EM:.3f}em;vertical-align:{-depth / _EM:.3f}em"
    return f'<img class="tex" style="{style}" alt="{html.escape(tex)}" src="data:image/svg+xml;base64,{source}">'


def freeze_widgets(notebook: NotebookNode) -> None:
    """Replace, in place, each widget view among the outputs by the image and text it last showed."""
    models = notebook.metadata.pop("widgets", {}).get(STATE, {}).get("state", {})
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            view = output.get("data", {}).pop(VIEW, None)
            if view is not None and not {"image/png", "image/svg+xml", "text/html"} & set(output.data):
                shown = _widget_html(models, view["model_id"])
                output.data["text/html"] = f'<div class="widget">{shown}</div>' if shown else ""
        if "outputs" in cell:  # one that shows nothing, such as a bar, would leave a gap
            cell.outputs = [output for output in cell.outputs if output.get("data", {}).get("text/html") != ""]


def _widget_html(models: dict, model_id: str) -> str:
    """The last look of a widget. What says nothing any more, such as buttons, gives an empty string."""
    model = models.get(model_id, {})
    state, kind = model.get("state", {}), model.get("model_name", "")
    if "children" in state:
        ids = [child.removeprefix("IPY_MODEL_") for child in state["children"]]
        if any("Progress" in models.get(child, {}).get("model_name", "") for child in ids):
            return ""  # a tqdm bar: texts around a progress widget
        children = [_widget_html(models, child) for child in ids]
        return f'<div class="{"row" if kind == "HBoxModel" else "column"}">{"".join(children)}</div>'
    if kind == "ImageModel":
        data = next((buffer["data"] for buffer in model.get("buffers", []) if buffer["path"] == ["value"]), "")
        return f'<img src="data:image/{state.get("format", "png")};base64,{data}">' if data else ""
    if kind in ("HTMLModel", "HTMLMathModel"):
        return f"<div>{state.get('value', '')}</div>"
    if kind in _SILENT:
        return ""
    value = state.get("value")
    if (labels := state.get("_options_labels")) and (index := state.get("index")) is not None:
        value = " – ".join(labels[i] for i in index) if isinstance(index, list) else labels[index]
    if value in (None, ""):
        return ""
    label = re.sub(r"[:\s]+$", "", state.get("description", ""))
    prefix = f"<b>{html.escape(label)}</b> " if label else ""
    return f'<span class="control">{prefix}{html.escape(str(value))}</span>'
