"""The attention explorer, worked as a user would: every control, by mouse and by keyboard; good and bad uploads."""

import io
import os
import re
from pathlib import Path

import pytest
from explorer import Explorer
from PIL import Image, ImageDraw
from playwright.sync_api import expect

pytestmark = pytest.mark.ui

# Back to the first option of each, every test begins.
START = ["Intervention", "Picture B", "Picture A", "Layer", "Maps of", "Channels", "Scale fits"]
# A control and one of its options (or its number), what is chosen before, and what only then the caption says.
CHOICES = [
    ("Picture A", 1, {}, "A is {option}"),
    ("Picture B", 3, {}, "B is {option}"),
    ("Layer", 1, {}, "attention in {option}"),
    ("Maps of", "its class, mean", {}, "mean over .* the class"),
    ("Channels", "one channel", {}, "channel 0 of"),
    ("Channels", "those that move most", {}, "channels that move most"),
    ("Intervention", "uniform", {}, "Intervention in all layers: 1/k²"),
    ("Intervention", "frozen to the mean", {}, "Intervention in all layers: .*mean"),
    ("Intervention", "attention of B", {"Picture B": 3}, "Intervention in all layers: .* B"),
    ("Intervention", "shuffled", {}, "Intervention in all layers: .*another"),
    ("Intervention", "one position removed", {}, "Intervention in all layers: .*centre"),
    ("Intervene in", "this layer", {"Intervention": "uniform"}, "Intervention in .* only: 1/k²"),
    ("Position", "top left", {"Intervention": "one position removed"}, "top left"),
]
OTHERS = ["Scale fits", "Channel", "Upload a picture", "Play", "Save figure and data"]


@pytest.fixture(scope="module")
def opened(open_notebook, request):
    notebook = open_notebook("notebooks/06_explore.ipynb", request)
    notebook.run_all()
    assert notebook.complaints() == []
    return Explorer(notebook)


@pytest.fixture
def explorer(opened):
    """The explorer as it is at first. Whatever a test does with it, nothing may show in red."""
    for name in START:
        opened.choose(name, opened.options(name)[0])
    yield opened
    assert opened.notebook.complaints() == []


