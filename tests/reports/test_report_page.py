import io
import re
from base64 import b64decode, b64encode
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from markupsafe import escape
from matplotlib.figure import Figure
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from kaviz.reports import announce, report_folder, save_metrics
from kaviz.reports.notebook import (
    Notes,
    by_depth,
    chance_warning,
    format_value,
    percent,
    read_notes,
    skip_section,
    without_effect,
)
from kaviz.reports.page import notebook_html, opening, write_index, write_page, write_thumbnail
from kaviz.reports.sanitise import content_security_policy
from kaviz.reports.spec import Entry, Outcome, Spec
from kaviz.reports.static import STATE, VIEW, freeze_widgets, markdown_html, tex_image
from kaviz.style import describe


def picture(colour) -> str:
    data = io.BytesIO()
    Image.new("RGBA", (2000, 100), colour).save(data, format="png")
    return b64encode(data.getvalue()).decode()


def shown(**data) -> list:
    return [new_output("display_data", data={kind.replace("_", "/"): value for kind, value in data.items()})]


def test_metrics_are_collected_in_a_report(tmp_path, monkeypatch):
    monkeypatch.setenv("KAVIZ_OUT", str(tmp_path))
    assert report_folder() == tmp_path
    save_metrics({"error (%)": np.float32(2.5), "model": "plain"})
    table = save_metrics({"params": np.array(281_000), "gain": float("nan")})
    assert read_notes(tmp_path).metrics == {"error (%)": 2.5, "model": "plain", "params": 281_000, "gain": None}
    assert table.loc["params", "value"] == "281,000"


def test_metrics_that_cannot_be_written_leave_the_earlier_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("KAVIZ_OUT", str(tmp_path))
    save_metrics({"error (%)": 2.5})
    monkeypatch.setattr("os.replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_metrics({"error (%)": 3})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]
    assert read_notes(tmp_path).metrics == {"error (%)": 2.5}


def test_metrics_outside_a_report_are_only_shown(tmp_path, monkeypatch):
    monkeypatch.delenv("KAVIZ_OUT", raising=False)
    monkeypatch.chdir(tmp_path)
    assert save_metrics({"error (%)": 2.5}).loc["error (%)", "value"] == "2.5"
    assert report_folder() is None
    assert not list(tmp_path.iterdir())


def test_a_metric_is_one_number_or_string():
    with pytest.raises(TypeError, match="'errors'"):
        save_metrics({"errors": [1, 2]})


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.41234, "2.412"), (12345.6, "12,346"), (281000, "281,000"), (True, "yes"), (None, "–"), (1e-7, "1e-07")],
)
def test_values_are_shown_for_reading(value, text):
    assert format_value(value) == text


@pytest.mark.parametrize(
    ("images", "text"), [(80, "2.4"), (599, "2.4"), (10_000, "2.41"), (1_281_167, "2.412"), (None, "2.412")]
)
def test_errors_have_the_digits_that_their_images_allow(tmp_path, monkeypatch, images, text):
    monkeypatch.setenv("KAVIZ_OUT", str(tmp_path))
    table = save_metrics({"error (%)": 2.41234, "images": 12345}, images=images)
    assert list(table["value"]) == [text, "12,345"]
    notes = read_notes(tmp_path)
    assert format_value(notes.metrics["error (%)"], notes.digits["error (%)"]) == text


def test_rounding_keeps_whole_numbers_and_no_exponents():
    assert (percent(100.0, 80), percent(2.678, 599), percent(0.0, 80)) == ("100 %", "2.7 %", "0 %")
    assert percent(float("nan"), 0) == "not known"
    assert format_value(123.4, 2) == "123"


def test_parameters_without_effect_are_told_once_and_kept_beside_metrics(tmp_path, monkeypatch):
    monkeypatch.setenv("KAVIZ_OUT", str(tmp_path))
    without_effect("seed", "epochs")
    save_metrics({"error (%)": 2.5})
    assert read_notes(tmp_path) == Notes({"error (%)": 2.5}, {"error (%)": 4}, ["seed", "epochs"])


