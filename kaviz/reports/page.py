"""The pages of a report: one for each executed notebook and an index, self-contained; no script but the explorer's."""

import base64
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
from bs4 import BeautifulSoup
from bs4.element import Tag
from jinja2 import Environment, PackageLoader, StrictUndefined, pass_context
from nbconvert import HTMLExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from nbformat import NotebookNode
from PIL import Image
from pygments.formatters import HtmlFormatter

from kaconv.utils.files import write_text
from kaconv.utils.provenance import provenance
from kaviz.explorer.export import FrontEnd, front_end
from kaviz.reports.explorers import put_explorers, take_explorers
from kaviz.reports.notebook import SKIPPED, Notes, format_value
from kaviz.reports.sanitise import content_security_policy, sanitise
from kaviz.reports.spec import Entry, Outcome, Spec
from kaviz.reports.static import freeze_widgets, markdown_html

_THUMBNAIL_SIZE = (880, 560)  # twice the card's, for screens with fine pixels
_EMBEDDED = re.compile(r"data:image/([\w.+-]+);base64,(.*)", re.DOTALL)
_templates = Environment(
    loader=PackageLoader("kaviz.reports"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters["value"] = format_value
_templates.globals["content_security_policy"] = content_security_policy


@dataclass(frozen=True)
class Page:
    """The page of one entry in a report. `question` and `body` are HTML, sanitised; `thumbnail` a data: address."""

    name: str
    title: str
    question: str
    status: str
    error: str
    seconds: float
    metrics: dict[str, str]
    parameters: dict
    notebook: str
    body: str
    thumbnail: str
    problems: list[str] = field(default_factory=list)
    has_explorers: bool = False


def write_page(folder: Path, executed: Path, entry: Entry, spec: Spec, outcome: Outcome, notes: Notes) -> Page:
    """Write `folder`/index.html and `folder`/thumbnail.png from the notebook that a run left in `executed`.

    What cannot be shown, such as a damaged image, is named in its place and in the page's `problems`.
    """
    notebook = nbformat.read(executed, as_version=4)
    title, question = opening(notebook)
    explorers = take_explorers(notebook)
    freeze_widgets(notebook)
    thumbnail = folder / "thumbnail.png"
    has_thumbnail = write_thumbnail(notebook, thumbnail)
    body, problems = notebook_html(notebook, entry.notebook.parent, executed.name, id_prefix=f"{entry.name}-")
    page = Page(
        name=entry.name,
        title=entry.title or title or entry.name,
        question=sanitise(markdown_html(question)) if question else "",
        status=outcome.status,
        error=outcome.error,
        seconds=outcome.seconds,
        metrics={name: format_value(value, notes.digits.get(name, 4)) for name, value in notes.metrics.items()},
        parameters={name: value for name, value in entry.parameters.items() if name not in notes.without_effect},
        notebook=executed.name,
        body=put_explorers(body, explorers),
        thumbnail=f"data:image/png;base64,{_base64(thumbnail)}" if has_thumbnail else "",
        problems=problems,
        has_explorers=bool(explorers),
    )
    front = front_end() if explorers else None
    _write(folder / "index.html", "page.html", report=spec.title, entry=page, front_end=front)
    return page


def write_plain_page(folder: Path, executed: Path, entry: Entry, spec: Spec, outcome: Outcome) -> Page:
    """Write the page of a notebook that no page can be made of: the outcome alone."""
    page = Page(
        entry.name, entry.title or entry.name, "", outcome.status, outcome.error, outcome.seconds, {}, {},
        executed.name, "", "",
    )  # fmt: skip
    _write(folder / "index.html", "page.html", report=spec.title, entry=page)
    return page


def write_index(path: Path, spec: Spec, pages: Sequence[Page], seconds: float, *, single_file: bool = False) -> None:
    """Write the report's index: a card for each entry that has run, the names of the others, and where it comes from.

    Args:
        single_file: put the entries' pages into the same file, for sending; its links lead to places in it.
    """
    _write(
        path,
        "single.html" if single_file else "index.html",
        spec=spec,
        description=sanitise(markdown_html(spec.description)),
        entries=pages,
        waiting=[entry.title or entry.name for entry in spec.entries[len(pages) :]],
        wrong=[page for page in pages if page.status != "done"],
        seconds=seconds,
        origin=_origin(),
        front_end=front_end() if single_file and any(page.has_explorers for page in pages) else None,
    )


def opening(notebook: NotebookNode) -> tuple[str, str]:
    """A notebook's own title and question: its first heading, and the first paragraph after it (Markdown)."""
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    found = re.search(r"^# +(.+)$", text, re.MULTILINE)
    if not found:
        return "", ""
    blocks = [block.strip() for block in re.split(r"\n\s*\n", text[found.end() :])]
    return found[1].strip(), next((block for block in blocks if block and not block.startswith("#")), "")


def notebook_html(
    notebook: NotebookNode, folder: Path, name: str = "the notebook", id_prefix: str = ""
) -> tuple[str, list[str]]:
    """The notebook's text and outputs as an HTML fragment without code and scripts, and what could not be shown.

    Args:
        folder: where images that its text names are sought.
        name: what the notebook is called where something cannot be shown.
        id_prefix: see `sanitise`.
    """
    exporter = HTMLExporter(
        template_name="basic",
        exclude_input=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        require_js_url="",
        mathjax_url="",
        mermaid_js_url="",
        mermaid_layout_elk_js_url="",
        preprocessors=[CoalesceStreamsPreprocessor],
    )

    @pass_context
    def markdown2html(context, source: str) -> str:
        return markdown_html(source, folder, context.get("cell", {}).get("attachments"))

    exporter.register_filter("markdown2html", markdown2html)
    places = {f"cell-id={cell.get('id')}": number for number, cell in enumerate(notebook.cells, 1)}
    # papermill's own notes on a failure; the page's head says it.
    notebook.cells = [c for c in notebook.cells if "papermill-error-cell-tag" not in c.metadata.get("tags", [])]
    drop_skipped_sections(notebook)
    _describe_images(notebook)
    soup = BeautifulSoup(exporter.from_notebook_node(notebook)[0], "html.parser")
    problems = []
    heading, figure = "", 0
    for element in soup.find_all(re.compile(r"^(h[1-6]|img)$")):
        if element.name != "img":
            heading = element.get_text(strip=True)
            if element.name == "h1":  # the page's head has the title
                element.decompose()
        elif not (source := str(element.get("src", ""))).startswith("data:"):
            element.replace_with(f"[{element.get('alt') or 'image'}]")
        elif problem := _damage(source):
            cell = element.find_parent(id=re.compile("^cell-id="))
            problems.append(f"cell {places.get(str(cell['id']) if cell else '', '?')} of {name}: an image {problem}")
            element.replace_with(_placeholder(soup, problems[-1]))
        elif "tex" not in (element.get("class") or ""):
            figure += 1
            if str(element.get("alt", "No description")).startswith("No description"):
                element["alt"] = f"Figure {figure}, in “{heading}”" if heading else f"Figure {figure}"
    return sanitise(str(soup), id_prefix), problems


def drop_skipped_sections(notebook: NotebookNode) -> None:
    """Remove, in place, the sections whose code said that they do not apply (`skip_section`), headings and all."""
    sections: list[list[NotebookNode]] = [[]]
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and re.match(r"#{1,6} ", cell.source):
            sections.append([])
        sections[-1].append(cell)
    notebook.cells = [cell for section in sections if not any(map(_is_skipped, section)) for cell in section]


def _is_skipped(cell: NotebookNode) -> bool:
    return any(SKIPPED.items() <= output.get("metadata", {}).items() for output in cell.get("outputs", []))


def _describe_images(notebook: NotebookNode) -> None:
    """Give images the text that stands for them where there is no image (`kaviz.style.describe`) as alternative."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            text = output.get("data", {}).get("text/plain", "<")
            for kind in {"image/png", "image/jpeg"} & output.get("data", {}).keys():
                if not text.startswith("<"):  # "<Figure size 640x480 with 1 Axes>" says nothing
                    output.metadata.setdefault(kind, {}).setdefault("alt", text)


def _damage(source: str) -> str:
    """Say what is wrong with an embedded image; nothing for a good one."""
    found = _EMBEDDED.fullmatch(source)
    if not found:
        return "is embedded in no known way"
    if found[1] == "svg+xml":
        return ""
    try:
        Image.open(io.BytesIO(base64.b64decode(found[2]))).load()
    except Exception as error:  # damaged data make some decoders raise nearly everything
        return f"cannot be read ({type(error).__name__})"
    return ""


def _placeholder(soup: BeautifulSoup, problem: str) -> Tag:
    placeholder = soup.new_tag("span", attrs={"class": "alert"})
    placeholder.string = f"Not shown: {problem}."
    return placeholder


def write_thumbnail(notebook: NotebookNode, path: Path) -> bool:
    """Write the first image of the cell with the tag `thumbnail`, else of the notebook. False if there is none."""
    cells = sorted(notebook.cells, key=lambda cell: "thumbnail" not in cell.metadata.get("tags", []))
    for image in (image for cell in cells for output in cell.get("outputs", []) for image in _images(output)):
        paper = Image.new("RGBA", image.size, "white")
        paper.alpha_composite(image)
        paper.thumbnail(_THUMBNAIL_SIZE, Image.Resampling.LANCZOS)
        paper.convert("RGB").save(path, optimize=True)
        return True
    return False


def _images(output: NotebookNode) -> Iterator[Image.Image]:
    """An output's image, if it is a good one; a frozen widget has it in its HTML."""
    data = output.get("data", {})
    embedded = re.search(r'src="data:image/(?:png|jpeg);base64,([^"]+)"', data.get("text/html", ""))
    encoded = data.get("image/png") or data.get("image/jpeg") or (embedded and embedded[1])
    if encoded and not _damage(f"data:image/png;base64,{encoded}"):
        yield Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGBA")


def _write(path: Path, template: str, *, front_end: FrontEnd | None = None, **context: Any) -> None:
    shared = {"date": _today(), "highlighting": _highlighting(), "front_end": front_end}
    text = _templates.get_template(template).render(shared | context)
    write_text(path, text)


def _highlighting() -> str:
    """Colours of code in texts, in light and in dark."""
    light, dark = (HtmlFormatter(style=style).get_style_defs(".highlight") for style in ("default", "github-dark"))
    return f"{light}\n@media screen and (prefers-color-scheme: dark) {{\n{dark}\n}}"


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


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