def png(width, height):
    """The file of a picture: a ring."""
    image, file = Image.new("L", (width, height)), io.BytesIO()
    ImageDraw.Draw(image).ellipse((width // 4, height // 8, 3 * width // 4, 7 * height // 8), outline=255, width=4)
    image.save(file, "PNG")
    return file.getvalue()


def test_every_list_shows_what_is_chosen(opened):
    """First of all, before anything is chosen."""
    assert [name for name in opened.names(":is(select)") if not opened.control(name).input_value()] == []


def test_every_control_has_a_name_and_a_test(explorer):
    assert set(explorer.names()) == {name for name, *_ in CHOICES} | set(OTHERS)


def test_nothing_is_cut_off(explorer, tmp_path):
    """At the width of a laptop's window. What is seen is kept as the file that KAVIZ_SCREENSHOT names."""
    explorer.choose("Picture B", explorer.options("Picture B")[3])
    explorer.choose("Layer", explorer.options("Layer")[-1])
    explorer.choose("Channels", "those that move most")
    explorer.screenshot(Path(os.environ.get("KAVIZ_SCREENSHOT", tmp_path / "explorer.png")))
    assert explorer.cut_off() == []


@pytest.mark.parametrize(
    ("name", "option", "before", "said"), CHOICES, ids=[f"{name}-{to}" for name, to, *_ in CHOICES]
)
def test_a_choice_changes_the_picture_and_the_caption_says_so(explorer, name, option, before, said):
    def text(name, option):
        return explorer.options(name)[option] if isinstance(option, int) else option

    for other, chosen in before.items():
        explorer.choose(other, text(other, chosen))
    first = explorer.look()
    then = explorer.choose(name, text(name, option))
    said = said.format(option=re.escape(text(name, option).split(",")[0]))
    assert then.pixels != first.pixels
    assert re.search(said, then.caption)
    assert not re.search(said, first.caption)
    assert then.status == ""


def test_a_choice_taken_back_leaves_the_same_picture(explorer):
    first = explorer.look()
    explorer.choose("Intervention", "uniform")
    then = explorer.choose("Intervention", "none")
    assert (then.pixels, then.caption) == (first.pixels, first.caption)


def test_the_scale_fits_one_layer_or_all(explorer):
    changed = []
    for layer in explorer.options("Layer"):
        explorer.choose("Layer", layer)
        one, every = explorer.choose("Scale fits", "this layer"), explorer.choose("Scale fits", "all layers")
        assert "in this layer" in one.caption
        assert "in all layers" in every.caption
        changed.append(one.pixels != every.pixels)
    assert any(changed)  # not all: one of the layers has the maps that reach farthest


def test_a_channel_is_typed(explorer):
    first = explorer.choose("Channels", "one channel")
    explorer.control("Channel").fill("7")
    then = explorer.after(lambda: explorer.control("Channel").press("Enter"))
    assert then.pixels != first.pixels
    assert "channel 7 of" in then.caption


def test_the_layers_are_played(explorer):
    first, last = explorer.look(), explorer.options("Layer")[-1]
    play, stop, _ = explorer.box.locator(".widget-play button").all()
    explorer.after(play.click)
    expect(explorer.control("Layer")).to_have_value(last, timeout=30_000)
    then = explorer.look()
    assert then.pixels != first.pixels
    assert f"attention in {last}:" in then.caption
    assert explorer.after(stop.click).pixels == first.pixels


def test_an_uploaded_picture_is_shown_as_a(explorer):
    first = explorer.look()
    then = explorer.upload("ring <1>.png", png(200, 160))
    assert then.pixels != first.pixels
    assert "A is uploaded: ring <1>.png" in then.caption
    assert "ring <1>.png" in explorer.control("Picture A").input_value()
    assert then.status == ""


@pytest.mark.parametrize(
    "content",
    [b"This is a text.", png(200, 160)[:-100], png(20_000, 100), b""],
    ids=["no picture", "truncated", "20,000 pixels wide", "empty"],
)
def test_what_cannot_be_shown_is_said_in_a_line(explorer, content):
    first = explorer.look()
    then = explorer.upload("bad <1>.png", content)
    assert "bad <1>.png" in then.status
    assert "\n" not in then.status
    assert "Traceback" not in then.status
    assert (then.pixels, then.caption) == (first.pixels, first.caption)
    assert explorer.choose("Layer", explorer.options("Layer")[1]).status == ""


def test_an_intervention_that_lacks_its_picture_says_so(explorer):
    first = explorer.look()
    then = explorer.choose("Intervention", "attention of B")
    assert "picture B" in then.status
    assert then.pixels == first.pixels


def test_the_figure_and_its_data_are_saved(explorer, project):
    first = explorer.look()
    then = explorer.after(explorer.button("Save").click)
    assert then.pixels == first.pixels
    names = re.findall(r"[\w-]+\.(?:png|svg|pdf|csv)", then.status)
    assert sorted(Path(name).suffix for name in names) == [".csv", ".pdf", ".png", ".svg"]
    assert all([file.stat().st_size for file in project.rglob(name)] for name in names)


def test_it_is_worked_without_a_mouse(explorer):
    keyboard = explorer.page.keyboard
    explorer.choose("Channels", "one channel")
    explorer.control("Picture A").focus()
    reached = []
    for _ in range(explorer.box.locator("select:enabled, input:enabled, button:enabled").count()):
        reached += explorer.names(":focus")
        keyboard.press("Tab")
    assert list(dict.fromkeys(reached)) == explorer.names(":enabled")

    explorer.control("Channel").focus()
    number = int(explorer.control("Channel").input_value())
    assert f"channel {number + 1} of" in explorer.after(lambda: keyboard.press("ArrowUp")).caption

    def choose_next():  # JupyterLab takes the arrows of a list that is closed for its own
        explorer.control("Layer").focus()
        for key in ("Space", "ArrowDown", "Enter"):
            keyboard.press(key)

    assert f"attention in {explorer.options('Layer')[1]}:" in explorer.after(choose_next).caption

    explorer.button("Save").focus()
    assert "saved" in explorer.after(lambda: keyboard.press("Enter")).status
    explorer.button("Upload").focus()
    with explorer.page.expect_file_chooser():
        keyboard.press("Enter")