def test_a_long_chain_becomes_first_last_and_extremes():
    assert by_depth({"a": 0.1, "b": 0.25, "c": 3}) == "0.10 → 0.25 → 3.00"
    many = {f"layer{number}": value for number, value in enumerate([0.4, 0.1, float("nan"), 0.9, 0.5, 0.6])}
    assert (
        by_depth(many)
        == "0.40 in the first of 6 layers, 0.60 in the last, least in layer1 (0.10), most in layer3 (0.90)"
    )


@pytest.mark.parametrize(("wrong", "warns"), [(60, True), (54, True), (50, False), (5, False), (80, True)])
def test_a_network_at_chance_is_told(wrong, warns):
    assert chance_warning("net", float("nan"), 0, classes=4) is None
    said = chance_warning("net", 100 * wrong / 80, 80, classes=4)
    assert (said is not None) == warns
    if said:
        assert f"{80 - wrong} of 80 right, with 4 classes" in said.data


@pytest.mark.parametrize(("seconds", "text"), [(3, ""), (40.4, "About 40 s: work\n"), (130, "About 2 min: work\n")])
def test_long_work_is_announced(capsys, seconds, text):
    announce(seconds, "work")
    assert capsys.readouterr().out == text


def test_formulas_become_pictures_that_keep_their_tex():
    html = markdown_html("An $A_p < 1$, `code $x$` and 5\\$.\n\n$$\n\\sum_p A_p\n= 1\n$$")
    assert html.count('class="tex"') == 2
    assert 'alt="A_p &lt; 1"' in html
    assert 'alt="\\sum_p A_p = 1"' in html
    assert "code $x$" in html


def test_formulas_do_not_disturb_the_figures_of_the_caller():
    before, open_figures = dict(plt.rcParams), plt.get_fignums()
    tex_image("A_p")
    assert dict(plt.rcParams) == before
    assert plt.get_fignums() == open_figures


def test_opening_is_the_title_and_the_first_paragraph():
    notebook = new_notebook(
        cells=[
            new_code_cell("# no"),
            new_markdown_cell("# Why? \n"),
            new_markdown_cell("## Part\n\nBecause\nit is.\n\nX"),
        ]
    )
    assert opening(notebook) == ("Why?", "Because\nit is.")
    assert opening(new_notebook()) == ("", "")


def test_nothing_on_a_page_comes_from_elsewhere():
    hostile = '<script src="https://x.org/a.js"></script><img src="https://x.org/a.png" alt="a map"><p>text</p>'
    notebook = new_notebook(
        cells=[
            new_markdown_cell("![far](https://x.org/b.png) [a link](https://x.org)"),
            new_code_cell("code", outputs=[new_output("display_data", data={"text/html": hostile})]),
        ]
    )
    html, _ = notebook_html(notebook, Path())
    assert "src=" not in html
    assert "[a map]" in html
    assert "[far]" in html
    assert "text" in html
    assert 'href="https://x.org"' in html


SCRIPT = "top.hacked=1"
ATTACKS = [
    f'<svg onload="{SCRIPT}"><text>s</text></svg>',
    f'<details open ontoggle="{SCRIPT}"><summary>s</summary>d</details>',
    f'<input autofocus onfocus="{SCRIPT}">',
    f'<img src="x" onerror="{SCRIPT}">',
    f'<video><source src="x" onerror="{SCRIPT}"></video>',
    f'<style>@keyframes k{{}}</style><p style="animation-name:k" onanimationstart="{SCRIPT}">p</p>',
    f'<a href="javascript:{SCRIPT}">a</a>',
    f'<a href=" jAva&#115;cript:{SCRIPT}">a</a>',
    f'<a href="data:text/html,<script>{SCRIPT}</script>">a</a>',
    f"<script>{SCRIPT}</script>",
    f'<iframe srcdoc="<script>{SCRIPT}</script>"></iframe>',
    f'<math><mtext><style><img src=x onerror="{SCRIPT}"></style></mtext></math>',
    f'<form action="javascript:{SCRIPT}"><button>b</button></form>',
    '<meta http-equiv="refresh" content="0; url=https://x.org">',
    '<p style="background:url(https://x.org/a.png);position:fixed">p</p>',
]


