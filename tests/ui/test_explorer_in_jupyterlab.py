"""The attention explorer in a real JupyterLab: what needs the kernel, by mouse and by keyboard; good and bad uploads.

What needs none is the same in a page, and tested there.
"""

import io
import os
import re
from functools import partial
from pathlib import Path

import pytest
from explorer import Explorer
from PIL import Image, ImageDraw

from kaviz.explorer.gallery import INTERVENTIONS

pytestmark = pytest.mark.ui


@pytest.fixture(scope="module")
def opened(open_notebook, request):
    notebook = open_notebook("notebooks/06_explore.ipynb", request)
    notebook.run_all()
    assert notebook.complaints() == []
    explorer = Explorer(notebook.page, notebook.panel)
    explorer.notebook = notebook
    return explorer


@pytest.fixture
def explorer(opened):
    """Whatever a test does with it, nothing may show in red."""
    yield opened
    assert opened.notebook.complaints() == []


def png(width, height):
    """The file of an image: a ring."""
    image, file = Image.new("L", (width, height)), io.BytesIO()
    ImageDraw.Draw(image).ellipse((width // 4, height // 8, 3 * width // 4, 7 * height // 8), outline=255, width=4)
    image.save(file, "PNG")
    return file.getvalue()


def upload(explorer, *files):
    with explorer.page.expect_file_chooser() as chooser:
        explorer.button("Upload images…").click()
    contents = [{"name": name, "mimeType": "image/png", "buffer": content} for name, content in files]
    return explorer.after(lambda: chooser.value.set_files(contents))


def test_it_is_shown_and_every_control_has_a_name(explorer, tmp_path):
    """First of all. What is seen is kept as the file that KAVIZ_SCREENSHOT names."""
    names = explorer.names()
    assert all(names)
    assert {"Intervention", "In", "Position", "Run", "Compute", "Upload images…"} <= set(names)
    path = Path(os.environ.get("KAVIZ_SCREENSHOT", tmp_path / "explorer.png"))
    height = explorer.box.bounding_box()["height"]
    explorer.page.evaluate("() => jupyterapp.shell.collapseLeft()")
    explorer.page.set_viewport_size({"width": 1400, "height": int(height) + 200})
    explorer.box.screenshot(path=path)


def test_a_choice_is_drawn_without_the_kernel(explorer):
    first = explorer.look()
    sort = partial(explorer.choose, "Sorted by", "channel number")
    for act in (explorer.layer(0).click, explorer.image(4).click, sort):
        act()
        then = explorer.look()
        assert then.pixels != first.pixels
        first = then


@pytest.mark.parametrize("kind", [kind for kind in INTERVENTIONS if kind != "none"])
def test_an_intervention_is_run_and_shown(explorer, kind):
    explorer.image(5).click(modifiers=["Shift"])
    explorer.choose("Attention", "the model's own")
    first = explorer.look()
    explorer.control("Intervention").select_option(kind)
    explorer.control("In").select_option("layer" if kind == "shuffled" else "all")
    then = explorer.after(explorer.button("Run").click)
    assert re.search(r"With .* of \d+ predictions change", then.status)
    assert then.pixels != first.pixels
    assert "(before " in explorer.box.locator(".kv-bars").first.inner_text()


def test_an_intervention_that_lacks_its_image_says_so(explorer):
    explorer.button("No B").click()
    explorer.control("Intervention").select_option("attention of B")
    assert "choose one" in explorer.after(explorer.button("Run").click).status


def test_one_position_is_removed(explorer):
    explorer.control("Intervention").select_option("one position removed")
    explorer.choose("Position", "top left")
    assert "top left removed" in explorer.after(explorer.button("Run").click).status


def test_an_attribution_is_computed(explorer):
    explorer.control("Attribution").last.select_option("saliency")
    then = explorer.after(explorer.button("Compute").click)
    assert "Saliency is computed" in then.status
    assert explorer.control("Attribution").first.input_value() == "Saliency"


def test_work_can_be_cancelled_while_the_controls_answer(explorer):
    explorer.control("Attribution").last.select_option("occlusion")
    explorer.button("Compute").click()
    explorer.button("Cancel").wait_for()
    first = explorer.look()
    explorer.image(8).click()
    assert explorer.look().pixels != first.pixels
    assert "Cancelled" in explorer.after(explorer.button("Cancel").click).status


def test_uploaded_images_are_shown_the_first_as_a(explorer):
    count = explorer.box.locator(".kv-frame").count()
    then = upload(explorer, ("ring <1>.png", png(200, 160)), ("flat.png", png(50, 160)), ("bad.png", b"text"))
    assert "2 images uploaded." in then.status
    assert "bad.png: it is in no known format" in then.status
    assert explorer.box.locator(".kv-frame").count() == count + 2
    assert "ring <1>.png" in explorer.box.locator(".kv-pair figcaption").first.inner_text()


@pytest.mark.parametrize(
    "content",
    [b"This is a text.", png(200, 160)[:-100], png(20_000, 100), b""],
    ids=["no image", "truncated", "20,000 pixels wide", "empty"],
)
def test_what_cannot_be_shown_is_said_in_a_line(explorer, content):
    count = explorer.box.locator(".kv-frame").count()
    explorer.image(0).click()
    then = upload(explorer, (f"bad <{len(content)}>.png", content))
    assert f"bad <{len(content)}>.png" in then.status
    assert "Traceback" not in then.status
    assert explorer.box.locator(".kv-frame").count() == count


def test_the_view_is_saved(explorer):
    with explorer.page.expect_download() as waiting:
        explorer.button("Save as PNG").click()
    assert Path(waiting.value.path()).read_bytes()[:4] == b"\x89PNG"


def test_it_is_worked_without_a_mouse(explorer):
    explorer.page.on("filechooser", lambda chooser: None)  # listened to before the key
    keyboard = explorer.page.keyboard
    explorer.layer(1).locator("input").focus()
    keyboard.press("Home")
    first = explorer.look()
    keyboard.press("ArrowRight")
    assert explorer.look().pixels != first.pixels
    explorer.grid().focus()
    keyboard.press("ArrowRight")
    keyboard.press("Enter")
    assert explorer.section("Pinned channels").is_visible()
    explorer.control("Intervention").select_option("uniform")
    explorer.button("Run").focus()
    assert "predictions change" in explorer.after(lambda: keyboard.press("Enter")).status
    explorer.button("Upload images…").focus()
    with explorer.page.expect_file_chooser():
        keyboard.press("Enter")
