import io
from base64 import b64decode, b64encode
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from kaviz.reports import report_folder, save_metrics
from kaviz.reports.notebook import format_value, read_metrics
from kaviz.reports.page import notebook_html, opening, write_thumbnail
from kaviz.reports.static import STATE, VIEW, freeze_widgets, markdown_html, tex_image


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
    assert read_metrics(tmp_path) == {"error (%)": 2.5, "model": "plain", "params": 281_000, "gain": None}
    assert table.loc["params", "value"] == "281,000"


def test_metrics_that_cannot_be_written_leave_the_earlier_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("KAVIZ_OUT", str(tmp_path))
    save_metrics({"error (%)": 2.5})
    monkeypatch.setattr("os.replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_metrics({"error (%)": 3})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]
    assert read_metrics(tmp_path) == {"error (%)": 2.5}


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
    html = notebook_html(notebook, Path())
    assert "src=" not in html
    assert "[a map]" in html
    assert "[far]" in html
    assert "text" in html
    assert 'href="https://x.org"' in html


def test_pictures_in_text_are_embedded(tmp_path):
    (tmp_path / "near.png").write_bytes(b64decode(picture("red")))
    cell = new_markdown_cell("![near](near.png) ![attached](attachment:a.png)")
    cell.attachments = {"a.png": {"image/png": picture("blue")}}
    html = notebook_html(new_notebook(cells=[cell]), tmp_path)
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
    html = notebook_html(notebook, Path())
    assert "<b>Layer</b> two &lt;b&gt;" in html
    assert picture("red") in html
    for gone in ("reset", "upload", "play", "7</span>", "100%", "VBox"):
        assert gone not in html
    assert "widgets" not in notebook.metadata


def test_a_widget_that_brings_a_still_form_is_shown_as_that():
    notebook = new_notebook(cells=[new_code_cell("explorer", outputs=shown())])
    still = f'<img alt="a map" src="data:image/png;base64,{picture("blue")}"><p>what is shown</p>'
    notebook.cells[0].outputs[0].data = {VIEW: {"model_id": "box"}, "text/plain": "Box(...)", "text/html": still}
    notebook.metadata.widgets = {STATE: {"state": {"box": widget("VBoxModel", children=[])}}}
    freeze_widgets(notebook)
    html = notebook_html(notebook, Path())
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