def check_harmless(html: str) -> None:
    tree = BeautifulSoup(html, "html.parser")
    forbidden = [
        "script",
        "style",
        "svg",
        "math",
        "iframe",
        "object",
        "embed",
        "video",
        "audio",
        "input",
        "form",
        "meta",
    ]
    assert not tree.find_all(forbidden)
    for element in tree.find_all(True):
        assert not [name for name in element.attrs if name.startswith("on") or name in ("autofocus", "srcdoc")]
        assert not re.search(r"url|position|animation", element.get("style", ""))
        assert element.get("src", "data:image/").startswith("data:image/")
        assert re.match(r"https?:|mailto:|#|[^:]*$", element.get("href", "#"))
    assert SCRIPT not in html


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_notebook_brings_a_script_into_its_page(attack):
    outputs = shown(text_html=attack) + shown(text_markdown=attack)
    notebook = new_notebook(cells=[new_markdown_cell(f"# T\n\n{attack}\n\nx"), new_code_cell("", outputs=outputs)])
    check_harmless(notebook_html(notebook, Path())[0])


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_text_of_a_spec_brings_a_script_into_the_index(tmp_path, attack):
    entry = Entry("e", attack, Path("n.ipynb"), {}, {"p": attack}, 1)
    spec = Spec("s", attack, f"Text {attack}", tmp_path, (entry,))
    nbformat.write(new_notebook(cells=[new_markdown_cell(f"# T\n\nQ {attack}")]), tmp_path / "n.ipynb")
    page = write_page(tmp_path, tmp_path / "n.ipynb", entry, spec, Outcome("failed", attack, 1), Notes({"m": attack}))
    write_index(tmp_path / "all.html", spec, [page], 1)
    write_index(tmp_path / "single.html", spec, [page], 1, single_file=True)
    for name in ("index.html", "all.html", "single.html"):
        html = (tmp_path / name).read_text(encoding="utf-8")
        body = html.partition("<body>")[2]
        text = BeautifulSoup(body, "html.parser").get_text()  # what was given as text is there as text
        check_harmless(body.replace(escape(attack), "").replace(escape(str({"p": attack})), ""))
        assert attack in text
        assert f'content="{escape(content_security_policy())}"' in html.partition("<style>")[0]


def test_the_policy_admits_scripts_by_their_hash_alone():
    assert "script-src 'none'" in content_security_policy()
    assert "script-src 'sha256-abc' 'sha256-def';" in content_security_policy("sha256-abc", "sha256-def")
    assert "default-src 'none'" in content_security_policy("sha256-abc")


def test_what_is_legitimate_survives():
    frame = pd.DataFrame({"error": [2.5, 30.25]}, index=["a", "b"])
    styled = frame.style.format("{:.1f}").map(lambda value: "color: #b00020" if value > 9 else "")
    styled = styled.set_table_styles([{"selector": "th", "props": "padding: 2px"}])
    vector = '<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"></svg>'
    outputs = shown(text_html=frame.to_html()) + shown(text_html=styled.to_html()) + shown(image_png=picture("red"))
    outputs += shown(**{"image_svg+xml": vector})
    text = "## Part\n\n$A_p$, `code`, [a link](#Part)\n\n```python\nx = 1\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |"
    html, problems = notebook_html(
        new_notebook(cells=[new_markdown_cell(text), new_code_cell("", outputs=outputs)]), Path(), id_prefix="n-"
    )
    tree = BeautifulSoup(html, "html.parser")
    assert problems == []
    assert len(tree.find_all("table")) == 3
    assert tree.find("td", string="30.2")["style"] == "color:#b00020"
    assert tree.find_all("th", style="padding:2px")
    assert tree.select_one("img.tex")["style"].startswith("height:")
    assert tree.select_one(".highlight .mi").get_text() == "1"
    assert tree.select_one(".output_png img")["src"].endswith(picture("red"))
    assert tree.select_one(".output_svg img")["src"].startswith("data:image/svg+xml;base64,")
    assert tree.find("a", string="a link")["href"] == "#n-Part"


