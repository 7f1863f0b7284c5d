"""The pages of a report: one for each executed notebook and an index, self-contained; no script but the explorer's."""

import base64
import io
import re
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup
from jinja2 import Environment, PackageLoader, StrictUndefined, pass_context
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from PIL import Image
from pygments.formatters import HtmlFormatter

from kaconv.utils.files import write_text
from kaconv.utils.provenance import provenance
from kaviz.explorer.export import front_end
from kaviz.reports.explorers import put_explorers, take_explorers
from kaviz.reports.notebook import format_value
from kaviz.reports.static import freeze_widgets, markdown_html

_THUMBNAIL_SIZE = (880, 560)  # twice the card's, for screens with fine pixels
_templates = Environment(
    loader=PackageLoader("kaviz.reports"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters["value"] = format_value


@dataclass(frozen=True)
class Summary:
    """What the index says of one entry. `question` is HTML."""

    name: str
    title: str
    question: str
    status: str
    error: str
    seconds: float
    metrics: dict
    thumbnail: bool


def write_page(folder: Path, executed: Path, entry, spec, outcome, metrics: dict) -> Summary:
    """Write `folder`/index.html and `folder`/thumbnail.png from the notebook that a run left in `executed`."""
    notebook = nbformat.read(executed, as_version=4)
    title, question = opening(notebook)
    explorers = take_explorers(notebook)
    freeze_widgets(notebook)
    summary = Summary(
        entry.name,
        entry.title or title or entry.name,
        markdown_html(question) if question else "",
        outcome.status,
        outcome.error,
        outcome.seconds,
        metrics,
        write_thumbnail(notebook, folder / "thumbnail.png"),
    )
    body = put_explorers(notebook_html(notebook, entry.notebook.parent), explorers)
    _write(
        folder / "index.html",
        "page.html",
        report=spec.title,
        entry=summary,
        notebook=executed.name,
        parameters=entry.parameters,
        body=body,
        front_end=front_end() if explorers else None,
        highlighting=HtmlFormatter(style="default").get_style_defs(".highlight"),
        date=_today(),
    )
    return summary


def write_index(path: Path, spec, summaries: list[Summary], seconds: float) -> None:
    """Write the report's index, with a card for each entry and where it all came from."""
    _write(
        path,
        "index.html",
        spec=spec,
        description=markdown_html(spec.description),
        entries=summaries,
        seconds=seconds,
        origin=_origin(),
        date=_today(),
    )


def opening(notebook: NotebookNode) -> tuple[str, str]:
    """A notebook's own title and question: its first heading, and the first paragraph after it (Markdown)."""
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    found = re.search(r"^# +(.+)$", text, re.MULTILINE)
    if not found:
        return "", ""
    blocks = [block.strip() for block in re.split(r"\n\s*\n", text[found.end() :])]
    return found[1].strip(), next((block for block in blocks if block and not block.startswith("#")), "")


def notebook_html(notebook: NotebookNode, folder: Path) -> str:
    """The notebook's text and outputs as an HTML fragment: no code, no scripts, nothing loaded from elsewhere."""
    exporter = HTMLExporter(
        template_name="basic",
        exclude_input=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        require_js_url="",
        mathjax_url="",
        mermaid_js_url="",
        mermaid_layout_elk_js_url="",
    )

    @pass_context
    def markdown2html(context, source: str) -> str:
        return markdown_html(source, folder, context.get("cell", {}).get("attachments"))

    exporter.register_filter("markdown2html", markdown2html)
    # papermill's own notes on a failure; the page's head says it.
    notebook.cells = [c for c in notebook.cells if "papermill-error-cell-tag" not in c.metadata.get("tags", [])]
    soup = BeautifulSoup(exporter.from_notebook_node(notebook)[0], "html.parser")
    for element in soup.find_all(["script", "link", "iframe", "object", "embed"]):
        element.decompose()
    heading, figure = "", 0
    for element in soup.find_all(re.compile(r"^(h[1-6]|img)$")):
        if element.name != "img":
            heading = element.get_text(strip=True)
            if element.name == "h1":  # the page's head has the title
                element.decompose()
        elif not element.get("src", "").startswith("data:"):
            element.replace_with(f"[{element.get('alt') or 'picture'}]")
        elif "tex" not in element.get("class", []):
            figure += 1
            if element.get("alt", "No description").startswith("No description"):
                element["alt"] = f"Figure {figure}, in “{heading}”" if heading else f"Figure {figure}"
    return str(soup)


def write_thumbnail(notebook: NotebookNode, path: Path) -> bool:
    """Write the first picture of the cell with the tag `thumbnail`, else of the notebook. False if there is none."""
    cells = sorted(notebook.cells, key=lambda cell: "thumbnail" not in cell.metadata.get("tags", []))
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    encoded = next(filter(None, map(_picture, outputs)), None)
    if encoded is None:
        return False
    picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGBA")
    paper = Image.new("RGBA", picture.size, "white")
    paper.alpha_composite(picture)
    paper.thumbnail(_THUMBNAIL_SIZE, Image.Resampling.LANCZOS)
    paper.convert("RGB").save(path, optimize=True)
    return True


def _picture(data: dict) -> str | None:
    """The base64 of an output's picture; a frozen widget has it in its HTML."""
    embedded = re.search(r'src="data:image/(?:png|jpeg);base64,([^"]+)"', data.get("text/html", ""))
    return data.get("image/png") or data.get("image/jpeg") or (embedded and embedded[1])


def _write(path: Path, template: str, **context) -> None:
    write_text(path, _templates.get_template(template).render(**context))


def _origin() -> dict[str, str]:
    """Where a report comes from, as the lines of a table."""
    origin = provenance()
    machine = origin["machine"]
    versions = origin["versions"] | {name: version(name) for name in ("captum", "matplotlib", "papermill")}
    return {
        "command": origin["command"],
        "commit": origin["commit"] or "not a git checkout",
        "machine": ", ".join(
            str(part) for part in (machine["cpu"], f"{machine['threads']} threads", machine["gpu"]) if part
        ),
        "system": machine["platform"],
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
    }


def _today() -> str:
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