def test_a_damaged_image_is_named_in_its_place_and_the_rest_is_shown(tmp_path):
    bad = shown(image_png="AAAA") + shown(text_html='<img src="data:image/jpeg;base64,AAAA"><p>after</p>')
    text = new_markdown_cell("![a](attachment:a.png)")
    text.attachments = {"a.png": {"image/png": picture("blue")[:40]}}
    cells = [text, new_code_cell("", outputs=bad), new_code_cell("", outputs=shown(image_png=picture("red")))]
    notebook = new_notebook(cells=cells)
    html, problems = notebook_html(notebook, Path(), "bad.ipynb")
    assert [problem.partition(":")[0] for problem in problems] == [
        f"cell {number} of bad.ipynb" for number in (1, 2, 2)
    ]
    assert all(problem in BeautifulSoup(html, "html.parser").get_text() for problem in problems)
    assert "after" in html
    assert picture("red") in html
    assert write_thumbnail(notebook, tmp_path / "t.png")
    with Image.open(tmp_path / "t.png") as image:
        assert image.getpixel((0, 0)) == (255, 0, 0)


def test_a_figure_is_described_in_words():
    figure = Figure()
    left, right = figure.subplots(1, 2)
    figure.suptitle("Learning $A_p$\ncurves")
    left.set_title("loss", loc="left")
    left.set_xlabel("epoch")
    right.set_xlabel("epoch")
    right.set_ylabel("test error (%)")
    said = describe(figure)
    assert said == "Learning A_p curves; panels: loss; axes and scales: epoch, test error (%)"
    assert describe(Figure()) == ""
    outputs = shown(image_png=picture("red"), text_plain=said) + shown(
        image_png=picture("red"), text_plain="<Figure size 640x480 with 1 Axes>"
    )
    notebook = new_notebook(cells=[new_markdown_cell("## Part"), new_code_cell("", outputs=outputs)])
    tree = BeautifulSoup(notebook_html(notebook, Path())[0], "html.parser")
    assert [image["alt"] for image in tree.find_all("img")] == [said, "Figure 2, in “Part”"]


def test_a_section_that_does_not_apply_is_not_there(monkeypatch):
    displayed = []
    monkeypatch.setattr("kaviz.reports.notebook.display", lambda *_, metadata: displayed.append(metadata))
    skip_section("a checkpoint was given")
    skipped = new_output("display_data", data={"text/markdown": "*a checkpoint was given*"}, metadata=displayed[0])
    notebook = new_notebook(
        cells=[
            new_markdown_cell("## One"),
            new_code_cell("", outputs=shown(text_plain="of one")),
            new_markdown_cell("## Two"),
            new_markdown_cell("about two"),
            new_code_cell("", outputs=[skipped]),
            new_markdown_cell("## Three"),
        ]
    )
    html, _ = notebook_html(notebook, Path())
    assert [heading.get_text() for heading in BeautifulSoup(html, "html.parser").find_all("h2")] == ["One", "Three"]
    assert "two" not in html
    assert "of one" in html


def test_pictures_in_text_are_embedded(tmp_path):
    (tmp_path / "near.png").write_bytes(b64decode(picture("red")))
    cell = new_markdown_cell("![near](near.png) ![attached](attachment:a.png)")
    cell.attachments = {"a.png": {"image/png": picture("blue")}}
    html, _ = notebook_html(new_notebook(cells=[cell]), tmp_path)
    assert picture("red") in html
    assert picture("blue") in html


def widget(kind: str, buffers=(), **state) -> dict:
    return {"model_name": kind, "state": state, "buffers": list(buffers)}


def test_widgets_are_frozen_as_last_shown():
    notebook = new_notebook(cells=[new_code_cell("box", outputs=shown())])
    notebook.cells[0].outputs[0].data = {VIEW: {"model_id": "box"}, "text/plain": "VBox(...)"}
    notebook.metadata.widgets = {
        STATE: {
            "state": {
                "box": widget(
                    "VBoxModel", children=[f"IPY_MODEL_{name}" for name in ("a", "b", "c", "u", "play", "bar")]
                ),
                "a": widget("DropdownModel", _options_labels=["one", "two <b>"], index=1, description="Layer:"),
                "b": widget("ImageModel", [{"path": ["value"], "data": picture("red")}], format="png"),
                "c": widget("ButtonModel", description="reset"),
                "u": widget("FileUploadModel", description="upload", value=[]),
                "play": widget("PlayModel", description="play", value=7),
                "bar": widget("HBoxModel", children=["IPY_MODEL_p", "IPY_MODEL_t"]),
                "p": widget("FloatProgressModel", value=3),
                "t": widget("HTMLModel", value="100%"),
            }
        }
    }
    freeze_widgets(notebook)
    html, _ = notebook_html(notebook, Path())
    assert "<b>Layer</b> two &lt;b&gt;" in html
    assert picture("red") in html
    for gone in ("reset", "upload", "play", "7</span>", "100%", "VBox"):
        assert gone not in html
    assert "widgets" not in notebook.metadata


def test_a_progress_bar_leaves_no_gap():
    bar = new_output("display_data", data={VIEW: {"model_id": "bar"}, "text/plain": "100%"})
    lines = [new_output("stream", text=f"epoch {number}\n") for number in (1, 2)]
    notebook = new_notebook(cells=[new_code_cell("fit()", outputs=[lines[0], bar, lines[1]])])
    notebook.metadata.widgets = {STATE: {"state": {"bar": widget("FloatProgressModel", value=3)}}}
    freeze_widgets(notebook)
    html, _ = notebook_html(notebook, Path())
    assert html.count("output_area") == 1
    assert "epoch 1\nepoch 2\n" in html


def test_a_widget_that_brings_a_still_form_is_shown_as_that():
    notebook = new_notebook(cells=[new_code_cell("explorer", outputs=shown())])
    still = f'<img alt="a map" src="data:image/png;base64,{picture("blue")}"><p>what is shown</p>'
    notebook.cells[0].outputs[0].data = {VIEW: {"model_id": "box"}, "text/plain": "Box(...)", "text/html": still}
    notebook.metadata.widgets = {STATE: {"state": {"box": widget("VBoxModel", children=[])}}}
    freeze_widgets(notebook)
    html, _ = notebook_html(notebook, Path())
    assert 'alt="a map"' in html
    assert "what is shown" in html
    assert "Box(" not in html


@pytest.mark.parametrize(("tags", "colour"), [([], (255, 0, 0)), (["thumbnail"], (0, 0, 255))])
def test_the_thumbnail_is_the_first_picture_or_the_tagged_one(tmp_path, tags, colour):
    notebook = new_notebook(
        cells=[
            new_code_cell("", outputs=shown(image_png=picture("red"))),
            new_code_cell("", outputs=shown(image_png=picture("blue")), metadata={"tags": tags}),
        ]
    )
    assert write_thumbnail(notebook, tmp_path / "t.png")
    with Image.open(tmp_path / "t.png") as image:
        assert image.size[0] == 880
        assert image.getpixel((0, 0)) == colour


def test_no_picture_no_thumbnail(tmp_path):
    assert not write_thumbnail(new_notebook(cells=[new_markdown_cell("# x")]), tmp_path / "t.png")
    assert not (tmp_path / "t.png").exists()


def test_tags_within_text_stay_around_their_text():
    assert "Z<sub>p</sub> and <i>k</i>²" in markdown_html("Z<sub>p</sub> and <i>k</i>²")
